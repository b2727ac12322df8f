//! `prefold compress --messages`: the body of a request to a chat model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::hard::messages::{Decision, MessagesOptions, MessagesResult, Policy};
use crate::hard::{Budget, Exact, Mode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::failure::{Failure, Outcome, say, usage};
use super::files::{read_bytes, write_stdout, write_whole};
use super::model::{Busy, Model};
use super::options::share;

const MESSAGES: &str = "Conversations";

/// What of a conversation is shortened
#[derive(clap::Args)]
pub struct Flags {
    /// Shorten the body of a chat request (OpenAI's chat completions or responses, Anthropic's
    /// messages): only tool results, documents and older turns change; `-` is standard input
    #[arg(long, value_name = "FILE", help_heading = MESSAGES,
        conflicts_with_all = ["files", "instruction", "structured", "reference", "llmlingua2", "show", "html"])]
    pub messages: Option<PathBuf>,
    /// Results of tools: `keep`, or a share of each [default: --rate]
    #[arg(long, value_name = "keep|SHARE", value_parser = policy, requires = "messages", help_heading = MESSAGES)]
    tool_results: Option<Policy>,
    /// Turns of the user before the newest one: `keep`, or a share of each [default: --rate]
    #[arg(long, value_name = "keep|SHARE", value_parser = policy, requires = "messages", help_heading = MESSAGES)]
    user_turns: Option<Policy>,
    /// Turns of the model before the newest one of the user: `keep`, or a share of each [default: --rate]
    #[arg(long, value_name = "keep|SHARE", value_parser = policy, requires = "messages", help_heading = MESSAGES)]
    assistant_turns: Option<Policy>,
    /// Messages at the end that do not change [default: 0]
    #[arg(long, value_name = "N", requires = "messages", help_heading = MESSAGES)]
    recent: Option<usize>,
    /// Texts of fewer tokens do not change [default: 300]
    #[arg(long, value_name = "TOKENS", requires = "messages", help_heading = MESSAGES)]
    min_tokens: Option<usize>,
}

/// Reads `keep` or a share.
fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "keep" => Ok(Policy::Keep),
        _ => share(text).map(Policy::Rate),
    }
}

impl Flags {
    /// The library's options.
    pub fn options(
        &self,
        budget: Budget,
        mode: Mode,
        question: Option<String>,
    ) -> Outcome<MessagesOptions> {
        let exact = match mode {
            Mode::Exact(exact) => exact,
            // The command line does not let the other one through.
            _ => Exact::default(),
        };
        let mut options = MessagesOptions::default()
            .with_budget(budget)
            .with_exact(exact)
            .with_question(question);
        if let Some(policy) = self.tool_results {
            options.tool_results = policy;
        }
        if let Some(policy) = self.user_turns {
            options.user = policy;
        }
        if let Some(policy) = self.assistant_turns {
            options.assistant = policy;
        }
        options.recent = self.recent.unwrap_or(options.recent);
        options.min_tokens = self.min_tokens.unwrap_or(options.min_tokens);
        usage(options.check())?;
        Ok(options)
    }
}

/// A report as `--json` prints it.
#[derive(Serialize)]
struct Json<'a> {
    body: &'a RawValue,
    tokens_before: usize,
    tokens_after: usize,
    decisions: &'a [Decision],
    seconds: f64,
    load_seconds: f64,
    model: &'a str,
}

/// Where the result goes.
pub struct Output<'a> {
    pub file: Option<&'a Path>,
    pub json: bool,
    pub quiet: bool,
}

/// Reads the body.
pub fn read(file: &Path) -> Outcome<Vec<u8>> {
    read_bytes(file)
}

/// Shortens a conversation and writes it.
pub fn run(model: &Model, body: &[u8], options: &MessagesOptions, output: Output) -> Outcome {
    let busy = Busy::new("compressing".into());
    let start = Instant::now();
    let result = model
        .engine
        .compress_messages(body, options, &busy.control())?;
    let seconds = start.elapsed().as_secs_f64();
    drop(busy);
    let text = match output.json {
        true => json(&result, seconds, model)?,
        false => String::from_utf8_lossy(&result.body).into_owned(),
    };
    match output.file {
        Some(path) => write_whole(path, &text)?,
        None => write_stdout(&text)?,
    }
    if !output.quiet {
        let changed = result
            .decisions
            .iter()
            .filter(|d| d.after < d.before)
            .count();
        say(&format!(
            "{} -> {} tokens, {changed} of {} parts shortened, in {seconds:.2} s, by {}",
            result.tokens_before,
            result.tokens_after,
            result.decisions.len(),
            model.name,
        ));
    }
    Ok(())
}

fn json(result: &MessagesResult, seconds: f64, model: &Model) -> Outcome<String> {
    let failed = |error: serde_json::Error| {
        Failure::Failed(crate::Error::Input {
            what: "--json".into(),
            reason: error.to_string(),
        })
    };
    let body = String::from_utf8_lossy(&result.body);
    let body = body.trim_start_matches('\u{feff}').trim();
    // One line of JSON: a body of several lines is still one value.
    let body = RawValue::from_string(body.to_string()).map_err(failed)?;
    let json = Json {
        body: &body,
        tokens_before: result.tokens_before,
        tokens_after: result.tokens_after,
        decisions: &result.decisions,
        seconds,
        load_seconds: model.load_seconds,
        model: &model.name,
    };
    Ok(serde_json::to_string(&json).map_err(failed)? + "\n")
}
