//! Tiny models of every family with random weights, as a folder or as a GGUF.

use std::collections::BTreeMap;

use prefold::model::config::Family;
use prefold::text::{GgufVocab, Tokenizer};
use serde_json::{Value, json};

use super::gguf::{self, Writer};
use super::{Random, TempDir};

pub const VOCAB: usize = 40;
pub const HIDDEN: usize = 32;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 8;
pub const FFN: usize = 64;
pub const LAYERS: usize = 2;
pub const POSITIONS: usize = 24;

pub const FAMILIES: [Family; 4] = [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Gpt2];

/// A tensor by its Hugging Face name, linear layers as `[out, in]`.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The tensors of an untied Llama or Qwen or of a tied GPT-2.
pub fn tensors(family: Family) -> Tensors {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
    let kv = KV_HEADS * HEAD_DIM;
    if family == Family::Gpt2 {
        add("transformer.wte.weight".into(), &[VOCAB, HIDDEN]);
        add("transformer.wpe.weight".into(), &[POSITIONS, HIDDEN]);
        add("transformer.ln_f.weight".into(), &[HIDDEN]);
        add("transformer.ln_f.bias".into(), &[HIDDEN]);
        for i in 0..LAYERS {
            let mut add =
                |name: &str, shape: &[usize]| add(format!("transformer.h.{i}.{name}"), shape);
            for norm in ["ln_1", "ln_2"] {
                add(&format!("{norm}.weight"), &[HIDDEN]);
                add(&format!("{norm}.bias"), &[HIDDEN]);
            }
            for (name, out, input) in [
                ("attn.c_attn", 3 * HIDDEN, HIDDEN),
                ("attn.c_proj", HIDDEN, HIDDEN),
                ("mlp.c_fc", FFN, HIDDEN),
                ("mlp.c_proj", HIDDEN, FFN),
            ] {
                add(&format!("{name}.weight"), &[out, input]);
                add(&format!("{name}.bias"), &[out]);
            }
        }
    } else {
        add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN]);
        add("model.norm.weight".into(), &[HIDDEN]);
        add("lm_head.weight".into(), &[VOCAB, HIDDEN]);
        for i in 0..LAYERS {
            let mut add =
                |name: &str, shape: &[usize]| add(format!("model.layers.{i}.{name}"), shape);
            add("input_layernorm.weight", &[HIDDEN]);
            add("post_attention_layernorm.weight", &[HIDDEN]);
            for (name, out) in [("q_proj", HIDDEN), ("k_proj", kv), ("v_proj", kv)] {
                add(&format!("self_attn.{name}.weight"), &[out, HIDDEN]);
                if family == Family::Qwen2 {
                    add(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            add("self_attn.o_proj.weight", &[HIDDEN, HIDDEN]);
            if family == Family::Qwen3 {
                add("self_attn.q_norm.weight", &[HEAD_DIM]);
                add("self_attn.k_norm.weight", &[HEAD_DIM]);
            }
            add("mlp.gate_proj.weight", &[FFN, HIDDEN]);
            add("mlp.up_proj.weight", &[FFN, HIDDEN]);
            add("mlp.down_proj.weight", &[HIDDEN, FFN]);
        }
    }
    let mut random = Random(family as u64);
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product())
                .map(|_| random.float())
                .collect();
            (name, (shape, values))
        })
        .collect()
}

/// The `config.json` of [`tensors`].
pub fn config(family: Family) -> Value {
    if family == Family::Gpt2 {
        return json!({
            "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": HIDDEN,
            "n_head": HEADS, "n_layer": LAYERS, "n_inner": FFN, "n_positions": POSITIONS,
            "vocab_size": VOCAB, "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
        });
    }
    json!({
        "model_type": family.name(), "hidden_act": "silu", "hidden_size": HIDDEN,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS, "intermediate_size": FFN, "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    })
}

/// Tensors as one safetensors file, F32, in Hugging Face's own orientation.
pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let stored: Vec<(&String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let conv1d = ["c_attn.weight", "c_proj.weight", "c_fc.weight"];
            if !conv1d.iter().any(|suffix| name.ends_with(suffix)) {
                return (name, shape.clone(), f32_bytes(values));
            }
            let (out, input) = (shape[0], shape[1]);
            let mut transposed = vec![0.0; values.len()];
            for o in 0..out {
                for i in 0..input {
                    transposed[i * out + o] = values[o * input + i];
                }
            }
            (name, vec![input, out], f32_bytes(&transposed))
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A folder with `config.json` and `model.safetensors`.
pub fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let dir = TempDir::new();
    dir.write("config.json", config.to_string());
    dir.write("model.safetensors", safetensors(tensors));
    dir
}

/// A GGUF with all of its tensors as F32, q and k interleaved for Llama as the format wants it.
pub fn gguf(family: Family) -> Writer {
    let arch = family.name();
    let mut writer = Writer::new();
    let key = |name: &str| format!("{arch}.{name}");
    writer
        .str("general.architecture", arch)
        .u32(&key("block_count"), LAYERS as u32)
        .u32(&key("context_length"), POSITIONS as u32)
        .u32(&key("embedding_length"), HIDDEN as u32)
        .u32(&key("feed_forward_length"), FFN as u32)
        .u32(&key("attention.head_count"), HEADS as u32)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .strs(
            "tokenizer.ggml.tokens",
            &(0..VOCAB).map(|i| format!("t{i}")).collect::<Vec<_>>(),
        );
    if family == Family::Gpt2 {
        writer.f32(&key("attention.layer_norm_epsilon"), 1e-5);
    } else {
        writer
            .u32(&key("attention.head_count_kv"), KV_HEADS as u32)
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
            .f32(&key("rope.freq_base"), 10000.0);
    }
    for (name, (shape, values)) in tensors(family) {
        let values = match (family, shape[0] / HEAD_DIM) {
            (Family::Llama, heads) if name.contains("q_proj") || name.contains("k_proj") => {
                interleave(&values, heads)
            }
            _ => values,
        };
        writer.tensor(&gguf_name(&name), &shape, gguf::F32, f32_bytes(&values));
    }
    writer
}

/// Row `2j + p` of a head is row `p · half + j` of Hugging Face's.
fn interleave(values: &[f32], heads: usize) -> Vec<f32> {
    let half = HEAD_DIM / 2;
    let mut out = Vec::new();
    for head in 0..heads {
        for j in 0..half {
            for p in 0..2 {
                let row = head * HEAD_DIM + p * half + j;
                out.extend(&values[row * HIDDEN..][..HIDDEN]);
            }
        }
    }
    out
}

fn gguf_name(name: &str) -> String {
    let mut name = name.to_owned();
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("lm_head", "output"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("_proj", ""),
        ("mlp.", "ffn_"),
        ("transformer.wte", "token_embd"),
        ("transformer.wpe", "position_embd"),
        ("transformer.ln_f", "output_norm"),
        ("transformer.h", "blk"),
        ("ln_1", "attn_norm"),
        ("ln_2", "ffn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c", "attn_output"),
        ("ffn_c_fc", "ffn_up"),
        ("ffn_c", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    name
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// One token per byte, and one for a pair of them.
pub fn byte_tokenizer() -> Tokenizer {
    Tokenizer::from_vocab(byte_vocab()).unwrap()
}

/// The vocabulary of [`byte_tokenizer`].
pub fn byte_vocab() -> GgufVocab {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let mut tokens: Vec<String> = (0..256)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                others.next().unwrap()
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    tokens.push("th".into());
    GgufVocab {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens,
        merges: vec!["t h".into()],
        bos: Some(0),
        eos: Some(0),
        ..GgufVocab::default()
    }
}

/// A Llama that reads bytes, with a tokenizer and `positions` positions, as a folder.
pub fn byte_model(positions: usize) -> TempDir {
    let vocab = byte_vocab();
    let mut tensors = tensors(Family::Llama);
    let mut random = Random(257);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let values = (0..vocab.tokens.len() * HIDDEN).map(|_| random.float());
        let shape = vec![vocab.tokens.len(), HIDDEN];
        tensors.insert(name.into(), (shape, values.collect()));
    }
    let mut config = config(Family::Llama);
    config["vocab_size"] = vocab.tokens.len().into();
    config["max_position_embeddings"] = positions.into();
    let folder = folder(&config, &tensors);
    let json = prefold::text::tokenizer_json(&vocab).unwrap();
    folder.write("tokenizer.json", json.to_string());
    folder
}
