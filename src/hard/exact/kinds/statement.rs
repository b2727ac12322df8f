//! What source code is cut into, however it is found.

use std::ops::Range;

/// Lines that one statement may take in brackets or as a chain of calls before it is cut.
pub(super) const LONG_STATEMENT: usize = 12;
/// Lines that a string or a comment may take before it is cut.
pub(super) const LONG_LITERAL: usize = 40;

/// Lines that are one statement, with its comment-ness and the literal that it is a line of.
#[derive(Debug)]
pub(super) struct Statement {
    pub range: Range<usize>,
    pub comment: bool,
    /// For a line inside a literal that was too long for one statement: its first and last.
    pub literal: Option<(usize, usize)>,
}
