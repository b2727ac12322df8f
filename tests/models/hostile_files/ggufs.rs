//! GGUFs with one thing wrong: the message says which.

use prefold::model::config::Family;

use super::{alone, assert_says, refused};
use crate::common::gguf::{self, Writer};
use crate::common::{TempDir, tiny};

/// What a message contains, and the change that provokes it.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Writer));

/// Errors of a tiny GGUF with one thing changed.
fn gguf_says(cases: &[Case]) {
    let dir = TempDir::new();
    for (message, change) in cases {
        let mut writer = tiny::gguf(Family::Llama);
        change(&mut writer);
        let line = refused(&dir.write("m.gguf", writer.bytes()));
        assert_says(&line, "m.gguf: ");
        assert_says(&line, message);
    }
}

#[test]
fn gguf_headers() {
    let _alone = alone();
    let huge = u64::MAX.to_le_bytes();
    gguf_says(&[
        ("GGUF version 1 is not supported", &|w| w.version = 1),
        ("GGUF version 4 is not supported", &|w| w.version = 4),
        ("big-endian GGUF is not supported", &|w| {
            w.version = 3u32.swap_bytes();
        }),
        ("cut short or corrupt", &|w| w.tensor_count = Some(u64::MAX)),
        ("cut short or corrupt", &|w| w.pair_count = Some(u64::MAX)),
        ("cut short or corrupt", &|w| {
            w.raw("long", 8, &huge);
        }),
        ("cut short or corrupt", &|w| {
            w.array("many", 4, u64::MAX, &[]);
        }),
        ("cut short or corrupt", &|w| {
            w.array("many", 8, u64::MAX, &[]);
        }),
        ("cut short or corrupt", &|w| {
            w.array("many", 10, u64::MAX / 8 + 2, &[]);
        }),
        ("nested: values of type 9 are not known", &|w| {
            w.array("nested", 9, 1, &[0; 16]);
        }),
        ("odd: values of type 77 are not known", &|w| {
            w.raw("odd", 77, &[0; 8]);
        }),
        ("the key general.architecture stands twice", &|w| {
            w.str("general.architecture", "llama");
        }),
        ("general.alignment is 0, no power of two", &|w| {
            w.u32("general.alignment", 0);
        }),
        ("general.alignment is 48, no power of two", &|w| {
            w.u32("general.alignment", 48);
        }),
        ("general.alignment is not a whole number", &|w| {
            w.str("general.alignment", "32");
        }),
        ("cut short", &|w| {
            w.u32("general.alignment", 1 << 31);
        }),
        ("is not UTF-8", &|w| {
            let end = w.pairs.len();
            w.u32("kkkk", 1);
            w.pairs[end][8] = 0xff;
        }),
    ]);
}

#[test]
fn gguf_tensors() {
    let _alone = alone();
    let q = "blk.0.attn_q.weight";
    gguf_says(&[
        ("attn_q.weight: 5 dimensions, at most 4", &|w| {
            w.tensor_mut(q).dims = vec![1; 5];
        }),
        ("is not a possible shape for F32", &|w| {
            w.tensor_mut(q).dims = vec![1 << 33, 1 << 33];
        }),
        ("is not a possible shape for F32", &|w| {
            w.tensor_mut(q).dims = vec![u64::MAX];
        }),
        ("[2, 48] is not a possible shape for Q8_0", &|w| {
            let tensor = w.tensor_mut(q);
            (tensor.kind, tensor.dims) = (gguf::Q8_0, vec![48, 2]);
        }),
        ("is not a possible shape for Q2_K", &|w| {
            w.tensor_mut(q).kind = 10
        }),
        ("element type 16 (an IQ type) is not supported", &|w| {
            w.tensor_mut(q).kind = 16
        }),
        ("element type 999 is not supported", &|w| {
            w.tensor_mut(q).kind = 999
        }),
        ("offset 16 is not a multiple of 32", &|w| {
            w.tensor_mut(q).offset = Some(16);
        }),
        ("is the file cut short?", &|w| {
            w.tensor_mut(q).offset = Some(1 << 40);
        }),
        ("is the file cut short?", &|w| {
            w.tensor_mut(q).offset = Some(u64::MAX - 31);
        }),
        ("two tensors share byte", &|w| {
            w.tensor_mut(q).offset = Some(0);
        }),
        ("blk.1.attn_q.weight: stands twice", &|w| {
            w.tensor_mut(q).name = "blk.1.attn_q.weight".into();
        }),
        ("tensor blk.0.attn_q.weight is missing", &|w| {
            w.tensors.retain(|t| t.name != q);
        }),
        ("attn_q.weight: expected [32, 32], got [16, 64]", &|w| {
            w.tensor_mut(q).dims = vec![64, 16];
        }),
        ("output_norm.weight: expected [32], got [1, 32]", &|w| {
            w.tensor_mut("output_norm.weight").dims = vec![32, 1];
        }),
        ("tensor token_embd.weight is missing", &|w| {
            w.tensors.retain(|t| t.name != "token_embd.weight");
        }),
        ("token_embd.weight: expected two dimensions", &|w| {
            w.tensor_mut("token_embd.weight").dims = vec![1280];
        }),
        ("rope_freqs.weight: expected one dimension of F32", &|w| {
            w.tensor("rope_freqs.weight", &[4], gguf::F16, vec![0; 8]);
        }),
        ("tensor blk.0.attn_q.bias is not supported", &|w| {
            w.tensor("blk.0.attn_q.bias", &[32], gguf::F32, vec![0; 128]);
        }),
        ("tensor blk.2.attn_q.weight is not supported", &|w| {
            w.tensor("blk.2.attn_q.weight", &[32], gguf::F32, vec![0; 128]);
        }),
    ]);
}

#[test]
fn gguf_configurations() {
    let _alone = alone();
    fn set(w: &mut Writer, key: &str, value: u32) {
        let key = format!("llama.{key}");
        w.without(&key).u32(&key, value);
    }
    gguf_says(&[
        ("no general.architecture found", &|w| {
            w.without("general.architecture");
        }),
        (
            "architecture \"gemma3\" is not supported; there is llama, qwen2",
            &|w| {
                w.without("general.architecture")
                    .str("general.architecture", "gemma3");
            },
        ),
        ("no llama.block_count found", &|w| {
            w.without("llama.block_count");
        }),
        ("number of layers is 0", &|w| set(w, "block_count", 0)),
        ("number of layers is 4294967295", &|w| {
            set(w, "block_count", u32::MAX)
        }),
        ("tensor blk.2.attn_norm.weight is missing", &|w| {
            set(w, "block_count", 1 << 24);
        }),
        ("tensor blk.1.", &|w| set(w, "block_count", 1)),
        ("number of heads is 0", &|w| {
            set(w, "attention.head_count", 0);
            set(w, "attention.key_length", 8);
        }),
        ("head size is 0", &|w| set(w, "attention.head_count", 33)),
        ("number of key-value heads is 0", &|w| {
            set(w, "attention.head_count_kv", 0)
        }),
        ("4 heads cannot share 3 key-value heads", &|w| {
            set(w, "attention.head_count_kv", 3);
        }),
        ("attention.head_count_kv is not a whole number", &|w| {
            w.without("llama.attention.head_count_kv").array(
                "llama.attention.head_count_kv",
                4,
                2,
                &[2, 0, 0, 0, 2, 0, 0, 0],
            );
        }),
        ("head size 7 is odd", &|w| set(w, "attention.key_length", 7)),
        (
            "value_length 16 beside a head size of 8 is not supported",
            &|w| {
                set(w, "attention.value_length", 16);
            },
        ),
        (
            "dimension_count 4 beside a head size of 8 is not supported",
            &|w| {
                set(w, "rope.dimension_count", 4);
            },
        ),
        ("a mixture of experts is not supported", &|w| {
            set(w, "expert_count", 8)
        }),
        ("number of positions is 0", &|w| set(w, "context_length", 0)),
        ("number of positions is 4294967295", &|w| {
            set(w, "context_length", u32::MAX);
        }),
        ("expected [40, 64], got [40, 32]", &|w| {
            set(w, "embedding_length", 64);
        }),
        ("norm epsilon is NaN", &|w| {
            let key = "llama.attention.layer_norm_rms_epsilon";
            w.without(key).f32(key, f32::NAN);
        }),
        ("no llama.attention.layer_norm_rms_epsilon found", &|w| {
            w.without("llama.attention.layer_norm_rms_epsilon");
        }),
        ("rope theta is -1", &|w| {
            w.without("llama.rope.freq_base")
                .f32("llama.rope.freq_base", -1.0);
        }),
        ("50 tokens, but the embedding has 40 rows", &|w| {
            w.without("tokenizer.ggml.tokens")
                .strs("tokenizer.ggml.tokens", &vec![String::new(); 50]);
        }),
    ]);
}

/// What is wrong with a vocabulary is wrong with its file.
#[test]
fn gguf_vocabularies() {
    let _alone = alone();
    let dir = TempDir::new();
    let cases: [Case; 6] = [
        ("tokenizer.ggml.tokens: is empty", &|w| {
            w.without("tokenizer.ggml.tokens");
        }),
        ("tokenizer.ggml.tokens: ids 0 and 1 are both \"a\"", &|w| {
            w.without("tokenizer.ggml.tokens");
            w.strs("tokenizer.ggml.tokens", &["a".into(), "a".into()]);
        }),
        ("tokenizer model `rwkv` is not supported", &|w| {
            w.without("tokenizer.ggml.model");
            w.str("tokenizer.ggml.model", "rwkv");
        }),
        ("tokenizer.ggml.scores: has 0 entries for 40 tokens", &|w| {
            w.without("tokenizer.ggml.model");
            w.str("tokenizer.ggml.model", "t5");
        }),
        ("tokenizer.ggml.tokens: has no [CLS]", &|w| {
            w.without("tokenizer.ggml.model");
            w.str("tokenizer.ggml.model", "bert");
        }),
        ("tokenizer.ggml.tokens is not an array", &|w| {
            w.without("tokenizer.ggml.tokens");
            w.u32("tokenizer.ggml.tokens", 7);
        }),
    ];
    for (message, change) in cases {
        let mut writer = tiny::gguf(Family::Llama);
        writer
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "gpt-2");
        change(&mut writer);
        let path = dir.write("m.gguf", writer.bytes());
        let builder = prefold::Engine::builder(&path).device(prefold::Device::Cpu);
        let line = builder.build().expect_err(message).to_string();
        assert_says(&line, &path.to_string_lossy());
        assert_says(&line, message);
    }
}
