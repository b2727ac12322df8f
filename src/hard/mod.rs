//! Hard compression: a shorter text. LLMLingua (arXiv 2310.05736) and LongLLMLingua (2310.06839).

mod context_budget;
mod exact;
pub mod options;
mod python;
pub mod rank_text;
mod reference;
pub mod request;
pub mod result;
mod source;
mod structured;

pub use options::{
    Budget, Condition, Count, Granularity, Options, Prompt, RankMethod, Reorder, check_rate,
};
pub use request::Request;
pub use result::{Compressed, Piece};

use crate::error::Result;
use crate::model::{Scorer, together};

pub(crate) use crate::model::SEATS as AT_A_TIME;
use crate::text::Tokenizer;

/// A shorter prompt, chosen by `lm`.
///
/// # Errors
/// [`crate::Error::Input`] for an option out of its range, [`crate::Error::Budget`] when what must be kept is
/// already longer than the target, and whatever the model reports.
pub fn compress(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    options: &Options,
) -> Result<Compressed> {
    options.check()?;
    match options.budget {
        Budget::Exact => exact::Exact {
            lm,
            tokenizer,
            options,
        }
        .compress(prompt),
        Budget::Reference => reference::Reference {
            lm,
            tokenizer,
            options,
        }
        .compress(prompt),
    }
}

/// A shorter prompt whose contexts carry `<llmlingua, rate=…, compress=…>` tags round their segments.
///
/// Under the exact budget a segment may hold anything up to its `</llmlingua>`, text outside of tags is
/// compressed at the options' rate, and without a `target_token` the budget is what the segments' own
/// rates leave, at least what must be kept. The reference reads no segment that holds a `<`, and drops
/// text between tags.
///
/// # Errors
/// As [`compress`], and [`crate::Error::Input`] for a tag that makes no sense.
pub fn compress_structured(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    options: &Options,
) -> Result<Compressed> {
    options.check()?;
    match options.budget {
        Budget::Exact => exact::Exact {
            lm,
            tokenizer,
            options,
        }
        .compress_structured(prompt),
        Budget::Reference => reference::Reference {
            lm,
            tokenizer,
            options,
        }
        .compress_structured(prompt),
    }
}

/// A call of many.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What is to be shortened.
    pub prompt: Prompt,
    /// How.
    pub options: Options,
    /// Whether its contexts carry tags: [`compress_structured`] instead of [`compress`].
    pub structured: bool,
}

/// Several prompts, each as it would come out alone, in their order. Where the model's device has a queue
/// of its own they share forward passes, whatever their options.
///
/// # Errors
/// As [`compress`], for each by itself.
pub fn compress_many(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    jobs: &[Job],
) -> Vec<Result<Compressed>> {
    together(lm, jobs, |lm, job| match job.structured {
        true => compress_structured(lm, tokenizer, &job.prompt, &job.options),
        false => compress(lm, tokenizer, &job.prompt, &job.options),
    })
}
