//! What hard compression returns.

use std::ops::Range;

use serde::{Serialize, Serializer};

use crate::text::counts::count_cl100k;

/// A stretch of the original prompt: kept or dropped, and its surprisal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Piece {
    /// The stretch itself; the pieces in order are the original prompt.
    pub text: String,
    /// In the result or not.
    pub kept: bool,
    /// Mean negative log-likelihood (nats) per token, where it was scored.
    pub nll: Option<f32>,
}

/// What is left of one context.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeptContext {
    /// Its place in [`Request::contexts`](super::Request::contexts), counted from 0.
    pub index: usize,
    /// What the result has of it.
    pub text: String,
    /// Tokens of that text, counted as [`Compressed::tokens_after`] is.
    pub tokens: usize,
    /// Bytes of the given context that were kept, verbatim and ascending; white space may have been
    /// put between them. Token pruning in [`Mode::LlmLingua`](super::Mode::LlmLingua) may keep a part of
    /// a character.
    #[serde(serialize_with = "pairs")]
    pub spans: Vec<Range<usize>>,
}

impl KeptContext {
    /// What is left of context `index`, whose tokens are not counted.
    pub fn new(index: usize, text: impl Into<String>, spans: Vec<Range<usize>>) -> Self {
        KeptContext {
            index,
            text: text.into(),
            tokens: 0,
            spans,
        }
    }
}

/// Writes ranges as `[start, end]`.
fn pairs<S: Serializer>(ranges: &[Range<usize>], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(ranges.iter().map(|r| [r.start, r.end]))
}

/// A compressed prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Compressed {
    /// The shorter prompt.
    pub text: String,
    /// Tokens of the whole prompt before; [`Exact::count`](super::Exact::count) says whose,
    /// cl100k_base's by default.
    pub tokens_before: usize,
    /// Tokens of the whole prompt after.
    pub tokens_after: usize,
    /// The budget in tokens that [`Mode::Exact`](super::Mode::Exact) kept to. `None` in
    /// [`Mode::LlmLingua`](super::Mode::LlmLingua), which promises no length.
    pub target: Option<usize>,
    /// What is left of each context, in the order of the result; dropped ones are absent.
    pub contexts: Vec<KeptContext>,
    /// What the caller should know about the result, a line each.
    pub warnings: Vec<String>,
    /// The original in order, for display.
    #[serde(skip)]
    pub pieces: Vec<Piece>,
    /// cl100k_base tokens before and after, which the reference's figures rest on.
    #[serde(skip)]
    pub(crate) cl100k: [usize; 2],
    /// What is left of each context that was kept, where the mode tells.
    #[serde(skip)]
    pub(crate) by_context: Option<Vec<String>>,
    /// Every word with its label, where that was asked for.
    #[serde(skip)]
    pub(crate) word_labels: Option<String>,
}

impl Compressed {
    /// A result of which nothing but the texts is known, counted in cl100k_base tokens.
    pub(crate) fn new(whole: &str, text: String) -> Self {
        let cl100k = [count_cl100k(whole), count_cl100k(&text)];
        Self::counted(text, cl100k)
    }

    /// The same with its cl100k_base tokens before and after.
    pub(crate) fn counted(text: String, cl100k: [usize; 2]) -> Self {
        Compressed {
            text,
            tokens_before: cl100k[0],
            tokens_after: cl100k[1],
            target: None,
            contexts: Vec::new(),
            warnings: Vec::new(),
            pieces: Vec::new(),
            cl100k,
            by_context: None,
            word_labels: None,
        }
    }

    /// Share of the tokens that was kept; 1 of an empty prompt.
    pub fn rate(&self) -> f64 {
        match self.tokens_before {
            0 => 1.0,
            before => self.tokens_after as f64 / before as f64,
        }
    }

    /// Tokens before over tokens after; infinite where nothing is left.
    pub fn ratio(&self) -> f64 {
        1.0 / self.rate()
    }

    /// The dictionary that `llmlingua` returns, whose figures are cl100k_base tokens.
    pub fn llmlingua(&self) -> LlmLinguaResult {
        let [origin_tokens, compressed_tokens] = self.cl100k;
        let (origin, compressed) = (origin_tokens as f64, compressed_tokens as f64);
        let ratio = if compressed_tokens == 0 {
            1.0
        } else {
            origin / compressed
        };
        let rate = if ratio == 0.0 { 1.0 } else { 1.0 / ratio };
        LlmLinguaResult {
            compressed_prompt: self.text.clone(),
            origin_tokens,
            compressed_tokens,
            ratio: format!("{ratio:.1}x"),
            rate: format!("{:.1}%", rate * 100.0),
            saving: format!(
                ", Saving ${:.1} in GPT-4.",
                (origin - compressed) * 0.06 / 1000.0
            ),
            compressed_prompt_list: self.by_context.clone(),
            fn_labeled_original_prompt: self.word_labels.clone(),
        }
    }
}

/// The six keys of the dictionary that `llmlingua` 0.2.2 returns, and the two more of LLMLingua-2.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LlmLinguaResult {
    /// The shorter prompt.
    pub compressed_prompt: String,
    /// cl100k_base tokens of the whole prompt before.
    pub origin_tokens: usize,
    /// cl100k_base tokens of the whole prompt after.
    pub compressed_tokens: usize,
    /// `2.0x`: before over after.
    pub ratio: String,
    /// `50.0%`: after over before.
    pub rate: String,
    /// The reference's estimate of GPT-4 prices in 2023.
    pub saving: String,
    /// What is left of each context: LLMLingua-2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed_prompt_list: Option<Vec<String>>,
    /// Every word with its label: LLMLingua-2, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fn_labeled_original_prompt: Option<String>,
}
