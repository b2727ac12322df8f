//! Encoders beside transformers: hidden states, classes and vectors of tiny random models of each family.

use crate::common;

use std::path::Path;

use prefold::cpu::Cpu;
use prefold::model::weights::Weights;
use prefold::model::{Encoder, EncoderInput, Model, Pooling};
use prefold::{Control, Device, Engine};
use safetensors::SafeTensors;
use serde_json::Value;

use common::encoders::{agrees, folder};
use common::gguf;

#[test]
fn states_and_classes_are_those_of_transformers() {
    for name in [
        "bert",
        "mbert-tokens",
        "xlmr-tokens",
        "xlmr-reranker",
        "bert3",
        "modernbert",
        "modernbert-tokens",
        "modernbert-reranker",
    ] {
        agrees(name, Cpu::new(), 1e-4);
    }
}

#[test]
fn estimated_vectors_are_close() {
    let folder = folder("bert");
    let encoder = Encoder::load(Cpu::new(), &Weights::open(&folder).unwrap()).unwrap();
    let inputs: Vec<EncoderInput> = vec![vec![2, 573, 682, 613, 3].into(), vec![2, 9, 3].into()];
    let exact = encoder.embed(&inputs, Pooling::First, false).unwrap();
    let quick = encoder.embed(&inputs, Pooling::First, true).unwrap();
    for (exact, quick) in exact.iter().zip(&quick) {
        let cosine: f32 = exact.iter().zip(quick).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.98, "{cosine}");
    }
}

/// transformers 5 writes the bases of both kinds of layers, and the kinds, in other places.
#[test]
fn modernbert_is_read_in_both_forms_of_its_configuration() {
    let given = folder("modernbert");
    let config: Value =
        serde_json::from_slice(&std::fs::read(given.join("config.json")).unwrap()).unwrap();
    let inputs: [EncoderInput; 1] = [(5..40).collect::<Vec<u32>>().into()];
    let dir = common::TempDir::new();
    dir.write(
        "model.safetensors",
        std::fs::read(given.join("model.safetensors")).unwrap(),
    );
    let states = |config: &Value| {
        dir.write("config.json", config.to_string());
        let encoder = Encoder::load(Cpu::new(), &Weights::open(dir.path())?)?;
        encoder.states(&inputs)
    };
    let want = states(&config).unwrap();
    let newer = |global: f64, local: f64| {
        let mut config = config.clone();
        let object = config.as_object_mut().unwrap();
        for name in ["global_rope_theta", "local_rope_theta"] {
            object.remove(name);
        }
        let of = |theta: f64| serde_json::json!({"rope_type": "default", "rope_theta": theta});
        config["rope_parameters"] =
            serde_json::json!({"full_attention": of(global), "sliding_attention": of(local)});
        let [full, near] = ["full_attention", "sliding_attention"];
        config["layer_types"] = serde_json::json!([full, near, near, full]);
        config
    };
    assert_eq!(states(&newer(160_000.0, 10_000.0)).unwrap(), want);
    assert_ne!(states(&newer(80_000.0, 10_000.0)).unwrap(), want);
    assert_ne!(states(&newer(160_000.0, 20_000.0)).unwrap(), want);

    let mut irregular = newer(160_000.0, 10_000.0);
    irregular["layer_types"][1] = "full_attention".into();
    let mut stretched = newer(160_000.0, 10_000.0);
    stretched["rope_parameters"]["full_attention"]["rope_type"] = "yarn".into();
    let mut scaled = config.clone();
    scaled["rope_scaling"] = serde_json::json!({"type": "linear", "factor": 2.0});
    for (config, part) in [
        (irregular, "layer_types"),
        (stretched, "rope_type"),
        (scaled, "rope_scaling"),
    ] {
        let error = states(&config).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

fn golden_json(name: &str) -> Value {
    let text = std::fs::read_to_string(folder(name).join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(name: &str) -> Engine {
    open_at(&folder(name))
}

fn open_at(path: &Path) -> Engine {
    let builder = Engine::builder(path).device(Device::Cpu);
    builder.build().expect("the encoder opens")
}

/// A BERT without a head as llama.cpp's converter writes it: its tensors under their other names, its words
/// with a mark where they begin.
fn bert_as_gguf(name: &str) -> gguf::Writer {
    let golden = |file: &str| std::fs::read(folder(name).join(file)).unwrap();
    let json = |file: &str| -> Value { serde_json::from_slice(&golden(file)).unwrap() };
    let config = json("config.json");
    let mut writer = gguf::Writer::new();
    writer.str("general.architecture", "bert");
    for (key, ours) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
    ] {
        writer.u32(
            &format!("bert.{key}"),
            config[ours].as_u64().unwrap() as u32,
        );
    }
    let eps = config["layer_norm_eps"].as_f64().unwrap() as f32;
    writer.f32("bert.attention.layer_norm_epsilon", eps);
    let tokenizer = json("tokenizer.json");
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    let mut kinds = vec![1i32; vocab.len()];
    for (name, id) in vocab {
        let special = name.starts_with('[') && name.ends_with(']') && name.len() > 2;
        let id = id.as_u64().unwrap() as usize;
        tokens[id] = match name.strip_prefix("##") {
            _ if special => name.clone(),
            Some(rest) => rest.into(),
            None => format!("\u{2581}{name}"),
        };
        if special {
            kinds[id] = 3;
        }
    }
    let kinds: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_le_bytes()).collect();
    writer
        .str("tokenizer.ggml.model", "bert")
        .strs("tokenizer.ggml.tokens", &tokens)
        .array("tokenizer.ggml.token_type", 5, tokens.len() as u64, &kinds)
        .u32("tokenizer.ggml.token_type_count", 2);
    let weights = golden("model.safetensors");
    for (name, tensor) in SafeTensors::deserialize(&weights).unwrap().tensors() {
        let mut name = name.trim_start_matches("bert.").to_owned();
        for (from, to) in [
            ("embeddings.word_embeddings", "token_embd"),
            ("embeddings.position_embeddings", "position_embd"),
            ("embeddings.token_type_embeddings", "token_types"),
            ("embeddings.LayerNorm", "token_embd_norm"),
            ("encoder.layer", "blk"),
            ("attention.self.query", "attn_q"),
            ("attention.self.key", "attn_k"),
            ("attention.self.value", "attn_v"),
            ("attention.output.dense", "attn_output"),
            ("attention.output.LayerNorm", "attn_output_norm"),
            ("intermediate.dense", "ffn_up"),
            ("output.dense", "ffn_down"),
            ("output.LayerNorm", "layer_output_norm"),
        ] {
            name = name.replace(from, to);
        }
        writer.tensor(&name, tensor.shape(), gguf::F32, tensor.data().to_vec());
    }
    writer
}

#[test]
fn a_gguf_with_its_own_tokenizer_is_the_same_encoder() {
    let dir = common::TempDir::new();
    for name in ["bert", "mbert-tokens"] {
        let path = dir.write(&format!("{name}.gguf"), bert_as_gguf(name).bytes());
        let (engine, folder) = (open_at(&path), open(name));
        let golden = golden_json(name);
        let rows = golden["texts"].as_array().unwrap();
        for row in rows {
            let want: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let text = row["text"].as_str().unwrap();
            assert_eq!(engine.tokenize(text, true, true).unwrap(), want, "{text}");
        }
        let texts: Vec<String> = rows
            .iter()
            .map(|row| row["text"].as_str().unwrap().to_owned())
            .collect();
        let rank = |engine: &Engine| engine.rank(&texts[0], &texts, &Control::default());
        if name == "bert" {
            assert_eq!(rank(&engine).unwrap(), rank(&folder).unwrap());
        }
    }

    let said = |writer: &gguf::Writer| {
        let path = dir.write("bad.gguf", writer.bytes());
        let builder = Engine::builder(&path).device(Device::Cpu);
        builder.build().unwrap_err().to_string()
    };
    let mut last = bert_as_gguf("bert");
    last.u32("bert.pooling_type", 3);
    let mut shared = bert_as_gguf("bert");
    shared.u32("bert.attention.head_count_kv", 1);
    let mut nameless = bert_as_gguf("bert");
    nameless.without("tokenizer.ggml.tokens");
    for (writer, part) in [
        (last, "bert.pooling_type 3"),
        (shared, "key-value heads"),
        (nameless, "for 0 tokens"),
    ] {
        let said = said(&writer);
        assert!(said.contains(part), "{said}");
    }
}

/// llama.cpp's converter gives it BERT's name, a T5 vocabulary and no positions before the first.
#[test]
fn a_gguf_of_xlm_roberta_is_the_reranker_it_was_made_of() {
    let path = folder("xlmr-gguf").join("reranker.gguf");
    let golden = golden_json("xlmr-gguf");
    let engine = open_at(&path);
    let encoder = Encoder::load(Cpu::new(), &Weights::open(&path).unwrap()).unwrap();
    let mut compared = 0;
    for row in golden["texts"].as_array().unwrap() {
        let want: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
        let text = row["text"].as_str().unwrap();
        assert_eq!(engine.tokenize(text, true, true).unwrap(), want, "{text:?}");
        let Ok(hidden) = serde_json::from_value::<Vec<Vec<f64>>>(row["hidden"].clone()) else {
            continue;
        };
        let states = encoder.states(&[want.into()]).unwrap();
        common::compare::assert_close(text, &states[0], &hidden.concat(), 1e-4, 1e-4);
        compared += 1;
    }
    assert_eq!(compared, 3);
    for pair in golden["pairs"].as_array().unwrap() {
        let passage = pair["passage"].as_str().unwrap().to_owned();
        let question = pair["question"].as_str().unwrap();
        let got = engine
            .rank(question, &[passage], &Control::default())
            .unwrap();
        let want = pair["score"].as_f64().unwrap();
        assert!((got[0] - want).abs() < 1e-3, "{got:?}, {want}");
    }
}

#[test]
fn texts_become_the_ids_of_transformers() {
    for name in ["bert", "mbert-tokens", "xlmr-tokens", "modernbert"] {
        let engine = open(name);
        for row in golden_json(name)["texts"].as_array().unwrap() {
            let want: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let text = row["text"].as_str().unwrap();
            assert_eq!(engine.tokenize(text, true, true).unwrap(), want, "{text}");
        }
    }
}

#[test]
fn an_encoder_ranks_by_cosine_and_a_reranker_by_its_score() {
    let golden = golden_json("bert");
    let rows = golden["texts"].as_array().unwrap();
    let vector =
        |row: &Value| -> Vec<f64> { serde_json::from_value(row["embedding"].clone()).unwrap() };
    let texts: Vec<String> = rows
        .iter()
        .map(|row| row["text"].as_str().unwrap().to_owned())
        .collect();
    let question = vector(&rows[0]);
    let want: Vec<f64> = rows
        .iter()
        .map(|row| vector(row).iter().zip(&question).map(|(a, b)| a * b).sum())
        .collect();
    let got = open("bert")
        .rank(&texts[0], &texts, &Control::default())
        .unwrap();
    for (got, want) in got.iter().zip(&want) {
        // Products in 8 bits.
        assert!((got - want).abs() < 0.05, "{got}, {want}");
    }

    for name in ["xlmr-reranker", "modernbert-reranker"] {
        let reranker = open(name);
        for pair in golden_json(name)["pairs"].as_array().unwrap() {
            let passage = pair["passage"].as_str().unwrap().to_owned();
            let question = pair["question"].as_str().unwrap();
            let got = reranker
                .rank(question, &[passage], &Control::default())
                .unwrap();
            let want = pair["score"].as_f64().unwrap();
            assert!((got[0] - want).abs() < 1e-3, "{name}: {got:?}, {want}");
        }
    }
}

#[test]
fn what_does_not_fit_is_said_in_a_line() {
    let weights = Weights::open(&folder("bert")).unwrap();
    let error = Model::load(Cpu::new(), &weights).err().unwrap().to_string();
    assert!(
        error.contains("an encoder (bert) where a decoder is wanted"),
        "{error}"
    );
    let golden = common::shared().unwrap().join("golden");
    let decoder = Weights::open(&golden.join("models/llama3")).unwrap();
    let error = Encoder::load(Cpu::new(), &decoder)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("a decoder (llama) where an encoder is wanted"),
        "{error}"
    );

    let encoder = Encoder::load(Cpu::new(), &weights).unwrap();
    let long = vec![3; 513];
    for (input, part) in [
        (Vec::new().into(), "a text of 0 tokens"),
        (long.into(), "a text of 513 tokens"),
        (vec![1400].into(), "token id 1400"),
        (
            EncoderInput {
                ids: vec![3],
                types: vec![2],
                ..EncoderInput::default()
            },
            "token types: 2",
        ),
    ] {
        let error = encoder.states(&[input]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = encoder
        .token_logits(&[vec![3].into()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("without a head"), "{error}");

    let engine = open("bert");
    let error = engine
        .compress(&prefold::Request::new(["A text."]))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("mode exact with bert, an encoder"),
        "{error}"
    );
    let error = engine.score(&[3, 4], &Control::default()).unwrap_err();
    assert!(error.to_string().contains("an encoder"), "{error}");
}

/// Whatever a configuration says, it is refused in a line or the model opens; nothing is allocated on its word.
#[test]
fn odd_configurations_are_refused() {
    let mut refused = 0;
    let of = |name: &str| {
        let given = folder(name);
        let text = std::fs::read_to_string(given.join("config.json")).unwrap();
        let config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        let weights = std::fs::read(given.join("model.safetensors")).unwrap();
        let keys: Vec<String> = config.keys().cloned().collect();
        keys.into_iter()
            .map(move |key| (key, config.clone(), weights.clone()))
    };
    for (key, config, weights) in of("xlmr-reranker").chain(of("modernbert-reranker")) {
        for value in [
            Value::Null,
            0.into(),
            (-1).into(),
            3.into(),
            (1u64 << 40).into(),
            "relu".into(),
            Vec::<Value>::new().into(),
        ] {
            let dir = common::TempDir::new();
            let mut config = config.clone();
            config.insert(key.clone(), value);
            dir.write("config.json", Value::from(config).to_string());
            dir.write("model.safetensors", &weights);
            match Weights::open(dir.path()).and_then(|w| Encoder::load(Cpu::new(), &w)) {
                Ok(encoder) => {
                    let _ = encoder.states(&[vec![0, 5, 2].into()]);
                    let _ = encoder.text_logits(&[vec![0, 5, 2].into()]);
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
        }
    }
    assert!(refused > 60, "{refused}");
}
