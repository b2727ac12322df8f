//! What is left of a JSON text, spliced from its own bytes.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::tree::{Kind, Node, Tree, decode, encode_like};

/// What stands for the items that a JSON array lost: one element, in the place of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
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

/// A unit of a text: a value with its name, or a stretch of a long string.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// Its bytes; none for what stands between units.
    pub bytes: Range<usize>,
    /// A stretch inside a string's quotes.
    pub in_string: bool,
}

/// How a text is built of its units.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub nodes: Vec<Node>,
    /// The units in the order of the text.
    pub places: Vec<Place>,
    /// For each node its units; a container's are those of all that it holds. Nodes inside of a unit have
    /// none of their own.
    pub units: Vec<Range<usize>>,
}

/// What stays of a unit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Stay {
    Nothing,
    All,
    /// These bytes of the text, ascending: only of stretches of strings.
    Parts(Vec<Range<usize>>),
}

/// What is put where something was dropped.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Marks<'a> {
    /// Inside strings.
    pub mark: Option<&'a str>,
    /// In arrays.
    pub omission: Omission,
}

/// A text and the bytes of the source that it was made of.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Spliced {
    pub text: String,
    /// Ascending; what is copied in one go is one range.
    pub spans: Vec<Range<usize>>,
}

impl Form {
    /// The text that is left where `stays` says what stays of each unit. Containers and strings of which
    /// nothing stays are dropped with their names, except for the root.
    pub fn render(&self, text: &str, stays: &[Stay], marks: Marks) -> Spliced {
        // How many units before each one there are, and are kept, and are kept whole.
        let mut counts = vec![[0; 3]; stays.len() + 1];
        for (unit, stay) in stays.iter().enumerate() {
            let real = usize::from(!self.places[unit].bytes.is_empty());
            let [all, kept, whole] = counts[unit];
            let (some, every) = (*stay != Stay::Nothing, *stay == Stay::All);
            counts[unit + 1] = [
                all + real,
                kept + real * usize::from(some),
                whole + real * usize::from(every),
            ];
        }
        let mut writer = Writer {
            form: self,
            tree: Tree {
                text,
                nodes: Cow::Borrowed(&self.nodes),
            },
            stays,
            marks,
            counts,
            out: Spliced::default(),
        };
        let root = self.nodes[0].value.clone();
        writer.copy(0..root.start);
        writer.value(0);
        writer.copy(root.end..text.len());
        writer.out
    }
}

struct Writer<'a> {
    form: &'a Form,
    tree: Tree<'a>,
    stays: &'a [Stay],
    marks: Marks<'a>,
    counts: Vec<[usize; 3]>,
    out: Spliced,
}

impl Writer<'_> {
    /// How many units a value has, how many of them stay, and how many stay whole.
    fn counts(&self, node: usize) -> [usize; 3] {
        let Range { start, end } = self.form.units[node];
        std::array::from_fn(|i| self.counts[end][i] - self.counts[start][i])
    }

    fn stays(&self, node: usize) -> bool {
        self.counts(node)[1] > 0
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
        let value = self.form.nodes[node].value.clone();
        let [all, _, whole] = self.counts(node);
        if all == whole {
            return self.copy(value);
        }
        match self.form.nodes[node].kind {
            Kind::Object | Kind::Array => self.container(node),
            Kind::String => self.string(node),
            // A number, `true` or `null` is whole; where it is the root it stays.
            Kind::Other => self.copy(value),
        }
    }

    fn container(&mut self, node: usize) {
        let form = self.form;
        let value = &form.nodes[node];
        let children = value.children.clone();
        if children.is_empty() {
            return self.copy(value.value.clone());
        }
        let element = |child: usize| form.nodes[child].element();
        let kept = children.clone().filter(|&child| self.stays(child)).count();
        let dropped = children.len() - kept;
        let note = match (value.kind, self.marks.omission) {
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
            let stays = self.stays(child);
            if !stays && note.is_none() {
                continue;
            }
            if !first {
                // The comma before a child stays with it, and the white space around that.
                self.copy(element(child - 1).end..element(child).start);
            }
            first = false;
            if stays {
                self.copy(element(child).start..form.nodes[child].value.start);
                self.value(child);
            } else if let Some(note) = note.take() {
                self.out.text.push_str(&encode_like(&note, "\u{2026}"));
            }
        }
        self.copy(element(children.end - 1).end..value.value.end);
    }

    /// What stays of a string.
    fn string(&mut self, node: usize) {
        let value = self.form.nodes[node].value.clone();
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut add = |part: Range<usize>| match parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => parts.push(part),
        };
        for unit in self.form.units[node].clone() {
            match &self.stays[unit] {
                Stay::Nothing => {}
                Stay::All => add(self.form.places[unit].bytes.clone()),
                Stay::Parts(own) => own.iter().cloned().for_each(&mut add),
            }
        }
        let inside = value.start + 1..value.end - 1;
        self.copy(value.start..inside.start);
        let mut done = inside.start;
        for part in parts {
            // White space at a part's ends belongs to the gaps there.
            let shown = visible(self.tree.text, part.clone());
            if shown.is_empty() {
                continue;
            }
            let mut start = part.start;
            if start > done {
                start = shown.start;
                self.gap(done..start, done == inside.start);
            }
            done = if part.end == inside.end {
                part.end
            } else {
                shown.end
            };
            self.copy(start..done);
        }
        if done < inside.end {
            self.mark(done..inside.end, done == inside.start, true);
        }
        self.copy(inside.end..value.end);
    }

    /// Puts what stands for dropped text in front of what follows it: its widest white space, a mark, or
    /// a space where words would run together.
    fn gap(&mut self, gap: Range<usize>, at_start: bool) {
        let literal = format!("\"{}\"", &self.tree.text[gap.clone()]);
        let blank = decode(&literal).is_some_and(|gap| gap.text.trim().is_empty());
        if (!blank && self.mark(gap.clone(), at_start, false)) || at_start {
            return;
        }
        let between = self.between(gap);
        self.out.text.push_str(between);
    }

    /// White space for a gap, as a string's literal has it.
    fn between(&self, gap: Range<usize>) -> &'static str {
        let literal = format!("\"{}\"", &self.tree.text[gap.clone()]);
        let text = decode(&literal).map_or(String::new(), |decoded| decoded.text.into_owned());
        let joined = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        if text.contains("\n\n") {
            "\\n\\n"
        } else if text.contains('\n') {
            "\\n"
        } else if text.contains(char::is_whitespace)
            || joined(self.out.text.chars().next_back())
                && joined(self.tree.text[gap.end..].chars().next())
        {
            " "
        } else {
            ""
        }
    }

    /// Puts the mark for a gap, if there is one; says whether it did.
    fn mark(&mut self, gap: Range<usize>, at_start: bool, at_end: bool) -> bool {
        let Some(mark) = self.marks.mark.filter(|mark| !mark.is_empty()) else {
            return false;
        };
        let between = match self.between(gap) {
            "" => " ",
            other => other,
        };
        let literal = encode_like(mark, mark);
        if !at_start {
            self.out.text.push_str(between);
        }
        self.out.text.push_str(&literal[1..literal.len() - 1]);
        if !at_end {
            self.out.text.push_str(between);
        }
        true
    }
}

/// A stretch of a string's literal without the white space at its ends.
fn visible(text: &str, stretch: Range<usize>) -> Range<usize> {
    let literal = format!("\"{}\"", &text[stretch.clone()]);
    let Some(decoded) = decode(&literal) else {
        return stretch;
    };
    // The quote in front is a byte more than in the text.
    let place = |at: usize| stretch.start + decoded.raw(at) - 1;
    let end = decoded.text.trim_end().len();
    let start = decoded.text[..end].len() - decoded.text[..end].trim_start().len();
    place(start)..place(end)
}
