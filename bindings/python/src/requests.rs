//! Requests from Python's values, and results as such.

use std::ops::Range;
use std::path::Path;

use prefold::hard::messages::MessagesOptions;
use prefold::hard::{JsonConfig, JsonRequest, KeptContext, arguments::Arguments, recover};
use prefold::text::counts::{count_cl100k, count_o200k};
use prefold::{Compressed, Count, Error, Mode, Request, Result};
use serde_json::{Map, Value};

/// Index, text, tokens and character ranges of what is left of a context.
type Context = (usize, String, usize, Vec<(usize, usize)>);
/// Text, whether it was kept, nll.
type Piece = (String, bool, Option<f32>);
/// A result as plain values, in the order of the fields of `prefold.Result`.
pub type Row = (
    String,
    usize,
    usize,
    Option<usize>,
    Vec<Context>,
    Vec<String>,
    Vec<Piece>,
    String,
);
/// Index and text of what is left of a context, and its ranges of characters.
pub type KeptText = (usize, String, Vec<(usize, usize)>);

/// A result, and the contexts whose characters its spans are counted in.
pub fn row(compressed: Compressed, contexts: &[String]) -> Row {
    let llmlingua = serde_json::to_string(&compressed.llmlingua()).unwrap_or_default();
    let kept = compressed.contexts.into_iter().map(|context| {
        let source = contexts.get(context.index).map_or("", String::as_str);
        let spans = characters(source, &context.spans);
        (context.index, context.text, context.tokens, spans)
    });
    (
        compressed.text,
        compressed.tokens_before,
        compressed.tokens_after,
        compressed.target,
        kept.collect(),
        compressed.warnings,
        compressed
            .pieces
            .into_iter()
            .map(|piece| (piece.text, piece.kept, piece.nll))
            .collect(),
        llmlingua,
    )
}

/// Ascending ranges of bytes as ranges of characters, which Python counts in; a range that splits a
/// character takes all of it.
fn characters(text: &str, spans: &[Range<usize>]) -> Vec<(usize, usize)> {
    let mut starts = text.char_indices().map(|(at, _)| at).peekable();
    let mut before = 0;
    // Characters that begin before a byte.
    let mut place = |byte: usize| {
        while starts.next_if(|&start| start < byte).is_some() {
            before += 1;
        }
        before
    };
    let mut last = 0;
    spans
        .iter()
        .map(|span| {
            let start = place(span.start) - usize::from(!text.is_char_boundary(span.start));
            let end = place(span.end);
            let whole = (start.max(last), end);
            last = end;
            whole
        })
        .collect()
}

/// Ascending ranges of characters as ranges of bytes.
fn bytes(text: &str, spans: &[(usize, usize)]) -> Vec<Range<usize>> {
    let starts: Vec<usize> = text
        .char_indices()
        .map(|(at, _)| at)
        .chain([text.len()])
        .collect();
    let place = |character: usize| starts[character.min(starts.len() - 1)];
    spans
        .iter()
        .map(|&(start, end)| place(start)..place(end))
        .collect()
}

/// See [`recover::by_spans`]; ranges are of characters.
pub fn recover_by_spans(contexts: &[String], kept: &[KeptText], response: &str) -> String {
    let kept: Vec<KeptContext> = kept
        .iter()
        .map(|(index, text, spans)| {
            let source = contexts.get(*index).map_or("", String::as_str);
            KeptContext::new(*index, text.as_str(), bytes(source, spans))
        })
        .collect();
    recover::by_spans(contexts, &kept, response)
}

/// The arguments of a call.
pub fn arguments(json: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(json).map_err(|error| Error::Input {
        what: "arguments".into(),
        reason: error.to_string(),
    })
}

/// A compression by the name of its call: our own words, or the reference's.
pub fn request(name: &str, json: &str) -> Result<Request> {
    let mut arguments = arguments(json)?;
    // A request names no files; Python's caller may.
    let file = match arguments.get("count") {
        Some(Value::String(count)) if Count::from_name(count).is_none() => Some(count.clone()),
        _ => None,
    };
    if file.is_some() {
        arguments.remove("count");
    }
    let mut request = match name {
        "compress" => Request::from_json(arguments)?,
        "compress_prompt" => Request::from_python(arguments, false)?,
        "compress_prompt_llmlingua2" => Request::from_llmlingua2(arguments)?,
        _ => Request::from_python(arguments, true)?,
    };
    if let Some(file) = file {
        let Mode::Exact(exact) = request.mode else {
            return Err(Error::Input {
                what: format!("argument `count` {file}"),
                reason: "it has an effect only with an exact budget".into(),
            });
        };
        request.mode = exact.with_count(counter(&file)?).into();
    }
    Ok(request)
}

/// Options of `compress_messages`.
pub fn messages(json: &str) -> Result<MessagesOptions> {
    MessagesOptions::from_arguments(Arguments::new(arguments(json)?))
}

/// A request of `compress_json`: the object, and a configuration as JSON or YAML.
pub fn json(
    data: String,
    config: &str,
    yaml: bool,
    other: &str,
) -> Result<(JsonRequest, Vec<String>)> {
    let config = match yaml {
        true => JsonConfig::from_yaml(config)?,
        false => serde_json::from_str(config).map_err(|error| Error::Input {
            what: "json_config".into(),
            reason: error.to_string(),
        })?,
    };
    JsonRequest::from_python(data, config, arguments(other)?)
}

/// Whose tokens are counted: a name, or a `tokenizer.json`.
fn counter(name: &str) -> Result<Count> {
    if let Some(count) = Count::from_name(name) {
        return Ok(count);
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(Error::Unsupported {
            what: format!("count `{name}`"),
            have: format!(
                "{}, and the path of a tokenizer.json",
                Count::NAMES.join(", ")
            ),
        });
    }
    Count::from_file(path)
}

/// What counts tokens without a model.
pub struct Vocabulary(Count);

/// A vocabulary by its name or file.
pub fn vocabulary(name: &str) -> Result<Vocabulary> {
    counter(name).map(Vocabulary)
}

impl Vocabulary {
    /// Tokens of a text.
    pub fn tokens(&self, text: &str) -> Result<usize> {
        match &self.0 {
            Count::Cl100k => Ok(count_cl100k(text)),
            Count::O200k => Ok(count_o200k(text)),
            Count::Tokenizer(own) => Ok(own.encode(text, false, false)?.ids.len()),
            _ => Err(Error::Unsupported {
                what: "count `scorer` without a model".into(),
                have: "cl100k, o200k, and the path of a tokenizer.json".into(),
            }),
        }
    }
}
