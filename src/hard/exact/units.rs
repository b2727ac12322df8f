//! A context taken apart: units by its kind, and the words in them.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::hard::json_text::render::Form;
use crate::text::Tokenizer;

use super::kinds::{Layout, Unit};
pub(super) use super::words::unspaced;
use super::words::words;

/// White space after an atom, by how much it parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Space {
    None,
    Inline,
    Line,
    /// A blank line.
    Paragraph,
}

impl Space {
    /// What white space does.
    pub fn of(space: &str) -> Space {
        match space.bytes().filter(|&b| b == b'\n').count() {
            0 if space.is_empty() => Space::None,
            0 => Space::Inline,
            1 => Space::Line,
            _ => Space::Paragraph,
        }
    }
}

/// The smallest stretch that is kept or dropped: a word with the white space after it, or a unit that
/// is never cut.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Atom {
    /// Bytes of the context.
    pub range: Range<usize>,
    /// Where the white space at its end begins.
    pub visible_end: usize,
    pub space: Space,
    /// Tokens of the context.
    pub tokens: Range<usize>,
    /// Index of its unit in the context.
    pub sentence: usize,
    /// Index of its word in the context.
    pub word: usize,
}

/// A context, taken apart.
#[derive(Debug)]
pub(super) struct Parsed {
    pub ids: Vec<u32>,
    /// Bytes of each token.
    pub spans: Vec<Range<usize>>,
    pub atoms: Vec<Atom>,
    pub units: Vec<Unit>,
    /// The byte ranges of the units, gapless: white space belongs to the unit before it.
    pub sentences: Vec<Range<usize>>,
    /// For each unit its atoms.
    pub atoms_of: Vec<Range<usize>>,
    /// How the units of a JSON text make one again.
    pub json: Option<Arc<Form>>,
}

impl Parsed {
    /// Takes `text` apart by its layout, and counts the scorer's tokens to it.
    pub fn new(tokenizer: &Tokenizer, text: &str, layout: Layout) -> Result<Self> {
        let encoding = tokenizer.encode(text, false, false)?;
        let mut atoms: Vec<Atom> = Vec::new();
        let mut atoms_of = Vec::with_capacity(layout.units.len());
        let mut glued = layout.glued.iter().peekable();
        for (sentence, unit) in layout.units.iter().enumerate() {
            let first = atoms.len();
            let own = &text[unit.range.clone()];
            let base = unit.range.start;
            let mut inside = Vec::new();
            while let Some(range) = glued.next_if(|g| g.start < unit.range.end) {
                inside.push(range.start.saturating_sub(base)..range.end.saturating_sub(base));
            }
            let ranges = match unit.whole {
                true => vec![0..own.len()],
                false => words(own, &inside),
            };
            for range in ranges {
                let shown = own[range.clone()].trim_end().len();
                let visible_end = base + range.start + shown;
                let range = base + range.start..base + range.end;
                atoms.push(Atom {
                    visible_end,
                    space: Space::of(&text[visible_end..range.end]),
                    range,
                    tokens: 0..0,
                    sentence,
                    word: atoms.len(),
                });
            }
            atoms_of.push(first..atoms.len());
        }
        // A token that starts with the space before a word is that word's.
        let mut token = 0;
        for atom in &mut atoms {
            let first = token;
            while let Some(span) = encoding.spans.get(token) {
                let piece =
                    &text[text.ceil_char_boundary(span.start)..text.ceil_char_boundary(span.end)];
                let space = piece.len() - piece.trim_start().len();
                let shown = span.start + if space < piece.len() { space } else { 0 };
                if shown >= atom.range.end {
                    break;
                }
                token += 1;
            }
            atom.tokens = first..token;
        }
        if let Some(last) = atoms.last_mut() {
            last.tokens.end = encoding.ids.len();
        }
        Ok(Parsed {
            ids: encoding.ids,
            spans: encoding.spans,
            atoms,
            sentences: layout.units.iter().map(|u| u.range.clone()).collect(),
            units: layout.units,
            atoms_of,
            json: layout.json,
        })
    }

    /// The tokens of a unit; one on the border belongs to the unit in which its first visible
    /// character stands.
    pub fn sentence_tokens(&self, sentence: usize) -> Range<usize> {
        let atoms = &self.atoms[self.atoms_of[sentence].clone()];
        match (atoms.first(), atoms.last()) {
            (Some(first), Some(last)) => first.tokens.start..last.tokens.end,
            _ => 0..0,
        }
    }
}
