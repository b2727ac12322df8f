//! Token ids against llama.cpp, spans against the text itself, and vocabularies that lie.

use crate::common;
#[path = "../common/gguf_vocab.rs"]
mod gguf_vocab;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prefold::Error;
use prefold::text::{Encoding, GgufVocab, Tokenizer};
use serde_json::{Value, json};

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

fn jsonl(path: &Path) -> Vec<Value> {
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
    assert_eq!(done, text.len(), "the end of {text:?} is in no token");
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

#[test]
fn every_pre_tokenizer_agrees_with_llama_cpp() {
    let Some(path) = common::smollm2() else {
        eprintln!("skipped: SmolLM2-135M-Instruct is not on this machine");
        return;
    };
    let rows = fixture("tokenize_fuzz.json");
    for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2"] {
        let mut vocab = gguf_vocab::read(&path);
        vocab.pre = pre.into();
        let t = Tokenizer::from_vocab(vocab).expect("a real vocabulary");
        for row in rows.as_array().expect("rows") {
            let text = row["text"].as_str().expect("a text");
            for (key, parse) in [("ids", false), ("special", true)] {
                let got = t.encode(text, false, parse).expect("encodes");
                assert_eq!(got.ids, ids(&row[pre][key]), "{pre} {key} {text:?}");
            }
        }
    }
}

fn fixture(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let text = std::fs::read_to_string(folder.join(name)).expect("reads");
    serde_json::from_str(&text).expect("is JSON")
}

fn texts_of(value: &Value) -> Vec<String> {
    let list = value.as_array().expect("a list");
    list.iter()
        .map(|s| s.as_str().expect("a text").to_string())
        .collect()
}

#[test]
fn bytes_that_the_vocabulary_lacks_belong_to_a_neighbour() {
    let Some(t) = smollm2() else { return };
    // SmolLM2 has no token for U+0004.
    let e = t
        .encode("\u{4}a\u{4}\u{4}b\u{4}", false, false)
        .expect("encodes");
    assert_eq!(t.decode(&e.ids), "ab");
    assert_eq!(e.spans, [0..4, 4..6]);
    let none = t.encode("\u{4}", false, false).expect("encodes");
    assert_eq!(none, Encoding::default());
}

#[test]
fn half_a_character_decodes_to_the_replacement_character() {
    let Some(t) = smollm2() else { return };
    let e = t.encode("東", false, false).expect("encodes");
    assert!(e.ids.len() > 1, "東 is not a single token here");
    assert_eq!(t.decode(&e.ids[..1]), "\u{fffd}");
    assert_eq!(t.decode(&[]), "");
    assert_eq!(t.decode(&[u32::MAX]), "");
    assert_eq!(t.token_bytes(u32::MAX), b"");
}

#[test]
fn long_runs_take_linear_time() {
    let Some(t) = smollm2() else { return };
    let runs = ["a", " ", "\n", "<", "ab", "\n ", "1", "日"].map(|s| s.repeat(500_000 / s.len()));
    for text in runs.iter().map(String::as_str) {
        let start = Instant::now();
        let e = t.encode(text, false, true).expect("encodes");
        assert_eq!(t.decode(&e.ids), text);
        // A quadratic loop would take minutes; the bound is for a busy machine.
        let head: String = text.chars().take(2).collect();
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{head:?} is slow"
        );
    }
}

#[test]
fn threads_share_a_tokenizer() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Tokenizer>();
}

/// The vocabulary of `tests/data/spm.json`.
fn spm_vocab() -> (GgufVocab, Value) {
    let data = fixture("spm.json");
    let numbers = |key: &str| -> Vec<f64> {
        let list = data[key].as_array().expect("a list");
        list.iter().map(|n| n.as_f64().expect("a number")).collect()
    };
    let vocab = GgufVocab {
        model: "llama".into(),
        pre: "default".into(),
        tokens: texts_of(&data["tokens"]),
        scores: numbers("scores").into_iter().map(|s| s as f32).collect(),
        token_types: numbers("types").into_iter().map(|t| t as i32).collect(),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    };
    (vocab, data)
}

#[test]
fn spm_agrees_with_sentencepiece() {
    let (vocab, data) = spm_vocab();
    let t = Tokenizer::from_vocab(vocab).expect("a real vocabulary");
    let cases = data["cases"].as_array().expect("cases");
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let e = t.encode(text, false, false).expect("encodes");
        assert_eq!(e.ids, ids(&case["ids"]), "{text:?}");
        assert_eq!(t.decode(&e.ids), case["decoded"], "{text:?}");
        let mut done = 0;
        for (i, (&id, span)) in e.ids.iter().zip(&e.spans).enumerate() {
            assert_eq!(span.start, done, "a gap in {text:?}");
            let bytes = t.token_bytes(id);
            // The first token has the dummy space; U+2581 in a text is a space to SentencePiece.
            let own = if i == 0 { &bytes[1..] } else { &bytes[..] };
            if !text.contains('\u{2581}') {
                assert_eq!(own, &text.as_bytes()[span.clone()], "{text:?}");
            }
            done = span.end;
        }
        assert_eq!(done, text.len());
    }
    assert!(cases.len() > 100);
}

#[test]
fn spm_special_tokens_and_the_dummy_space() {
    let (vocab, _) = spm_vocab();
    let plain = GgufVocab {
        add_space_prefix: Some(false),
        add_bos: Some(false),
        add_eos: Some(true),
        ..vocab.clone()
    };
    let t = Tokenizer::from_vocab(vocab).expect("a real vocabulary");
    let the = t.token_id("▁the").expect("the most frequent word");
    let e = t.encode("the</s>the", true, true).expect("encodes");
    assert_eq!(e.ids, [1, the, 2, the]);
    assert_eq!(e.spans, [0..0, 0..3, 3..7, 7..10]);
    assert_eq!(t.decode(&e.ids), "<s> the</s> the");
    // Without the flag a control token's name is text, and text never becomes a control token.
    let e = t.encode("</s>", false, false).expect("encodes");
    assert!(!e.ids.contains(&2), "{:?}", e.ids);
    // A user-defined token is one even in plain text.
    let tool = t.token_id("<tool>").expect("a user-defined token");
    let e = t.encode("<tool>the", false, false).expect("encodes");
    assert_eq!(e.ids, [tool, the]);

    let t = Tokenizer::from_vocab(plain).expect("a real vocabulary");
    let e = t.encode(" the", true, false).expect("encodes");
    assert_eq!(e.ids, [the, 2]);
    assert_eq!(e.spans, [0..4, 4..4]);
    assert_eq!(t.decode(&e.ids), " the</s>");
}

#[test]
fn vocabularies_that_lie_are_refused() {
    let bpe = GgufVocab {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    };
    let t = Tokenizer::from_vocab(bpe.clone()).expect("a vocabulary");
    assert_eq!(
        t.encode("abba", true, true).expect("encodes").ids,
        [2, 1, 0]
    );

    let (spm, _) = spm_vocab();
    let refused = |key: &str, vocab: GgufVocab| match Tokenizer::from_vocab(vocab) {
        Err(Error::Format { file, .. }) => {
            assert_eq!(file, Path::new(&format!("tokenizer.ggml.{key}")))
        }
        other => panic!("{key}: {other:?}"),
    };
    let with = |change: &dyn Fn(&mut GgufVocab)| {
        let mut vocab = bpe.clone();
        change(&mut vocab);
        vocab
    };
    refused("tokens", with(&|v| v.tokens.clear()));
    refused("tokens", with(&|v| v.tokens.push("a".into())));
    refused("token_type", with(&|v| v.token_types = vec![1; 2]));
    refused("token_type", with(&|v| v.token_types = vec![1, 1, 7]));
    // WordPiece has marks at both ends.
    refused("tokens", with(&|v| v.model = "bert".into()));
    // Unigram has a score for each token.
    refused("scores", with(&|v| v.model = "t5".into()));
    refused("merges", with(&|v| v.merges.clear()));
    refused("merges", with(&|v| v.merges.push("ab".into())));
    refused("merges", with(&|v| v.merges.push("a c".into())));
    refused("merges", with(&|v| v.merges.push("b a".into())));
    refused("bos_token_id", with(&|v| v.bos = Some(3)));
    refused("eos_token_id", with(&|v| v.eos = Some(u32::MAX)));
    refused("unknown_token_id", with(&|v| v.unk = Some(3)));
    let mut short = spm.clone();
    short.scores.pop();
    refused("scores", short);
    let mut nan = spm;
    nan.scores[5] = f32::NAN;
    refused("scores", nan);
    for vocab in [
        with(&|v| v.pre = "falcon".into()),
        with(&|v| v.model = "rwkv".into()),
    ] {
        let got = Tokenizer::from_vocab(vocab);
        assert!(matches!(got, Err(Error::Unsupported { .. })), "{got:?}");
    }
}

/// Writes a `tokenizer.json` to the tests' scratch folder and opens it.
fn hf(name: &str, json: &Value) -> Tokenizer {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, json.to_string()).expect("writes");
    Tokenizer::from_file(&path).expect("a tokenizer")
}

/// GPT-2's character for each byte.
fn byte_alphabet() -> Vec<String> {
    let printable = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100u32..;
    (0..=255u8)
        .map(|b| {
            let code = if printable(&b) {
                u32::from(b)
            } else {
                others.next().expect("endless")
            };
            char::from_u32(code).expect("a character").to_string()
        })
        .collect()
}

fn byte_level_json(normalizer: Value) -> Value {
    let mut vocab: serde_json::Map<String, Value> = byte_alphabet()
        .into_iter()
        .enumerate()
        .map(|(b, c)| (c, b.into()))
        .collect();
    vocab.insert("Ġh".into(), 256.into());
    vocab.insert("Ġhi".into(), 257.into());
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [{"id": 258, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [258], "tokens": ["<|end|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["Ġ", "h"], ["Ġh", "i"]]},
    })
}

#[test]
fn a_tokenizer_json_gives_exact_spans() {
    let t = hf("byte_level.json", &byte_level_json(Value::Null));
    assert_eq!(t.vocab_size(), 259);
    let text = "é hi<|end|> 日";
    let e = t.encode(text, false, true).expect("encodes");
    assert_eq!(e.ids, [0xc3, 0xa9, 257, 258, 0x20, 0xe6, 0x97, 0xa5]);
    check_byte_spans(&t, text, &e);
    assert_eq!(t.decode(&e.ids), text);
    assert_eq!(t.decode(&e.ids[1..3]), "\u{fffd} hi");

    let e = t.encode(" hi", true, true).expect("encodes");
    assert_eq!((e.ids, e.spans), (vec![258, 257], vec![0..0, 0..3]));
    let e = t.encode("<|end|>", false, false).expect("encodes");
    assert_eq!(e.ids, b"<|end|>".map(u32::from));
}

#[test]
fn spans_survive_a_normalizer() {
    let t = hf("nfc.json", &byte_level_json(json!({"type": "NFC"})));
    // e + combining acute (three bytes) becomes é (two).
    let e = t.encode("日 e\u{301} hi", false, true).expect("encodes");
    assert_eq!(e.ids, [0xe6, 0x97, 0xa5, 0x20, 0xc3, 0xa9, 257]);
    assert_eq!(e.spans, [0..1, 1..2, 2..3, 3..4, 4..5, 5..7, 7..10]);
}

#[test]
fn a_sentencepiece_tokenizer_json_gives_exact_spans() {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=255).map(|b| format!("<0x{b:02X}>"));
    let words = ["▁", "h", "i", "▁h", "▁hi"].map(String::from);
    let names = ["<unk>", "<s>", "</s>"].map(String::from);
    for name in names.into_iter().chain(bytes).chain(words) {
        let id = vocab.len();
        vocab.insert(name, id.into());
    }
    let t = hf(
        "spm_tokenizer.json",
        &json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "h"], ["▁h", "i"]],
                "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true},
        }),
    );
    let text = "hi 日 hi";
    let e = t.encode(text, false, true).expect("encodes");
    assert_eq!(e.ids, [263, 259, 3 + 0xe6, 3 + 0x97, 3 + 0xa5, 263]);
    assert_eq!(e.spans, [0..2, 2..3, 3..4, 4..5, 5..6, 6..9]);
    assert_eq!(t.decode(&e.ids), text);
    assert_eq!(t.token_bytes(3 + 0xe6), [0xe6]);
    assert_eq!(t.token_bytes(263), b" hi");
}

#[test]
fn a_broken_tokenizer_json_is_refused() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join("broken.json");
    std::fs::write(&path, "{\"model\": 1}").expect("writes");
    let got = Tokenizer::from_file(&path);
    assert!(matches!(got, Err(Error::Format { .. })), "{got:?}");
    let got = Tokenizer::from_file(&folder.join("absent.json"));
    assert!(matches!(got, Err(Error::Io { .. })), "{got:?}");
}
