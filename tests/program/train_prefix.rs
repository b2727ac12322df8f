//! `train prefix`: K and V for one corpus.

use std::path::Path;
use std::process::Command;

use crate::common::{TempDir, tiny};
use crate::train_cli::{ok, prefold, stderr};
use prefold::cpu::Cpu;
use prefold::model::Model;
use prefold::model::weights::Weights;
use prefold::prefix::{Input, KvPrefix, Method, PrefillOptions, Query, Sampling, Source};
use prefold::train::objective::{Objective, Sample};
use prefold::train::parameters::Parameters;
use prefold::train::{Plan, Study, Task, TrainableModel, log};
use prefold::{Control, Device, Engine};
use serde_json::{Value, json};

const CORPUS: &str = "the north the path then there; the thin moth";

/// A model that reads bytes, a corpus, and questions about it.
fn folder() -> TempDir {
    let dir = tiny::byte_model(200);
    dir.write("corpus.txt", CORPUS);
    let rows: String = [("what?", "moth"), ("where?", "north"), ("how?", "thin")]
        .map(|(question, answer)| format!("{}\n", json!({"question": question, "answer": answer})))
        .concat();
    dir.write("rows.jsonl", rows);
    dir
}

fn train(dir: &TempDir, out: &str, more: &[&str]) -> Command {
    let mut command = prefold();
    command
        .current_dir(dir.path())
        .args(["train", "prefix", "-m", ".", "--device", "cpu"])
        .args(["--corpus", "corpus.txt", "--out", out])
        .args(more);
    command
}

fn read(path: &Path) -> KvPrefix {
    KvPrefix::read(path).unwrap().0
}

fn engine(dir: &TempDir) -> Engine {
    let builder = Engine::builder(dir.path()).device(Device::Cpu);
    builder.build().unwrap()
}

const GIVEN: [&str; 11] = [
    "--data",
    "rows.jsonl",
    "--tokens",
    "5",
    "--batch",
    "3",
    "--warmup",
    "2",
    "--lr",
    "0.3",
    "--json",
];

#[test]
fn rows_given_are_learned_and_the_prefix_is_an_ordinary_one() {
    let dir = folder();
    let steps = |count| [&GIVEN[..], &["--steps", count, "--save-every", "7"]].concat();
    let done = ok(&mut train(&dir, "whole", &steps("30")));
    let told: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(told["step"], 30);
    assert!(stderr(&done).contains("the prefix is whole/prefix.safetensors"));
    let lines = log::read(&dir.path().join("whole.log.jsonl")).unwrap();
    assert!(lines[29].loss < 0.5 * lines[0].loss, "{:?}", lines[29]);

    let prefix = read(&dir.path().join("whole/prefix.safetensors"));
    assert_eq!(prefix.origin().method, Method::Trained);
    assert_eq!((prefix.shape().tokens, prefix.next_pos()), (5, 5));
    let tokens = engine(&dir).tokenize(CORPUS, true, false).unwrap();
    assert_eq!(prefix.origin().source_tokens, tokens.len());
    let by = prefix.origin().kept_by.clone().unwrap();
    assert!(by.starts_with("step 30, "), "{by}");
    // Only the first row is still the model's own.
    let engine = engine(&dir);
    let first = Source::ids(tokens[..5].to_vec());
    let own = engine
        .prefixes()
        .prefill(&first, &PrefillOptions::default());
    let own = own.unwrap();
    let width = prefix.shape().head_dim;
    for i in 0..prefix.shape().layers {
        for (own, made) in own.layer(i).unwrap().iter().zip(prefix.layer(i).unwrap()) {
            for (own, made) in own
                .chunks_exact(5 * width)
                .zip(made.chunks_exact(5 * width))
            {
                assert_eq!(own[..width], made[..width]);
                assert_ne!(own[width..], made[width..]);
            }
        }
    }
    // The nll of an answer after the file's prefix is the loss of a step.
    let ids = |text: &str| engine.tokenize(text, false, false).unwrap();
    let (question, answer) = (ids("\n\nQuestion: where?\nAnswer:"), ids(" north"));
    let eos = engine.info().eos.unwrap();
    let gold = [&answer[..], &[eos]].concat();
    let query = Query {
        prefix: Some(&prefix),
        prompt: Input::Ids(&question),
        gold: &gold,
    };
    let sampling = Sampling {
        max_new_tokens: 1,
        ..Sampling::default()
    };
    let mut each = |_, _| std::ops::ControlFlow::Continue(());
    let said = engine.prefixes().answer(&[query], &sampling, &mut each);
    let nll: f64 = said.unwrap()[0].nll.iter().map(|&x| f64::from(x)).sum();
    let model = Model::load(Cpu::new(), &Weights::open(dir.path()).unwrap()).unwrap();
    let trainable = TrainableModel::for_prefix(&model, 0).unwrap();
    let objective = Objective {
        method: Method::FiveHundredX,
        bos: 1,
        eos,
        dropout: 0.0,
        nested: false,
        vectors: 0,
    };
    let parameters = Parameters::of_prefix(&prefix).unwrap();
    let sample = Sample::Align { question, answer };
    let loss = trainable.loss(&parameters.tensors, &[sample], &objective);
    let loss = loss.unwrap().nll;
    assert!((nll - loss).abs() < 1e-3, "{nll}, {loss}");

    // A run in parts is the run itself.
    ok(&mut train(&dir, "parts", &steps("11")));
    let resumed = [&steps("30")[..], &["--resume"]].concat();
    ok(&mut train(&dir, "parts", &resumed));
    let bytes = |out: &str| std::fs::read(dir.path().join(out).join("prefix.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("parts"));
    // The program reads it as it reads any.
    let asked = ["generate", "-m", ".", "-p", "whole/prefix.safetensors"];
    let asked = prefold()
        .current_dir(dir.path())
        .args(asked)
        .args(["--prompt", "where?", "-n", "3", "--json"])
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", stderr(&asked));
    let told: Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(told["prefix_tokens"], 5);
}

#[test]
fn the_model_asks_itself() {
    let dir = folder();
    let study = [
        "--questions",
        "6",
        "--piece-tokens",
        "20",
        "--question-tokens",
        "12",
        "--answer-tokens",
        "8",
        "--tokens",
        "4",
        "--steps",
        "2",
        "--temperature",
        "1",
    ];
    let done = ok(&mut train(&dir, "own", &study));
    let path = dir.path().join("own.questions.jsonl");
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(stderr(&done).contains("questions in own.questions.jsonl"));
    let rows: Vec<Value> = written
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!((1..=6).contains(&rows.len()), "{written}");
    for row in &rows {
        assert!(
            row["question"]
                .as_str()
                .unwrap()
                .chars()
                .any(char::is_alphanumeric)
        );
        assert!(!row["answer"].as_str().unwrap().is_empty());
    }
    // A resume reads them and asks no more; another seed asks otherwise.
    let more: Vec<&str> = study
        .iter()
        .map(|&x| if x == "2" { "3" } else { x })
        .collect();
    let resumed = ok(&mut train(
        &dir,
        "own",
        &[&more[..], &["--resume"]].concat(),
    ));
    assert!(!stderr(&resumed).contains("questions in"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written);
    let engine = engine(&dir);
    let corpus = Source::text(CORPUS, engine.tokenize(CORPUS, true, false).unwrap());
    let mut options = Study::default();
    options.questions = 6;
    options.piece_tokens = 20;
    options.question_tokens = 12;
    options.answer_tokens = 8;
    options.temperature = 1.0;
    let ask = |options: &Study| {
        let made = engine
            .training()
            .questions(&corpus, options, &Control::default());
        made.unwrap()
    };
    let same: Vec<(String, String)> = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            (text("question"), text("answer"))
        })
        .collect();
    assert_eq!(ask(&options), same);
    options.seed = 1;
    assert_ne!(ask(&options), same);
}

#[test]
fn questions_are_written_where_a_run_begins_and_belong_to_it() {
    let dir = folder();
    let asks = |tokens: &'static str, answer_tokens: &'static str, more: &[&'static str]| {
        let own = [
            "--questions",
            "6",
            "--piece-tokens",
            "20",
            "--question-tokens",
            "12",
            "--temperature",
            "1",
            "--steps",
            "1",
            "--tokens",
            tokens,
            "--answer-tokens",
            answer_tokens,
        ];
        [&own[..], more].concat()
    };
    let refused = |out: &str, more: &[&str], says: &str| {
        let output = train(&dir, out, more).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(says), "{said:?} does not say {says:?}");
    };
    let path = |out: &str| dir.path().join(format!("{out}.questions.jsonl"));
    let questions = |out: &str| std::fs::read_to_string(path(out)).unwrap();

    // What cannot be is known before the model writes.
    std::fs::create_dir(dir.path().join("taken")).unwrap();
    std::fs::write(dir.path().join("taken/file"), "x").unwrap();
    refused("taken", &asks("4", "8", &[]), "no run of training");
    refused("taken", &asks("999", "8", &[]), "--tokens 999: expected");
    let dev = asks("4", "8", &["--eval", "missing.jsonl"]);
    refused("new", &dev, "missing.jsonl");
    assert!(!path("taken").exists() && !path("new").exists());

    // A refused command leaves the questions of the run that is there.
    ok(&mut train(&dir, "own", &asks("4", "8", &[])));
    let written = questions("own");
    refused("own", &asks("4", "8", &["--seed", "1"]), "a run is there");
    // They are of these options.
    let other = asks("4", "9", &["--resume"]);
    refused(
        "own",
        &other,
        "--answer-tokens: 9, but the run in own has 8",
    );
    // Without the run they are of unknown origin, and not about this corpus.
    std::fs::remove_dir_all(dir.path().join("own")).unwrap();
    refused(
        "own",
        &asks("4", "8", &[]),
        "own.questions.jsonl: it is there",
    );
    assert_eq!(questions("own"), written);
    dir.write(
        "other.questions.jsonl",
        "{\"question\": \"mine?\", \"answer\": \"no\"}\n",
    );
    ok(&mut train(&dir, "other", &asks("4", "8", &["--resume"])));
    assert_eq!(questions("other"), written);
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let dir = folder();
    dir.write("empty.txt", "");
    let steps = ["--data", "rows.jsonl", "--steps", "2"];
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--tokens", "1"], 1, "--tokens 1: expected 2 to"),
        (&["--tokens", "999"], 1, "--tokens 999: expected 2 to"),
        // With rows there is nothing that the model writes.
        (
            &["--tokens", "4", "--questions", "9"],
            2,
            "cannot be used with",
        ),
        (
            &["--tokens", "4", "--temperature", "0.5"],
            2,
            "cannot be used with",
        ),
        (
            &["--tokens", "4", "--question-template", "x"],
            2,
            "--question-template",
        ),
        (&["--tokens", "4", "--lr", "0"], 2, "--lr 0"),
        (
            &["--tokens", "4", "--corpus", "missing.txt"],
            1,
            "missing.txt",
        ),
    ];
    for (more, code, says) in cases {
        let output = train(&dir, "none", &[&steps[..], more].concat())
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(says), "{said:?} does not say {says:?}");
        assert!(!dir.path().join("none").exists());
    }
    let mut empty = prefold();
    empty
        .current_dir(dir.path())
        .args(["train", "prefix", "-m", ".", "--device", "cpu"])
        .args(["--corpus", "empty.txt", "--out", "none", "--tokens", "4"])
        .args(steps);
    let said = stderr(&empty.output().unwrap());
    assert!(
        said.contains("--corpus: it has no tokens") && said.lines().count() == 1,
        "{said}"
    );
    for (more, says) in [
        (["--questions", "0"], "--questions 0"),
        (["--temperature", "nan"], "--temperature"),
    ] {
        let more = [&["--tokens", "4", "--steps", "2"][..], &more].concat();
        let output = train(&dir, "none", &more).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said:?} does not say {says:?}");
    }
    let long = ["--tokens", "4", "--steps", "2", "--piece-tokens", "500"];
    let said = stderr(&train(&dir, "none", &long).output().unwrap());
    assert!(
        said.contains("--piece-tokens 500") && said.lines().count() == 1,
        "{said}"
    );
    // Another corpus, or another number of rows, is another run.
    ok(&mut train(
        &dir,
        "run",
        &[&steps[..], &["--tokens", "4"]].concat(),
    ));
    dir.write("corpus.txt", format!("{CORPUS}."));
    let resumed = [&steps[..], &["--tokens", "4", "--resume"]].concat();
    let said = stderr(&train(&dir, "run", &resumed).output().unwrap());
    assert!(
        said.contains("corpus") && said.lines().count() == 1,
        "{said}"
    );
    // A run of rows is not one of an adapter.
    let plan = Plan::new(
        Task::Regen,
        [dir.path().join("rows.jsonl")],
        dir.path().join("x"),
        1,
    );
    let engine = engine(&dir);
    let corpus = Source::ids(vec![1, 2, 3, 4]);
    let error = engine
        .training()
        .prefix(&corpus, 2, &plan, &Control::default(), &mut |_| {});
    assert!(error.unwrap_err().to_string().starts_with("task regen"));
}
