//! Valid inputs of each target.

use prefold::model::config::Family;
use serde_json::json;

use crate::common::tiny;

pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "gguf" => {
            let mut seeds = tiny::FAMILIES
                .map(|family| tiny::gguf(family).bytes())
                .to_vec();
            seeds.push(unigram_gguf());
            seeds
        }
        "safetensors" => vec![tiny::safetensors(&tiny::tensors(Family::Llama))],
        "tokenizer" => vec![byte_level(), unigram()],
        "prefix" => prefixes(),
        "request" => requests(),
        "tagged" => TAGGED.map(|text| text.as_bytes().to_vec()).into(),
        _ => unreachable!("an unknown target"),
    }
}

const TAGGED: [&str; 6] = [
    "<llmlingua, compress=False>Keep this.</llmlingua><llmlingua, rate=0.4>This may shrink a lot.</llmlingua>",
    "<llmlingua, rate = 0.8, compress = True>One sentence. Another one.</llmlingua>",
    "Plain text before <llmlingua>tagged</llmlingua> and after.",
    "<llmlingua, rate=0.5>a < b and <b>bold</b></llmlingua>\u{1}<llmlingua, compress=False></llmlingua>",
    "<llmlingua, rate=1.5>x</llmlingua>",
    "<llmlingua, compress=True, rate=0.1>日本語のテキスト 👩‍👩‍👧 \u{301}</llmlingua>",
];

fn byte_level() -> Vec<u8> {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 5, "content": "<|im_start|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"H": 0, "e": 1, "l": 2, "o": 3, "ll": 4, "<|im_start|>": 5}, "merges": [["l", "l"]]},
    })
    .to_string()
    .into_bytes()
}

fn unigram() -> Vec<u8> {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "post_processor": null,
        "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["\u{2581}", -1.0], ["He", -2.0], ["llo", -2.5], ["l", -3.0]]},
    })
    .to_string()
    .into_bytes()
}

/// A tiny model with a vocabulary of XLM-RoBERTa's kind and its map of characters.
fn unigram_gguf() -> Vec<u8> {
    let tokens = [
        "<s>", "<pad>", "</s>", "<unk>", "\u{2581}", "He", "llo", "l", "o",
    ];
    let scores = [0.0f32, 0.0, 0.0, 0.0, -1.0, -2.0, -2.5, -3.0, -3.5];
    let kinds = [3i32, 3, 3, 2, 1, 1, 1, 1, 1];
    // Sixteen cells that all end, and the texts that they would give.
    let map = [&64u32.to_le_bytes()[..], &[0; 64], b"a\0bc\0"].concat();
    let mut writer = tiny::gguf(Family::Llama);
    for key in ["model", "tokens", "scores", "token_type"] {
        writer.without(&format!("tokenizer.ggml.{key}"));
    }
    writer
        .str("tokenizer.ggml.model", "t5")
        .strs("tokenizer.ggml.tokens", &tokens.map(String::from))
        .array(
            "tokenizer.ggml.scores",
            6,
            9,
            &scores.map(f32::to_le_bytes).concat(),
        )
        .array(
            "tokenizer.ggml.token_type",
            5,
            9,
            &kinds.map(i32::to_le_bytes).concat(),
        )
        .array(
            "tokenizer.ggml.precompiled_charsmap",
            0,
            map.len() as u64,
            &map,
        );
    writer.bytes()
}

/// A prefix that the program makes of a tiny model, in two element types, and a slot file.
fn prefixes() -> Vec<Vec<u8>> {
    let model = tiny::byte_model(512);
    let engine = prefold::Engine::builder(model.path())
        .device(prefold::Device::Cpu)
        .build()
        .unwrap();
    let source = prefold::soft::Source::ids(vec![3, 1, 4, 1, 5]);
    let prefix = engine
        .prefixes()
        .prefill(&source, &prefold::soft::PrefillOptions::default())
        .unwrap();
    let layout = prefold::prefix::llama_cpp::Layout::new(4).unwrap();
    let slot = prefold::prefix::llama_cpp::Slot::new(&prefix, &layout, Default::default()).unwrap();
    vec![
        prefix.to_bytes(prefold::prefix::Dtype::F32).unwrap(),
        prefix.to_bytes(prefold::prefix::Dtype::Bf16).unwrap(),
        slot.bytes,
    ]
}

fn requests() -> Vec<Vec<u8>> {
    [
        json!({"contexts": ["One document. It has two sentences.", "Another."], "question": "What?", "rate": 0.5}),
        json!({"contexts": "Only text.", "target_tokens": 3, "mode": "exact", "granularity": "token",
            "force_tokens": ["\n"], "force_contexts": [0]}),
        json!({"contexts": ["a b c d e f g"], "mode": "llmlingua", "iterative_size": 10, "rank_method": "bm25"}),
        json!({"name": "x", "call": "compress_prompt", "args": {"context": ["Some text to shorten. And more of it."],
            "question": "Which?", "rate": 0.5, "rank_method": "longllmlingua",
            "condition_in_question": "after_condition", "reorder_context": "sort",
            "dynamic_context_compression_ratio": 0.3, "condition_compare": true}}),
        json!({"args": {"context": "<llmlingua, rate=0.5>tagged text</llmlingua>", "target_token": -1}}),
        json!({"args": {"context": ["x y z"], "budget": "exact", "count": "scorer", "force_context_ids": [0]}}),
    ]
    .map(|row| row.to_string().into_bytes())
    .into()
}
