//! What the steps of a compression are given.

use crate::hard::options::Exact as Options;
use crate::model::Scorer;
use crate::text::Tokenizer;

/// What every step needs.
pub(crate) struct Exact<'a> {
    pub lm: &'a dyn Scorer,
    pub tokenizer: &'a Tokenizer,
    pub options: &'a Options,
}

/// The parts that always stay, around the contexts.
pub(super) struct Frame<'a> {
    pub instruction: &'a str,
    pub question: &'a str,
}

impl Frame<'_> {
    /// Instruction, what is left of the contexts, question: joined by blank lines, empty ones left out.
    pub fn around<'t>(&'t self, contexts: impl IntoIterator<Item = &'t str>) -> String {
        let parts: Vec<&str> = std::iter::once(self.instruction)
            .chain(contexts)
            .chain([self.question])
            .filter(|part| !part.is_empty())
            .collect();
        parts.join("\n\n")
    }
}
