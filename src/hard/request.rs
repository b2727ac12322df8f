//! What hard compression is asked for: a prompt, a budget and a mode.

use super::options::Mode;
use crate::error::{Error, Result};

/// How much of a prompt is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// Share of the prompt's tokens, above 0 and at most 1.
    Rate(f64),
    /// Tokens.
    ///
    /// [`Mode::Exact`] counts the whole result, [`Mode::LlmLingua`] the contexts alone, by the scorer's
    /// tokens, [`Mode::LlmLingua2`] the contexts in cl100k_base tokens.
    Tokens(usize),
}

impl Default for Budget {
    fn default() -> Self {
        Budget::Rate(0.5)
    }
}

/// A prompt to shorten, to what length, and how.
///
/// ```
/// use prefold::hard::{LlmLingua, Request};
///
/// let request = Request::new(["A long document.", "Another one."])
///     .with_question("What do they say?")
///     .with_tokens(300);
/// let as_llmlingua = request.clone().with_mode(LlmLingua::default());
/// assert!(request.check().is_ok());
/// assert!(request.with_rate(1.5).check().is_err());
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// Kept whole, in front.
    pub instruction: String,
    /// The documents or demonstrations to compress.
    pub contexts: Vec<String>,
    /// Kept whole, at the end, unless the mode's options leave it out.
    pub question: String,
    /// The contexts carry `<llmlingua, rate=0.4, compress=True>…</llmlingua>` tags.
    ///
    /// [`Mode::Exact`] takes text outside of tags at the budget's rate, and a segment may hold anything
    /// up to its `</llmlingua>`. Without [`Budget::Tokens`] the budget is what the segments' own rates
    /// leave, at least what must be kept. [`Mode::LlmLingua`] does as the reference does: it loses
    /// segments that hold a `<`, and text between tags.
    pub structured: bool,
    /// How much is kept.
    pub budget: Budget,
    /// What selects the text to keep.
    pub mode: Mode,
}

impl Request {
    /// Asks for half of these contexts, in the default mode.
    pub fn new<S: Into<String>>(contexts: impl IntoIterator<Item = S>) -> Self {
        Request {
            contexts: contexts.into_iter().map(Into::into).collect(),
            ..Request::default()
        }
    }

    /// Sets the text that is kept whole, in front.
    #[must_use]
    pub fn with_instruction(mut self, instruction: impl Into<String>) -> Self {
        self.instruction = instruction.into();
        self
    }

    /// Sets the text that ranks the contexts and is kept whole, at the end.
    #[must_use]
    pub fn with_question(mut self, question: impl Into<String>) -> Self {
        self.question = question.into();
        self
    }

    /// Says whether the contexts carry tags.
    #[must_use]
    pub fn with_structured(mut self, structured: bool) -> Self {
        self.structured = structured;
        self
    }

    /// Sets the budget.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Sets the share of the tokens to keep: [`Budget::Rate`].
    #[must_use]
    pub fn with_rate(self, rate: f64) -> Self {
        self.with_budget(Budget::Rate(rate))
    }

    /// Sets the number of tokens to keep: [`Budget::Tokens`].
    #[must_use]
    pub fn with_tokens(self, tokens: usize) -> Self {
        self.with_budget(Budget::Tokens(tokens))
    }

    /// Sets the mode by its options.
    #[must_use]
    pub fn with_mode(mut self, mode: impl Into<Mode>) -> Self {
        self.mode = mode.into();
        self
    }

    /// Refuses values outside their range, as every call does that takes a request.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field, its value and the range.
    pub fn check(&self) -> Result<()> {
        if let Budget::Rate(rate) = self.budget {
            check_rate("rate", rate)?;
        }
        match &self.mode {
            Mode::Exact(options) => options.check(self.contexts.len()),
            Mode::LlmLingua(options) => options.check(self.contexts.len()),
            Mode::LlmLingua2(options) => {
                for (name, text) in [
                    ("question", &self.question),
                    ("instruction", &self.instruction),
                ] {
                    let read = name == "question" && options.rank_by_question;
                    if !(text.is_empty() || read) {
                        let reason = match name {
                            "question" => {
                                "mode llmlingua2 reads one under rank_by_question alone; leave it out"
                            }
                            _ => "mode llmlingua2 reads none; leave it out",
                        };
                        return Err(Error::input(name, reason));
                    }
                }
                options.check(&self.question)
            }
        }
    }
}

/// Refuses a rate outside (0, 1].
///
/// # Errors
/// [`Error::Input`] naming it and the range.
pub fn check_rate(field: &str, rate: f64) -> Result<()> {
    match rate > 0.0 && rate <= 1.0 {
        true => Ok(()),
        false => Err(Error::input(
            format!("{field} {rate}"),
            "the share of tokens to keep lies in (0, 1]",
        )),
    }
}
