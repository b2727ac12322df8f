//! Hard compression: a shorter text. LLMLingua (arXiv 2310.05736) and LongLLMLingua (2310.06839).

pub mod arguments;
pub mod compress_json;
mod count;
mod exact;
pub mod json;
pub(crate) mod json_text;
pub(crate) mod llmlingua2;
pub mod messages;
pub mod options;
mod python;
pub mod rank_text;
pub mod recover;
mod reference;
pub mod request;
pub mod result;
mod source;
mod structured;

pub use compress_json::{JsonConfig, JsonEntry, JsonRequest};
pub use count::Count;
pub use exact::kinds::ContentKind;
pub use exact::rank::Ranker;
pub(crate) use exact::{lexical, rank};
pub use json_text::Omission;
pub use messages::{MessagesOptions, MessagesResult};
pub use options::{
    Condition, Effort, Exact, Granularity, LlmLingua, LlmLingua2, Mode, RankMethod, Reorder,
    TokenToWord,
};
pub use request::{Budget, Request, check_rate};
pub use result::{Compressed, KeptContext, LlmLinguaResult, Piece};

use crate::error::Result;
use crate::model::{Scorer, coalesce};

pub(crate) use crate::model::MAX_WORKERS as AT_A_TIME;
use crate::text::Tokenizer;

/// Shortens a prompt; `lm` scores it.
///
/// # Errors
/// [`Error::Input`](crate::Error::Input) for an option outside its range or a tag that cannot be read;
/// [`Error::Budget`](crate::Error::Budget) when what must be kept is longer than the target;
/// [`Error::Device`](crate::Error::Device) if the device fails.
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
        Mode::LlmLingua2(_) => Err(crate::error::Error::Unsupported {
            what: "mode llmlingua2 with a decoder".into(),
            have:
                "exact, llmlingua; llmlingua2 needs a token classifier, as microsoft's llmlingua-2"
                    .into(),
        }),
    }
}

/// Shortens several prompts, each as it would come out alone, in their order. Where the model's device
/// has a queue of its own they share forward passes, whatever their options.
///
/// # Errors
/// Of each request by itself: [`Error::Input`](crate::Error::Input) for an option outside its range or a tag
/// that cannot be read; [`Error::Budget`](crate::Error::Budget) when what must be kept is longer than the
/// target; [`Error::Device`](crate::Error::Device) if the device fails.
pub fn compress_many(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    requests: &[Request],
) -> Vec<Result<Compressed>> {
    coalesce(lm, requests, |lm, request| compress(lm, tokenizer, request))
}

/// Shortens a conversation, the body of a request to a chat model; `lm` scores its texts.
///
/// Out comes the same JSON, byte for byte, except for the strings that were shortened.
///
/// # Errors
/// [`Error::Input`](crate::Error::Input) for an option outside its range or a body that is not a
/// conversation; [`Error::Budget`](crate::Error::Budget) when what must not change is longer than the target;
/// [`Error::Device`](crate::Error::Device) if the device fails.
pub fn compress_messages(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    body: &[u8],
    options: &MessagesOptions,
) -> Result<MessagesResult> {
    messages::compress_by(body, options, tokenizer, &|requests| {
        compress_many(lm, tokenizer, requests)
    })
}

/// Shortens an object whose members have rates of their own; `lm` scores it.
///
/// The result's text is JSON, and names, numbers, `true`, `false` and `null` in it are the given ones.
///
/// # Errors
/// [`Error::Input`](crate::Error::Input) for what is not an object or does not fit its configuration;
/// [`Error::Budget`](crate::Error::Budget) when what must stay is longer than the target;
/// [`Error::Device`](crate::Error::Device) if the device fails.
pub fn compress_json(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    request: &JsonRequest,
) -> Result<Compressed> {
    let segments = request.segments()?;
    let options = request
        .exact
        .clone()
        .with_keep_question(false)
        .with_as_kind(Some(ContentKind::Json));
    let budget = request.target.map_or(Budget::default(), Budget::Tokens);
    let prompt = Request::new([request.json.as_str()])
        .with_question(request.question.as_str())
        .with_budget(budget)
        .with_mode(options.clone());
    prompt.check()?;
    let exact = exact::Exact {
        lm,
        tokenizer,
        options: &options,
    };
    exact.compress_segments(&prompt, &[segments])
}

/// How well each text answers to a question, as [`Mode::Exact`] ranks contexts by a method, or by
/// default; comparable within a call only.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) if the device fails.
pub fn rank(
    lm: &dyn Scorer,
    tokenizer: &Tokenizer,
    question: &str,
    texts: &[String],
    method: Option<RankMethod>,
) -> Result<Vec<f64>> {
    let options = &Exact::default().with_rank_method(method);
    exact::Exact {
        lm,
        tokenizer,
        options,
    }
    .rank(question, texts)
}
