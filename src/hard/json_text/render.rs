//! What is left of a JSON text, spliced from its own bytes.

use std::ops::Range;

use super::tree::{Kind, Tree, decode, encode_like};
use super::units::Outline;

/// What stands for the items that an array lost: one element, at the place of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Omission {
    /// Nothing.
    #[default]
    Silent,
    /// The string "…".
    Element,
    /// A string that says how many of how many.
    Count,
}

/// Which units stay.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Selection {
    pub kept: Vec<bool>,
    /// A fragment that stays up to this byte of the text.
    pub cut: Option<(usize, usize)>,
}

/// A text under construction, and the bytes of the source that it was made of.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rendered {
    pub text: String,
    /// Ascending; what is copied in one go is one range.
    pub spans: Vec<Range<usize>>,
}

/// The text that a selection leaves. Containers of which nothing stays are dropped with their names,
/// except for the root.
pub(crate) fn render(
    tree: &Tree,
    outline: &Outline,
    selection: &Selection,
    omission: Omission,
) -> Rendered {
    let kept = &selection.kept;
    let mut counts = vec![0_usize; kept.len() + 1];
    for (unit, &kept) in kept.iter().enumerate() {
        counts[unit + 1] = counts[unit] + usize::from(kept);
    }
    let mut writer = Writer {
        tree,
        outline,
        selection,
        omission,
        counts,
        out: Rendered::default(),
    };
    let root = tree.nodes[0].value.clone();
    if writer.all(0) {
        writer.copy(0..tree.text.len());
    } else {
        writer.copy(0..root.start);
        writer.value(0);
        writer.copy(root.end..tree.text.len());
    }
    writer.out
}

struct Writer<'a> {
    tree: &'a Tree<'a>,
    outline: &'a Outline,
    selection: &'a Selection,
    omission: Omission,
    /// How many units before each one are kept.
    counts: Vec<usize>,
    out: Rendered,
}

impl Writer<'_> {
    /// How many of a value's units stay.
    fn kept(&self, node: usize) -> usize {
        let units = self.outline.units_of(node);
        self.counts[units.end] - self.counts[units.start]
    }

    /// Whether nothing of a value is dropped.
    fn all(&self, node: usize) -> bool {
        let units = self.outline.units_of(node);
        let cut = self.selection.cut;
        self.kept(node) == units.len() && cut.is_none_or(|(unit, _)| !units.contains(&unit))
    }

    fn copy(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.out.text.push_str(&self.tree.text[range.clone()]);
        match self.out.spans.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.out.spans.push(range),
        }
    }

    fn value(&mut self, node: usize) {
        let Range { start, end } = self.tree.nodes[node].value;
        if self.all(node) {
            return self.copy(start..end);
        }
        match self.tree.nodes[node].kind {
            Kind::Object | Kind::Array => self.container(node),
            Kind::String => self.string(node),
            // A number, `true` or `null` is whole; only the root is written where it is not kept.
            Kind::Other => self.copy(start..end),
        }
    }

    fn container(&mut self, node: usize) {
        let (tree, value) = (self.tree, &self.tree.nodes[node]);
        let children = value.children.clone();
        if children.is_empty() {
            return self.copy(value.value.clone());
        }
        let element = |child: usize| tree.nodes[child].element();
        let kept = children.clone().filter(|&c| self.kept(c) > 0).count();
        let dropped = children.len() - kept;
        let note = match (value.kind, self.omission) {
            (Kind::Array, Omission::Element) => Some("…".to_string()),
            (Kind::Array, Omission::Count) => {
                Some(format!("… {dropped} of {} items omitted", children.len()))
            }
            _ => None,
        };
        let mut note = note.filter(|_| dropped > 0);
        if kept == 0 && note.is_none() {
            self.copy(value.value.start..value.value.start + 1);
            return self.copy(value.value.end - 1..value.value.end);
        }
        self.copy(value.value.start..element(children.start).start);
        let mut first = true;
        for child in children.clone() {
            let stays = self.kept(child) > 0;
            if !stays && note.is_none() {
                continue;
            }
            if !first {
                // The comma before a child stays with it, and the white space around that.
                self.copy(element(child - 1).end..element(child).start);
            }
            first = false;
            if stays {
                self.copy(element(child).start..tree.nodes[child].value.start);
                self.value(child);
            } else if let Some(note) = note.take() {
                self.out.text.push_str(&encode_like(&note, "\u{2026}"));
            }
        }
        self.copy(element(children.end - 1).end..value.value.end);
    }

    /// The sentences of a string that stay. Their own white space parts them.
    fn string(&mut self, node: usize) {
        let value = self.tree.nodes[node].value.clone();
        let units = self.outline.units_of(node);
        let mut stays: Vec<Range<usize>> = Vec::new();
        for unit in units.clone() {
            let range = self.outline.units[unit].range.clone();
            match self.selection.cut {
                Some((cut, end)) if cut == unit => stays.push(range.start..end),
                _ if self.selection.kept[unit] => stays.push(range),
                _ => {}
            }
        }
        if let Some(last) = stays.last_mut()
            && last.end + 1 != value.end
        {
            last.end = trimmed(self.tree.text, last.clone());
        }
        self.copy(value.start..value.start + 1);
        for range in stays {
            self.copy(range);
        }
        self.copy(value.end - 1..value.end);
    }
}

/// The end of a stretch of a string's literal without the white space there.
fn trimmed(text: &str, stretch: Range<usize>) -> usize {
    let literal = format!("\"{}\"", &text[stretch.clone()]);
    match decode(&literal) {
        // The quote in front is a byte more than in the text.
        Some(decoded) => stretch.start + decoded.raw(decoded.text.trim_end().len()) - 1,
        None => stretch.end,
    }
}
