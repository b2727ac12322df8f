//! `prefold batch`: many calls, one a line, with the model loaded once.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::hard::arguments::Arguments;
use crate::hard::json::Call;
use crate::train::rows::read_line;
use crate::{Engine, Error};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::batch_calls;
use super::failure::{Failure, Outcome};
use super::files::{longest_text, say_that_a_terminal_is_read, stdout_failure};
use super::interrupt;
use super::model;

/// Bytes of rows to come that are read ahead.
const AHEAD: usize = 1 << 20;

/// Runs many calls, each a line of JSON, with the model loaded once
///
/// A row `{"name", "call", "args"}` gives one line `{"name", "result"}` or `{"name", "error"}`, in
/// order. The calls:
///
///   compress
///       args: contexts; question, instruction, structured, rate or target_tokens, mode ("exact",
///       "llmlingua" or "llmlingua2") and the mode's options; result: text, tokens_before, tokens_after, target, and of
///       each context that is left its index, text, tokens and spans
///   compress_prompt, structured_compress_prompt
///       args: the keyword arguments of Microsoft's PromptCompressor, whose results these are,
///       token for token, unless they say "budget": "exact"
///   compress_prompt_llmlingua2
///       the same with use_llmlingua2=True; the model is a token classifier
///   tokenize
///       args: text, parse_special (false); result: ids
///   token_logprobs
///       args: text or ids; result: ids, and the natural logprobs of ids[1:]; what is longer than the
///       model's context is read in windows that begin half of it apart
///
/// After a bad row it continues; the exit code is then 1. On a GPU, rows that are there at once share passes
/// of the model; each comes out as it would alone.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The rows; `-` is standard input
    #[arg(value_name = "CASES.jsonl")]
    file: PathBuf,
    #[command(flatten)]
    model: model::Args,
    #[command(flatten)]
    adapter: model::AdapterArgs,
    #[command(flatten)]
    encoder: model::EncoderArgs,
}

/// One line of the output.
#[derive(Serialize)]
struct Answer {
    name: Value,
    #[serde(flatten)]
    outcome: Said,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Result(Box<RawValue>),
    Error(String),
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let (name, input): (&Path, Box<dyn Read>) = if args.file == Path::new("-") {
        say_that_a_terminal_is_read();
        (Path::new("standard input"), Box::new(io::stdin().lock()))
    } else {
        let file = File::open(&args.file).map_err(Error::io(&args.file))?;
        (&args.file, Box::new(file))
    };
    let mut input = BufReader::with_capacity(AHEAD, input);
    crate::text::prepare_cl100k();
    let model = args.model.open_to_rank(&args.adapter, &args.encoder)?;
    let mut out = io::stdout().lock();
    let width = model.engine.at_a_time();
    let (mut rows, mut failed) = (0, 0);
    let longest = usize::try_from(longest_text()).unwrap_or(usize::MAX);
    let mut begun = false;
    loop {
        let mut lines = lines(&mut input, width, longest).map_err(Error::io(name))?;
        if let Some(first) = lines.first_mut().filter(|_| !begun) {
            first.drain(..crate::files::mark(name, first)?);
            begun = true;
        }
        if lines.is_empty() {
            break;
        }
        for answer in answers(&model.engine, &lines) {
            if interrupt::told() {
                return Err(Error::Cancelled.into());
            }
            rows += 1;
            failed += usize::from(matches!(answer.outcome, Said::Error(_)));
            serde_json::to_writer(&mut out, &answer)
                .map_err(io::Error::from)
                .and_then(|()| out.write_all(b"\n"))
                .and_then(|()| out.flush())
                .map_err(stdout_failure)?;
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Rows { failed, rows }),
    }
}

/// The next line that is not blank, and up to `count` with those after it that are there already: who
/// writes a row and waits for its answer gets it, and a whole file comes in groups. None at the end.
fn lines(
    input: &mut BufReader<impl Read>,
    count: usize,
    longest: usize,
) -> io::Result<Vec<Vec<u8>>> {
    let mut lines = Vec::new();
    while lines.is_empty() || (lines.len() < count && input.buffer().contains(&b'\n')) {
        let mut line = Vec::new();
        if !read_line(input, &mut line, longest)? {
            break;
        }
        if !line.trim_ascii().is_empty() {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// What is to be done for a row, or what there is to say already.
enum Task {
    Compress(Box<Call>),
    Said(Said),
}

/// What the rows ask for, or what is wrong with them. Compressions that follow each other go together.
fn answers(engine: &Engine, lines: &[Vec<u8>]) -> Vec<Answer> {
    let (mut rows, mut requests) = (Vec::new(), Vec::new());
    for line in lines {
        let (name, task) = task(engine, line);
        if let Task::Compress(call) = &task {
            requests.push(call.request.clone());
        }
        rows.push((name, task));
    }
    let compressed = engine.compress_many(&requests, &interrupt::control());
    let mut compressed = compressed.into_iter();
    let mut answer = |(name, task)| {
        let outcome = match task {
            Task::Said(said) => said,
            Task::Compress(call) => match compressed.next() {
                Some(result) => {
                    let answer = result.and_then(|result| call.answer(&result));
                    said(answer.and_then(|answer| batch_calls::raw(&answer)))
                }
                None => Said::Error("this row was passed over".into()),
            },
        };
        Answer { name, outcome }
    };
    rows.into_iter().map(&mut answer).collect()
}

/// A row's name and what it asks for.
fn task(engine: &Engine, line: &[u8]) -> (Value, Task) {
    let longest = longest_text();
    if line.len() as u64 > longest {
        let said = format!("this row is longer than {longest} bytes; --max-bytes raises the limit");
        return (Value::Null, Task::Said(Said::Error(said)));
    }
    let row: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(row) => row,
        Err(error) => {
            let said = Said::Error(format!("this line is not a JSON object: {error}"));
            return (Value::Null, Task::Said(said));
        }
    };
    let name = row.get("name").cloned().unwrap_or(Value::Null);
    let task = call(engine, row, line);
    (
        name,
        task.unwrap_or_else(|error| Task::Said(said(Err(error)))),
    )
}

fn said(result: Result<Box<RawValue>, Error>) -> Said {
    match result {
        Ok(result) => Said::Result(result),
        Err(error) => Said::Error(error.to_string()),
    }
}

/// What a row asks for; what is not a compression is done.
fn call(engine: &Engine, mut row: Map<String, Value>, line: &[u8]) -> Result<Task, Error> {
    let mut field = |name: &str| {
        row.remove(name)
            .ok_or_else(|| bad_row(format!("field `{name}` is missing")))
    };
    field("name")?;
    let call = field("call")?;
    let Value::Object(args) = field("args")? else {
        return Err(bad_row("field `args` is not an object"));
    };
    match call.as_str() {
        Some(name) if Call::NAMES.contains(&name) => {
            Ok(Task::Compress(Box::new(Call::new(name, args)?)))
        }
        Some("tokenize") => {
            let mut args = Arguments::new(args);
            let text: String = args.required("text")?;
            let parse_special = args.optional("parse_special")?.unwrap_or(false);
            args.finish()?;
            let encoding = engine.tokenizer()?.encode(&text, false, parse_special)?;
            done(batch_calls::raw(&json!({ "ids": encoding.ids })))
        }
        Some("token_logprobs") => {
            let mut args = Arguments::new(args);
            let text: Option<String> = args.optional("text")?;
            let ids: Option<Vec<u32>> = args.optional("ids")?;
            args.finish()?;
            let ids = match (text, ids) {
                (Some(text), None) => engine.tokenizer()?.encode(&text, true, false)?.ids,
                (None, Some(ids)) => ids,
                _ => return Err(bad_row("give one of `text` and `ids`")),
            };
            let nll = engine.score(&ids, &interrupt::control())?;
            let logprobs: Vec<f32> = nll.into_iter().map(|nll| -nll).collect();
            done(batch_calls::raw(
                &json!({ "ids": ids, "logprobs": logprobs }),
            ))
        }
        Some("compress_json") => done(batch_calls::compress_json(engine, args, line)),
        Some("compress_messages") => done(batch_calls::compress_messages(engine, args, line)),
        Some("recover") => done(batch_calls::recovered(args)),
        _ => Err(Error::Unsupported {
            what: format!("call {call}"),
            have: format!(
                "compress_messages, compress_json, recover, {}, tokenize, token_logprobs",
                Call::NAMES.join(", ")
            ),
        }),
    }
}

/// A row that is done.
fn done(result: Result<Box<RawValue>, Error>) -> Result<Task, Error> {
    Ok(Task::Said(Said::Result(result?)))
}

/// A row that cannot be run.
fn bad_row(reason: impl Into<String>) -> Error {
    Error::Input {
        what: "row".into(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Comes piece by piece, as from a pipe.
    struct Pieces(std::vec::IntoIter<&'static str>);

    impl Read for Pieces {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let piece = self.0.next().unwrap_or_default().as_bytes();
            to[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn rows_that_are_there_come_together() {
        let groups = |count| {
            let pieces = vec!["a\n \nb\nc", "\nd\ne\nf\n", "g"];
            let mut input = BufReader::with_capacity(64, Pieces(pieces.into_iter()));
            let next = || {
                let rows = lines(&mut input, count, 9).unwrap();
                Some(rows).filter(|rows| !rows.is_empty())
            };
            std::iter::from_fn(next)
                .map(|rows| String::from_utf8(rows.concat()).unwrap().replace('\n', ""))
                .collect::<Vec<_>>()
        };
        assert_eq!(groups(3), ["ab", "cde", "f", "g"]);
        assert_eq!(groups(1), ["a", "b", "c", "d", "e", "f", "g"]);
    }
}
