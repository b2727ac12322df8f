//! `prefold batch`: many calls, one a line, with the model loaded once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use prefold::hard::request::{Arguments, Request};
use prefold::{Engine, Error};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::failure::{Failure, Outcome};
use super::files::stdout_failure;
use super::model;

/// Runs many calls, each a line of JSON, with the model loaded once
///
/// A row `{"name", "call", "args"}` gives one line `{"name", "result"}` or `{"name", "error"}`, in
/// order. The calls:
///
///   compress_prompt, structured_compress_prompt
///       args: the keyword arguments of Microsoft's PromptCompressor, whose results these are,
///       token for token, unless they say "budget": "exact"
///   tokenize
///       args: text, parse_special (false); result: ids
///   token_logprobs
///       args: text or ids; result: ids, and the natural logprobs of ids[1:]; what is longer than the
///       model's context is read in windows that begin half of it apart
///
/// After a bad row it goes on; the exit code is then 1.
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
    Result(Value),
    Error(String),
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let (name, mut input): (&Path, Box<dyn BufRead>) = if args.file == Path::new("-") {
        (Path::new("standard input"), Box::new(io::stdin().lock()))
    } else {
        let file = File::open(&args.file).map_err(Error::io(&args.file))?;
        (&args.file, Box::new(BufReader::new(file)))
    };
    let model = args.model.open()?.scoring_with(&args.adapter)?;
    let mut out = io::stdout().lock();
    let (mut rows, mut failed) = (0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        if input
            .read_until(b'\n', &mut line)
            .map_err(Error::io(name))?
            == 0
        {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        rows += 1;
        let answer = answer(model.engine.as_ref(), &line);
        failed += usize::from(matches!(answer.outcome, Said::Error(_)));
        serde_json::to_writer(&mut out, &answer)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(stdout_failure)?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Rows { failed, rows }),
    }
}

/// What a row asks for, or what is wrong with it.
fn answer(engine: &dyn Engine, line: &[u8]) -> Answer {
    let row: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(row) => row,
        Err(error) => {
            return Answer {
                name: Value::Null,
                outcome: Said::Error(format!("this line is no JSON object: {error}")),
            };
        }
    };
    Answer {
        name: row.get("name").cloned().unwrap_or(Value::Null),
        outcome: match call(engine, row) {
            Ok(result) => Said::Result(result),
            Err(error) => Said::Error(error.to_string()),
        },
    }
}

/// Runs one row.
fn call(engine: &dyn Engine, mut row: Map<String, Value>) -> Result<Value, Error> {
    let mut field = |name: &str| {
        row.remove(name)
            .ok_or_else(|| bad_row(format!("field `{name}` is missing")))
    };
    field("name")?;
    let call = field("call")?;
    let Value::Object(args) = field("args")? else {
        return Err(bad_row("field `args` is no object"));
    };
    match call.as_str() {
        Some("compress_prompt") => {
            let Request { prompt, options } = Request::from_python(args)?;
            to_json(engine.compress(&prompt, &options)?)
        }
        Some("structured_compress_prompt") => {
            let Request { prompt, options } = Request::from_python(args)?;
            to_json(engine.compress_structured(&prompt, &options)?)
        }
        Some("tokenize") => {
            let mut args = Arguments::new(args);
            let text: String = args.required("text")?;
            let parse_special = args.optional("parse_special")?.unwrap_or(false);
            args.finish()?;
            let encoding = engine.tokenizer()?.encode(&text, false, parse_special)?;
            Ok(json!({ "ids": encoding.ids }))
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
            let nll = engine.score(&ids)?;
            let logprobs: Vec<f32> = nll.into_iter().map(|nll| -nll).collect();
            Ok(json!({ "ids": ids, "logprobs": logprobs }))
        }
        _ => Err(Error::Unsupported {
            what: format!("call {call}"),
            have: "compress_prompt, structured_compress_prompt, tokenize, token_logprobs".into(),
        }),
    }
}

/// A library type as JSON.
fn to_json(value: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| bad_row(error.to_string()))
}

/// A row that cannot be run.
fn bad_row(reason: impl Into<String>) -> Error {
    Error::Input {
        what: "row".into(),
        reason: reason.into(),
    }
}
