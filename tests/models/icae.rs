//! ICAE's method against PyTorch's values (`tests/data/make_icae.py`).

use crate::common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::TempDir;
use crate::common::compare::assert_close;
use prefold::cpu::Cpu;
use prefold::model::Model;
use prefold::model::decoder::Input;
use prefold::model::weights::Weights;
use prefold::prefix::{KvPrefix, Method};
use prefold::soft::{Adapter, Completion, EncodeOptions, Query, Sampling, Source};
use prefold::train::TrainableModel;
use prefold::train::objective::{Objective, Sample};
use prefold::train::parameters::Parameters;
use prefold::{Device, Engine};
use safetensors::tensor::TensorView;
use serde_json::Value;

/// What PyTorch made, and what of.
struct Golden {
    want: Value,
    facts: Value,
    model: PathBuf,
    adapter: PathBuf,
}

fn golden() -> Option<Golden> {
    let Some(shared) = common::shared() else {
        eprintln!("skipped: no golden values beside the crate");
        return None;
    };
    let folder = shared.join("golden/500x");
    let facts = std::fs::read(folder.join("tiny-qv.golden.json")).unwrap();
    Some(Golden {
        want: serde_json::from_str(include_str!("../data/icae.json")).unwrap(),
        facts: serde_json::from_slice(&facts).unwrap(),
        model: folder.join("tiny"),
        adapter: folder.join("tiny-adapter-qv"),
    })
}

fn floats(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap();
    list.iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn encoded(engine: &Engine, adapter: &Adapter, text: Vec<u32>) -> KvPrefix {
    let options = EncodeOptions {
        method: Some(Method::Icae),
        ..EncodeOptions::default()
    };
    engine
        .prefixes()
        .encode(adapter, &Source::ids(text), &options)
        .unwrap()
}

fn asked(engine: &Engine, ask: Query<'_>) -> Completion {
    let options = Sampling {
        max_new_tokens: 16,
        ignore_eos: true,
        ..Sampling::default()
    };
    let mut each = |_, _| ControlFlow::Continue(());
    let replies = engine
        .prefixes()
        .answer(&[ask], &options, &mut each)
        .unwrap();
    replies.into_iter().next().unwrap()
}

/// The adapter's folder with an embedding to begin texts with, `values` as `shape`.
fn with_begin(adapter: &Path, values: &[f64], shape: Vec<usize>) -> TempDir {
    let folder = TempDir::new();
    for file in std::fs::read_dir(adapter).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        folder.write(&name, std::fs::read(file.path()).unwrap());
    }
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|&x| (x as f32).to_le_bytes())
        .collect();
    let view = TensorView::new(safetensors::Dtype::F32, shape, &bytes).unwrap();
    let file = safetensors::serialize([("ae_embedding", view)], None).unwrap();
    folder.write("ae_embedding.safetensors", file);
    folder
}

#[test]
fn values_and_continuation_are_the_references() {
    let Some(golden) = golden() else { return };
    let engine = Engine::builder(&golden.model)
        .device(Device::Cpu)
        .build()
        .unwrap();
    let adapter = engine.prefixes().adapter(&golden.adapter).unwrap();
    let prefix = encoded(&engine, &adapter, ids(&golden.facts["ids"][0]));
    let layers = golden.want["layers"].as_array().unwrap();
    assert_eq!(prefix.shape().layers, layers.len());
    assert_eq!((prefix.shape().tokens, prefix.next_pos()), (3, 3));
    let mut worst = 0.0f64;
    for (i, want) in layers.iter().enumerate() {
        for (side, got) in prefix.layer(i).unwrap().iter().enumerate() {
            let what = format!("{} of layer {i}", ["k", "v"][side]);
            let want = floats(&want[side]);
            worst = worst.max(assert_close(&what, got, &want, 1e-5, 0.0));
        }
    }
    eprintln!("values differ by at most {worst:.1e}");
    let ask = Query {
        prefix: Some(&prefix),
        prompt: Input::Ids(&[1]),
        gold: &[],
    };
    let made = asked(&engine, ask).generated.ids;
    assert_eq!(made, ids(&golden.want["greedy_from_bos"]));
}

#[test]
fn the_loss_and_its_gradients_are_the_references() {
    let Some(golden) = golden() else { return };
    let model = Model::load(Cpu::new(), &Weights::open(&golden.model).unwrap()).unwrap();
    let parameters = Parameters::open(&golden.adapter, model.config(), true).unwrap();
    let trainable = TrainableModel::new(&model, parameters.lora.clone(), 0).unwrap();
    let texts = golden.facts["ids"].as_array().unwrap();
    let batch: Vec<Sample> = texts
        .iter()
        .map(|text| Sample::Regenerate { text: ids(text) })
        .collect();
    let objective = Objective {
        method: Method::Icae,
        bos: 1,
        eos: 2,
        dropout: 0.0,
        nested: false,
        vectors: 0,
    };
    let got = trainable
        .gradient(&parameters.tensors, &batch, &objective, 0)
        .unwrap();
    let targets = got.targets as f64;
    let loss = golden.want["regen_loss"].as_f64().unwrap();
    assert!((got.nll / targets - loss).abs() < 1e-5, "{}", got.nll);
    let norms = golden.want["regen_gradient_norms"].as_object().unwrap();
    assert_eq!(got.gradients.len(), norms.len());
    let mut worst = 0.0f64;
    for tensor in &got.gradients {
        let mean: Vec<f64> = tensor
            .values
            .iter()
            .map(|&x| f64::from(x) / targets)
            .collect();
        let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        let want = norms[&tensor.name].as_f64().unwrap();
        let off = (norm - want).abs() / want;
        assert!(off < 1e-3, "{}: expected {want}, got {norm}", tensor.name);
        worst = worst.max(off);
        if tensor.name == "memory_embeddings" {
            let got: Vec<f32> = mean.iter().map(|&x| x as f32).collect();
            let want = floats(&golden.want["regen_gradient_of_memory"]);
            assert_close("memory", &got, &want, 1e-5, 1e-3);
        }
    }
    eprintln!("norms of gradients differ by at most {worst:.1e} of themselves");
}

#[test]
fn a_text_begins_with_the_embedding_that_was_trained_for_it() {
    let Some(golden) = golden() else { return };
    let engine = Engine::builder(&golden.model)
        .device(Device::Cpu)
        .build()
        .unwrap();
    let begin = floats(&golden.want["ae"]);
    let folder = with_begin(&golden.adapter, &begin, vec![1, 1, begin.len()]);
    let adapter = engine.prefixes().adapter(folder.path()).unwrap();
    let without = engine.prefixes().adapter(&golden.adapter).unwrap();
    assert_ne!(adapter.id(), without.id());
    let text = ids(&golden.facts["ids"][0]);
    let prefix = encoded(&engine, &adapter, text.clone());
    let want = ids(&golden.want["greedy_from_ae"]);
    assert_ne!(want, ids(&golden.want["greedy_from_bos"]));
    let ask = |gold| Query {
        prefix: Some(&prefix),
        prompt: Input::Embeddings(adapter.begin().unwrap()),
        gold,
    };
    for gold in [0, 1, 16] {
        let reply = asked(&engine, ask(&want[..gold]));
        assert_eq!(reply.generated.ids, want);
        assert_eq!(reply.generated.prompt_tokens, 1);
        let said: Vec<f64> = reply.generated.logprobs[..gold]
            .iter()
            .map(|&x| -f64::from(x))
            .collect();
        assert_close("nll", &reply.nll, &said, 1e-5, 0.0);
    }

    // By the program: only after a prefix of this very adapter.
    let run = |arguments: &[&str]| {
        let program = Command::new(env!("CARGO_BIN_EXE_prefold"))
            .args(arguments)
            .output();
        let done = program.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let file = folder.path().join("prefix").display().to_string();
    let (made_by, other) = (folder.path().display().to_string(), &golden.adapter);
    let (other, model) = (
        other.display().to_string(),
        golden.model.display().to_string(),
    );
    let text = serde_json::to_string(&text).unwrap();
    let encode = |adapter: &str| {
        let shape = ["encode", "--method", "icae", "--dtype", "f32"];
        let paths = ["-a", adapter, "--ids", &text, "-m", &model, "-o", &file];
        let (code, _, err) = run(&[&shape[..], &paths].concat());
        assert_eq!(code, Some(0), "{err}");
    };
    let generate = |adapter: &str| {
        let how = ["generate", "--json", "--ignore-eos", "-n", "16"];
        let paths = ["-p", &file, "-a", adapter, "-m", &model];
        run(&[&how[..], &paths].concat())
    };
    encode(&made_by);
    let (code, out, err) = generate(&made_by);
    assert_eq!(code, Some(0), "{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(ids(&told["ids"]), want);
    let (code, _, err) = generate(&other);
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
    assert!(err.contains("it has no ae_embedding"), "{err}");
    encode(&other);
    let (code, _, err) = generate(&made_by);
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
    assert!(err.contains("was not made by it"), "{err}");
}

#[test]
fn an_embedding_that_does_not_fit_is_refused() {
    let Some(golden) = golden() else { return };
    let engine = Engine::builder(&golden.model)
        .device(Device::Cpu)
        .build()
        .unwrap();
    let begin = floats(&golden.want["ae"]);
    let half = begin.len() / 2;
    for (values, shape) in [(&begin[..half], vec![half]), (&begin, vec![2, half])] {
        let folder = with_begin(&golden.adapter, values, shape);
        let error = engine
            .prefixes()
            .adapter(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected [64]"), "{error}");
    }
    // Training goes by BOS, and would make another adapter of it.
    let folder = with_begin(&golden.adapter, &begin, vec![begin.len()]);
    let weights = Weights::open(&golden.model).unwrap();
    let error = Parameters::open(folder.path(), weights.config(), true).unwrap_err();
    assert!(error.to_string().contains("ae_embedding"), "{error}");
}
