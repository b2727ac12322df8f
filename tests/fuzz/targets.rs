//! What is fed with hostile bytes: by libFuzzer (`fuzz/`), and by the seeded mutators beside this file on
//! a stable compiler.
//!
//! A target returns for every input. An error is one line, names the file it is about, and takes no more
//! memory than the input warrants; a panic is a finding.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use prefold::hard::{Exact, Granularity, LlmLingua, Request};
use prefold::model::weights::Weights;
use prefold::prefix::llama_cpp::{Layout, Slot};
use prefold::prefix::{Dtype, KRope, KvPrefix};
use prefold::text::Tokenizer;
use prefold::{Device, Engine, Error};
use serde_json::{Map, Value};

use super::gguf::{F32, Writer};

/// A target's name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 6] = [
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("tokenizer", tokenizer),
    ("prefix", prefix),
    ("request", request),
    ("tagged", tagged),
];

/// Texts that a tokenizer gets, whatever file it came from.
const TEXTS: [&str; 4] = [
    "",
    "Hello there, 42!",
    "naïve 東京 👩‍👩‍👧 \u{0}\n\n  x",
    "<|im_start|>user\n</s>",
];

/// A GGUF file: its structure, every tensor and its tokenizer.
fn gguf(data: &[u8]) {
    let path = file("gguf", "model.gguf", data);
    weights(&path);
}

/// A Hugging Face folder with this `model.safetensors`.
fn safetensors(data: &[u8]) {
    let path = file("safetensors", "model.safetensors", data);
    let folder = path.parent().expect("a file has a folder");
    std::fs::write(folder.join("config.json"), CONFIG).expect("the folder can be written");
    weights(folder);
}

/// The configuration of the folder that [`safetensors`] opens.
pub const CONFIG: &str = r#"{"model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2,
    "intermediate_size": 64, "vocab_size": 40, "max_position_embeddings": 24, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": false}"#;

fn weights(path: &Path) {
    let Some(weights) = done(Weights::open(path), Some(path)) else {
        return;
    };
    for name in weights.names() {
        if let Some(view) = done(weights.get(name), Some(path)) {
            done(view.to_f32(), None);
        }
    }
    weights.fingerprint();
    let vocab = weights
        .gguf()
        .and_then(|metadata| done(metadata.vocab(), Some(path)));
    if let Some(tokenizer) = vocab.and_then(|vocab| done(Tokenizer::from_vocab(vocab), None)) {
        encode(&tokenizer);
    }
}

/// A `tokenizer.json`.
fn tokenizer(data: &[u8]) {
    let path = file("tokenizer", "tokenizer.json", data);
    if let Some(tokenizer) = done(Tokenizer::from_file(&path), Some(&path)) {
        encode(&tokenizer);
    }
}

fn encode(tokenizer: &Tokenizer) {
    for text in TEXTS {
        for special in [false, true] {
            let Some(encoding) = done(tokenizer.encode(text, special, special), None) else {
                continue;
            };
            assert_eq!(encoding.ids.len(), encoding.spans.len());
            assert!(
                encoding
                    .spans
                    .iter()
                    .all(|span| text.get(span.clone()).is_some() || span.end <= text.len())
            );
            tokenizer.decode(&encoding.ids);
        }
    }
}

/// A KV prefix, also as a template of llama.cpp's.
fn prefix(data: &[u8]) {
    let path = file("prefix", "prefix.safetensors", data);
    let layout = done(Layout::of_template(&path), Some(&path));
    let Some((prefix, dtype)) = done(KvPrefix::read(&path), Some(&path)) else {
        return;
    };
    prefix.content_id();
    done(prefix.to_bytes(dtype), None);
    if let Some(layout) = layout.or_else(|| Layout::new(4).ok()) {
        done(Slot::new(&prefix, &layout, Default::default()), None);
    }
    for form in [KRope::None, KRope::Applied] {
        if let Some(other) = done(prefix.clone().with_k_rope(form), None) {
            done(other.to_bytes(Dtype::F16), None);
        }
    }
}

/// A line of JSON as `prefold batch` and the C ABI take it, compressed where it is a request.
fn request(data: &[u8]) {
    let Ok(Value::Object(row)) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let arguments = match row.get("args") {
        Some(Value::Object(arguments)) => arguments.clone(),
        _ => row,
    };
    type Parse = fn(Map<String, Value>) -> prefold::Result<Request>;
    let parse: [Parse; 3] = [
        Request::from_json,
        |arguments| Request::from_python(arguments, false),
        |arguments| Request::from_python(arguments, true),
    ];
    for parse in parse {
        if let Some(request) = done(parse(arguments.clone()), None) {
            compress(&request);
        }
    }
}

/// A prompt with tags, in both modes.
fn tagged(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let prompt = Request::new(text.split('\u{1}'))
        .with_question("Which value?")
        .with_structured(true);
    compress(&prompt.clone().with_mode(Exact::default()));
    compress(
        &prompt
            .clone()
            .with_mode(Exact::default().with_granularity(Granularity::Token)),
    );
    compress(&prompt.with_mode(LlmLingua::default()));
}

fn compress(request: &Request) {
    let bytes: usize = request.contexts.iter().map(String::len).sum();
    // Longer prompts find nothing that these do not, and take their time.
    if bytes + request.question.len() + request.instruction.len() > 4000 {
        return;
    }
    let Some(compressed) = done(engine().compress(request), None) else {
        return;
    };
    for context in &compressed.contexts {
        let given = &request.contexts[context.index];
        assert!(
            context
                .spans
                .iter()
                .all(|span| given.get(span.clone()).is_some())
        );
    }
}

/// A Llama of one layer whose tokens are bytes, with weights that are the same in every run.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let path = file("engine", "bytes.gguf", &byte_model());
        let builder = Engine::builder(path).device(Device::Cpu).threads(1);
        builder.build().expect("the model is whole")
    })
}

fn byte_model() -> Vec<u8> {
    const HIDDEN: usize = 32;
    // GPT-2's letters for bytes: printable ones stand for themselves.
    let plain = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut tokens: Vec<String> = (0..256)
        .map(|byte| {
            let letter = match plain(byte) {
                true => byte,
                false => {
                    next += 1;
                    next - 1
                }
            };
            char::from_u32(letter)
                .expect("below the surrogates")
                .to_string()
        })
        .collect();
    tokens.extend(["th".into(), "<|endoftext|>".into()]);
    let vocab = tokens.len();
    let mut state = 1u64;
    let mut values = |count: usize| -> Vec<u8> {
        let mut value = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) / 4.0
        };
        (0..count).flat_map(|_| value().to_le_bytes()).collect()
    };
    let mut writer = Writer::new();
    writer
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 8192)
        .u32("llama.embedding_length", HIDDEN as u32)
        .u32("llama.feed_forward_length", 2 * HIDDEN as u32)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10000.0)
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strs("tokenizer.ggml.tokens", &tokens)
        .strs("tokenizer.ggml.merges", &["t h".into()])
        .u32("tokenizer.ggml.bos_token_id", vocab as u32 - 1)
        .u32("tokenizer.ggml.eos_token_id", vocab as u32 - 1);
    for (name, shape) in [
        ("token_embd", &[vocab, HIDDEN][..]),
        ("output_norm", &[HIDDEN]),
        ("output", &[vocab, HIDDEN]),
        ("blk.0.attn_norm", &[HIDDEN]),
        ("blk.0.attn_q", &[HIDDEN, HIDDEN]),
        ("blk.0.attn_k", &[HIDDEN / 2, HIDDEN]),
        ("blk.0.attn_v", &[HIDDEN / 2, HIDDEN]),
        ("blk.0.attn_output", &[HIDDEN, HIDDEN]),
        ("blk.0.ffn_norm", &[HIDDEN]),
        ("blk.0.ffn_gate", &[2 * HIDDEN, HIDDEN]),
        ("blk.0.ffn_up", &[2 * HIDDEN, HIDDEN]),
        ("blk.0.ffn_down", &[HIDDEN, 2 * HIDDEN]),
    ] {
        let data = values(shape.iter().product());
        writer.tensor(&format!("{name}.weight"), shape, F32, data);
    }
    writer.bytes()
}

/// The value, or nothing after a look at the error.
fn done<T>(result: Result<T, Error>, path: Option<&Path>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let line = error.to_string();
    assert!(!line.contains('\n') && line.len() < 2000, "{line}");
    if let (Some(path), Error::Io { .. } | Error::Format { .. }) = (path, &error) {
        assert!(
            line.contains(&*path.to_string_lossy()),
            "no file is named: {line}"
        );
    }
    None
}

/// Writes an input where a target opens it, in a folder of this process and thread.
fn file(target: &str, name: &str, data: &[u8]) -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    let number: String = thread.chars().filter(char::is_ascii_digit).collect();
    let folder = format!("prefold-fuzz-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(folder).join(target);
    std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
    let path = folder.join(name);
    std::fs::write(&path, data).expect("the folder for temporary files can be written");
    path
}

/// Removes what [`file`] wrote in this process.
#[allow(dead_code)]
pub fn clean() {
    let mine = format!("prefold-fuzz-{}-", std::process::id());
    for entry in std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with(&mine) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
