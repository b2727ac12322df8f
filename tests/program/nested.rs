//! One adapter for any number of memory tokens: `train --nested` and `encode --memory-tokens`.

use std::path::Path;
use std::process::Command;

use crate::common::TempDir;
use crate::train_cli::{ok, prefold, stderr, tiny_model};
use prefold::cpu::Cpu;
use prefold::model::Model;
use prefold::model::weights::Weights;
use prefold::prefix::{EncodeOptions, Input, Method, Query, Sampling, Source};
use prefold::train::TrainableModel;
use prefold::train::objective::{Objective, Sample};
use prefold::train::parameters::Parameters;
use prefold::{Device, Engine};
use serde_json::Value;

/// A command that trains in `dir` on its rows.
fn train(dir: &TempDir, task: &str, out: &str, more: &[&str]) -> Command {
    let rows = match task {
        "regen" => "texts.jsonl",
        _ => "answers.jsonl",
    };
    let mut command = prefold();
    command
        .current_dir(dir.path())
        .args(["train", task, "-m", ".", "--device", "cpu", "--data", rows])
        .args([
            "--batch", "3", "--lr", "0.05", "--warmup", "0", "--out", out,
        ])
        .args(more);
    command
}

const FOUR: [&str; 8] = [
    "--memory-tokens",
    "4",
    "--max-text-tokens",
    "12",
    "--rank",
    "4",
    "--alpha",
    "8",
];

/// A nested run of 4 memory tokens.
fn nested(dir: &TempDir, method: &str, out: &str) {
    let more = ["--nested", "--method", method, "--steps", "3"];
    ok(&mut train(dir, "regen", out, &[&FOUR[..], &more].concat()));
}

#[track_caller]
fn refused(code: i32, command: &mut Command, says: &str) {
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(says), "{said:?} does not say {says:?}");
}

fn settings(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("prefold.json")).unwrap()).unwrap()
}

#[test]
fn the_first_memory_tokens_are_read_as_they_were_trained() {
    let dir = tiny_model();
    let engine = Engine::builder(dir.path())
        .device(Device::Cpu)
        .build()
        .unwrap();
    let model = Model::load(Cpu::new(), &Weights::open(dir.path()).unwrap()).unwrap();
    let text: Vec<u32> = vec![5, 12, 19, 7, 33, 21];
    for method in [Method::FiveHundredX, Method::Icae, Method::Pooled] {
        let pools = method == Method::Pooled;
        let folder = dir.path().join(method.name());
        nested(&dir, method.name(), method.name());
        assert_eq!(settings(&folder)["nested"], true);
        let parameters = Parameters::open(&folder, model.config(), !pools).unwrap();
        assert_eq!(
            folder.join("memory_embeddings.safetensors").exists(),
            !pools
        );
        let trainable = TrainableModel::new(&model, parameters.lora.clone(), 0).unwrap();
        let mut objective = Objective {
            method,
            bos: 1,
            eos: 2,
            dropout: 0.0,
            nested: false,
            vectors: 0,
        };
        let source = Source::ids(text.clone());
        let prefixes = engine.prefixes();
        let encode = |count: usize| {
            let adapter = prefixes.adapter(&folder).unwrap().first(count).unwrap();
            assert_eq!(adapter.num_mem(), count);
            let made = prefixes.encode(&adapter, &source, &EncodeOptions::default());
            let id = prefixes.encoded_id(&adapter, &source, &EncodeOptions::default());
            let made = made.unwrap();
            assert_eq!(made.content_id(), id.unwrap());
            made
        };
        let whole = encode(4);
        assert_eq!(whole.origin().kept_by, None);
        let mut ids = vec![whole.content_id()];
        for count in 1..=4 {
            let prefix = encode(count);
            assert_eq!((prefix.shape().tokens, prefix.next_pos()), (count, count));
            if count < 4 {
                let by = prefix.origin().kept_by.clone();
                assert_eq!(by, Some(format!("first {count}")));
                assert!(!ids.contains(&prefix.content_id()));
                ids.push(prefix.content_id());
            }
            // A causal encoder: the first rows of all.
            let width = prefix.shape().head_dim;
            for i in 0..if pools { 0 } else { prefix.shape().layers } {
                for (few, all) in prefix.layer(i).unwrap().iter().zip(whole.layer(i).unwrap()) {
                    let heads = few.chunks_exact(count * width);
                    for (few, all) in heads.zip(all.chunks_exact(4 * width)) {
                        let pairs = few.iter().zip(all);
                        assert!(pairs.clone().count() == count * width);
                        assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-5));
                    }
                }
            }
            // The nll of the text after it is the loss of a step with as many.
            let mut few = parameters.tensors.clone();
            objective.vectors = count;
            if let Some(memory) = few.last_mut().filter(|_| !pools) {
                memory.shape[0] = count;
                memory.values.truncate(count * memory.shape[1]);
            }
            let sample = Sample::Regenerate { text: text.clone() };
            let loss = trainable.loss(&few, &[sample], &objective).unwrap();
            let gold = [&text[..], &[2]].concat();
            let query = Query {
                prefix: Some(&prefix),
                prompt: Input::Ids(&[1]),
                gold: &gold,
            };
            let sampling = Sampling {
                max_new_tokens: 1,
                ..Sampling::default()
            };
            let mut each = |_, _| std::ops::ControlFlow::Continue(());
            let said = prefixes.answer(&[query], &sampling, &mut each).unwrap();
            let nll: f64 = said[0].nll.iter().map(|&x| f64::from(x)).sum();
            assert!(
                (nll - loss.nll).abs() < 1e-3,
                "{count}: {nll}, {}",
                loss.nll
            );
        }
    }
}

#[test]
fn by_the_program() {
    let dir = tiny_model();
    nested(&dir, "500xcompressor", "nested");
    let encode = |adapter: &str, count: &str| {
        let mut command = prefold();
        command.current_dir(dir.path()).args(["encode", "-m", "."]);
        command.args(["--ids", "[5, 12, 19]", "-o", "prefix", "-a", adapter]);
        command.args(["--memory-tokens", count]);
        command
    };
    ok(&mut encode("nested", "3"));
    let shown = ok(prefold()
        .current_dir(dir.path())
        .args(["inspect", "--json", "prefix"]));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["shape"]["tokens"], 3);
    assert_eq!(shown["origin"]["kept_by"], "first 3");
    refused(
        1,
        &mut encode("nested", "0"),
        "--memory-tokens 0: the adapter has 1 to 4",
    );
    refused(
        1,
        &mut encode("nested", "5"),
        "--memory-tokens 5: the adapter has 1 to 4",
    );

    // One that pools continues to pool, the others do not begin to.
    nested(&dir, "pooled", "pooled");
    assert_eq!(settings(&dir.path().join("pooled"))["memory_tokens"], 4);
    ok(&mut encode("pooled", "2"));
    let more = |adapter: &str, out: &str, more: &[&str]| {
        train(&dir, "qa", out, &[&["--adapter", adapter], more].concat())
    };
    ok(&mut more("pooled", "pooled-qa", &["--steps", "1"]));
    let tuned = settings(&dir.path().join("pooled-qa"));
    assert_eq!(
        (&tuned["memory_tokens"], &tuned["nested"]),
        (&4.into(), &true.into())
    );
    ok(&mut more(
        "pooled",
        "pooled-qa",
        &["--steps", "2", "--resume"],
    ));
    let one = ["--steps", "1", "--method"];
    let mut icae = more("pooled", "no", &[&one[..], &["icae"]].concat());
    refused(1, &mut icae, "--method icae: the given");
    let mut pooled = more("nested", "no", &[&one[..], &["pooled"]].concat());
    refused(1, &mut pooled, "--method pooled: the given");
    let score = ["score", "-m", ".", "--adapter", "pooled", "texts.jsonl"];
    refused(
        1,
        prefold().current_dir(dir.path()).args(score),
        "an encoder's adapter",
    );

    // The others take all or nothing.
    let plain = [
        "--memory-tokens",
        "2",
        "--max-text-tokens",
        "12",
        "--rank",
        "4",
        "--steps",
        "1",
    ];
    ok(&mut train(&dir, "regen", "plain", &plain));
    assert!(settings(&dir.path().join("plain")).get("nested").is_none());
    refused(
        1,
        &mut encode("plain", "1"),
        "trained with all of its 2 memory tokens",
    );
    ok(&mut encode("plain", "2"));

    // What a step does is the same after a resume as without one, or is not known.
    let other = [&FOUR[..], &["--steps", "5", "--resume"]].concat();
    refused(
        1,
        &mut train(&dir, "regen", "nested", &other),
        "--nested: not given, but the run in nested has true",
    );
    // What begins with such an adapter stays one.
    ok(&mut more("nested", "tuned", &["--steps", "1"]));
    assert_eq!(settings(&dir.path().join("tuned"))["nested"], true);
    let mut align = train(
        &dir,
        "align",
        "aligned",
        &["--nested", "--rank", "4", "--steps", "1"],
    );
    refused(2, &mut align, "--nested");
    let icae = ["--method", "icae", "--rank", "4", "--steps", "1"];
    let mut align = train(&dir, "align", "aligned", &icae);
    refused(2, &mut align, "--method icae: alignment");
    let begun = ["--method", "pooled", "--init", "mean", "--steps", "1"];
    refused(2, &mut train(&dir, "regen", "no", &begun), "--init");
    // Nothing to take the first memory tokens of.
    let alone = ["eval", "regen", "-m", ".", "--data", "texts.jsonl"];
    let mut command = prefold();
    command.current_dir(dir.path()).args(alone);
    command.args(["--memory-tokens", "2"]);
    refused(2, &mut command, "give --adapter, --icae or --pooled");

    // A run is what it was recorded as, whatever else lies in its folder.
    nested(&dir, "icae", "kind");
    std::fs::write(dir.path().join("kind/prefix.safetensors"), "no prefix").unwrap();
    let resumed = ["--nested", "--method", "icae", "--steps", "4", "--resume"];
    ok(&mut train(
        &dir,
        "regen",
        "kind",
        &[&FOUR[..], &resumed].concat(),
    ));

    // A folder may say how many are read; what it cannot have is refused.
    let path = dir.path().join("nested/prefold.json");
    let mut said = settings(&dir.path().join("nested"));
    said["memory_tokens"] = 2.into();
    std::fs::write(&path, said.to_string()).unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let adapter = engine.prefixes().adapter(&dir.path().join("nested"));
    assert_eq!(adapter.unwrap().num_mem(), 2);
    said["memory_tokens"] = 9.into();
    std::fs::write(&path, said.to_string()).unwrap();
    let error = engine.prefixes().adapter(&dir.path().join("nested"));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("prefold.json") && error.contains("1 to 4"),
        "{error}"
    );
}
