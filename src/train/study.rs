//! How questions about a text are made.

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// What a question stands in after rows of K and V, which end with no line.
pub(crate) const QUESTION: &str = "\n\nQuestion: {}\nAnswer:";

/// What [`Training::questions`](crate::Training::questions) makes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Study {
    /// Questions, at least 1.
    pub questions: usize,
    /// Longest piece of the corpus that a question is about, in tokens, at least 1.
    pub piece_tokens: usize,
    /// Most tokens of a question, at least 1.
    pub question_tokens: usize,
    /// Most tokens of an answer, at least 1.
    pub answer_tokens: usize,
    /// Of the questions; the likeliest answer is taken. 0 or more; 0 gives each piece one question a seed.
    pub temperature: f32,
    /// What a question stands in when it is answered, at `{}`: as in the run that follows.
    pub question_template: String,
    /// Decides the questions.
    pub seed: u64,
}

impl Default for Study {
    fn default() -> Self {
        Study {
            questions: 256,
            piece_tokens: 512,
            question_tokens: 48,
            answer_tokens: 96,
            temperature: 0.7,
            question_template: QUESTION.into(),
            seed: 0,
        }
    }
}

impl Study {
    /// What must be the same when a run on its questions is resumed. Template and seed are among the run's
    /// own options.
    pub(crate) fn identity(&self) -> [(String, Value); 5] {
        // The shortest decimal of an f32, which survives a file of JSON.
        let temperature = self.temperature.to_string().parse::<f64>();
        [
            ("questions", json!(self.questions)),
            ("piece-tokens", json!(self.piece_tokens)),
            ("question-tokens", json!(self.question_tokens)),
            ("answer-tokens", json!(self.answer_tokens)),
            ("temperature", json!(temperature.unwrap_or_default())),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("questions", self.questions),
            ("piece_tokens", self.piece_tokens),
            ("question_tokens", self.question_tokens),
            ("answer_tokens", self.answer_tokens),
        ] {
            if !(1..=1 << 24).contains(&value) {
                let what = format!("{name} {value}");
                return Err(Error::input(what, "expected 1 to 16777216"));
            }
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let what = format!("temperature {}", self.temperature);
            return Err(Error::input(what, "expected 0 or more"));
        }
        if self.question_template.matches("{}").count() != 1 {
            let reason = "expected {} once, where the text goes";
            return Err(Error::input("question_template", reason));
        }
        Ok(())
    }
}
