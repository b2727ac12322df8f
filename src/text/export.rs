//! A GGUF's byte-level BPE as a Hugging Face `tokenizer.json`, for models that leave the GGUF.

use serde_json::{Map, Value, json};

use super::pretokenize::PreTokenizer;
use super::vocab::{GgufVocab, is_control_by_name};

/// `tokenizer.ggml.token_type` of what has no other token, of control tokens and of a user's.
const SPECIAL: [i32; 3] = [2, 3, 4];
/// The last of them.
const USER_DEFINED: i32 = 4;

/// The `tokenizer.json` that gives the ids of llama.cpp.
///
/// # Errors
/// Why it cannot be made, in a few words.
pub fn tokenizer_json(vocab: &GgufVocab) -> Result<Value, String> {
    if vocab.model != "gpt2" {
        let kind = &vocab.model;
        return Err(format!(
            "its tokenizer is of the kind {kind:?}, and only byte-level BPE is written as a \
             tokenizer.json"
        ));
    }
    let pre = PreTokenizer::from_name(&vocab.pre).map_err(|error| error.to_string())?;
    let byte_level = |split: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split,
        })
    };
    let split = |pattern: String| {
        json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
        })
    };
    let pre_tokenizer = match pre {
        PreTokenizer::Gpt2 => byte_level(true),
        PreTokenizer::SmolLm => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})
        }
        _ => {
            let mut steps: Vec<Value> = pre.expressions().into_iter().map(split).collect();
            steps.push(byte_level(false));
            json!({"type": "Sequence", "pretokenizers": steps})
        }
    };
    let mut ids = Map::new();
    let mut added = Vec::new();
    for (id, name) in vocab
        .tokens
        .iter()
        .enumerate()
        .filter(|(_, name)| !name.is_empty())
    {
        ids.insert(name.clone(), id.into());
        let kind = vocab.token_types.get(id).copied().unwrap_or(1);
        let control = is_control_by_name(name);
        if SPECIAL.contains(&kind) || control {
            added.push(json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED || control,
            }));
        }
    }
    let llama3 = pre == PreTokenizer::Llama3;
    let bos = vocab.bos.filter(|_| vocab.add_bos.unwrap_or(llama3));
    let bos = bos.and_then(|id| Some((id, vocab.tokens.get(id as usize)?)));
    let post_processor = match bos {
        None => {
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true})
        }
        Some((id, name)) => {
            let begin = json!({"SpecialToken": {"id": name, "type_id": 0}});
            let text = |which: &str, id: u32| json!({"Sequence": {"id": which, "type_id": id}});
            json!({
                "type": "TemplateProcessing",
                "single": [begin, text("A", 0)],
                "pair": [begin, text("A", 0), text("B", 1)],
                "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}},
            })
        }
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.whole_words(), "vocab": ids, "merges": vocab.merges,
        },
    }))
}
