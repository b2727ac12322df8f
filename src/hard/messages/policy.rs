//! Which parts of a conversation may be shortened, by how much, and against what.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hard::arguments::Arguments;
use crate::hard::options::Exact;
use crate::hard::request::{Budget, check_rate};

use super::parts::{Content, Conversation, Fixed, Part, Role};

/// What may happen to the texts of a role.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They stay as they are.
    Keep,
    /// They are shortened at the options' rate.
    #[default]
    Shorten,
    /// They are shortened at a rate of their own, above 0 and at most 1.
    Rate(f64),
}

/// How a conversation is shortened.
///
/// System and developer messages, calls, reasoning and images never change, nor does what stands before
/// a cache marker; of the newest turn of the user only documents and marked contexts do.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MessagesOptions {
    /// [`Budget::Rate`]: the share of its tokens that a shortened text keeps. [`Budget::Tokens`]: the
    /// tokens of all parts together, the unchanged ones included; texts share what is left of them.
    pub budget: Budget,
    /// How texts are shortened, and whose tokens are counted.
    pub exact: Exact,
    /// What texts are ranked by; `None` takes the newest turn of the user.
    pub question: Option<String>,
    /// Results of tools, wherever they stand.
    pub tool_results: Policy,
    /// Blocks that are documents, and what stands in the tags of [`context_tags`](Self::context_tags).
    pub documents: Policy,
    /// Turns of the user before the newest one.
    pub user: Policy,
    /// Turns of the model before the newest turn of the user.
    pub assistant: Policy,
    /// Names of tags in the user's texts: `context` stands for `<context>…</context>`. What stands in
    /// them is shortened where the text itself is kept.
    pub context_tags: Vec<String>,
    /// Messages at the end that do not change.
    pub recent: usize,
    /// Texts of fewer tokens do not change.
    pub min_tokens: usize,
    /// Texts do not change that would lose less than this share of their tokens; without effect under
    /// [`Budget::Tokens`].
    pub min_saving: f64,
    /// Texts of up to so many characters do not change where they hold a stack trace or an error of a
    /// compiler.
    pub errors_up_to: usize,
}

impl Default for MessagesOptions {
    fn default() -> Self {
        MessagesOptions {
            budget: Budget::default(),
            exact: Exact::default(),
            question: None,
            tool_results: Policy::Shorten,
            documents: Policy::Shorten,
            user: Policy::Shorten,
            assistant: Policy::Shorten,
            context_tags: Vec::new(),
            recent: 0,
            min_tokens: 300,
            min_saving: 0.15,
            errors_up_to: 8_000,
        }
    }
}

/// A setter for each option.
macro_rules! setters {
    ($($field:ident $with:ident: $type:ty,)*) => {$(
        #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        #[must_use]
        pub fn $with(mut self, value: $type) -> Self {
            self.$field = value;
            self
        }
    )*};
}

impl MessagesOptions {
    setters! {
        budget with_budget: Budget,
        exact with_exact: Exact,
        question with_question: Option<String>,
        tool_results with_tool_results: Policy,
        documents with_documents: Policy,
        user with_user: Policy,
        assistant with_assistant: Policy,
        context_tags with_context_tags: Vec<String>,
        recent with_recent: usize,
        min_tokens with_min_tokens: usize,
        min_saving with_min_saving: f64,
        errors_up_to with_errors_up_to: usize,
    }

    /// Reads the options out of a call's arguments, under their names here, `rate` or `target_tokens`, and
    /// those of [`Exact`].
    ///
    /// # Errors
    /// [`Error::Input`] naming the argument that is unknown or of the wrong type.
    pub fn from_arguments(mut args: Arguments) -> Result<Self> {
        let d = MessagesOptions::default();
        let budget = match (args.optional("rate")?, args.optional("target_tokens")?) {
            (None, None) => d.budget,
            (Some(rate), None) => Budget::Rate(rate),
            (None, Some(tokens)) => Budget::Tokens(tokens),
            (Some(_), Some(_)) => {
                let reason = "give this or `target_tokens`, not both";
                return Err(Error::input("argument `rate`", reason));
            }
        };
        let options = MessagesOptions {
            budget,
            question: args.optional("question")?,
            tool_results: args.or("tool_results", d.tool_results)?,
            documents: args.or("documents", d.documents)?,
            context_tags: args.or("context_tags", d.context_tags)?,
            user: args.or("user", d.user)?,
            assistant: args.or("assistant", d.assistant)?,
            recent: args.or("recent", d.recent)?,
            min_tokens: args.or("min_tokens", d.min_tokens)?,
            min_saving: args.or("min_saving", d.min_saving)?,
            errors_up_to: args.or("errors_up_to", d.errors_up_to)?,
            exact: Exact::from_arguments(&mut args)?,
        };
        args.finish()?;
        Ok(options)
    }

    /// Tokens of the whole conversation, where the budget names them.
    pub(super) fn target(&self) -> Option<usize> {
        match self.budget {
            Budget::Tokens(tokens) => Some(tokens),
            Budget::Rate(_) => None,
        }
    }

    /// The rate of texts that have none of their own.
    fn rate(&self) -> f64 {
        match self.budget {
            Budget::Rate(rate) => rate,
            // Under a number of tokens only what rates are to each other counts.
            Budget::Tokens(_) => 0.5,
        }
    }

    /// Refuses values outside their range, as every call does that takes options.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option, its value and the range.
    pub fn check(&self) -> Result<()> {
        check_rate("rate", self.rate())?;
        self.exact.check(usize::MAX)?;
        let policies = [
            ("tool_results", self.tool_results),
            ("documents", self.documents),
            ("user", self.user),
            ("assistant", self.assistant),
        ];
        for (field, policy) in policies {
            if let Policy::Rate(rate) = policy {
                check_rate(field, rate)?;
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
        if let Some(tag) = self
            .context_tags
            .iter()
            .find(|tag| tag.is_empty() || !tag.chars().all(plain))
        {
            return Err(Error::input(
                format!("context_tags `{tag}`"),
                "expected a name of letters, digits, `_`, `-`, `.` and `:`, without brackets",
            ));
        }
        match (0.0..1.0).contains(&self.min_saving) {
            true => Ok(()),
            false => Err(Error::input(
                format!("min_saving {}", self.min_saving),
                "expected a share of the tokens, 0 or more and below 1",
            )),
        }
    }
}

/// Why a part was shortened or was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The result of a tool, shortened.
    ToolResult,
    /// A document, or a marked context in a text of the user, shortened.
    Document,
    /// An older turn, shortened.
    OldTurn,
    /// Kept: a system or developer message, or a role that is not known.
    System,
    /// Kept: a call of a tool.
    ToolCall,
    /// Kept: the model's reasoning.
    Thinking,
    /// Kept: an image, audio, a file, or a block that is not known.
    NotText,
    /// Kept: the newest turn of the user, or a turn after it.
    NewestTurn,
    /// Kept: it carries a cache marker or stands before one.
    Cached,
    /// Kept: annotations or citations point into it.
    Annotated,
    /// Kept: a stack trace, an error of a compiler, or the result of a call that failed.
    ErrorOutput,
    /// Kept: the options say so for its role.
    Policy,
    /// Kept: one of the last messages, which the options name.
    Recent,
    /// Kept: too short to be worth it.
    Short,
    /// Kept: it would not have become much shorter.
    HardlyShorter,
    /// Kept: nothing would have been left of it.
    NothingLeft,
}

/// The decisions, and what is to be done.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    pub reasons: Vec<Reason>,
    /// What is to be shortened.
    pub targets: Vec<Piece>,
    /// What stands before a cache marker and would be shortened after it.
    pub sent: Vec<Piece>,
    /// Whether the budget is a number of tokens, which is never passed.
    pub strict: bool,
    /// The newest turn of the user.
    question: String,
}

/// A text that is to be shortened, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    /// Index of its part.
    pub part: usize,
    /// Bytes of the part's text; none for all of them.
    pub range: Option<Range<usize>>,
    /// Its tokens.
    pub before: usize,
    /// Share of its tokens that it keeps.
    pub rate: f64,
    /// Tokens to keep.
    pub target: usize,
    /// Why it is shortened.
    pub why: Reason,
}

impl Piece {
    /// Its text, of the text of its part.
    pub fn of<'a>(&self, text: &'a str) -> &'a str {
        self.range
            .clone()
            .map_or(text, |range| text.get(range).unwrap_or_default())
    }
}

/// Tokens that a marked context may have more together with the text around it than alone.
const SEAMS: usize = 4;

/// Characters of a question, or of a call, that a text is ranked by.
const QUESTION: usize = 1_000;

impl Plan {
    /// Decides on every part; `texts` and `counts` are the parts' own, and `count` gives the tokens of a
    /// text.
    pub fn new(
        conversation: &Conversation,
        texts: &[Option<String>],
        counts: &[usize],
        options: &MessagesOptions,
        count: &dyn Fn(&str) -> Result<usize>,
    ) -> Result<Self> {
        let parts = &conversation.parts;
        let newest = parts
            .iter()
            .rev()
            .find(|part| part.role == Role::User)
            .and_then(|part| part.message);
        let cached = match conversation.all_cached {
            true => parts.len(),
            false => parts
                .iter()
                .rposition(|part| part.cached)
                .map_or(0, |last| last + 1),
        };
        let messages = parts.iter().filter_map(|part| part.message).max();
        let recent = messages.map_or(0, |last| (last + 1).saturating_sub(options.recent));
        let mut plan = Plan {
            reasons: Vec::with_capacity(parts.len()),
            targets: Vec::new(),
            sent: Vec::new(),
            strict: options.target().is_some(),
            question: String::new(),
        };
        let mut wanted: Vec<Piece> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let text = texts[i].as_deref().unwrap_or_default();
            let of_user = part.content == Content::Text && part.role == Role::User;
            let contexts = match of_user {
                true => marked(text, &options.context_tags),
                false => Vec::new(),
            };
            if of_user && part.message.is_some() && part.message == newest {
                // The question is what stands around the contexts.
                let mut at = 0;
                for context in &contexts {
                    plan.question.push_str(&text[at..context.start]);
                    at = context.end;
                }
                plan.question.push_str(&text[at..]);
                plan.question.push('\n');
            }
            let (reason, policy) = match rule(part, newest, options) {
                Ok(_) if texts[i].is_none() => {
                    plan.reasons.push(Reason::NotText);
                    continue;
                }
                Ok((reason, policy)) => (reason, policy),
                Err(reason) => {
                    plan.reasons.push(reason);
                    if reason == Reason::NewestTurn {
                        plan.contexts(i, text, &contexts, options, count, &mut wanted, cached)?;
                    }
                    continue;
                }
            };
            let mut kept = if part.message.is_some_and(|message| message >= recent) {
                Some(Reason::Recent)
            } else if policy == Policy::Keep {
                plan.contexts(i, text, &contexts, options, count, &mut wanted, cached)?;
                Some(Reason::Policy)
            } else {
                spared(text, counts[i], options)
            };
            if kept.is_none() {
                let piece = Piece::new(i, None, counts[i], policy, options, reason);
                match i < cached {
                    false => wanted.push(piece),
                    true => plan.sent.push(piece),
                }
            }
            if i < cached {
                kept = Some(Reason::Cached);
            }
            plan.reasons.push(kept.unwrap_or(reason));
        }
        if plan.strict {
            plan.sent.clear();
        }
        if let Some(question) = &options.question {
            plan.question.clone_from(question);
        }
        plan.share_out(wanted, counts, options)?;
        Ok(plan)
    }

    /// Adds the marked contexts of a text that itself is kept.
    #[allow(clippy::too_many_arguments)]
    fn contexts(
        &mut self,
        part: usize,
        text: &str,
        contexts: &[Range<usize>],
        options: &MessagesOptions,
        count: &dyn Fn(&str) -> Result<usize>,
        wanted: &mut Vec<Piece>,
        cached: usize,
    ) -> Result<()> {
        if options.documents == Policy::Keep {
            return Ok(());
        }
        for range in contexts {
            let inner = &text[range.clone()];
            let tokens = count(inner)?;
            if spared(inner, tokens, options).is_none() {
                let range = Some(range.clone());
                let why = Reason::Document;
                let piece = Piece::new(part, range, tokens, options.documents, options, why);
                match part < cached {
                    false => wanted.push(piece),
                    true => self.sent.push(piece),
                }
            }
        }
        Ok(())
    }

    /// Gives every text its tokens.
    fn share_out(
        &mut self,
        wanted: Vec<Piece>,
        counts: &[usize],
        options: &MessagesOptions,
    ) -> Result<()> {
        let Some(target) = options.target() else {
            self.targets = wanted;
            return Ok(());
        };
        let all: usize = counts.iter().sum();
        if all <= target {
            for piece in &wanted {
                self.left_whole(piece);
            }
            return Ok(());
        }
        let seams = |piece: &Piece| piece.range.as_ref().map_or(0, |_| SEAMS);
        let free: usize = wanted.iter().map(|piece| piece.before).sum();
        let fixed = all.saturating_sub(free) + wanted.iter().map(seams).sum::<usize>();
        let mut left = target.checked_sub(fixed).ok_or_else(|| Error::Budget {
            target,
            reason: format!(
                "what must not change of the conversation is {fixed} tokens; raise the target or let more \
                 of it be shortened"
            ),
        })?;
        // By their rates; those whose share is more than they have leave the rest to the others.
        let mut open = wanted;
        loop {
            let sum: f64 = open
                .iter()
                .map(|piece| piece.before as f64 * piece.rate)
                .sum();
            let factor = left as f64 / sum.max(1e-9);
            let before = open.len();
            open.retain(|piece| {
                let whole = piece.rate * factor >= 1.0;
                if whole {
                    left = left.saturating_sub(piece.before);
                    self.left_whole(piece);
                }
                !whole
            });
            if open.len() == before {
                for piece in &mut open {
                    piece.target = (piece.before as f64 * piece.rate * factor) as usize;
                }
                self.targets = open;
                return Ok(());
            }
        }
    }

    /// Notes that a text stays although it could be shortened.
    fn left_whole(&mut self, piece: &Piece) {
        if piece.range.is_none() {
            self.reasons[piece.part] = Reason::HardlyShorter;
        }
    }

    /// What a part is ranked by: the call that it answers, and the newest turn of the user.
    pub fn question_of(&self, part: &Part, options: &MessagesOptions) -> String {
        let question = ends(&self.question);
        match &part.call {
            Some(call) if options.question.is_none() => {
                format!("{}\n{question}", ends(call)).trim().to_string()
            }
            _ => question,
        }
    }
}

impl Piece {
    fn new(
        part: usize,
        range: Option<Range<usize>>,
        before: usize,
        policy: Policy,
        options: &MessagesOptions,
        why: Reason,
    ) -> Self {
        let rate = match policy {
            Policy::Rate(rate) => rate,
            _ => options.rate(),
        };
        Piece {
            part,
            range,
            before,
            rate,
            target: (before as f64 * rate).round() as usize,
            why,
        }
    }
}

/// Why a text is not shortened although its policy allows it.
fn spared(text: &str, tokens: usize, options: &MessagesOptions) -> Option<Reason> {
    if tokens < options.min_tokens.max(1) {
        return Some(Reason::Short);
    }
    let characters = text.chars().take(options.errors_up_to + 1).count();
    (characters <= options.errors_up_to && ERROR.is_match(text)).then_some(Reason::ErrorOutput)
}

/// What stands in tags of these names, in bytes. A tag without its end marks nothing, and of nested
/// ones of a name the first end counts.
fn marked(text: &str, names: &[String]) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while let Some(open) = text[at..].find('<').map(|open| at + open) {
        at = open + 1;
        let rest = &text[at..];
        let name = names.iter().find(|name| {
            let after = rest.strip_prefix(name.as_str()).map(str::as_bytes);
            after.is_some_and(|after| matches!(after.first(), Some(b'>' | b' ' | b'\n' | b'\t')))
        });
        let Some(name) = name else { continue };
        let Some(start) = rest.find('>').map(|end| at + end + 1) else {
            break;
        };
        if let Some(end) = text[start..].find(&format!("</{name}>")) {
            found.push(start..start + end);
            at = start + end;
        }
    }
    found
}

/// What would shorten a part, and its policy; or why it never changes.
fn rule(
    part: &Part,
    newest: Option<usize>,
    options: &MessagesOptions,
) -> Result<(Reason, Policy), Reason> {
    match part.content {
        Content::ToolCall => return Err(Reason::ToolCall),
        Content::Thinking => return Err(Reason::Thinking),
        Content::Other => return Err(Reason::NotText),
        _ if part.text.is_none() => return Err(Reason::NotText),
        _ => {}
    }
    match part.fixed {
        Some(Fixed::Annotated) => return Err(Reason::Annotated),
        Some(Fixed::Failed) => return Err(Reason::ErrorOutput),
        None => {}
    }
    let old = part.message < newest;
    match part.role {
        Role::System | Role::Developer | Role::Other => Err(Reason::System),
        Role::Tool => Ok((Reason::ToolResult, options.tool_results)),
        Role::User if part.content == Content::Document => {
            Ok((Reason::Document, options.documents))
        }
        Role::User if old => Ok((Reason::OldTurn, options.user)),
        Role::Assistant if old => Ok((Reason::OldTurn, options.assistant)),
        Role::User | Role::Assistant => Err(Reason::NewestTurn),
    }
}

/// A text, or its two ends where it is long: what is asked stands there.
fn ends(text: &str) -> String {
    let text = text.trim();
    let count = text.chars().count();
    if count <= QUESTION {
        return text.to_string();
    }
    let head: String = text.chars().take(QUESTION / 2).collect();
    let tail: String = text.chars().skip(count - QUESTION / 2).collect();
    format!("{head}\n{tail}")
}

/// Stack traces of the common languages, and what compilers and test runners begin an error with.
static ERROR: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?m)^Traceback \(most recent call last\):|^thread '[^']*' .*panicked at |^panic: ",
        r"|^goroutine \d+ \[|^\s+at [\w$.<>/]+\(.*\)$|^\s+at .*:\d+:\d+\)?$|^Exception in thread ",
        r"|^Caused by: |^error(\[E\d+\])?: .*\n\s*--> |^\S+:\d+(:\d+)?: (fatal )?error: ",
        r"|^E   \w*(Error|Exception)\b|^Segmentation fault",
    ))
    .expect("a constant pattern")
});
