//! `prefold train tokens`: a classifier of tokens over a frozen encoder, from its rows on.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::train_cli::{ok, prefold, stderr};
use crate::common::{Random, TempDir, encoders, tiny};
use prefold::model::config::Family;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// Words that are one token each in both tiny tokenizers, and that a linear classifier can tell
/// apart by the states of either random encoder; with most other words it cannot, as the states of
/// random layers say more of the context than of the word.
const KEPT: [&str; 4] = ["count", "men", "reason", "sum"];
const DROPPED: [&str; 4] = ["ever", "for", "is", "to"];

/// An encoder without a head, and a classifier whose head is replaced: the class that is written,
/// and what transformers puts before the names of its encoder's tensors.
const MODELS: [(&str, &str, &str); 2] = [
    ("bert", "BertForTokenClassification", "bert."),
    (
        "xlmr-tokens",
        "XLMRobertaForTokenClassification",
        "roberta.",
    ),
];

const TOKENIZER_FILES: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Random words, one half of them to be kept.
fn sentence(random: &mut Random, count: usize) -> Vec<&'static str> {
    let word = |_| [KEPT, DROPPED][random.below(2)][random.below(4)];
    (0..count).map(word).collect()
}

/// Texts of 30 words.
fn texts(count: usize) -> Vec<Vec<&'static str>> {
    let mut random = Random(1);
    (0..count).map(|_| sentence(&mut random, 30)).collect()
}

fn kept(words: &[&'static str]) -> Vec<&'static str> {
    let kept = words.iter().filter(|word| KEPT.contains(word));
    kept.copied().collect()
}

fn by_text(words: &[&'static str]) -> Value {
    json!({"text": words.join(" "), "compressed": kept(words).join(" ")})
}

fn by_labels(words: &[&'static str]) -> Value {
    let labels = words.iter().map(|word| u8::from(KEPT.contains(word)));
    json!({"words": words, "labels": labels.collect::<Vec<_>>()})
}

fn labelled(text: &str, labels: &[u8]) -> Value {
    json!({"words": text.split_whitespace().collect::<Vec<_>>(), "labels": labels})
}

fn asked(context: &str, question: &str, answer: &str) -> Value {
    json!({"context": context, "question": question, "answers": [answer]})
}

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}

/// A file in `dir` with a row for each text.
fn write_rows(
    dir: &TempDir,
    name: &str,
    texts: &[Vec<&'static str>],
    row: fn(&[&'static str]) -> Value,
) {
    dir.write(name, lines(texts.iter().map(|words| row(words))));
}

/// A command that trains in `dir`, on the encoder of a folder.
fn train(dir: &TempDir, model: &Path, data: &str, out: &str) -> Command {
    let mut command = prefold();
    command
        .current_dir(dir.path())
        .args(["train", "tokens", "--model"])
        .arg(model)
        .args(["--data", data, "--out", out]);
    command
}

/// What a run with `--json` prints, and nothing besides.
#[track_caller]
fn report(command: &mut Command) -> Value {
    let output = ok(command.arg("--json"));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

fn weights(dir: &TempDir, out: &str) -> Vec<u8> {
    fs::read(dir.path().join(out).join("model.safetensors")).unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_the_rows_keep_is_learned_and_compress_keeps_it() {
    let texts = texts(200);
    for (name, ..) in MODELS {
        let dir = TempDir::new();
        write_rows(&dir, "rows.jsonl", &texts, by_text);
        let model = encoders::folder(name);
        let report = report(&mut train(&dir, &model, "rows.jsonl", "out"));
        let held = &report["held_out"];
        assert_eq!(count(&report["left_out"]), 0);
        assert_eq!(count(&report["texts"]) + count(&held["texts"]), 200);
        // One of 10, if by chance.
        assert!((10..=30).contains(&count(&held["texts"])), "{report}");
        // A word is a token, and the special ones around a text are not words.
        let tokens = [&report, held].map(|part| count(&part["tokens"]));
        assert_eq!(tokens[0] + tokens[1], 200 * 30, "{report}");
        let parts = [&report, held].into_iter().zip(tokens);
        let kept_tokens = parts.map(|(part, n)| number(&part["kept"]) * n as f64);
        let got: f64 = kept_tokens.sum();
        let want: usize = texts.iter().map(|words| kept(words).len()).sum();
        assert!((got - want as f64).abs() < 1.0, "{got} for {want}");
        // Who knows nothing of the words pays ln 2, as one half of them is kept.
        for part in [&report, held] {
            let loss = number(&part["loss"]);
            assert!(loss > 0.0 && loss < LN_2, "{name}: {report}");
        }
        let auc = number(&held["auc"]);
        assert!(auc > 0.95 && auc <= 1.0, "{name}: {report}");

        let words = sentence(&mut Random(9), 60);
        dir.write("new.txt", words.join(" "));
        let said = ok(prefold()
            .current_dir(dir.path())
            .args(["compress", "--llmlingua2", "--model", "out"])
            .args(["--rate", "0.4", "new.txt"]));
        let short = String::from_utf8(said.stdout).unwrap();
        let short: Vec<&str> = short.split_whitespace().collect();
        assert!((12..=36).contains(&short.len()), "{name}: {short:?}");
        let mut given = words.iter();
        assert!(
            short.iter().all(|word| given.any(|given| given == word)),
            "{name}: {short:?} of {words:?}"
        );
        let of_the_set = short.iter().filter(|word| KEPT.contains(word)).count();
        assert!(of_the_set * 10 >= short.len() * 8, "{name}: {short:?}");
    }
}

#[test]
fn the_same_rows_and_options_give_the_same_bytes() {
    let dir = TempDir::new();
    let texts = texts(40);
    write_rows(&dir, "text.jsonl", &texts, by_text);
    write_rows(&dir, "labels.jsonl", &texts, by_labels);
    let model = encoders::folder("bert");
    let mut runs = 0;
    let mut trained = |data: &str, options: &str| {
        runs += 1;
        let out = format!("out-{runs}");
        ok(train(&dir, &model, data, &out).args(options.split_whitespace()));
        weights(&dir, &out)
    };
    let first = trained("text.jsonl", "");
    let defaults = "--tokens 400000 --hold-out 10 --epochs 10 --batch 512 --lr 0.01 \
                    --weight-decay 0.01 --seed 1";
    for (data, options) in [
        ("text.jsonl", ""),
        ("labels.jsonl", ""),
        ("text.jsonl", defaults),
    ] {
        assert!(trained(data, options) == first, "{data} {options}");
    }
    for options in [
        "--seed 2",
        "--tokens 600",
        "--hold-out 0",
        "--epochs 9",
        "--batch 100",
        "--lr 0.02",
        "--weight-decay 0.5",
    ] {
        assert!(trained("text.jsonl", options) != first, "{options}");
    }
}

/// Rows of each kind, and of all in one file, beside the labels that they stand for.
#[test]
fn every_kind_of_row_is_what_its_labels_are() {
    let first = "the woman heard reason and was for the values of nature";
    let second = "his visit was the launch of an item";
    // Function words of the questions and answers are in the contexts too, and are not kept.
    let by_questions = vec![
        asked(first, "What was the Value for the woman?", "reason"),
        asked(second, "Who visited?", "Items of his"),
        asked(first, "And of nature?", "It was the NATURE."),
    ];
    let asked_labels = vec![
        labelled(first, &[0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1]),
        labelled(second, &[0, 1, 0, 0, 0, 0, 0, 1]),
    ];
    // The first "Count" comes before the "men" that are kept; a "window" is not there at all.
    let text = "Count men,  sum (COUNT).\nreason";
    let by_texts = vec![
        json!({"text": text, "compressed": "men window count; Reason!"}),
        by_text(&["is", "sum", "for", "men"]),
    ];
    let text_labels = vec![
        labelled(text, &[0, 1, 0, 1, 1]),
        labelled("is sum for men", &[0, 1, 0, 1]),
    ];
    let other = by_labels(&["to", "count", "ever", "reason"]);
    let mixed = [by_texts.clone(), vec![other.clone()], by_questions.clone()].concat();
    let mixed_labels = [text_labels.clone(), vec![other], asked_labels.clone()].concat();

    let dir = TempDir::new();
    let model = encoders::folder("bert");
    let run = |name: &str, rows: &[Value]| {
        let data = format!("{name}.jsonl");
        dir.write(&data, lines(rows.iter().cloned()));
        report(train(&dir, &model, &data, name).args(["--hold-out", "0"]))
    };
    for (name, rows, labels) in [
        ("text", &by_texts, &text_labels),
        ("asked", &by_questions, &asked_labels),
        ("mixed", &mixed, &mixed_labels),
    ] {
        let of_labels = format!("{name}-labels");
        let (got, want) = (run(name, rows), run(&of_labels, labels));
        assert_eq!(got, want, "{name}");
        assert!(weights(&dir, name) == weights(&dir, &of_labels), "{name}");
        assert_eq!(count(&got["texts"]), labels.len() as u64, "{name}");
        assert_eq!(got.get("held_out"), Some(&Value::Null));
        if name == "asked" {
            // Each of these words is one token of this tokenizer.
            assert_eq!(count(&got["tokens"]), 19);
            assert!((number(&got["kept"]) - 6.0 / 19.0).abs() < 5e-4, "{got}");
        }
    }
}

#[test]
fn rows_of_one_context_are_one_text() {
    let dir = TempDir::new();
    let texts = texts(20);
    // The second question of a text comes after the first ones of all others.
    let questions = [("Where is the count?", "men"), ("What sum?", "reason")];
    let rows = questions.iter().flat_map(|(question, answer)| {
        let context = |words: &Vec<&str>| asked(&words.join(" "), question, answer);
        texts.iter().map(context).collect::<Vec<_>>()
    });
    dir.write("asked.jsonl", lines(rows));
    write_rows(&dir, "labels.jsonl", &texts, by_labels);
    let model = encoders::folder("xlmr-tokens");
    let [got, want] = ["asked", "labels"]
        .map(|name| report(&mut train(&dir, &model, &format!("{name}.jsonl"), name)));
    let held = count(&got["held_out"]["texts"]);
    assert!(held > 0, "{got}");
    assert_eq!(count(&got["texts"]) + held, 20, "{got}");
    assert_eq!(got, want);
    assert!(weights(&dir, "asked") == weights(&dir, "labels"));
}

#[test]
fn enough_tokens_leave_texts_out() {
    let dir = TempDir::new();
    write_rows(&dir, "rows.jsonl", &texts(100), by_text);
    let model = encoders::folder("bert");
    for hold_out in ["0", "10"] {
        let mut command = train(&dir, &model, "rows.jsonl", &format!("out-{hold_out}"));
        command.args(["--tokens", "600", "--hold-out", hold_out]);
        let report = report(&mut command);
        let left_out = count(&report["left_out"]);
        let held = report["held_out"]["texts"].as_u64().unwrap_or(0);
        assert!(left_out > 0, "{report}");
        assert_eq!(count(&report["texts"]) + held + left_out, 100, "{report}");
        let tokens = count(&report["tokens"]);
        assert!(tokens <= 640, "{report}");
        if hold_out == "0" {
            // By a text more or less.
            assert!(tokens >= 520, "{report}");
            assert!((18..=22).contains(&count(&report["texts"])), "{report}");
        }
    }
}

/// The tensors of a file by their names after `prefix`: shapes, and the bits as f32.
fn tensors(file: &Path, prefix: &str) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let bytes = fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let data = view.data();
        let bits: Vec<u32> = match view.dtype() {
            Dtype::F32 => {
                let values = data.as_chunks::<4>().0.iter();
                values.map(|&value| u32::from_le_bytes(value)).collect()
            }
            Dtype::BF16 => {
                let values = data.as_chunks::<2>().0.iter();
                let high = values.map(|&value| u32::from(u16::from_le_bytes(value)));
                high.map(|high| high << 16).collect()
            }
            other => panic!("{name}: {other:?}"),
        };
        let name = name.strip_prefix(prefix).unwrap_or(&name).to_owned();
        (name, (view.shape().to_vec(), bits))
    });
    tensors.collect()
}

/// Fails unless `out` has the encoder of `source` to the bit, and a new head.
#[track_caller]
fn assert_tensors(source: &Path, out: &Path, prefix: &str) {
    let (was, is) = (
        tensors(&source.join("model.safetensors"), prefix),
        tensors(&out.join("model.safetensors"), prefix),
    );
    let head = ["classifier.weight", "classifier.bias"];
    let hidden = read_json(&source.join("config.json"))["hidden_size"].clone();
    let hidden = count(&hidden) as usize;
    for (name, shape) in head.iter().zip([vec![2, hidden], vec![2]]) {
        assert_eq!(is[*name].0, shape, "{name}");
        let values = || is[*name].1.iter().map(|&bits| f32::from_bits(bits));
        assert!(values().all(f32::is_finite), "{name}");
        assert!(values().any(|value| value != 0.0), "{name}");
        assert!(was.get(*name) != Some(&is[*name]), "{name} is the old one");
    }
    for (name, tensor) in &was {
        // What a classifier of tokens does not read may be gone.
        if !name.starts_with("pooler.") && !head.contains(&name.as_str()) {
            assert!(is.get(name) == Some(tensor), "{name}");
        }
    }
    for name in is.keys() {
        let known = was.contains_key(name) || head.contains(&name.as_str());
        assert!(known, "{name}");
    }
    // As transformers stores it: it refuses a classifier whose encoder's names lack the prefix,
    // and a file that does not say of which framework it is.
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, view) in file.tensors() {
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let own = head.contains(&name.as_str());
        assert!(own || name.starts_with(prefix), "{name}");
    }
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["__metadata__"]["format"], "pt");
}

#[test]
fn a_folder_is_written_as_hugging_face_has_it() {
    for (name, class, prefix) in MODELS {
        let dir = TempDir::new();
        write_rows(&dir, "rows.jsonl", &texts(30), by_text);
        let source = encoders::folder(name);
        let said = ok(&mut train(&dir, &source, "rows.jsonl", "classifier"));
        assert!(said.stdout.is_empty());
        let said = stderr(&said);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("classifier"), "{said}");
        let out = dir.path().join("classifier");
        let [was, is] = [&source, &out].map(|folder| read_json(&folder.join("config.json")));
        assert_eq!(is["architectures"], json!([class]));
        assert_eq!(is["id2label"], json!({"0": "drop", "1": "keep"}));
        for key in [
            "hidden_act",
            "hidden_size",
            "intermediate_size",
            "layer_norm_eps",
            "max_position_embeddings",
            "model_type",
            "num_attention_heads",
            "num_hidden_layers",
            "pad_token_id",
            "type_vocab_size",
            "vocab_size",
        ] {
            assert!(!was[key].is_null(), "{key}");
            assert_eq!(is[key], was[key], "{key}");
        }
        for file in TOKENIZER_FILES {
            let [was, is] = [&source, &out].map(|folder| fs::read(folder.join(file)).unwrap());
            assert!(was == is, "{file}");
        }
        assert_tensors(&source, &out, prefix);
        // Nothing is left beside the folder.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn tensors_of_bf16_are_written_as_f32() {
    let given = encoders::folder("bert");
    let source = TempDir::new();
    for file in TOKENIZER_FILES.iter().chain(&["config.json"]) {
        source.write(file, fs::read(given.join(file)).unwrap());
    }
    let bytes = fs::read(given.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // The upper two bytes of an f32.
    let cut = file.tensors().into_iter().map(|(name, view)| {
        let values = view.data().as_chunks::<4>().0.iter();
        let data: Vec<u8> = values.flat_map(|value| [value[2], value[3]]).collect();
        (name, view.shape().to_vec(), data)
    });
    let cut: Vec<_> = cut.collect();
    let views = cut.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), data);
        (name.as_str(), view.unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    source.write("model.safetensors", bytes);
    let dir = TempDir::new();
    write_rows(&dir, "rows.jsonl", &texts(20), by_text);
    ok(&mut train(&dir, source.path(), "rows.jsonl", "out"));
    assert_tensors(source.path(), &dir.path().join("out"), "bert.");
}

/// All that lies in a folder: a file's bytes, or that it is a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, None);
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, Some(bytes));
        }
    }
    found
}

/// The one line of a run in `dir` that must fail, leaving the folder as it was. `options` replace
/// those of a run that would succeed.
#[track_caller]
fn refused(dir: &TempDir, options: &[(&str, &str)]) -> String {
    let bert = encoders::folder("bert");
    let mut all = BTreeMap::from([
        ("--model", bert.to_str().unwrap()),
        ("--data", "rows.jsonl"),
        ("--out", "run"),
    ]);
    all.extend(options.iter().copied());
    let before = contents(dir.path());
    let output = prefold()
        .current_dir(dir.path())
        .args(["train", "tokens", "--json"])
        .args(all.iter().flat_map(|(name, value)| [*name, *value]))
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(!output.status.success(), "{options:?} was taken");
    assert!(output.stdout.is_empty(), "{options:?}");
    assert_eq!(said.lines().count(), 1, "{options:?}: {said}");
    assert!(said.starts_with("prefold: "), "{options:?}: {said}");
    let after = contents(dir.path());
    assert!(
        before == after,
        "{options:?}: {:?}",
        after.keys().collect::<Vec<_>>()
    );
    said
}

/// A folder with rows that can be learned.
fn good_rows() -> TempDir {
    let dir = TempDir::new();
    write_rows(&dir, "rows.jsonl", &texts(12), by_text);
    dir
}

#[test]
fn only_two_kinds_of_encoders_are_taken() {
    let dir = good_rows();
    // Whole words, as "modernbert" has a "bert" in it, and "decoder" almost an "encoder".
    let words = |model: &Path| -> Vec<String> {
        let said = refused(&dir, &[("--model", model.to_str().unwrap())]);
        let said = said.to_lowercase();
        let words = said.split(|c: char| !c.is_alphanumeric() && c != '-');
        words.map(Into::into).collect()
    };
    let decoder = tiny::folder(&tiny::config(Family::Llama), &tiny::tensors(Family::Llama));
    let said = words(decoder.path());
    for start in ["decoder", "encoder"] {
        assert!(said.iter().any(|word| word.starts_with(start)), "{said:?}");
    }
    for name in ["modernbert", "modernbert-tokens"] {
        let said = words(&encoders::folder(name));
        for kind in ["bert", "xlm-roberta"] {
            assert!(said.iter().any(|word| word == kind), "{said:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let dir = good_rows();
    fs::create_dir(dir.path().join("taken")).unwrap();
    dir.write("taken/notes.txt", "mine");
    fs::create_dir(dir.path().join("bare")).unwrap();
    dir.write("a-file", "mine");
    let good = by_labels(&["sum", "is", "for", "men"]);
    let lengths = json!({"words": vec!["sum"; 17], "labels": vec![1; 13]});
    dir.write("lengths.jsonl", lines([good.clone(), lengths]));
    let uniform = |label: u8| {
        let row = labelled("sum is for men", &[label; 4]);
        lines(std::iter::repeat_n(row, 12))
    };
    dir.write("all.jsonl", uniform(1));
    dir.write("nothing.jsonl", uniform(0));
    dir.write("cut.jsonl", format!("{good}\n{{\"text\"\n"));
    let cases: &[(&str, &str, &[&str])] = &[
        ("--out", "taken", &["taken"]),
        ("--out", "bare", &["bare"]),
        ("--out", "a-file", &["a-file"]),
        ("--data", "none.jsonl", &["none.jsonl"]),
        ("--data", "cut.jsonl", &["cut.jsonl: line 2"]),
        ("--data", "lengths.jsonl", &["17", "13"]),
        // That they are refused is what counts.
        ("--data", "all.jsonl", &[]),
        ("--data", "nothing.jsonl", &[]),
        ("--epochs", "0", &["epochs 0"]),
        ("--batch", "0", &["batch 0"]),
        ("--lr", "nan", &["lr NaN"]),
    ];
    for &(option, value, reasons) in cases {
        let said = refused(&dir, &[(option, value)]);
        for reason in reasons {
            assert!(said.contains(reason), "{option} {value}: {said}");
        }
    }
    let fields = [
        "text",
        "compressed",
        "words",
        "labels",
        "context",
        "question",
        "answers",
    ];
    let odd: [(Value, &[&str]); 5] = [
        (json!({}), &fields),
        (json!({"ids": [1, 2], "summary": "sum"}), &fields),
        (json!({"text": "the sum is"}), &[]),
        (json!({"words": ["sum", "is"]}), &[]),
        (json!({"context": "the sum is", "question": "Which?"}), &[]),
    ];
    for (row, reasons) in odd {
        dir.write("odd.jsonl", lines([good.clone(), row]));
        let said = refused(&dir, &[("--data", "odd.jsonl")]);
        assert!(said.contains("odd.jsonl: line 2"), "{said}");
        for reason in reasons {
            assert!(said.contains(reason), "{reason}: {said}");
        }
    }
    // None of it was due to the rest.
    let bert = encoders::folder("bert");
    ok(&mut train(&dir, &bert, "rows.jsonl", "run"));
}
