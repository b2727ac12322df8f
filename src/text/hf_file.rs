//! A foreign `tokenizer.json`, looked at before Hugging Face's crate is given it.
//!
//! That crate trusts the file: lengths in it become allocations, halves of merges are cut where it says,
//! and each normalizer may make a text longer. What would end the process is refused here; what only
//! panics is caught by [`guard`].

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::files::{one_line, read_bounded, refuse_pointer};

/// The largest vocabularies take 35 MB.
const LONGEST_FILE: u64 = 256 << 20;
/// A normalizer's or a decoder's part of a file; a compiled character map takes 400 KB.
const LONGEST_STEPS: usize = 8 << 20;
/// How many times as long normalizers or decoders may make a text. Llama 2 puts three bytes before each part of a text
/// and three in place of each space; Unicode's decompositions mostly take three, and so does a character map.
const MAX_GROWTH: f64 = 12.0;
/// Ids that are put around a text or a pair of them; three or four in models.
const MAX_AROUND: usize = 1000;
/// Sequences in sequences.
const DEEPEST: usize = 32;

/// What is looked at.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Model<'a> {
    continuing_subword_prefix: Option<String>,
    #[serde(borrow)]
    dropout: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
}

/// A merge, in either form that files have.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(serde::de::IgnoredAny, String),
    Joined(String),
}

/// Reads a file that Hugging Face's crate may be given. What a training drops at random is not dropped.
///
/// # Errors
/// [`Error::Io`], and [`Error::Format`] for what cannot be a tokenizer or would take any amount of memory.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = read_bounded(path, LONGEST_FILE)?;
    refuse_pointer(path, &bytes)?;
    let bad = |reason: String| {
        Error::format(
            path,
            one_line(&format!("is not a tokenizer.json: {reason}")),
        )
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| bad(error.to_string()))?;
    let file: File = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    for (name, raw, refuse) in [
        ("normalizer", file.normalizer, bounded as Refuse),
        ("decoder", file.decoder, bounded),
        ("post_processor", file.post_processor, few_around),
    ] {
        let Some(raw) = raw else { continue };
        if raw.get().len() > LONGEST_STEPS {
            return Err(bad(format!(
                "its {name} is longer than {LONGEST_STEPS} bytes"
            )));
        }
        let steps: Value =
            serde_json::from_str(raw.get()).map_err(|error| bad(error.to_string()))?;
        refuse(name, &steps).map_err(bad)?;
    }
    let Some(model) = file.model else {
        return Err(bad("it has no model".into()));
    };
    let model: Model = serde_json::from_str(model.get()).map_err(|error| bad(error.to_string()))?;
    if let (Some(prefix), Some(merges)) = (&model.continuing_subword_prefix, model.merges)
        && !prefix.is_empty()
    {
        let merges: Vec<Merge> =
            serde_json::from_str(merges.get()).map_err(|error| bad(error.to_string()))?;
        let cut = |merge: &Merge| {
            let right = match merge {
                Merge::Pair(_, right) => right,
                Merge::Joined(pair) => pair.split_once(' ').map_or("", |(_, right)| right),
            };
            right.is_char_boundary(prefix.len().min(right.len() + 1))
        };
        if !merges.iter().all(cut) {
            let reason = "a merge is shorter than its model's continuing_subword_prefix";
            return Err(bad(reason.into()));
        }
    }
    let dropout = model.dropout.map(|raw| {
        // A raw value is a slice of the text that it was read from.
        let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        start..start + raw.get().len()
    });
    if let Some(dropout) = dropout {
        bytes.splice(dropout, *b"null");
    }
    Ok(bytes)
}

/// What refuses a part of a file, by its name.
type Refuse = fn(&str, &Value) -> Result<(), String>;

/// Refuses a post-processor that puts many ids around a text.
fn few_around(name: &str, step: &Value) -> Result<(), String> {
    match ids_around(step) {
        0..=MAX_AROUND => Ok(()),
        ids => Err(format!("its {name} puts {ids} ids around a text")),
    }
}

/// Refuses a normalizer or a decoder that may make a text very long, or whose lengths are untrue.
pub(super) fn bounded(name: &str, steps: &Value) -> Result<(), String> {
    let grows = growth(steps, 0).map_err(|reason| format!("{name}: {reason}"))?;
    if grows > MAX_GROWTH {
        let reason = format!("its {name} makes a text up to {grows:.0} times as long");
        return Err(reason);
    }
    Ok(())
}

/// How many ids a post-processor puts around a text: it may name a token often, and a token may have many ids.
fn ids_around(step: &Value) -> usize {
    let parts = step["processors"].as_array().into_iter().flatten();
    let inner: usize = parts.map(ids_around).sum();
    let templates = ["single", "pair"].map(|name| step[name].as_array());
    let named = templates.into_iter().flatten().flatten();
    let own: usize = named
        .filter_map(|part| part["SpecialToken"]["id"].as_str())
        .map(|name| {
            step["special_tokens"][name]["ids"]
                .as_array()
                .map_or(1, Vec::len)
        })
        .sum();
    inner.saturating_add(own)
}

/// How many times as long a text may be after a normalizer or a decoder.
fn growth(step: &Value, depth: usize) -> Result<f64, String> {
    if depth > DEEPEST {
        return Err("sequences in sequences in sequences".into());
    }
    let len = |name: &str| step.get(name).and_then(Value::as_str).map_or(0, str::len);
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let mut product = 1.0;
            for name in ["normalizers", "decoders"] {
                for step in step
                    .get(name)
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    product *= growth(step, depth + 1)?;
                }
            }
            Ok(product)
        }
        // What an expression finds may be one byte.
        Some("Replace") => {
            let pattern = step
                .get("pattern")
                .and_then(|pattern| pattern.get("String"));
            let found = pattern.and_then(Value::as_str).map_or(1, str::len);
            Ok((len("content") as f64 / found.max(1) as f64).max(1.0))
        }
        // To every part of a text between two added tokens.
        Some("Prepend") => Ok(1.0 + len("prepend") as f64),
        Some("Precompiled") => {
            let map = step.get("precompiled_charsmap").and_then(Value::as_str);
            let map = map.ok_or("a character map is not a string")?;
            is_char_map(map).then_some(3.0).ok_or_else(|| {
                "a compiled character map is shorter than it says, or holds a long text".to_string()
            })
        }
        // Decompositions of Unicode.
        Some("NFD" | "NFKD" | "NFC" | "NFKC" | "BertNormalizer") => Ok(3.0),
        _ => Ok(1.0),
    }
}

/// Whether the first four bytes of a character map, in base64, name a size that it has, and none of the texts that it
/// puts for others is long.
fn is_char_map(base64: &str) -> bool {
    // SentencePiece's own has one of 33 bytes.
    const LONGEST_TEXT: usize = 64;
    if base64.len() > LONGEST_STEPS {
        return false;
    }
    let Ok(map) = BASE64_STANDARD.decode(base64) else {
        return false;
    };
    let Some((&size, rest)) = map.split_first_chunk() else {
        return false;
    };
    let size = u32::from_le_bytes(size);
    let texts = usize::try_from(size).ok().and_then(|size| rest.get(size..));
    size.is_multiple_of(4)
        && texts.is_some_and(|texts| {
            texts
                .split(|&byte| byte == 0)
                .all(|text| text.len() <= LONGEST_TEXT)
        })
}

/// Opens a file for prompts, which are neither cut nor padded: it may carry the settings of a batch.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for what is not a tokenizer, would take any amount of memory, or Hugging
/// Face's crate does not take.
pub(super) fn open(path: &Path) -> Result<tokenizers::Tokenizer> {
    let json = read(path)?;
    let mut tokenizer = guard(path, || tokenizers::Tokenizer::from_bytes(&json))?;
    tokenizer
        .with_truncation(None)
        .map_err(|e| Error::format(path, e.to_string()))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Whether a tokenizer reads the second half of a text alike after the first and without it, where the second
/// begins with a space. Steps that are not known here may do anything.
pub(super) fn is_local(tokenizer: &tokenizers::Tokenizer) -> bool {
    let normalizes = match tokenizer.get_normalizer().map(serde_json::to_value) {
        None => true,
        Some(step) => step.is_ok_and(|step| normalizes_by_words(&step)),
    };
    let parts = match tokenizer.get_pre_tokenizer().map(serde_json::to_value) {
        None => false,
        Some(step) => step.is_ok_and(|step| parts_words(&step)),
    };
    // One could lie across.
    let added = tokenizer.get_added_tokens_decoder();
    let spaced = |token: &tokenizers::AddedToken| token.content.contains(char::is_whitespace);
    normalizes && parts && !added.values().any(spaced)
}

fn all_of(step: &Value, list: &str, each: fn(&Value) -> bool) -> bool {
    step[list].as_array().into_iter().flatten().all(each)
}

fn normalizes_by_words(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("Sequence") => all_of(step, "normalizers", normalizes_by_words),
        Some("Replace") => match (&step["pattern"]["String"], &step["pattern"]["Regex"]) {
            (Value::String(found), _) => found == " " || !found.contains(char::is_whitespace),
            (_, Value::String(pattern)) => pattern == " {2,}",
            _ => false,
        },
        Some(
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Lowercase" | "StripAccents"
            | "BertNormalizer" | "Precompiled",
        ) => true,
        _ => false,
    }
}

fn parts_words(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("Sequence") => all_of(step, "pretokenizers", parts_words),
        Some("Split") => match (&step["pattern"]["String"], &step["pattern"]["Regex"]) {
            (Value::String(found), _) => !found.contains(char::is_whitespace),
            (_, Value::String(pattern)) => WORDS.contains(&pattern.as_str()),
            _ => false,
        },
        Some("ByteLevel") => step["add_prefix_space"] == false,
        Some(
            "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit" | "Metaspace" | "Digits"
            | "Punctuation",
        ) => true,
        _ => false,
    }
}

/// Expressions that part a text at words, of GPT-2, Llama 3, Qwen 2 and GPT-4o, and such for digits. Others may look
/// back, or far ahead.
const WORDS: [&str; 7] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\p{N}{1,3}",
    r"\p{N}",
    r"\d",
];

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread becomes an error, so that nothing else need be said of it.
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}

/// Does something with Hugging Face's crate, whose panics become errors that `name` the tokenizer.
///
/// # Errors
/// What `work` says, or that it panicked.
pub(super) fn guard<T>(name: &Path, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    // What a panic leaves of the tokenizer is not used: it is not written to.
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    match done {
        Ok(done) => done.map_err(|error| {
            Error::format(
                name,
                one_line(&format!("is not a tokenizer.json that works: {error}")),
            )
        }),
        Err(_) => Err(Error::format(
            name,
            "is not a tokenizer.json that works: Hugging Face's tokenizers panicked on it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is said of a file, or its bytes.
    fn read_text(text: &str) -> Result<String, String> {
        let path = std::env::temp_dir().join(format!(
            "prefold-hf-{}-{:x}.json",
            std::process::id(),
            text.len()
        ));
        std::fs::write(&path, text).unwrap();
        let read = read(&path).map_err(|error| error.to_string());
        std::fs::remove_file(&path).unwrap();
        let read = read.map(|bytes| String::from_utf8(bytes).unwrap());
        if let Err(line) = &read {
            assert!(
                line.contains("prefold-hf-") && !line.contains('\n'),
                "{line}"
            );
        }
        read
    }

    #[test]
    fn dropout_is_taken_out_and_nothing_else() {
        let file = |dropout: &str| {
            format!(
                "{{\"model\": {{\"a\":1.50, \"dropout\" : {dropout}, \"vocab\":{{}}}}, \"x\":\"é\"}}"
            )
        };
        for dropout in ["0.1", "null", "0.25e0"] {
            assert_eq!(read_text(&file(dropout)).unwrap(), file("null"));
        }
        assert_eq!(read_text("{\"model\":{}}").unwrap(), "{\"model\":{}}");
    }

    #[test]
    fn what_would_take_all_memory_is_refused() {
        let refused = |normalizer: Value, says: &str| {
            let text = json!({"model": {}, "normalizer": normalizer}).to_string();
            let said = read_text(&text).unwrap_err();
            assert!(said.contains(says), "{said}");
        };
        let replace = |content: String| json!({"type": "Replace", "pattern": {"Regex": "."}, "content": content});
        let four: Vec<Value> = (0..4).map(|_| replace("x".repeat(200))).collect();
        refused(
            json!({"type": "Sequence", "normalizers": four}),
            "times as long",
        );
        // The first four bytes claim 4 GB, or one byte more than there is.
        refused(
            json!({"type": "Precompiled", "precompiled_charsmap": "/////wAA"}),
            "character map",
        );
        refused(
            json!({"type": "Precompiled", "precompiled_charsmap": "BA=="}),
            "character map",
        );
        refused(
            json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAA"}),
            "character map",
        );
        refused(json!({"type": "Precompiled"}), "character map");
        let mut deep = json!({"type": "Sequence", "normalizers": []});
        for _ in 0..40 {
            deep = json!({"type": "Sequence", "normalizers": [deep]});
        }
        refused(deep, "sequences in sequences");
        // A map of four bytes that says so, and SentencePiece's own steps.
        for fine in [
            json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}),
            json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}),
            Value::Null,
        ] {
            let text = json!({"model": {}, "normalizer": fine}).to_string();
            assert!(read_text(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn merges_that_would_be_cut_wrongly_are_refused() {
        let with = |merges: Value| {
            json!({"model": {"continuing_subword_prefix": "##", "merges": merges}}).to_string()
        };
        assert!(read_text(&with(json!([["a", "##b"], ["a", "##"]]))).is_ok());
        assert!(read_text(&with(json!(["a ##b"]))).is_ok());
        for bad in [
            json!([["a", "b"]]),
            json!(["a b"]),
            json!(["a"]),
            json!([["a", "#é"]]),
            json!(7),
        ] {
            assert!(read_text(&with(bad.clone())).is_err(), "{bad}");
        }
        assert!(read_text("{}").unwrap_err().contains("no model"));
        assert!(read_text("{\"model\": 3").is_err());
    }

    #[test]
    fn panics_become_errors() {
        let path = Path::new("some/tokenizer.json");
        let said = guard(path, || -> tokenizers::Result<()> { panic!("inside") });
        let said = said.unwrap_err().to_string();
        assert!(
            said.starts_with("some/tokenizer.json: ") && said.contains("panicked"),
            "{said}"
        );
        assert_eq!(guard(path, || Ok(7)).unwrap(), 7);
    }
}
