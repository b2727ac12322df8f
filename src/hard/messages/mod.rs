//! Conversations: the body of a request to a chat model, with what may be shortened shortened.
//!
//! Only the strings of tool results, of documents and of turns before the newest one change; every
//! other byte of the body is copied.

mod parts;
mod policy;

use serde::Serialize;

use crate::error::{Error, Result};

pub use parts::{Content, Role};
pub use policy::{MessagesOptions, Policy, Reason};

use super::json_text::Tree;
use super::json_text::tree::encode_like;
use parts::{Conversation, Part};
use policy::Plan;

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

/// A text that is to be shortened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Task {
    pub text: String,
    /// What it is ranked by; may be empty.
    pub question: String,
    /// Tokens to keep.
    pub target: usize,
}

/// Shortens a conversation; `shorten` does its texts, each to at most its target, and `count` gives the
/// tokens of a text.
pub(crate) fn compress(
    body: &[u8],
    options: &MessagesOptions,
    count: &dyn Fn(&str) -> Result<usize>,
    shorten: &dyn Fn(&[Task]) -> Vec<Result<String>>,
) -> Result<MessagesResult> {
    let nothing = |tasks: &[Task]| vec![None; tasks.len()];
    compress_frozen(body, options, count, shorten, &nothing)
}

/// The same where texts before a cache marker may have been shortened when they were first sent: `frozen`
/// gives what they became then, which is put in again. Under `target_token` it is not asked.
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
        refuse("found neither `messages` nor `input`; give the body of a chat request".into())
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
    let plan = Plan::new(&conversation, &texts, &counts, options)?;
    let task = |&(part, target): &(usize, usize)| Task {
        text: texts[part].clone().unwrap_or_default(),
        question: plan.question_of(&conversation.parts[part], options),
        target,
    };
    let tasks: Vec<Task> = plan.targets.iter().map(task).collect();
    let sent: Vec<Task> = plan.sent.iter().map(|(place, _)| task(place)).collect();

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
    let mut shorter = Vec::new();
    for (&(part, _), left) in plan.targets.iter().zip(shorten(&tasks)) {
        shorter.push((part, left?));
    }
    if !sent.is_empty() {
        for (&((part, _), why), left) in plan.sent.iter().zip(frozen(&sent)) {
            if let Some(left) = left {
                decisions[part].why = why;
                shorter.push((part, left));
            }
        }
    }
    for (part, mut left) in shorter {
        let decision = &mut decisions[part];
        // Interfaces refuse a text of nothing. Only a budget in tokens takes the last of it.
        if left.trim().is_empty() && plan.strict {
            left = OMITTED.to_string();
        }
        let tokens = count(&left)?;
        let most = decision.before as f64 * (1.0 - options.min_saving);
        if left.trim().is_empty() {
            decision.why = Reason::NothingLeft;
        } else if tokens >= decision.before || (!plan.strict && tokens as f64 > most) {
            decision.why = Reason::HardlyShorter;
        } else if let Some(node) = conversation.parts[part].text {
            decision.after = tokens;
            let place = tree.nodes[node].value.clone();
            changes.push((place, encode_like(&left, tree.raw(node))));
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
    if let Some(target) = options.target_token.filter(|&target| tokens_after > target) {
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

/// The text of a part: a string's, or the JSON of arguments that are an object.
fn text_of(tree: &Tree, part: &Part) -> Option<String> {
    let node = part.text?;
    match tree.string(node) {
        Some(text) => Some(text.into_owned()),
        None => Some(tree.raw(node).to_string()),
    }
}

#[cfg(test)]
mod tests;
