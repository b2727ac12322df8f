//! Text of a file or a caller on its way into a message of one line.

use std::fmt::{self, Display, Write};

/// Whether a terminal takes a character for an order: to move, to colour, to begin a line, to write from right to left.
pub(crate) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A value whose characters that [steer](steers) are written escaped.
pub(crate) struct Line<T> {
    value: T,
    longest: usize,
}

impl<T: Display> Line<T> {
    /// All of it.
    #[cfg(feature = "cli")]
    pub(crate) fn whole(value: T) -> Self {
        let longest = usize::MAX;
        Line { value, longest }
    }

    /// At most 800 bytes of it, and a mark where there are more.
    pub(crate) fn short(value: T) -> Self {
        let longest = 800;
        Line { value, longest }
    }
}

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Escaping {
            out: f,
            room: Some(self.longest),
        };
        write!(out, "{}", self.value)
    }
}

struct Escaping<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    /// Bytes that may still be written; `None` after the mark of what is left out.
    room: Option<usize>,
}

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let Some(room) = self.room else {
                return Ok(());
            };
            let escaped = steers(c).then(|| c.escape_default());
            let taken = escaped
                .as_ref()
                .map_or(c.len_utf8(), ExactSizeIterator::len);
            self.room = room.checked_sub(taken);
            match (self.room, escaped) {
                (None, _) => self.out.write_char('…')?,
                (_, Some(escaped)) => write!(self.out, "{escaped}")?,
                (_, None) => self.out.write_char(c)?,
            }
        }
        Ok(())
    }
}
