//! Folders with one thing wrong in `config.json`, in a safetensors file or in an index.

use prefold::model::config::Family;
use serde_json::{Value, json};

use super::{alone, assert_says, read_all, refused};
use crate::common::TempDir;
use crate::common::tiny::{self, Tensors};

/// What a message contains, and the change that provokes it.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Value, &mut Tensors));

/// The error of a tiny folder with one thing changed.
fn folder_says(cases: &[Case]) {
    for (message, change) in cases {
        let mut config = tiny::config(Family::Llama);
        let mut tensors = tiny::tensors(Family::Llama);
        change(&mut config, &mut tensors);
        let folder = tiny::folder(&config, &tensors);
        let line = read_all(folder.path(), 200_000).expect(message);
        assert_says(&line, message);
    }
}

#[test]
fn json_configurations() {
    let _alone = alone();
    folder_says(&[
        ("no \"model_type\" found", &|c, _| {
            c.as_object_mut().unwrap().remove("model_type");
        }),
        (
            "architecture \"gemma\" is not supported; there is llama, mistral",
            &|c, _| {
                c["model_type"] = json!("gemma");
            },
        ),
        ("architecture \"a b\"", &|c, _| {
            c["model_type"] = json!("a\nb")
        }),
        ("config.json: model_type is 7, expected a text", &|c, _| {
            c["model_type"] = json!(7);
        }),
        ("no hidden_size found", &|c, _| {
            c["hidden_size"] = Value::Null
        }),
        ("hidden_size is -3, expected a whole number", &|c, _| {
            c["hidden_size"] = json!(-3);
        }),
        ("hidden_size is 32.5, expected a whole number", &|c, _| {
            c["hidden_size"] = json!(32.5);
        }),
        ("number of heads is 0", &|c, _| {
            c["num_attention_heads"] = json!(0)
        }),
        ("4 heads cannot share 3", &|c, _| {
            c["num_key_value_heads"] = json!(3)
        }),
        ("number of layers is 18446744073709551615", &|c, _| {
            c["num_hidden_layers"] = json!(u64::MAX);
        }),
        (
            "tensor model.layers.2.input_layernorm.weight is missing",
            &|c, _| {
                c["num_hidden_layers"] = json!(10_000_000);
            },
        ),
        ("tensor model.layers.1.", &|c, _| {
            c["num_hidden_layers"] = json!(1)
        }),
        ("number of positions is 1000000000000", &|c, _| {
            c["max_position_embeddings"] = json!(1_000_000_000_000u64);
        }),
        ("norm epsilon is inf", &|c, _| {
            c["rms_norm_eps"] = json!(1e300)
        }),
        ("norm epsilon is 0", &|c, _| c["rms_norm_eps"] = json!(0)),
        ("rope theta is -1", &|c, _| c["rope_theta"] = json!(-1.0)),
        ("rope scaling \"dynamic\" is not supported", &|c, _| {
            c["rope_scaling"] = json!({"type": "dynamic", "factor": 2});
        }),
        ("no rope_scaling.factor found", &|c, _| {
            c["rope_scaling"] = json!({"type": "linear"});
        }),
        ("rope factor is -2", &|c, _| {
            c["rope_scaling"] = json!({"type": "linear", "factor": -2});
        }),
        ("rope_scaling is [], expected an object", &|c, _| {
            c["rope_scaling"] = json!([]);
        }),
        (
            "high_freq_factor 1 is not above low_freq_factor 1",
            &|c, _| {
                c["rope_scaling"] = json!({"type": "llama3", "factor": 2, "low_freq_factor": 1,
                                       "high_freq_factor": 1});
            },
        ),
        (
            "hidden_act = \"relu\" is not supported; there is \"silu\"",
            &|c, _| {
                c["hidden_act"] = json!("relu");
            },
        ),
        ("attention_bias = true is not supported", &|c, _| {
            c["attention_bias"] = json!(true);
        }),
        ("partial_rotary_factor = 0.5 is not supported", &|c, _| {
            c["partial_rotary_factor"] = json!(0.5);
        }),
        ("quantized safetensors is not supported", &|c, _| {
            c["quantization_config"] = json!({"quant_method": "gptq"});
        }),
        (
            "embed_tokens.weight: expected [41, 32], got [40, 32]",
            &|c, _| {
                c["vocab_size"] = json!(41);
            },
        ),
        ("model.norm.weight is missing", &|_, t| {
            t.remove("model.norm.weight");
        }),
        ("tensor model.norm.weight stands twice", &|_, t| {
            t.insert("norm.weight".into(), (vec![1], vec![0.0]));
        }),
        ("k_proj.bias is not supported", &|_, t| {
            t.insert(
                "model.layers.0.self_attn.k_proj.bias".into(),
                (vec![1], vec![0.0]),
            );
        }),
    ]);
    for (message, text) in [
        ("config.json: not the JSON expected: EOF", &b""[..]),
        (
            "config.json: not the JSON expected",
            b"{\"rms_norm_eps\": NaN}",
        ),
        ("config.json: not the JSON expected", b"\xff\xfe"),
        (
            "config.json: not the JSON expected: recursion limit",
            &[b'['; 100_000],
        ),
        ("no \"model_type\" found", b"[]"),
        ("no \"model_type\" found", b"null"),
    ] {
        let folder = TempDir::new();
        folder.write("config.json", text);
        assert_says(&read_all(folder.path(), text.len()).unwrap(), message);
    }
    let folder = TempDir::new();
    let file = std::fs::File::create(folder.path().join("config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    let line = read_all(folder.path(), 1 << 20).unwrap();
    assert_says(&line, "config.json: longer than 1048576 bytes");
}

#[test]
fn safetensors_files() {
    let _alone = alone();
    let folder = TempDir::new();
    folder.write("config.json", tiny::config(Family::Llama).to_string());
    assert_says(
        &refused(folder.path()),
        "the folder holds neither model.safetensors",
    );
    folder.write("pytorch_model.bin", "");
    assert_says(&refused(folder.path()), "pickled PyTorch is not supported");

    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let tensor = |shape: &str, start: usize, end: usize| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let one = |shape: &str, start: usize, end: usize, data: usize| {
        file(&format!(r#"{{"a":{}}}"#, tensor(shape, start, end)), data)
    };
    let two = |b: &str, start: usize, end: usize, data: usize| {
        let (a, c) = (tensor("[2]", 0, 8), tensor("[2]", start, end));
        file(&format!(r#"{{"a":{a},"{b}":{c}}}"#), data)
    };
    for (message, bytes) in [
        ("model.safetensors: the file is empty", vec![]),
        ("its header reaches past its end", vec![1, 2, 3]),
        ("its header reaches past its end", vec![0xff; 100]),
        ("not a safetensors header: EOF", file("", 0)),
        ("not a safetensors header: EOF", file("{", 0)),
        ("not a safetensors header", file("not json\n\n", 0)),
        ("expected an object of tensors", file("[]", 0)),
        ("missing field `dtype`", file("{\"a\": {}}", 0)),
        ("invalid value: integer `-1`", one("[-1]", 0, 8, 8)),
        (
            "bytes 0..8 of the data, of which there are 7",
            one("[2]", 0, 8, 7),
        ),
        ("bytes 8..0 of the data", one("[2]", 8, 0, 8)),
        (
            "bytes 0..18446744073709551615",
            one("[2]", 0, usize::MAX, 8),
        ),
        (
            "[4294967296, 4294967296] of F32 cannot be 8",
            one("[4294967296,4294967296]", 0, 8, 8),
        ),
        ("[3] of F32 cannot be 8 bytes", one("[3]", 0, 8, 8)),
        ("1 bytes after the last tensor", one("[2]", 0, 8, 9)),
        ("a gap or an overlap at byte 0", one("[2]", 1, 9, 9)),
        ("a gap or an overlap at byte 4", two("b", 4, 12, 12)),
        ("a gap or an overlap at byte 8", two("b", 12, 20, 20)),
        ("a tensor [2] stands twice", two("a", 8, 16, 16)),
        (
            "tensor model.embed_tokens.weight is missing",
            file(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                8,
            ),
        ),
        (
            "tensor model.embed_tokens.weight of F64 is not supported; there is F32, F16, BF16",
            file(
                r#"{"embed_tokens.weight":{"dtype":"F64","shape":[40,32],"data_offsets":[0,10240]}}"#,
                10240,
            ),
        ),
    ] {
        folder.write("model.safetensors", &bytes);
        assert_says(&read_all(folder.path(), bytes.len()).unwrap(), message);
    }
}

#[test]
fn shard_indexes() {
    let _alone = alone();
    let folder = TempDir::new();
    folder.write("config.json", tiny::config(Family::Llama).to_string());
    let tensors = tiny::tensors(Family::Llama);
    folder.write("a.safetensors", tiny::safetensors(&tensors));
    let all_in_a: serde_json::Map<String, Value> = tensors
        .keys()
        .map(|name| (name.clone(), json!("a.safetensors")))
        .collect();
    let map = |name: &str, shard: Value| {
        let mut map = all_in_a.clone();
        map.insert(name.into(), shard);
        json!({"weight_map": map})
    };
    let norm = "model.norm.weight";
    let outside = "is not a plain file name";
    for (message, index) in [
        ("index.json: not the JSON expected", json!({})),
        (
            "index.json: not the JSON expected",
            json!({"weight_map": []}),
        ),
        (
            "index.json: not the JSON expected: invalid type: integer `3`",
            map(norm, json!(3)),
        ),
        (
            "b.safetensors: No such file",
            map("extra", json!("b.safetensors")),
        ),
        (outside, map(norm, json!("../a.safetensors"))),
        (outside, map(norm, json!("/etc/passwd"))),
        (outside, map(norm, json!("sub/a.safetensors"))),
        (outside, map(norm, json!("./a.safetensors"))),
        (outside, map(norm, json!("a.safetensors/"))),
        (outside, map(norm, json!("sub\\a.safetensors"))),
        (outside, map(norm, json!(".."))),
        (outside, map(norm, json!(""))),
        (
            "its shard does not hold it",
            map("extra", json!("a.safetensors")),
        ),
        (
            "model.embed_tokens.weight is missing",
            json!({"weight_map": {}}),
        ),
    ] {
        folder.write("model.safetensors.index.json", index.to_string());
        assert_says(&read_all(folder.path(), 200_000).unwrap(), message);
    }
    let mut missing = all_in_a.clone();
    missing.remove(norm);
    let index = json!({"weight_map": missing});
    folder.write("model.safetensors.index.json", index.to_string());
    let line = read_all(folder.path(), 200_000).unwrap();
    assert_says(&line, "the index does not place it in this shard");
    folder.write("model.safetensors.index.json", "{");
    let line = read_all(folder.path(), 200_000).unwrap();
    assert_says(&line, "index.json: not the JSON expected");
}
