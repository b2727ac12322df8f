//! The kept atoms of a context as text again.

use std::ops::Range;

use crate::hard::json_text::Omission;
use crate::hard::json_text::render::{Form, Marks, Place, Spliced, Stay};
use crate::hard::source::push_span;

use super::finish::Rendered;
use super::units::{Parsed, Space};

/// What a render goes by besides the mask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style<'a> {
    /// Put where something was dropped; `None`: only in code, as a comment.
    pub mark: Option<&'a str>,
    /// Put where a JSON array lost items.
    pub omission: Omission,
    /// The context is the only one: of JSON something stays, however little.
    pub sole: bool,
}

/// What is put into a comment where lines of code were dropped.
const CODE_MARK: &str = "…";

impl Rendered {
    fn push(&mut self, context: &str, range: Range<usize>) {
        if !range.is_empty() {
            self.text.push_str(&context[range.clone()]);
            push_span(&mut self.spans, range);
        }
    }
}

/// Part of an atom that stays although the rest of it does not: its index and the end of the part.
pub(super) type Partial = Option<(usize, usize)>;

/// Gives the text of the atoms that `mask` keeps.
///
/// Where something was dropped, the widest white space of the gap stands for it, and what had none
/// but would run together gets a space. `verbatim` names the atoms whose white space must stay, also
/// where they are dropped themselves.
pub(super) fn render(
    context: &str,
    parsed: &Parsed,
    mask: &[bool],
    partial: Partial,
    verbatim: &[bool],
    style: Style,
) -> Rendered {
    if mask.iter().all(|&kept| kept) {
        return Rendered::verbatim(context, 0..context.len());
    }
    if let Some(form) = &parsed.json {
        return render_json(form, context, parsed, mask, style);
    }
    let mut out = Rendered {
        text: String::new(),
        spans: Vec::new(),
    };
    // What was dropped since the last kept atom.
    let mut gap = Gap::default();
    // White space after the last kept atom: it stays if the next one does.
    let mut space = 0..0;
    for (i, atom) in parsed.atoms.iter().enumerate() {
        let part = partial.filter(|&(at, _)| at == i).map(|(_, end)| end);
        if mask[i] || part.is_some() {
            if gap.open {
                gap.close(&mut out, context, parsed, i, style);
            } else {
                out.push(context, space.clone());
            }
            let mut start = atom.range.start;
            if out.spans.is_empty() && !verbatim[i] {
                // Blank lines in front go, the indentation of a line stays.
                let own = &context[atom.range.clone()];
                let lead = &own[..own.len() - own.trim_start().len()];
                start += match (lead.rfind('\n'), parsed.units[atom.sentence].whole) {
                    (Some(at), true) => at + 1,
                    (None, true) => 0,
                    (_, false) => lead.len(),
                };
            }
            let end = part.unwrap_or(atom.visible_end).max(start);
            out.push(context, start..end);
            gap = Gap::default();
            space = end..if part.is_some() { end } else { atom.range.end };
            if part.is_some() {
                gap.add(atom.space, i, true);
            } else if verbatim[i] {
                out.push(context, space.clone());
                space = atom.range.end..atom.range.end;
            }
            continue;
        }
        if !gap.open {
            gap.add(Space::of(&context[space.clone()]), i, false);
        }
        if verbatim[i] {
            let own = &context[atom.range.clone()];
            let lead = own.len() - own.trim_start().len();
            // White space alone is all lead.
            if lead < own.len() {
                out.push(context, atom.range.start..atom.range.start + lead);
            }
            out.push(
                context,
                atom.visible_end.max(atom.range.start)..atom.range.end,
            );
        }
        let blank = atom.visible_end <= atom.range.start;
        gap.add(atom.space, i, !blank);
    }
    if gap.open && !out.spans.is_empty() {
        gap.end(&mut out, context, parsed, style);
    }
    out
}

/// Gives the JSON that the kept atoms of a JSON text leave.
fn render_json(
    form: &Form,
    context: &str,
    parsed: &Parsed,
    mask: &[bool],
    style: Style,
) -> Rendered {
    let stay = |(atoms, place): (&Range<usize>, &Place)| {
        let kept = mask[atoms.clone()].iter().filter(|&&kept| kept).count();
        if kept == 0 {
            Stay::Nothing
        } else if kept == atoms.len() || !place.in_string {
            Stay::All
        } else {
            let own = atoms.clone().filter(|&atom| mask[atom]);
            Stay::Parts(own.map(|atom| parsed.atoms[atom].range.clone()).collect())
        }
    };
    let stays: Vec<Stay> = parsed.atoms_of.iter().zip(&form.places).map(stay).collect();
    if !style.sole && stays.iter().all(|stay| *stay == Stay::Nothing) {
        return Rendered {
            text: String::new(),
            spans: Vec::new(),
        };
    }
    let marks = Marks {
        mark: style.mark,
        omission: style.omission,
    };
    let Spliced { text, spans } = form.render(context, &stays, marks);
    Rendered { text, spans }
}

/// A stretch of dropped atoms.
#[derive(Debug, Default)]
struct Gap {
    open: bool,
    /// The widest white space in it and around it.
    space: Option<Space>,
    /// The first atom of it.
    first: usize,
    /// It holds more than white space.
    shown: bool,
}

impl Gap {
    fn add(&mut self, space: Space, atom: usize, shown: bool) {
        if !self.open {
            self.first = atom;
        }
        self.open = true;
        self.shown |= shown;
        self.space = self.space.max(Some(space));
    }

    /// Puts what stands for the gap in front of atom `next`.
    fn close(&self, out: &mut Rendered, context: &str, parsed: &Parsed, next: usize, style: Style) {
        let mark = self.mark(context, parsed, Some(next), style, out.spans.is_empty());
        let start = parsed.atoms[next].range.start;
        let here = context[start..].chars().next();
        let parted = out.text.is_empty() || out.text.ends_with(char::is_whitespace);
        let between = match self.space {
            Some(Space::Paragraph) => "\n\n",
            Some(Space::Line) => "\n",
            // White space that the next atom begins with parts them.
            _ if here.is_some_and(char::is_whitespace) && mark.is_empty() => "",
            Some(Space::Inline) => " ",
            _ if !mark.is_empty() || touch(out.text.chars().next_back(), here) => " ",
            _ => "",
        };
        if !parted {
            out.text.push_str(between);
        }
        if !mark.is_empty() {
            out.text.push_str(&mark);
            out.text.push_str(match between {
                "\n" | "\n\n" => "\n",
                _ => " ",
            });
        }
    }

    /// Puts a mark at the end of the text.
    fn end(&self, out: &mut Rendered, context: &str, parsed: &Parsed, style: Style) {
        let mark = self.mark(context, parsed, None, style, false);
        if !mark.is_empty() {
            if !out.text.ends_with(char::is_whitespace) {
                out.text.push_str(match self.space {
                    Some(Space::Paragraph) => "\n\n",
                    Some(Space::Line) => "\n",
                    _ => " ",
                });
            }
            out.text.push_str(&mark);
        }
    }

    /// The mark for the gap, which may be none.
    fn mark(
        &self,
        context: &str,
        parsed: &Parsed,
        next: Option<usize>,
        style: Style,
        start: bool,
    ) -> String {
        let unit = |atom: usize| &parsed.units[parsed.atoms[atom].sentence];
        let comment = |atom: usize| unit(atom).comment;
        let before = self.first.checked_sub(1).filter(|_| !start).map(comment);
        let after = next.map(comment);
        // A comment can stand where both neighbours are code.
        let leader = match (before, after) {
            (Some(a), Some(b)) => a.filter(|_| b.is_some()),
            (a, b) => a.or(b).flatten(),
        };
        let lines = self.space >= Some(Space::Line);
        if !self.shown || style.mark.is_some_and(str::is_empty) {
            return String::new();
        }
        match (leader, style.mark) {
            (Some(leader), mark) if lines => {
                let own = &context[parsed.atoms[self.first].range.clone()];
                let line = own.trim_start_matches(['\n', '\r']);
                let indent = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
                format!("{indent}{leader} {}", mark.unwrap_or(CODE_MARK))
            }
            (_, Some(mark)) => mark.to_string(),
            _ => String::new(),
        }
    }
}

/// Whether two characters that stood apart would read as one word or figure.
fn touch(before: Option<char>, after: Option<char>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return false;
    };
    let figure =
        |a: char, b: char| a.is_numeric() && !matches!(b, '。' | '、' | '，' | '」' | '）' | ')');
    before.is_alphanumeric() && after.is_alphanumeric()
        || figure(before, after)
        || figure(after, before)
}
