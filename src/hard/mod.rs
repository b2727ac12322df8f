//! Hard compression: a shorter text. LLMLingua (arXiv 2310.05736) and LongLLMLingua (2310.06839).

mod context_budget;
mod exact;
pub mod json;
pub(crate) mod json_text;
pub mod messages;
pub mod options;
mod python;
pub mod rank_text;
mod reference;
pub mod request;
pub mod result;
mod source;
mod structured;

pub use exact::kinds::ContentKind;
pub use exact::rank::Ranker;
pub(crate) use exact::{lexical, rank};
pub use options::{
    Condition, Count, Effort, Exact, Granularity, LlmLingua, Mode, RankMethod, Reorder,
};
pub use request::{Budget, Request, check_rate};
pub use result::{Compressed, KeptContext, LlmLinguaResult, Piece};

use crate::error::Result;
use crate::model::{Scorer, together};

pub(crate) use crate::model::SEATS as AT_A_TIME;
use crate::text::Tokenizer;

/// Shortens a prompt; `lm` scores it.
///
/// # Errors
/// [`crate::Error::Input`] for an option out of its range or a tag that cannot be read,
/// [`crate::Error::Budget`] when what must be kept is already longer than the target, and whatever the
/// model reports.
pub fn compress(lm: &dyn Scorer, tokenizer: &Tokenizer, request: &Request) -> Result<Compressed> {
    request.check()?;
    match &request.mode {
        Mode::Exact(options) => exact::Exact {
            lm,
            tokenizer,
            options,
        }
        .compress(request),
        Mode::LlmLingua(options) => reference::Reference {
            lm,
            tokenizer,
            options,
        }
        .compress(request),
    }
}

/// Shortens several prompts, each as it would come out alone, in their order. Where the model's device
/// has a queue of its own they share forward passes, whatever their options.
///
/// # Errors
/// As [`compress`], for each by itself.
pub fn compress_many(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    requests: &[Request],
) -> Vec<Result<Compressed>> {
    together(lm, requests, |lm, request| compress(lm, tokenizer, request))
}

/// How well each text answers to a question, as [`Mode::Exact`] ranks contexts by default; comparable
/// within a call only.
///
/// # Errors
/// Whatever the model reports.
pub fn rank(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    question: &str,
    texts: &[String],
) -> Result<Vec<f64>> {
    let options = &Exact::default();
    exact::Exact {
        lm,
        tokenizer,
        options,
    }
    .rank(question, texts)
}
