//! Calls of `prefold batch` whose arguments are JSON of the caller's, which comes back byte for byte where
//! it was not shortened.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::hard::arguments::Arguments;
use crate::hard::compress_json::{JsonConfig, JsonRequest};
use crate::hard::messages::{Decision, MessagesOptions};
use crate::hard::{KeptContext, LlmLinguaResult, recover};
use crate::{Engine, Error};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::interrupt;

/// A configuration has a line or five for each member.
const LONGEST_CONFIG: u64 = 16 << 20;

/// The result of `compress_json`: the reference's six keys, the first of them JSON.
#[derive(Serialize)]
struct CompressedJson {
    compressed_prompt: Box<RawValue>,
    #[serde(flatten)]
    figures: BTreeMap<&'static str, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// llmlingua's `compress_json`, with its arguments.
pub fn compress_json(
    engine: &Engine,
    mut args: Map<String, Value>,
    line: &[u8],
) -> Result<Box<RawValue>, Error> {
    let data = raw_argument(line, "json_data")?;
    args.remove("json_data");
    let config = match args.remove("json_config") {
        Some(Value::String(path)) => config_file(Path::new(&path))?,
        Some(config @ Value::Object(_)) => {
            serde_json::from_value(config).map_err(|error| bad("json_config", error.to_string()))?
        }
        _ => {
            return Err(bad(
                "json_config",
                "expected an object, or the path of a YAML file",
            ));
        }
    };
    let (request, warnings) = JsonRequest::from_python(data.get(), config, args)?;
    let result = engine.compress_json(&request, &interrupt::control())?;
    let LlmLinguaResult {
        compressed_prompt,
        origin_tokens,
        compressed_tokens,
        ratio,
        rate,
        saving,
        ..
    } = result.llmlingua();
    let figures = [
        ("origin_tokens", json!(origin_tokens)),
        ("compressed_tokens", json!(compressed_tokens)),
        ("ratio", json!(ratio)),
        ("rate", json!(rate)),
        ("saving", json!(saving)),
    ];
    raw(&CompressedJson {
        compressed_prompt: RawValue::from_string(compressed_prompt)
            .map_err(|error| bad("json_data", error.to_string()))?,
        figures: figures.into_iter().collect(),
        warnings: warnings.into_iter().chain(result.warnings).collect(),
    })
}

/// Reads a configuration by its path.
fn config_file(path: &Path) -> Result<JsonConfig, Error> {
    let bytes = crate::files::read_bounded(path, LONGEST_CONFIG)?;
    JsonConfig::from_yaml(&crate::files::text(path, bytes)?)
}

/// The result of `compress_messages`.
#[derive(Serialize)]
struct CompressedMessages<'a> {
    body: Box<RawValue>,
    tokens_before: usize,
    tokens_after: usize,
    decisions: &'a [Decision],
}

/// A conversation, with the options of the library.
pub fn compress_messages(
    engine: &Engine,
    mut args: Map<String, Value>,
    line: &[u8],
) -> Result<Box<RawValue>, Error> {
    let body = raw_argument(line, "body")?;
    args.remove("body");
    let options = MessagesOptions::from_arguments(Arguments::new(args))?;
    let result =
        engine.compress_messages(body.get().as_bytes(), &options, &interrupt::control())?;
    let body = String::from_utf8_lossy(&result.body).into_owned();
    raw(&CompressedMessages {
        body: RawValue::from_string(body).map_err(|error| bad("body", error.to_string()))?,
        tokens_before: result.tokens_before,
        tokens_after: result.tokens_after,
        decisions: &result.decisions,
    })
}

/// What a result has of a context, as `compress` gives it.
#[derive(Deserialize)]
struct Kept {
    index: usize,
    text: String,
    spans: Vec<[usize; 2]>,
}

/// llmlingua's `recover`, by words; or by the contexts that `compress` gave, with the originals.
pub fn recovered(args: Map<String, Value>) -> Result<Box<RawValue>, Error> {
    let mut args = Arguments::new(args);
    let response: String = args.required("response")?;
    let kept: Option<Vec<Kept>> = args.optional("kept")?;
    let text = match kept {
        Some(kept) => {
            let contexts: Vec<String> = args.required("contexts")?;
            let spans = |kept: &Kept| -> Vec<Range<usize>> {
                kept.spans.iter().map(|&[start, end]| start..end).collect()
            };
            let kept: Vec<KeptContext> = kept
                .iter()
                .map(|kept| KeptContext::new(kept.index, kept.text.as_str(), spans(kept)))
                .collect();
            recover::by_spans(&contexts, &kept, &response)
        }
        None => {
            let original: String = args.required("original_prompt")?;
            let compressed: String = args.required("compressed_prompt")?;
            recover::by_words(&original, &compressed, &response)
        }
    };
    args.finish()?;
    raw(&json!({ "response": text }))
}

/// An argument of a row as its bytes.
fn raw_argument<'a>(line: &'a [u8], name: &str) -> Result<&'a RawValue, Error> {
    #[derive(Deserialize)]
    struct Row<'a> {
        #[serde(borrow)]
        args: BTreeMap<String, &'a RawValue>,
    }
    let row: Row = serde_json::from_slice(line).map_err(|error| bad(name, error.to_string()))?;
    row.args
        .get(name)
        .copied()
        .ok_or_else(|| bad(name, "is missing"))
}

/// A result as JSON.
pub fn raw(value: &impl Serialize) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(value).map_err(|error| bad("result", error.to_string()))
}

fn bad(name: &str, reason: impl Into<String>) -> Error {
    Error::Input {
        what: format!("argument `{name}`"),
        reason: reason.into(),
    }
}
