//! Real models open, and their tensors have the values that the reference reads.

use crate::common;

use std::path::Path;

use prefold::model::config::{Config, Family, Mlp, Positions, RopeScaling};
use prefold::model::weights::{Access, DType, Weights};
use prefold::ops::NormKind;
use serde_json::{Value, json};

use crate::common::tiny::{self, Tensors};
use crate::common::{TempDir, gguf};

fn open(path: &Path) -> Weights {
    Weights::open(path).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn smollm2_opens() {
    let Some(path) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2");
        return;
    };
    let weights = open(&path);
    assert_eq!(
        *weights.config(),
        Config {
            family: Family::Llama,
            norm: NormKind::Rms,
            mlp: Mlp::SwiGlu,
            positions: Positions::Rotary,
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
            encoder: None,
        }
    );
    assert_eq!(weights.parameters(), 134_515_008);
    assert_eq!(weights.names().count(), 272);
    assert!(!weights.has("lm_head.weight"));
    let embedding = weights.get("model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.dtype, DType::Q8_0);
    assert_eq!(embedding.shape, [49152, 576]);
    assert_eq!(embedding.to_f32().unwrap().len(), 49152 * 576);
    // Row 64 + 32 + 5 lies at 64 + 2·5 + 1 in the file; values by Python's `gguf`.
    let k = weights
        .get("model.layers.3.self_attn.k_proj.weight")
        .unwrap();
    assert_eq!(k.dtype, DType::Q4_1);
    let row = k.to_f32().unwrap()[101 * 576..][..4].to_vec();
    let bits = [0xbc96_8000, 0xbc96_8000, 0xbdb0_4000, 0x3e3d_2000];
    assert_eq!(row, bits.map(f32::from_bits));
    let meta = weights.gguf().unwrap();
    let tokens = meta.strs("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens.len(), 49152);
    assert_eq!(tokens[1], "<|im_start|>");
}

/// What a decoder of a family computes.
fn forward_of(family: Family) -> (NormKind, Mlp, Positions) {
    match family {
        Family::Gpt2 => (NormKind::Layer, Mlp::Gelu, Positions::Learned),
        _ => (NormKind::Rms, Mlp::SwiGlu, Positions::Rotary),
    }
}

/// Names and dimensions of the tiny models in `shared/golden/models`.
fn shared_tiny(family: Family) -> Config {
    let (norm, mlp, positions) = forward_of(family);
    Config {
        family,
        norm,
        mlp,
        positions,
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
        encoder: None,
    }
}

#[test]
fn tiny_models_open() {
    let Some(shared) = common::shared() else {
        eprintln!("skipped: no ../shared");
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
                ..shared_tiny(Family::Llama)
            },
            2 * 384 * 48 + 48 + 2 * (2 * 48 + 48 * (48 + 16 + 16 + 48) + 3 * 48 * 112),
        ),
        (
            "mistral",
            Config {
                bos: ids.0,
                eos: ids.1,
                ..shared_tiny(Family::Llama)
            },
            2 * 384 * 48 + 48 + 2 * (2 * 48 + 48 * (48 + 16 + 16 + 48) + 3 * 48 * 112),
        ),
        (
            "qwen2",
            Config {
                tied: true,
                ..shared_tiny(Family::Qwen2)
            },
            384 * 48 + 48 + 2 * (2 * 48 + 49 * (48 + 16 + 16) + 48 * 48 + 3 * 48 * 112),
        ),
        (
            "qwen3",
            Config {
                tied: true,
                head_dim: 16,
                ..shared_tiny(Family::Qwen3)
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
                ..shared_tiny(Family::Gpt2)
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

/// Every tensor under its name, and none besides.
fn assert_holds(weights: &Weights, want: &Tensors, what: &str) {
    assert!(weights.names().eq(want.keys()), "{what}");
    for (name, (shape, values)) in want {
        let view = weights.get(name).unwrap();
        assert_eq!(view.shape, *shape, "{what} {name}");
        assert_eq!(view.to_f32().unwrap(), *values, "{what} {name}");
    }
}

fn tiny_config(family: Family) -> Config {
    let gpt2 = family == Family::Gpt2;
    let (norm, mlp, positions) = forward_of(family);
    Config {
        family,
        norm,
        mlp,
        positions,
        vocab: tiny::VOCAB,
        hidden: tiny::HIDDEN,
        layers: tiny::LAYERS,
        heads: tiny::HEADS,
        kv_heads: if gpt2 { tiny::HEADS } else { tiny::KV_HEADS },
        head_dim: tiny::HEAD_DIM,
        ffn: tiny::FFN,
        max_positions: tiny::POSITIONS,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied: gpt2,
        bos: Some(1),
        eos: Some(2),
        encoder: None,
    }
}

#[test]
fn both_formats_give_the_same_model() {
    for family in tiny::FAMILIES {
        let tensors = tiny::tensors(family);
        let folder = tiny::folder(&tiny::config(family), &tensors);
        let from_folder = open(folder.path());
        let dir = TempDir::new();
        let from_gguf = open(&dir.write("m.gguf", tiny::gguf(family).bytes()));
        for (weights, what) in [(from_folder, "folder"), (from_gguf, "gguf")] {
            let what = format!("{} {what}", family.name());
            assert_eq!(*weights.config(), tiny_config(family), "{what}");
            assert_holds(&weights, &tensors, &what);
            assert_eq!(
                weights.parameters(),
                tensors.values().map(|(_, v)| v.len()).sum::<usize>()
            );
        }
    }
}

#[test]
fn version_2_and_another_alignment() {
    let dir = TempDir::new();
    let mut writer = tiny::gguf(Family::Llama);
    writer.version = 2;
    writer.alignment = 256;
    writer.u32("general.alignment", 256);
    let path = dir.write("m.gguf", writer.bytes());
    assert_holds(&open(&path), &tiny::tensors(Family::Llama), "version 2");
}

#[test]
fn llama_rows_of_quantised_q_are_put_back_whole() {
    // q as Q8_0, each row scaled by its number in Hugging Face's order.
    let dir = TempDir::new();
    let mut writer = tiny::gguf(Family::Llama);
    let half = tiny::HEAD_DIM / 2;
    let mut data = Vec::new();
    for row in 0..tiny::HIDDEN {
        let (head, within) = (row / tiny::HEAD_DIM, row % tiny::HEAD_DIM);
        let hf = head * tiny::HEAD_DIM + within % 2 * half + within / 2;
        data.extend(half::f16::from_f32(hf as f32).to_le_bytes());
        data.extend([1; 32]);
    }
    let q = writer.tensor_mut("blk.1.attn_q.weight");
    q.kind = gguf::Q8_0;
    q.data = data;
    let weights = open(&dir.write("m.gguf", writer.bytes()));
    let q = weights
        .get("model.layers.1.self_attn.q_proj.weight")
        .unwrap();
    assert_eq!(q.dtype, DType::Q8_0);
    let want: Vec<f32> = (0..32).flat_map(|row| [row as f32; 32]).collect();
    assert_eq!(q.to_f32().unwrap(), want);
    let v = weights
        .get("model.layers.1.self_attn.v_proj.weight")
        .unwrap();
    assert!(v.as_f32().is_some_and(|v| v.len() == 16 * 32), "no copy");
}

#[test]
fn the_prefix_may_be_missing() {
    for (family, prefix) in [(Family::Llama, "model."), (Family::Gpt2, "transformer.")] {
        let tensors = tiny::tensors(family);
        let stripped = tensors
            .iter()
            .map(|(name, tensor)| {
                let name = name.strip_prefix(prefix).unwrap_or(name);
                (name.to_owned(), tensor.clone())
            })
            .collect();
        let folder = tiny::folder(&tiny::config(family), &stripped);
        assert_holds(&open(folder.path()), &tensors, prefix);
    }
}

#[test]
fn buffers_are_passed_over() {
    let tensors = tiny::tensors(Family::Gpt2);
    let mut more = tensors.clone();
    for name in ["attn.bias", "attn.masked_bias"] {
        more.insert(format!("transformer.h.0.{name}"), (vec![1], vec![0.0]));
    }
    let folder = tiny::folder(&tiny::config(Family::Gpt2), &more);
    assert_holds(&open(folder.path()), &tensors, "gpt2");
}

#[test]
fn shards_make_one_model() {
    let tensors = tiny::tensors(Family::Qwen3);
    let folder = TempDir::new();
    folder.write("config.json", tiny::config(Family::Qwen3).to_string());
    let mut map = serde_json::Map::new();
    for (shard, part) in ["a.safetensors", "b.safetensors"].iter().enumerate() {
        let held: Tensors = tensors
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == shard)
            .map(|(_, (name, tensor))| (name.clone(), tensor.clone()))
            .collect();
        map.extend(held.keys().map(|name| (name.clone(), (*part).into())));
        folder.write(part, tiny::safetensors(&held));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    folder.write("model.safetensors.index.json", index.to_string());
    folder.write("tokenizer.json", "{}");
    let weights = open(folder.path());
    assert_holds(&weights, &tensors, "shards");
    assert_eq!(
        weights.tokenizer_path(),
        Some(folder.path().join("tokenizer.json"))
    );
    assert!(weights.gguf().is_none());
}

#[test]
fn a_head_is_tied_when_said_or_missing() {
    let mut tensors = tiny::tensors(Family::Llama);
    let mut config = tiny::config(Family::Llama);
    config["tie_word_embeddings"] = true.into();
    let said = tiny::folder(&config, &tensors);
    tensors.remove("lm_head.weight");
    let missing = tiny::folder(&tiny::config(Family::Llama), &tensors);
    let dir = TempDir::new();
    let mut writer = tiny::gguf(Family::Llama);
    writer.tensors.retain(|t| t.name != "output.weight");
    let path = dir.write("m.gguf", writer.bytes());
    for path in [said.path(), missing.path(), &path] {
        let weights = open(path);
        assert!(weights.config().tied);
        assert_holds(&weights, &tensors, "tied");
    }
}

/// The configuration of a tiny Llama folder with some keys set.
fn with_json(family: Family, keys: &[(&str, Value)]) -> Result<Config, String> {
    let mut config = tiny::config(family);
    for (key, value) in keys {
        config[*key] = value.clone();
    }
    let folder = tiny::folder(&config, &tiny::tensors(family));
    let opened = Weights::open(folder.path());
    opened
        .map(|w| w.config().clone())
        .map_err(|e| e.to_string())
}

#[test]
fn rope_is_read_from_old_and_new_keys() {
    let linear = RopeScaling::Linear { factor: 4.0 };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 12,
    };
    let llama3_json = |kind: &str| {
        json!({kind: "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 12})
    };
    for (keys, theta, scaling) in [
        (vec![("rope_theta", json!(5e5))], 5e5, RopeScaling::None),
        (vec![("rope_scaling", Value::Null)], 1e4, RopeScaling::None),
        (
            vec![("rope_scaling", json!({"type": "linear", "factor": 4.0}))],
            1e4,
            linear.clone(),
        ),
        (
            vec![(
                "rope_parameters",
                json!({"rope_type": "linear", "factor": 4, "rope_theta": 7e4}),
            )],
            7e4,
            linear,
        ),
        (
            vec![(
                "rope_parameters",
                json!({"rope_type": "default", "rope_theta": 7e4}),
            )],
            7e4,
            RopeScaling::None,
        ),
        (
            vec![("rope_scaling", llama3_json("rope_type"))],
            1e4,
            llama3.clone(),
        ),
        (vec![("rope_scaling", llama3_json("type"))], 1e4, llama3),
    ] {
        let config = with_json(Family::Llama, &keys).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (theta, scaling));
    }
}

#[test]
fn rope_is_read_from_gguf() {
    let dir = TempDir::new();
    let scaling = |change: &dyn Fn(&mut gguf::Writer)| {
        let mut writer = tiny::gguf(Family::Llama);
        change(&mut writer);
        let opened = Weights::open(&dir.write("m.gguf", writer.bytes()));
        opened
            .map(|w| w.config().rope_scaling.clone())
            .map_err(|e| e.to_string())
    };
    let linear = Ok(RopeScaling::Linear { factor: 4.0 });
    let factors = |w: &mut gguf::Writer, values: &[f32]| {
        w.tensor(
            "rope_freqs.weight",
            &[values.len()],
            gguf::F32,
            tiny::f32_bytes(values),
        );
    };
    let four = [1.0, 1.5, 2.0, 8.0];
    assert_eq!(
        scaling(&|w| {
            w.str("llama.rope.scaling.type", "linear")
                .f32("llama.rope.scaling.factor", 4.0);
        }),
        linear
    );
    assert_eq!(
        scaling(&|w| {
            w.f32("llama.rope.scale_linear", 4.0);
        }),
        linear
    );
    assert_eq!(
        scaling(&|w| {
            w.str("llama.rope.scaling.type", "none")
                .f32("llama.rope.scaling.factor", 4.0);
        }),
        Ok(RopeScaling::None)
    );
    assert_eq!(
        scaling(&|w| factors(w, &four)),
        Ok(RopeScaling::Factors(four.to_vec()))
    );
    for (bad, message) in [
        (&four[..3], "3 rope factors, expected half the head size, 4"),
        (&[1.0, 0.0, 1.0, 1.0], "rope factor is 0"),
        (&[1.0, f32::NAN, 1.0, 1.0], "rope factor is NaN"),
    ] {
        let error = scaling(&|w| factors(w, bad)).unwrap_err();
        assert!(
            error.contains("m.gguf") && error.contains(message),
            "{error}"
        );
    }
    let error = scaling(&|w| {
        w.str("llama.rope.scaling.type", "yarn");
    })
    .unwrap_err();
    assert!(
        error.contains("m.gguf: rope scaling \"yarn\" is not supported"),
        "{error}"
    );
}

#[test]
fn windows_are_read() {
    let window = |family, keys: &[(&str, Value)]| {
        let keys: Vec<_> = [&[("sliding_window", json!(16))], keys].concat();
        with_json(family, &keys).map(|config| config.sliding_window)
    };
    let on = ("use_sliding_window", json!(true));
    let first = |n: usize| ("max_window_layers", json!(n));
    assert_eq!(window(Family::Llama, &[]), Ok(Some(16)));
    assert_eq!(window(Family::Qwen2, &[]), Ok(None));
    assert_eq!(window(Family::Qwen2, &[on.clone(), first(2)]), Ok(None));
    assert_eq!(window(Family::Qwen2, &[on.clone(), first(0)]), Ok(Some(16)));
    let error = window(Family::Qwen3, &[on, first(1)]).unwrap_err();
    assert!(
        error.contains("some layers only is not supported"),
        "{error}"
    );
}

#[test]
fn ids_of_special_tokens() {
    for (bos, want) in [
        (json!(3), Some(3)),
        (json!([5, 6]), Some(5)),
        (Value::Null, None),
        (json!(tiny::VOCAB), None),
        (json!(-1), None),
    ] {
        let config = with_json(Family::Llama, &[("bos_token_id", bos)]).unwrap();
        assert_eq!(config.bos, want);
    }
}

#[test]
fn metadata_getters() {
    let dir = TempDir::new();
    let mut writer = tiny::gguf(Family::Llama);
    writer
        .bool("a.bool", true)
        .raw("a.i8", 1, &[0xff])
        .raw("a.u64", 10, &(1u64 << 40).to_le_bytes())
        .raw("a.f64", 12, &0.5f64.to_le_bytes())
        .array("a.i32s", 5, 2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
        .array("a.u8s", 0, 3, &[1, 2, 255])
        .array("a.f32s", 6, 2, &tiny::f32_bytes(&[0.5, -1.0]))
        .raw("a.broken", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    let weights = open(&dir.write("m.gguf", writer.bytes()));
    let meta = weights.gguf().unwrap();
    assert_eq!(meta.bool("a.bool").unwrap(), Some(true));
    assert_eq!(meta.usize("a.u64").unwrap(), Some(1 << 40));
    assert_eq!(meta.f32("a.f64").unwrap(), Some(0.5));
    assert_eq!(meta.i32s("a.i32s").unwrap(), Some(vec![1, -1]));
    assert_eq!(meta.i32s("a.u8s").unwrap(), Some(vec![1, 2, 255]));
    assert_eq!(meta.f32s("a.f32s").unwrap(), Some(vec![0.5, -1.0]));
    assert_eq!(meta.count("a.u8s").unwrap(), Some(3));
    assert_eq!(meta.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(
        meta.strs("tokenizer.ggml.tokens").unwrap().unwrap()[39],
        "t39"
    );
    assert_eq!(meta.str("absent").unwrap(), None);
    assert_eq!(meta.strs("absent").unwrap(), None);
    assert!(meta.has("a.bool") && !meta.has("absent"));
    assert!(meta.keys().any(|key| key == "a.f64"));
    for error in [
        meta.u32("a.i8").unwrap_err(),
        meta.u32("a.u64").unwrap_err(),
        meta.u32("a.u8s").unwrap_err(),
        meta.str("a.bool").unwrap_err(),
        meta.str("a.broken").unwrap_err(),
        meta.str("tokenizer.ggml.tokens").unwrap_err(),
        meta.bool("a.i8").unwrap_err(),
        meta.strs("a.u8s").unwrap_err(),
        meta.f32s("a.i32s").unwrap_err(),
        meta.i32s("a.f32s").unwrap_err(),
        meta.i32s("tokenizer.ggml.tokens").unwrap_err(),
        meta.f32("a.i8").unwrap_err(),
        meta.count("a.i8").unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(
            error.contains("m.gguf") && error.contains(" is not "),
            "{error}"
        );
    }
}

#[test]
fn fingerprints_tell_models_apart() {
    let fingerprint = |change: &dyn Fn(&mut Value, &mut Tensors)| {
        let mut config = tiny::config(Family::Llama);
        let mut tensors = tiny::tensors(Family::Llama);
        change(&mut config, &mut tensors);
        open(tiny::folder(&config, &tensors).path()).fingerprint()
    };
    let plain = fingerprint(&|_, _| {});
    assert_eq!(plain.len(), 32);
    assert_eq!(
        plain,
        fingerprint(&|_, _| {}),
        "another folder, the same model"
    );
    let others = [
        fingerprint(&|c, _| c["rope_theta"] = json!(5e5)),
        fingerprint(&|c, _| c["rms_norm_eps"] = json!(1e-6)),
        fingerprint(&|c, _| c["sliding_window"] = json!(8)),
        fingerprint(&|c, _| c["rope_scaling"] = json!({"type": "linear", "factor": 2})),
        fingerprint(&|c, _| c["tie_word_embeddings"] = json!(true)),
        fingerprint(&|_, t| t.get_mut("model.norm.weight").unwrap().1[31] += 1.0),
        fingerprint(&|_, t| t.get_mut("lm_head.weight").unwrap().1[0] += 1.0),
    ];
    for (i, other) in others.iter().enumerate() {
        assert_ne!(*other, plain, "{i}");
        assert!(!others[..i].contains(other), "{i}");
    }
}

/// A file that was read may be emptied; one that is mapped may be replaced.
#[test]
fn a_model_that_was_read_does_not_need_its_file() {
    let dir = TempDir::new();
    let family = Family::Llama;
    let gguf = dir.write("model.gguf", tiny::gguf(family).bytes());
    let folder = tiny::folder(&tiny::config(family), &tiny::tensors(family));
    let values = |weights: &Weights| -> Vec<Vec<f32>> {
        let names = weights.names();
        names
            .map(|name| weights.get(name).unwrap().to_f32().unwrap())
            .collect()
    };
    for (path, file) in [
        (gguf.clone(), gguf),
        (
            folder.path().into(),
            folder.path().join("model.safetensors"),
        ),
    ] {
        let mapped = open(&path);
        let read = Weights::open_with(&path, Access::Read).unwrap();
        let want = values(&mapped);
        assert_eq!(values(&read), want);
        drop(mapped);
        std::fs::write(&file, "").unwrap();
        assert_eq!(values(&read), want);
        let error = Weights::open_with(&path, Access::Read)
            .unwrap_err()
            .to_string();
        assert!(error.contains("the file is empty"), "{error}");
    }
}
