//! The original prompt with marks on what was dropped, for a terminal or, without colour, as
//! `[-brackets-]`.

use std::fmt::Write;

use crate::hard::Piece;
use anstyle::{Effects, Style};

/// Pieces next to each other that share a fate, as one text each.
pub fn runs(pieces: &[Piece]) -> Vec<(bool, String)> {
    let mut runs: Vec<(bool, String)> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some((kept, text)) if *kept == piece.kept => text.push_str(&piece.text),
            _ => runs.push((piece.kept, piece.text.clone())),
        }
    }
    runs
}

/// `c` as it may be shown: a control character would steer the terminal (or be forbidden in a
/// page), so its picture stands for it.
pub fn visible(c: char) -> Option<char> {
    match c {
        '\n' | '\t' => Some(c),
        '\r' => None,
        '\0'..'\x20' => char::from_u32(0x2400 + c as u32),
        '\x7f' => Some('\u{2421}'),
        '\u{80}'..='\u{9f}' => Some(char::REPLACEMENT_CHARACTER),
        // Embeddings, overrides and isolates of the writing direction would reorder what follows.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => Some(char::REPLACEMENT_CHARACTER),
        _ => Some(c),
    }
}

/// The whole text. Kept parts are plain; dropped ones dimmed and struck through, or in `[-…-]`.
pub fn render(pieces: &[Piece], colour: bool) -> String {
    let dropped = Style::new().effects(Effects::DIMMED | Effects::STRIKETHROUGH);
    let mut out = String::new();
    for (kept, text) in runs(pieces) {
        let text: String = text.chars().filter_map(visible).collect();
        if kept {
            out.push_str(&text);
        } else if !colour {
            out.push_str("[-");
            out.push_str(&text);
            out.push_str("-]");
        } else {
            // Line by line: a pager forgets a style at the end of a line.
            for line in text.split_inclusive('\n') {
                let (words, end) = match line.strip_suffix('\n') {
                    Some(words) => (words, "\n"),
                    None => (line, ""),
                };
                if !words.is_empty() {
                    let _ = write!(out, "{dropped}{words}{dropped:#}");
                }
                out.push_str(end);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, kept: bool) -> Piece {
        Piece {
            text: text.into(),
            kept,
            nll: None,
        }
    }

    #[test]
    fn without_colour_neighbours_that_were_dropped_share_one_pair_of_brackets() {
        let pieces = [
            piece("The", true),
            piece(" old", false),
            piece(" red", false),
            piece(" fox", true),
        ];
        assert_eq!(render(&pieces, false), "The[- old red-] fox");
        assert_eq!(render(&[], false), "");
    }

    #[test]
    fn colour_is_closed_at_every_line_end_and_kept_text_has_none() {
        let pieces = [piece("a\n", true), piece("b\n\nc", false), piece("d", true)];
        let text = render(&pieces, true);
        assert_eq!(
            text,
            "a\n\u{1b}[2m\u{1b}[9mb\u{1b}[0m\n\n\u{1b}[2m\u{1b}[9mc\u{1b}[0md"
        );
    }

    #[test]
    fn a_text_cannot_steer_the_terminal() {
        let pieces = [piece("\u{1b}[2J\u{9b}1m\r\n\u{202e}\x07é🦀", true)];
        assert_eq!(render(&pieces, true), "␛[2J\u{fffd}1m\n\u{fffd}␇é🦀");
    }
}
