//! Conversations: the body of a request to a chat model, with what may be shortened shortened.
//!
//! Only the strings of tool results, of documents and of turns before the newest one change, and what
//! is marked as a context; every other byte of the body is copied.

mod parts;
mod policy;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::text::Tokenizer;

pub use parts::{Content, Role};
pub use policy::{MessagesOptions, Policy, Reason};

use super::json_text::Tree;
use super::json_text::tree::encode_like;
use super::request::Request;
use super::result::Compressed;
use parts::{Conversation, Part};
use policy::{Piece, Plan};

/// What became of a part of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Index of its message or item; none for the system prompt beside the messages.
    pub message: Option<usize>,
    /// Index in the content of its message, where that is a list.
    pub block: Option<usize>,
    /// Who it is from.
    pub role: Role,
    /// What it is.
    pub content: Content,
    /// Why it was shortened or not.
    pub why: Reason,
    /// Its tokens before.
    pub before: usize,
    /// Its tokens after.
    pub after: usize,
}

/// A conversation after compression.
#[derive(Debug, Clone, PartialEq)]
pub struct MessagesResult {
    /// The body: the given bytes, except for the strings that were shortened.
    pub body: Vec<u8>,
    /// Tokens of all parts before.
    pub tokens_before: usize,
    /// Tokens of all parts after.
    pub tokens_after: usize,
    /// A line per part, in the order in which the model reads them.
    pub decisions: Vec<Decision>,
}

/// Stands for a text of which nothing is left.
const OMITTED: &str = "…";

/// Shortens a conversation; `compress` does requests, each by itself.
///
/// `body` is the body of a request to OpenAI's chat completions or responses or to Anthropic's messages, or
/// the list of its messages alone.
///
/// # Errors
/// [`Error::Input`] for an option outside its range or a body of another form; [`Error::Budget`] when
/// what must not change is longer than the target; or the first error of `compress`.
pub(crate) fn compress_by(
    body: &[u8],
    options: &MessagesOptions,
    tokenizer: &Tokenizer,
    compress: &dyn Fn(&[Request]) -> Vec<Result<Compressed>>,
) -> Result<MessagesResult> {
    let exact = options.exact.clone().with_keep_question(false);
    let shorten = |tasks: &[Task]| {
        let request = |task: &Task| {
            Request::new([task.text.as_str()])
                .with_question(task.question.as_str())
                .with_tokens(task.target)
                .with_mode(exact.clone())
        };
        let requests: Vec<Request> = tasks.iter().map(request).collect();
        let texts = compress(&requests).into_iter().map(|result| match result {
            Ok(result) => Ok(result.text),
            // Nothing of it fits.
            Err(Error::Budget { .. }) => Ok(String::new()),
            Err(error) => Err(error),
        });
        texts.collect()
    };
    let count = |text: &str| exact.count.tokens(text, tokenizer);
    shorten_parts(body, options, &count, &shorten)
}

/// A text that is to be shortened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Task {
    pub text: String,
    /// What it is ranked by; may be empty.
    pub question: String,
    /// Tokens to keep.
    pub target: usize,
    /// The rate that gave the target; none where texts share a number of tokens.
    pub rate: Option<f64>,
}

/// Shortens a conversation; `shorten` does its texts, each to at most its target, and `count` gives the
/// tokens of a text.
fn shorten_parts(
    body: &[u8],
    options: &MessagesOptions,
    count: &dyn Fn(&str) -> Result<usize>,
    shorten: &dyn Fn(&[Task]) -> Vec<Result<String>>,
) -> Result<MessagesResult> {
    let nothing = |tasks: &[Task]| vec![None; tasks.len()];
    compress_frozen(body, options, count, shorten, &nothing)
}

/// The same where texts before a cache marker may have been shortened when they were first sent: `frozen`
/// gives what they became then, which is put in again. Under a budget in tokens it is not asked.
pub(crate) fn compress_frozen(
    body: &[u8],
    options: &MessagesOptions,
    count: &dyn Fn(&str) -> Result<usize>,
    shorten: &dyn Fn(&[Task]) -> Vec<Result<String>>,
    frozen: &dyn Fn(&[Task]) -> Vec<Option<String>>,
) -> Result<MessagesResult> {
    options.check()?;
    let refuse = |reason: String| Error::input("messages", reason);
    let text = std::str::from_utf8(body).map_err(|error| {
        refuse(format!(
            "the body is not UTF-8 ({error}); send JSON in UTF-8"
        ))
    })?;
    let json = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tree =
        Tree::parse(json).map_err(|error| refuse(format!("the body is not JSON: {error}")))?;
    let conversation = Conversation::read(&tree).ok_or_else(|| {
        refuse(
            "found none of `messages`, `input` and `prompt`; give the body of a chat request"
                .into(),
        )
    })?;
    let texts: Vec<Option<String>> = conversation
        .parts
        .iter()
        .map(|part| text_of(&tree, part))
        .collect();
    let counts = texts
        .iter()
        .map(|text| text.as_deref().map_or(Ok(0), count))
        .collect::<Result<Vec<usize>>>()?;
    let plan = Plan::new(&conversation, &texts, &counts, options, count)?;
    let text_at = |part: usize| texts[part].as_deref().unwrap_or_default();
    let task = |piece: &Piece| Task {
        text: piece.of(text_at(piece.part)).to_string(),
        question: plan.question_of(&conversation.parts[piece.part], options),
        target: piece.target,
        rate: (!plan.strict).then_some(piece.rate),
    };
    let tasks: Vec<Task> = plan.targets.iter().map(task).collect();
    let sent: Vec<Task> = plan.sent.iter().map(task).collect();

    let mut decisions: Vec<Decision> = conversation
        .parts
        .iter()
        .zip(&plan.reasons)
        .zip(&counts)
        .map(|((part, &why), &tokens)| Decision {
            message: part.message,
            block: part.block,
            role: part.role,
            content: part.content,
            why,
            before: tokens,
            after: tokens,
        })
        .collect();
    let mut changes: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    let mut shorter: Vec<(&Piece, String)> = Vec::new();
    for (piece, left) in plan.targets.iter().zip(shorten(&tasks)) {
        shorter.push((piece, left?));
    }
    if !sent.is_empty() {
        let known = plan.sent.iter().zip(frozen(&sent));
        shorter.extend(known.filter_map(|(piece, left)| Some((piece, left?))));
    }
    // By their places, so that contexts of one text come one after the other.
    shorter.sort_by_key(|(piece, _)| (piece.part, piece.range.clone().map_or(0, |r| r.start)));
    let mut shorter = shorter.into_iter().peekable();
    while let Some((first, _)) = shorter.peek() {
        let part = first.part;
        let (text, decision) = (text_at(part), &mut decisions[part]);
        let mut whole = String::with_capacity(text.len());
        let mut at = 0;
        while let Some((piece, mut left)) = shorter.next_if(|(piece, _)| piece.part == part) {
            // Interfaces refuse a text of nothing. Only a budget in tokens takes the last of it.
            if left.trim().is_empty() && plan.strict {
                left = OMITTED.to_string();
            }
            let tokens = count(&left)?;
            let max = piece.before as f64 * (1.0 - options.min_saving);
            let failed = if left.trim().is_empty() {
                Some(Reason::NothingLeft)
            } else if tokens >= piece.before || (!plan.strict && tokens as f64 > max) {
                Some(Reason::HardlyShorter)
            } else {
                None
            };
            match (failed, &piece.range) {
                (Some(reason), None) => decision.why = reason,
                (Some(_), Some(_)) => {}
                (None, range) => {
                    decision.why = piece.why;
                    let range = range.clone().unwrap_or(0..text.len());
                    whole.push_str(&text[at..range.start]);
                    whole.push_str(&left);
                    at = range.end;
                }
            }
        }
        if at > 0
            && let Some(node) = conversation.parts[part].text
        {
            whole.push_str(&text[at..]);
            decision.after = count(&whole)?;
            let place = tree.nodes[node].value.clone();
            changes.push((place, encode_like(&whole, tree.raw(node))));
        }
    }
    changes.sort_unstable_by_key(|(place, _)| place.start);
    let mut out = Vec::with_capacity(body.len());
    let mut done = 0;
    out.extend_from_slice(&body[..text.len() - json.len()]);
    for (place, literal) in changes {
        out.extend_from_slice(&json.as_bytes()[done..place.start]);
        out.extend_from_slice(literal.as_bytes());
        done = place.end;
    }
    out.extend_from_slice(&json.as_bytes()[done..]);
    let sum = |tokens: fn(&Decision) -> usize| decisions.iter().map(tokens).sum();
    let (tokens_before, tokens_after) = (sum(|d| d.before), sum(|d| d.after));
    if let Some(target) = options.target().filter(|&target| tokens_after > target) {
        return Err(Error::Budget {
            target,
            reason: format!(
                "what must be kept of the conversation is {tokens_after} tokens; raise the target or let \
                 more of it be shortened"
            ),
        });
    }
    Ok(MessagesResult {
        body: out,
        tokens_before,
        tokens_after,
        decisions,
    })
}

/// The text of a part: a string's, or the JSON of a call's arguments. None where what should be a text is
/// something else, or a string with half a character: that is never changed.
fn text_of(tree: &Tree, part: &Part) -> Option<String> {
    let node = part.text?;
    match tree.string(node) {
        Some(text) => Some(text.into_owned()),
        None => (part.content == Content::ToolCall).then(|| tree.raw(node).to_string()),
    }
}

#[cfg(test)]
mod tests;
