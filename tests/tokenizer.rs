//! Token ids against llama.cpp, spans against the text itself, and vocabularies that lie.

mod common;
#[path = "common/gguf_vocab.rs"]
mod gguf_vocab;

use std::path::PathBuf;

use prefold::text::{Encoding, Tokenizer};
use serde_json::Value;

fn open(path: Option<PathBuf>, name: &str) -> Option<Tokenizer> {
    let Some(path) = path else {
        eprintln!("skipped: {name} is not on this machine");
        return None;
    };
    Some(Tokenizer::from_vocab(gguf_vocab::read(&path)).expect("a real vocabulary"))
}

fn smollm2() -> Option<Tokenizer> {
    open(common::smollm2(), "SmolLM2-135M-Instruct")
}

fn qwen() -> Option<Tokenizer> {
    open(common::qwen(), "Qwen2.5-Coder-0.5B-Instruct")
}

fn golden(name: &str) -> Vec<Value> {
    let Some(shared) = common::shared() else {
        eprintln!("skipped: no golden values beside the checkout");
        return Vec::new();
    };
    jsonl(&shared.join("golden").join(name))
}

fn jsonl(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("reads");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("is JSON"))
        .collect()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list of ids");
    list.iter()
        .map(|id| id.as_u64().expect("an id") as u32)
        .collect()
}

/// Byte-level spans: ascending, gapless, covering the text, and each holding its token's bytes.
fn check_byte_spans(t: &Tokenizer, text: &str, e: &Encoding) {
    assert_eq!(e.ids.len(), e.spans.len());
    let mut done = 0;
    for (&id, span) in e.ids.iter().zip(&e.spans) {
        assert_eq!(span.start, done, "a gap in {text:?}");
        assert_eq!(t.token_bytes(id), text.as_bytes()[span.clone()], "{text:?}");
        done = span.end;
    }
    assert_eq!(done, text.len(), "the end of {text:?} is nobody's");
}

fn agrees_with_llama_cpp(t: &Tokenizer, rows: &[Value], model: &str) {
    let mut seen = 0;
    for row in rows.iter().filter(|r| r["model"] == model) {
        let text = row["text"].as_str().expect("a text");
        for (key, parse) in [("ids", false), ("ids_special", true)] {
            let got = t.encode(text, false, parse).expect("encodes");
            assert_eq!(got.ids, ids(&row[key]), "{model} {key} {text:?}");
            check_byte_spans(t, text, &got);
            assert_eq!(t.decode(&got.ids), text);
        }
        seen += 1;
    }
    assert!(rows.is_empty() || seen > 0, "no rows for {model}");
}

#[test]
fn smollm2_agrees_with_llama_cpp() {
    let Some(t) = smollm2() else { return };
    agrees_with_llama_cpp(&t, &golden("tokenize.jsonl"), "smollm2");
    assert_eq!(t.vocab_size(), 49152);
    assert_eq!(t.eos(), t.token_id("<|im_end|>"));
}

#[test]
fn qwen_agrees_with_llama_cpp() {
    let Some(t) = qwen() else { return };
    agrees_with_llama_cpp(&t, &golden("tokenize.jsonl"), "qwen2.5-coder-0.5b");
}

/// Every string anywhere in a value.
fn strings<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::String(s) => out.push(s),
        Value::Array(a) => a.iter().for_each(|v| strings(v, out)),
        Value::Object(o) => o.values().for_each(|v| strings(v, out)),
        _ => {}
    }
}

#[test]
fn decoding_gives_back_every_text_of_the_reference() {
    let Some(t) = smollm2() else { return };
    for row in &golden("llmlingua.jsonl") {
        let mut texts = Vec::new();
        strings(row, &mut texts);
        for text in texts {
            for parse in [false, true] {
                let e = t.encode(text, true, parse).expect("encodes");
                assert_eq!(t.decode(&e.ids), text);
                check_byte_spans(&t, text, &e);
            }
        }
        if row["call"] == "token_logprobs" {
            let text = row["args"]["text"].as_str().expect("a text");
            let e = t.encode(text, false, true).expect("encodes");
            assert_eq!(e.ids, ids(&row["result"]["ids"]), "{}", row["name"]);
        }
    }
}
