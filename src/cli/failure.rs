//! Why the program stops, and with which exit code.

use std::io::Write;

use crate::Error;
use crate::line::Line;

/// Every way in which a command can fail.
#[derive(Debug)]
pub enum Failure {
    /// The command line makes no sense: exit code 2.
    Usage(String),
    /// The library or the file system says no: exit code 1.
    Failed(Error),
    /// Some rows of a batch failed; each has said so in its own line: exit code 1.
    Rows { failed: usize, rows: usize },
    /// It was told to stop: the exit code of a SIGINT.
    Interrupted(String),
    /// The reader of our output has gone: the exit code of a SIGPIPE.
    ClosedPipe,
}

/// What a command returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The message, in one line.
    pub fn line(&self) -> String {
        let text = match self {
            Failure::Usage(message) | Failure::Interrupted(message) => message.clone(),
            Failure::Failed(error) => in_flags(error),
            Failure::Rows { failed, rows } => format!("{failed} of {rows} rows failed"),
            Failure::ClosedPipe => {
                "standard output: its reader has gone before all was written".into()
            }
        };
        one_line(&text)
    }

    /// The exit code of the process.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Failed(_) | Failure::Rows { .. } => 1,
            Failure::Interrupted(_) => 130,
            Failure::ClosedPipe => 141,
        }
    }
}

/// Makes what is wrong with an option, found before anything was read, a failure of the command line.
pub fn usage<T>(checked: Result<T, Error>) -> Outcome<T> {
    checked.map_err(|error| match error {
        Error::Input { .. } => Failure::Usage(in_flags(&error)),
        error => Failure::Failed(error),
    })
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Cancelled => Failure::Interrupted("interrupted".into()),
            error => Failure::Failed(error),
        }
    }
}

/// A command whose feature this build lacks.
pub fn not_built(feature: &str) -> Failure {
    Failure::Usage(format!(
        "`prefold {feature}` is not in this build; releases have it, and `cargo install prefold \
         --features {feature}` builds it"
    ))
}

/// What clap says of the arguments of `command`, without its usage block, unless that alone tells which
/// option asks for the missing one.
pub fn malformed(error: &clap::Error, command: &str) -> Failure {
    let text = error.to_string();
    let missing = error.kind() == clap::error::ErrorKind::MissingRequiredArgument;
    let usage = match text.lines().find_map(|line| line.strip_prefix("Usage:")) {
        Some(usage) if missing => format!("; expected{usage}"),
        _ => String::new(),
    };
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join("; ").replace(":; ", ": ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    Failure::Usage(format!("{said}{usage} (see `{command} --help`)"))
}

/// The flag of a field of the library's, where the program has one.
fn flag(field: &str) -> Option<String> {
    let flag = match field {
        "activation_bytes" => "activation-mb",
        "force_contexts" => "force-context-ids",
        "force_tokens" => "force-token",
        "keep_by" => "by",
        "reorder" => "reorder-context",
        "target_tokens" => "target-token",
        "accumulate"
        | "alpha"
        | "answer_template"
        | "answer_tokens"
        | "batch"
        | "bos"
        | "clip"
        | "compression"
        | "context_budget"
        | "corpus"
        | "data"
        | "dropout"
        | "dtype"
        | "dynamic_context_compression_ratio"
        | "eos"
        | "high_priority_bonus"
        | "init"
        | "iterative_size"
        | "keep"
        | "k_rope"
        | "log"
        | "lr"
        | "max_text_tokens"
        | "memory_tokens"
        | "method"
        | "nested"
        | "out"
        | "output"
        | "overlap"
        | "piece_tokens"
        | "placeholder"
        | "question_template"
        | "question_tokens"
        | "questions"
        | "rank"
        | "rank_by_question"
        | "rank_method"
        | "rate"
        | "rates"
        | "resume"
        | "schedule"
        | "seed"
        | "shuffle_buffer"
        | "steps"
        | "target_token"
        | "targets"
        | "temperature"
        | "text_tokens"
        | "token_budget_ratio"
        | "tokens"
        | "top_p"
        | "warmup"
        | "weight_decay" => field,
        _ => return None,
    };
    Some(format!("--{}", flag.replace('_', "-")))
}

/// What the library says, with flags in place of its fields: the first word of what it names, and names
/// in backticks.
fn in_flags(error: &Error) -> String {
    let Error::Input { what, reason } = error else {
        return error.to_string();
    };
    let (field, value) = what.split_at(what.find(' ').unwrap_or(what.len()));
    let what = flag(field).map_or_else(|| what.clone(), |flag| flag + value);
    let mut said = format!("{what}: ");
    let mut rest = reason.as_str();
    while let Some((before, name, after)) = quoted(rest) {
        said += before;
        said += &flag(name).unwrap_or_else(|| format!("`{name}`"));
        rest = after;
    }
    said + rest
}

/// The first name in backticks, with what is before and after it.
fn quoted(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('`')?;
    let (name, after) = rest.split_once('`')?;
    Some((before, name, after))
}

/// Says something on standard error, in one line.
pub fn say(line: &str) {
    // With standard error gone there is nothing left to say it on.
    let _ = writeln!(std::io::stderr(), "prefold: {}", one_line(line));
}

/// Control characters and marks of direction, which a file's name or content may have brought along, are
/// shown escaped.
pub fn one_line(text: &str) -> String {
    Line::whole(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_librarys_fields_are_the_programs_flags() {
        let say = |what: &str, reason: &str| {
            Failure::from(Error::Input {
                what: what.into(),
                reason: reason.into(),
            })
            .line()
        };
        assert_eq!(say("target_tokens 3", "no"), "--target-token 3: no");
        assert_eq!(say("weight_decay -1", "no"), "--weight-decay -1: no");
        assert_eq!(
            say(
                "out run",
                "a run is there; `resume` continues it, `else` not"
            ),
            "--out run: a run is there; --resume continues it, `else` not"
        );
        assert_eq!(say("prompt", "no `tokens"), "prompt: no `tokens");
    }

    #[test]
    fn a_message_stays_on_one_line_whatever_a_file_is_called() {
        let failure = Failure::from(Error::Format {
            file: "a\nb\u{1b}[2J\u{202e}.gguf".into(),
            reason: "bad\r\nmagic".into(),
        });
        let line = failure.line();
        assert_eq!(line, "a\\nb\\u{1b}[2J\\u{202e}.gguf: bad\\r\\nmagic");
    }
}
