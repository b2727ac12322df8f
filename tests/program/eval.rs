//! Measuring: metrics against the Python packages, intervals, one cache for nll and answer, and the
//! program's tables from end to end.

use crate::common;

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use crate::common::TempDir;
use crate::common::tiny::{self, FAMILIES};
use prefold::eval::{Question, interval, metrics};
use prefold::model::decoder::Input;
use prefold::soft::{Finish, PrefillOptions, Query, Sampling, Source};
use prefold::{Control, Device, Engine, Error};
use serde_json::{Value, json};

#[test]
fn metrics_are_those_of_the_python_packages() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../data/metrics.json")).unwrap();
    assert!(rows.len() > 30);
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap();
        let (said, gold) = (text("said"), text("gold"));
        assert_eq!(metrics::normalize_answer(said), text("normalized"));
        let rouge = metrics::rouge(said, gold);
        for (name, got) in [
            ("rouge1", rouge.rouge1),
            ("rouge2", rouge.rouge2),
            ("rouge_l", rouge.rouge_l),
            ("bleu", metrics::bleu(said, gold)),
            ("em", metrics::exact_match(said, gold)),
            ("f1", metrics::f1(said, gold)),
        ] {
            let want = row[name].as_f64().unwrap();
            assert!(
                (got - want).abs() < 1e-6,
                "{name} of {said:?} and {gold:?}: {got}, expected {want}"
            );
        }
    }
}

#[test]
fn of_several_answers_the_best_counts_and_empty_ones_do_not() {
    let answers = ["the", "Paris, France", "Paris"].map(String::from);
    assert_eq!(metrics::best("paris", &answers, metrics::exact_match), 1.0);
    assert_eq!(metrics::best("in Paris", &answers, metrics::f1), 2.0 / 3.0);
    assert_eq!(metrics::best("a", &answers, metrics::f1), 0.0);
    // No answer is the right answer.
    assert_eq!(metrics::best("a", &answers[..1], metrics::f1), 1.0);
    assert_eq!(metrics::best("it", &answers[..1], metrics::f1), 0.0);
}

#[test]
fn intervals_are_seeded_and_hold_what_they_should() {
    let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
    let first = interval(&values, 7).unwrap();
    assert_eq!(first, interval(&values, 7).unwrap());
    let other = interval(&values, 8).unwrap();
    assert_eq!(first.mean, other.mean);
    assert_ne!((first.low, first.high), (other.low, other.high));
    // 1.96 standard errors either way, 0.565; the percentiles of 2,000 draws waver by some hundredths.
    assert_eq!(first.mean, 9.5);
    assert!((first.low - 8.935).abs() < 0.06, "{first:?}");
    assert!((first.high - 10.065).abs() < 0.06, "{first:?}");

    let same = interval(&[2.5; 3], 1).unwrap();
    assert_eq!((same.mean, same.low, same.high), (2.5, 2.5, 2.5));
    assert!(interval(&[], 1).is_none());
}

fn open(path: &Path) -> Engine {
    Engine::builder(path).device(Device::Cpu).build().unwrap()
}

/// The nll and the continuation of several asks at once are what each gives alone, by other ways.
fn check_answers(engine: &Engine, ids: impl Fn(usize, usize) -> Vec<u32>) {
    let source = Source::ids(ids(5, 6));
    let prefix = engine
        .prefixes()
        .prefill(&source, &PrefillOptions::default())
        .unwrap();
    let prompts = [ids(1, 1), ids(2, 9), ids(3, 4), ids(4, 3)];
    let golds = [ids(6, 3), ids(7, 1), vec![], ids(8, 5)];
    let asks: Vec<Query<'_>> = (0..4)
        .map(|i| Query {
            prefix: (i == 3).then_some(&prefix),
            prompt: Input::Ids(&prompts[i]),
            gold: &golds[i],
        })
        .collect();
    let options = Sampling {
        max_new_tokens: 7,
        ..Sampling::default()
    };
    // The third is stopped after two.
    let mut heard = vec![Vec::new(); 4];
    let replies = engine
        .prefixes()
        .answer(&asks, &options, &mut |i, id| {
            heard[i].push(id);
            match i == 2 && heard[i].len() == 2 {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .unwrap();
    for (i, (ask, reply)) in asks.iter().zip(&replies).enumerate() {
        let (mut said, prompt) = (0, &prompts[i][..]);
        let alone = engine
            .prefixes()
            .generate(ask.prefix, prompt, &options, &mut |_| {
                said += 1;
                match i == 2 && said == 2 {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
            .unwrap();
        assert_eq!(reply.generated.ids, alone.ids, "ask {i}");
        assert_eq!(reply.generated.finish, alone.finish, "ask {i}");
        assert_eq!(heard[i], alone.ids, "ask {i}");
        for (got, want) in reply.generated.logprobs.iter().zip(&alone.logprobs) {
            assert!((got - want).abs() < 1e-4, "ask {i}: {got}, {want}");
        }
        let before = if i == 3 { &source.ids[..] } else { &[] };
        let whole = [before, prompt, ask.gold].concat();
        let want = engine
            .score_tail(&whole, before.len() + prompt.len(), &Control::default())
            .unwrap();
        assert_eq!(reply.nll.len(), want.len());
        for (got, want) in reply.nll.iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "ask {i}: nll {got}, {want}");
        }
    }
}

#[test]
fn answers_together_are_those_of_each_alone() {
    for family in FAMILIES {
        let folder = tiny::folder(&tiny::config(family), &tiny::tensors(family));
        let engine = open(folder.path());
        check_answers(&engine, |seed, len| {
            let mut random = common::Random(seed as u64);
            (0..len).map(|_| random.below(tiny::VOCAB) as u32).collect()
        });
    }
    // One with a sliding window.
    if let Some(shared) = common::shared() {
        let engine = open(&shared.join("golden/models/mistral"));
        let vocab = engine.info().vocab;
        check_answers(&engine, |seed, len| {
            let mut random = common::Random(seed as u64);
            (0..len).map(|_| random.below(vocab) as u32).collect()
        });
    }
}

/// So many tokens may come that no two asks go together: the places of the asks stay what they are.
#[test]
fn asks_that_are_too_long_together_go_one_after_the_other() {
    let family = FAMILIES[0];
    let folder = tiny::folder(&tiny::config(family), &tiny::tensors(family));
    let engine = open(folder.path());
    let prompts = [[5, 6, 7], [8, 9, 10], [11, 12, 13]];
    let asks = prompts.each_ref().map(|prompt| Query {
        prefix: None,
        prompt: Input::Ids(prompt),
        gold: &[],
    });
    let options = Sampling {
        max_new_tokens: 20_000,
        ignore_eos: true,
        ..Sampling::default()
    };
    let mut heard = vec![Vec::new(); 3];
    let replies = engine
        .prefixes()
        .answer(&asks, &options, &mut |i, id| {
            heard[i].push(id);
            ControlFlow::Continue(())
        })
        .unwrap();
    let mut each = |_| ControlFlow::Continue(());
    for ((prompt, reply), heard) in prompts.iter().zip(replies).zip(heard) {
        let alone = engine
            .prefixes()
            .generate(None, prompt, &options, &mut each)
            .unwrap();
        assert_eq!(reply.generated.ids, alone.ids);
        assert_eq!(reply.generated.finish, Finish::Context);
        assert_eq!(heard, alone.ids);
    }
}

#[test]
fn an_ask_that_does_not_fit_is_an_error() {
    let family = FAMILIES[0];
    let folder = tiny::folder(&tiny::config(family), &tiny::tensors(family));
    let engine = open(folder.path());
    let ids = [3; tiny::POSITIONS];
    let mut each = |_, _| ControlFlow::Continue(());
    let mut ask = |prompt: &[u32], gold: &[u32]| {
        let ask = Query {
            prefix: None,
            prompt: Input::Ids(prompt),
            gold,
        };
        engine
            .prefixes()
            .answer(&[ask], &Sampling::default(), &mut each)
    };
    assert!(matches!(ask(&[], &[]), Err(Error::Input { .. })));
    assert!(matches!(ask(&ids, &ids[..2]), Err(Error::Input { .. })));
    assert!(ask(&[4000], &[]).is_err());
    assert!(ask(&ids[..1], &[4000, 4000]).is_err());
    // The last token of a continuation is never read.
    assert_eq!(ask(&ids, &ids[..1]).unwrap()[0].nll.len(), 1);
}

/// What a run of the program left: exit code, standard output, standard error.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("eval")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("ended by a signal");
    (code, text(output.stdout), text(output.stderr))
}

#[track_caller]
fn bad(args: &[&str], about: &[&str]) {
    refused(1, args, about);
}

fn refused(exit: i32, args: &[&str], about: &[&str]) {
    let (code, out, err) = run(args);
    assert_eq!((code, out.as_str()), (exit, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    for about in about {
        assert!(err.contains(about), "{args:?}: {err}");
    }
}

const QUESTIONS: &str = concat!(
    r#"{"id": "river", "question": "Which river runs through Paris?", "answers": ["the Seine", "Seine"], "#,
    r#""context": "Paris lies on the Seine.", "docs": ["Paris lies on the Seine. It is the capital of France.", "#,
    r#""Rome lies on the Tiber. It is the capital of Italy. It has seven hills."]}"#,
    "\n\n",
    r#"{"question": "When was the bridge built?", "answers": ["1931"], "context": "The bridge was built in 1931 and painted grey."}"#,
    "\n",
);

#[test]
fn data_that_makes_no_sense_is_named_with_its_line() {
    let folder = TempDir::new();
    let good = QUESTIONS.lines().next().unwrap();
    for (name, text, about) in [
        (
            "missing",
            format!("{good}\n{{\"question\": \"x\"}}\n"),
            "line 2: missing field `answers`",
        ),
        ("nothing", String::new(), "no question"),
        ("blank", "\n \n".into(), "no question"),
        ("prose", "hello".into(), "line 1: "),
        (
            "list",
            good.replace("[\"the Seine\", \"Seine\"]", "7"),
            "line 1: ",
        ),
        (
            "none",
            good.replace("[\"the Seine\", \"Seine\"]", "[]"),
            "line 1: `answers` is empty",
        ),
        (
            "silent",
            good.replace("Which river runs through Paris?", " "),
            "line 1: `question` is empty",
        ),
    ] {
        let path = folder.write(name, text);
        let path = path.to_str().unwrap();
        bad(&["qa", "--data", path], &[path, about]);
    }
    let binary = folder.write("binary", b"\xff\xfe\n");
    bad(&["qa", "--data", binary.to_str().unwrap()], &["binary"]);
    bad(&["qa", "--data", "no/such/file"], &["no/such/file"]);
    let file = folder.write("good", QUESTIONS);
    let file = file.to_str().unwrap();
    bad(&["qa", "--data", file, "--limit", "0"], &["no question"]);
    bad(&["qa", "--data", file, "--skip", "2"], &["no question"]);
    for rate in ["0", "-1", "1.5", "NaN", "0.5,0"] {
        let rate = format!("--rates={rate}");
        refused(2, &["qa", "--data", file, &rate], &["rate", "(0, 1]"]);
    }
    bad(&["qa", "--data", file, "-m", "no/model"], &["no/model"]);
    bad(
        &["regen", "--data", file],
        &["line 1: missing field `text`"],
    );
    let texts = folder.write("texts", "{\"text\": \"One.\"}\n{\"text\": \" \"}\n");
    let texts = texts.to_str().unwrap();
    bad(&["regen", "--data", texts], &["line 2: `text` is empty"]);
    bad(
        &["regen", "--data", texts, "--text-tokens", "0"],
        &["--text-tokens"],
    );
    refused(
        2,
        &["regen", "--data", texts, "--rates=2"],
        &["rate", "(0, 1]"],
    );

    // The rows as they are read.
    let read = Question::read(Path::new(file), 0, 9, false).unwrap();
    assert_eq!((read.len(), read[1].id.as_str()), (2, "3"));
    assert_eq!(read[1].documents(), [read[1].context.clone()]);
    assert_eq!(
        Question::read(Path::new(file), 0, 9, true).unwrap().len(),
        1
    );
    assert_eq!(
        Question::read(Path::new(file), 1, 9, false).unwrap(),
        read[1..]
    );
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn questions_from_end_to_end() {
    let Some(model) = common::smollm2() else {
        return;
    };
    let folder = TempDir::new();
    let data = folder.write("qa.jsonl", QUESTIONS);
    let (log, json) = (folder.path().join("log"), folder.path().join("report"));
    let paths = [&model, &data, &log, &json].map(|path| path.to_str().unwrap().to_string());
    let [model, data, log, json] = paths.each_ref().map(String::as_str);
    let mut args = vec![
        "qa",
        "-m",
        model,
        "--data",
        data,
        "--rates",
        "0.5",
        "--max-new-tokens",
        "4",
        "--reference",
        "--log",
        log,
        "--json",
        json,
        "--device",
        "cpu",
    ];
    let adapter = common::shared().map(|shared| shared.join("golden/500x/smollm2-adapter"));
    let adapter = adapter.map(|path| path.to_str().unwrap().to_string());
    if let Some(adapter) = &adapter {
        args.extend(["--adapter", adapter, "--icae", adapter]);
    }
    let (code, table, err) = run(&args);
    assert_eq!(code, 0, "{err}");
    let read = || std::fs::read_to_string(json).unwrap();
    let report: Value = serde_json::from_str(&read()).unwrap();
    assert_eq!(
        keys(&report),
        [
            "scorer",
            "host",
            "device",
            "max_new_tokens",
            "task",
            "items",
            "metrics",
            "seed",
            "rows",
            "differences"
        ]
    );
    assert_eq!(report["metrics"], json!(["nll", "em", "f1"]));
    let rows = report["rows"].as_array().unwrap();
    let ways: Vec<&str> = rows
        .iter()
        .map(|row| row["way"].as_str().unwrap())
        .collect();
    let mut want = vec![
        "full",
        "none",
        "gold",
        "random-tokens",
        "llmlingua",
        "longllmlingua",
        "prefold",
        "prefold-sentence",
        "prefold-token",
    ];
    if adapter.is_some() {
        want.extend(["500xcompressor", "icae"]);
    }
    assert_eq!(ways, want);
    for row in rows {
        assert_eq!(keys(row), ["way", "rate", "host_tokens", "em", "f1", "nll"]);
        let way = row["way"].as_str().unwrap();
        assert!(table.contains(way), "{table}");
        let nll = &row["nll"];
        assert_eq!(keys(nll), ["mean", "low", "high"]);
        let [mean, low, high] = ["mean", "low", "high"].map(|key| nll[key].as_f64().unwrap());
        assert!(low <= mean && mean <= high && mean > 0.0, "{row}");
    }
    let tokens = |way: &str| {
        let row = rows.iter().find(|row| row["way"] == way).unwrap();
        row["host_tokens"].as_f64().unwrap()
    };
    assert_eq!(tokens("none"), 0.0);
    assert!(tokens("gold") < tokens("full"));
    // The question, which stays whole, is part of the budget.
    assert!(tokens("prefold") > 0.0 && tokens("prefold") <= 0.5 * tokens("full"));
    let differences = report["differences"].as_array().unwrap();
    assert_eq!(differences.len(), rows.len() - 1);
    assert_eq!(keys(&differences[0])[..3], ["way", "less", "rate"]);

    // The gold answer's nll, worked out apart.
    let lines = || std::fs::read_to_string(log).unwrap();
    let answers: Vec<Value> = lines()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 2 * rows.len());
    let engine = open(Path::new(model));
    let encode = |text: &str| {
        engine
            .tokenizer()
            .unwrap()
            .encode(text, false, false)
            .unwrap()
            .ids
    };
    let prompt = encode(
        "The bridge was built in 1931 and painted grey.\n\nQuestion: When was the bridge built?\nAnswer:",
    );
    let gold = encode(" 1931");
    let nll = engine
        .score_tail(
            &[&prompt[..], &gold].concat(),
            prompt.len(),
            &Control::default(),
        )
        .unwrap();
    let want = nll.iter().map(|&x| f64::from(x)).sum::<f64>() / nll.len() as f64;
    let found = answers
        .iter()
        .find(|a| a["way"] == "full" && a["id"] == "3")
        .unwrap();
    let got = found["scores"]["nll"].as_f64().unwrap();
    assert!((got - want).abs() < 1e-3, "{got}, {want}");

    // Again from the log alone, and after the run was cut off inside a line: nothing else changes.
    let (first, all) = (read(), lines());
    std::fs::write(log, &all[..all.len() - 30]).unwrap();
    let (code, again, err) = run(&args);
    assert_eq!((code, again, read()), (0, table, first), "{err}");
    assert_eq!(lines(), all);
    std::fs::write(log, format!("{all}notes of mine")).unwrap();
    let (code, _, err) = run(&args);
    assert_eq!(code, 1);
    assert!(
        err.contains("log") && err.contains("not an answer"),
        "{err}"
    );
    assert!(lines().ends_with("notes of mine"));
}

#[test]
fn texts_from_end_to_end() {
    let (Some(model), Some(shared)) = (common::smollm2(), common::shared()) else {
        return;
    };
    let folder = TempDir::new();
    let data = folder.write(
        "texts.jsonl",
        "{\"text\": \"The cat sat on the mat.\"}\n{\"text\": \"It rained.\"}\n",
    );
    let adapter = shared.join("golden/500x/smollm2-adapter");
    let paths = [&model, &data, &adapter].map(|path| path.to_str().unwrap().to_string());
    let [model, data, adapter] = paths.each_ref().map(String::as_str);
    let (code, out, err) = run(&[
        "regen",
        "-m",
        model,
        "--data",
        data,
        "--text-tokens",
        "5",
        "--adapter",
        adapter,
        "--json",
        "-",
        "--device",
        "cpu",
    ]);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let metrics = ["nll", "rouge1", "rouge2", "rouge_l", "bleu", "em"];
    assert_eq!(report["metrics"], json!(metrics));
    assert_eq!(report["items"], 2);
    assert_eq!(report["text_tokens"], json!(4.5));
    let rows = report["rows"].as_array().unwrap();
    let ways: Vec<&Value> = rows.iter().map(|row| &row["way"]).collect();
    let (random, ours) = ("random-tokens", "prefold");
    assert_eq!(
        ways,
        ["full", "none", random, random, ours, ours, "500xcompressor"]
    );
    // What is kept is a part of 4.5 tokens, the larger at the higher rate.
    let tokens = |row: usize| rows[row]["host_tokens"].as_f64().unwrap();
    assert!(tokens(2) >= tokens(3) && tokens(2) <= 4.5, "{out}");
    assert!(tokens(4) > tokens(5) && tokens(4) <= 3.5, "{out}");
    assert_eq!([&rows[4]["rate"], &rows[5]["rate"]], [0.5, 0.25]);
    for row in rows {
        for metric in metrics {
            let mean = row[metric]["mean"].as_f64().unwrap();
            assert!(mean >= 0.0 && (metric == "nll" || mean <= 1.0), "{row}");
        }
    }
    // Nothing tells less than the whole text.
    let nll = |row: usize| rows[row]["nll"]["mean"].as_f64().unwrap();
    assert!(nll(0) < nll(1), "{out}");
    assert_eq!(rows[0]["host_tokens"], json!(4.5));
}
