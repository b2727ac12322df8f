//! Real models open, and their tensors have the values that the reference reads.

mod common;

use std::path::Path;

use prefold::model::config::{Config, Family, RopeScaling};
use prefold::model::weights::{DType, Weights};

fn open(path: &Path) -> Weights {
    Weights::open(path).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn smollm2_opens() {
    let Some(path) = common::smollm2() else {
        eprintln!("skipped: there is no SmolLM2");
        return;
    };
    let weights = open(&path);
    assert_eq!(
        *weights.config(),
        Config {
            family: Family::Llama,
            vocab: 49152,
            hidden: 576,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            ffn: 1536,
            max_positions: 8192,
            norm_eps: 1e-5,
            rope_theta: 100_000.0,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            tied: true,
            bos: Some(1),
            eos: Some(2),
        }
    );
    assert_eq!(weights.parameters(), 134_515_008);
    assert_eq!(weights.names().count(), 272);
    assert!(!weights.has("lm_head.weight"));
    let embedding = weights.get("model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.dtype, DType::Q8_0);
    assert_eq!(embedding.shape, [49152, 576]);
    assert_eq!(embedding.to_f32().unwrap().len(), 49152 * 576);
    let meta = weights.gguf().unwrap();
    let tokens = meta.strs("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens.len(), 49152);
    assert_eq!(tokens[1], "<|im_start|>");
}

/// Names and dimensions of the tiny models in `shared/golden/models`.
fn tiny(family: Family) -> Config {
    Config {
        family,
        vocab: 384,
        hidden: 48,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 8,
        ffn: 112,
        max_positions: 256,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied: false,
        bos: None,
        eos: None,
    }
}

#[test]
fn tiny_models_open() {
    let Some(shared) = common::shared() else {
        eprintln!("skipped: there is no ../shared");
        return;
    };
    let ids = (Some(1), Some(2));
    let cases = [
        (
            "llama3",
            Config {
                rope_theta: 500_000.0,
                rope_scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_positions: 64,
                },
                bos: ids.0,
                eos: ids.1,
                ..tiny(Family::Llama)
            },
            2 * 384 * 48 + 48 + 2 * (2 * 48 + 48 * (48 + 16 + 16 + 48) + 3 * 48 * 112),
        ),
        (
            "mistral",
            Config {
                bos: ids.0,
                eos: ids.1,
                ..tiny(Family::Llama)
            },
            2 * 384 * 48 + 48 + 2 * (2 * 48 + 48 * (48 + 16 + 16 + 48) + 3 * 48 * 112),
        ),
        (
            "qwen2",
            Config {
                tied: true,
                ..tiny(Family::Qwen2)
            },
            384 * 48 + 48 + 2 * (2 * 48 + 49 * (48 + 16 + 16) + 48 * 48 + 3 * 48 * 112),
        ),
        (
            "qwen3",
            Config {
                tied: true,
                head_dim: 16,
                ..tiny(Family::Qwen3)
            },
            384 * 48 + 48 + 2 * (2 * 48 + 2 * 16 + 48 * (96 + 32 + 32 + 96) + 3 * 48 * 112),
        ),
        (
            "gpt2",
            Config {
                kv_heads: 6,
                ffn: 192,
                norm_eps: 1e-5,
                tied: true,
                ..tiny(Family::Gpt2)
            },
            (384 + 256 + 2) * 48 + 2 * (4 * 48 + 49 * 144 + 49 * 48 + 49 * 192 + 193 * 48),
        ),
    ];
    for (name, config, parameters) in cases {
        let path = shared.join("golden/models").join(name);
        let weights = open(&path);
        assert_eq!(*weights.config(), config, "{name}");
        assert_eq!(weights.parameters(), parameters, "{name}");
        assert_eq!(weights.tokenizer_path(), None);
        for tensor in weights.names() {
            let view = weights.get(tensor).unwrap();
            let values = view.to_f32().unwrap();
            assert_eq!(values.len(), view.shape.iter().product::<usize>());
            assert!(values.iter().all(|v| v.is_finite()), "{name} {tensor}");
            if let Some(borrowed) = view.as_f32() {
                assert_eq!(borrowed, values, "{name} {tensor}");
            }
        }
    }
}
