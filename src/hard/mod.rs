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

pub use options::{Budget, Condition, Count, Granularity, Options, Prompt, RankMethod, Reorder};
pub use request::Request;
pub use result::{Compressed, Piece};

use crate::error::Result;
use crate::model::Scorer;
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

/// A shorter prompt whose contexts carry `<llmlingua, rate=…, compress=…>` tags.
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
