//! `prefold train`, `merge` and `plot`: the trajectories of the reference, kills, interrupts, errors.

use crate::common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{TempDir, tiny};
use prefold::model::config::Family;
use prefold::model::weights::Weights;
use prefold::text::Tokenizer;
use prefold::train::log::{self, Line};
use prefold::{Control, Device, Engine};
use serde_json::{Value, json};

pub(super) fn prefold() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefold"));
    command.stdin(Stdio::null());
    command
}

pub(super) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
pub(super) fn ok(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    output
}

/// Whether a program ends by itself in so long a time; one that does not is killed.
pub(super) fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A tiny model of 24 positions and rows of ids for each objective.
pub(super) fn tiny_model() -> TempDir {
    let dir = tiny::folder(&tiny::config(Family::Llama), &tiny::tensors(Family::Llama));
    let (mut texts, mut answers) = (String::new(), String::new());
    for i in 0..23u32 {
        let ids = |n: u32, at: u32| (0..n).map(|j| (i * 7 + j * at) % 40).collect::<Vec<_>>();
        texts += &format!("{}\n", json!({"ids": ids(5 + i % 4, 3)}));
        let row = json!({
            "context_ids": ids(6, 5), "question_ids": ids(3, 2), "answer_ids": ids(2, 11),
        });
        answers += &format!("{row}\n");
    }
    dir.write("texts.jsonl", texts);
    dir.write("answers.jsonl", answers);
    dir
}

/// A command that trains in `dir` on its rows.
pub(super) fn train(dir: &TempDir, task: &str, out: &str) -> Command {
    let rows = if task == "regen" {
        "texts.jsonl"
    } else {
        "answers.jsonl"
    };
    let mut command = prefold();
    command
        .current_dir(dir.path())
        .args([
            "train", task, "--model", ".", "--device", "cpu", "--data", rows,
        ])
        .args(["--rank", "4", "--alpha", "8", "--out", out]);
    if task != "align" {
        command.args(["--memory-tokens", "2", "--max-text-tokens", "12"]);
    }
    command
}

fn lines(dir: &TempDir, out: &str) -> Vec<Line> {
    log::read(&dir.path().join(format!("{out}.log.jsonl"))).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The trajectories of PyTorch: 20 steps of AdamW for each objective and each tiny adapter.
#[test]
fn trajectories_are_the_references() {
    let Some(shared) = common::shared() else {
        return;
    };
    let golden = shared.join("golden/500x");
    let dir = TempDir::new();
    let (mut worst, mut compared) = (0.0f64, 0);
    for adapter in ["qv", "all"] {
        let path = golden.join(format!("tiny-{adapter}.golden.json"));
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let rows: String = (0..2)
            .map(|i| {
                let row = json!({
                    "ids": file["ids"][i], "context_ids": file["ids"][i],
                    "question_ids": file["question"][i], "answer_ids": file["answer"][i],
                });
                format!("{row}\n")
            })
            .collect();
        dir.write("rows.jsonl", rows);
        for task in ["regen", "qa", "align"] {
            let golden_run = &file[format!("{task}_adamw")];
            let number = |key: &str| golden_run[key].to_string();
            let name = format!("{task}-{adapter}");
            ok(prefold()
                .current_dir(dir.path())
                .args([
                    "train",
                    task,
                    "--device",
                    "cpu",
                    "--data",
                    "rows.jsonl",
                    "--out",
                    &name,
                ])
                .arg("--model")
                .arg(golden.join("tiny"))
                .arg("--adapter")
                .arg(golden.join(format!("tiny-adapter-{adapter}")))
                .args([
                    "--bos",
                    &file["bos"].to_string(),
                    "--eos",
                    &file["eos"].to_string(),
                ])
                .args([
                    "--lr",
                    &number("lr"),
                    "--weight-decay",
                    &number("weight_decay"),
                ])
                .args(["--clip", &number("clip_grad_norm"), "--warmup", "0"])
                .args(["--dropout", "0", "--precision", "f32", "--batch", "2"])
                .args(["--shuffle-buffer", "1", "--steps", "20"]));
            let want = golden_run["loss_and_grad_norm"].as_array().unwrap();
            let got = lines(&dir, &name);
            assert_eq!(got.len(), want.len());
            for (line, want) in got.iter().zip(want) {
                for (what, got, want) in [
                    ("loss", line.loss, &want[0]),
                    ("norm", line.grad_norm, &want[1]),
                ] {
                    let want = want.as_f64().unwrap();
                    let off = (got - want).abs() / want;
                    worst = worst.max(off);
                    compared += 1;
                    assert!(
                        off < 2e-3,
                        "{name}, step {}: {what} {got} for {want}",
                        line.step
                    );
                }
            }
        }
    }
    assert_eq!(compared, 240);
    eprintln!("240 losses and norms differ by at most {worst:.1e}");
}

fn wait_for_lines(dir: &TempDir, out: &str, count: usize, child: &mut Child) {
    let path = dir.path().join(format!("{out}.log.jsonl"));
    let start = Instant::now();
    while std::fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < count {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no {count} lines"
        );
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "it died by itself: {status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn same_losses(want: &[Line], got: &[Line]) {
    assert_eq!(want.len(), got.len());
    for (want, got) in want.iter().zip(got) {
        assert_eq!(want.step, got.step);
        for (want, got) in [
            (want.loss, got.loss),
            (want.grad_norm, got.grad_norm),
            (want.lr, got.lr),
            (want.dev_loss.unwrap_or(0.0), got.dev_loss.unwrap_or(0.0)),
        ] {
            assert_eq!(want.to_bits(), got.to_bits(), "{want} and {got}");
        }
        assert_eq!(want.tokens, got.tokens);
    }
}

/// What the kills below have in common: dropout, shuffling, accumulation and evaluation all have a
/// state that could be lost.
fn long_run(dir: &TempDir, out: &str) -> Command {
    let mut command = train(dir, "regen", out);
    command
        .args([
            "--steps",
            "60",
            "--batch",
            "2",
            "--accumulate",
            "2",
            "--dropout",
            "0.1",
        ])
        .args([
            "--lr",
            "0.01",
            "--warmup",
            "5",
            "--shuffle-buffer",
            "7",
            "--seed",
            "3",
        ])
        .args([
            "--eval",
            "texts.jsonl",
            "--eval-rows",
            "3",
            "--eval-every",
            "4",
        ])
        .args(["--save-every", "5", "--schedule", "cosine"]);
    command
}

#[test]
fn a_killed_run_continues_to_the_same_losses() {
    let dir = tiny_model();
    ok(&mut long_run(&dir, "whole"));
    let whole = lines(&dir, "whole");
    assert_eq!(whole.len(), 60);
    assert!(whole[59].loss < whole[0].loss);
    for count in [0, 1, 23, 41] {
        let mut child = long_run(&dir, "killed")
            .arg("--resume")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_lines(&dir, "killed", count, &mut child);
        // SIGKILL: nothing of the process runs any more.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ok(long_run(&dir, "killed").arg("--resume"));
    same_losses(&whole, &lines(&dir, "killed"));
    for name in ["adapter_model", "memory_embeddings", "optimizer"] {
        let read = |out: &str| std::fs::read(dir.path().join(format!("{out}/{name}.safetensors")));
        assert!(read("whole").unwrap() == read("killed").unwrap(), "{name}");
    }
    // Nothing is left beside the folders.
    let mut hidden = std::fs::read_dir(dir.path()).unwrap();
    assert!(!hidden.any(|entry| entry.unwrap().file_name().as_encoded_bytes()[0] == b'.'));
}

#[test]
fn an_interrupt_saves_and_leaves() {
    let dir = tiny_model();
    let mut child = train(&dir, "regen", "stopped")
        .args([
            "--steps",
            "1000000",
            "--batch",
            "2",
            "--warmup",
            "5",
            "--save-every",
            "0",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_lines(&dir, "stopped", 4, &mut child);
    ok(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let said = stderr(&output);
    let last = said.lines().last().unwrap();
    let steps = lines(&dir, "stopped").len();
    let wanted = format!("prefold: stopped after step {steps} of 1000000");
    assert!(
        last.starts_with(&wanted) && last.contains("--resume"),
        "{said}"
    );
    let state = prefold::train::checkpoint::read_state(&dir.path().join("stopped")).unwrap();
    assert_eq!(state.step, steps as u64);
}

/// Rows that do not come: a pipe without a writer, one that is silent, and a file without line breaks.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_is_obeyed_while_rows_are_read() {
    use std::time::{Duration, Instant};
    let dir = tiny_model();
    let pipe = dir.path().join("pipe.jsonl");
    ok(Command::new("mkfifo").arg(&pipe));
    for (signal, data, out, open) in [
        ("-INT", pipe.to_str().unwrap(), "unopened", false),
        ("-TERM", pipe.to_str().unwrap(), "silent", true),
        ("-TERM", "/dev/zero", "endless", false),
    ] {
        let mut child = train(&dir, "regen", out)
            .args(["--data", data, "--steps", "10"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Opening a pipe to write waits for its reader.
        let _writer = open.then(|| std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
        // The folder is written before the first row is read.
        while !dir.path().join(out).exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(200));
        assert!(
            child.try_wait().unwrap().is_none(),
            "{data}: it did not wait"
        );
        let told = Instant::now();
        ok(Command::new("kill").args([signal, &child.id().to_string()]));
        let output = child.wait_with_output().unwrap();
        // It takes a twentieth of that, on a machine that has time for it.
        assert!(
            told.elapsed() < Duration::from_secs(5),
            "{:?}",
            told.elapsed()
        );
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        let state = prefold::train::checkpoint::read_state(&dir.path().join(out)).unwrap();
        assert_eq!(state.step, 0);
    }
}

/// The rows that the loss is measured on are read before there is a folder.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_is_obeyed_while_rows_to_measure_are_read() {
    const TERM: u32 = 15;
    let dir = tiny_model();
    let pipe = dir.path().join("pipe.jsonl");
    ok(Command::new("mkfifo").arg(&pipe));
    for (out, open) in [("unopened", false), ("silent", true)] {
        // Both ends, as opening one would wait for the other.
        let _writer = open.then(|| {
            let mut both = std::fs::OpenOptions::new();
            both.read(true).write(true).open(&pipe).unwrap()
        });
        let mut child = train(&dir, "regen", out)
            .args(["--eval", "pipe.jsonl", "--steps", "10"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The signal is caught from when the work begins, soon after which it waits.
        let id = child.id().to_string();
        let caught = || {
            let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let mask = mask.map(|mask| u64::from_str_radix(mask.trim(), 16).unwrap());
            mask.is_some_and(|mask| mask >> (TERM - 1) & 1 == 1)
        };
        while !caught() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{out}: it did not wait"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            child.try_wait().unwrap().is_none(),
            "{out}: it did not wait"
        );
        ok(Command::new("kill").args(["-TERM", &id]));
        // One that does not heed it would wait for ever.
        assert!(
            ends_within(&mut child, Duration::from_secs(5)),
            "{out}: it continues"
        );
        let output = child.wait_with_output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "{out}: {said}");
        assert!(
            said.starts_with("prefold: ") && said.lines().count() == 1,
            "{out}: {said}"
        );
        assert!(!dir.path().join(out).exists(), "{out}");
    }
}

#[test]
fn qa_icae_and_alignment_learn_their_rows() {
    let dir = tiny_model();
    for (task, method) in [
        ("qa", Some("500xcompressor")),
        ("qa", Some("icae")),
        ("regen", Some("icae")),
        ("align", None),
    ] {
        let out = format!("{task}-{}", method.unwrap_or("none"));
        let mut command = train(&dir, task, &out);
        command.args([
            "--steps",
            "40",
            "--lr",
            "0.01",
            "--warmup",
            "0",
            "--targets",
            "all",
        ]);
        command.args(["--json"]);
        if let Some(method) = method {
            command.args(["--method", method]);
        }
        let report: Value = serde_json::from_slice(&ok(&mut command).stdout).unwrap();
        assert_eq!(report["step"], 40);
        let lines = lines(&dir, &out);
        let mean = |lines: &[Line]| lines.iter().map(|l| l.loss).sum::<f64>() / lines.len() as f64;
        let (first, last) = (mean(&lines[..6]), mean(&lines[34..]));
        assert!(last < 0.9 * first, "{out}: {first} to {last}");
        if task == "align" {
            continue;
        }
        // It serves as any encoder's adapter does, by the method that it was trained with.
        let prefix = format!("{out}.prefix");
        ok(prefold().current_dir(dir.path()).args([
            "encode",
            "--model",
            ".",
            "--device",
            "cpu",
            "--adapter",
            &out,
            "--ids",
            "[1, 2, 3]",
            "-o",
            &prefix,
        ]));
        let inspected = ok(prefold().current_dir(dir.path()).args(["inspect", &prefix]));
        let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
        assert!(inspected.contains(method.unwrap()), "{inspected}");
    }
}

fn engine(path: &Path) -> Engine {
    let builder = Engine::builder(path).device(Device::Cpu);
    builder.build().unwrap()
}

/// The same, scoring with an adapter.
fn aligned_engine(path: &Path, adapter: &Path) -> Engine {
    let builder = Engine::builder(path).device(Device::Cpu).adapter(adapter);
    builder.build().unwrap()
}

fn close(got: &[f32], want: &[f32], by: f32) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < by, "{got} for {want}");
    }
}

#[test]
fn an_aligned_adapter_scores_as_the_reference_and_as_its_merger() {
    let Some(shared) = common::shared() else {
        return;
    };
    let golden = shared.join("golden/500x");
    let dir = TempDir::new();
    for name in ["qv", "all"] {
        let path = golden.join(format!("tiny-{name}.golden.json"));
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        // Alignment trains no memory tokens; `merge` refuses an adapter that has some.
        let encoder = golden.join(format!("tiny-adapter-{name}"));
        let adapter = dir.path().join(format!("aligned-{name}"));
        std::fs::create_dir(&adapter).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(encoder.join(file), adapter.join(file)).unwrap();
        }
        let merged = dir.path().join(name);
        ok(prefold()
            .arg("merge")
            .arg("--model")
            .arg(golden.join("tiny"))
            .arg("--adapter")
            .arg(&adapter)
            .arg("-o")
            .arg(&merged));
        let scorer = aligned_engine(&golden.join("tiny"), &adapter);
        let merged = engine(&merged);
        let (mut sum, mut count) = (0.0f64, 0);
        for i in 0..2 {
            let question = ids(&file["question"][i]);
            let mut all = [question.clone(), ids(&file["answer"][i])].concat();
            all.push(file["eos"].as_u64().unwrap() as u32);
            let nll = scorer
                .score_tail(&all, question.len(), &Control::default())
                .unwrap();
            close(
                &merged
                    .score_tail(&all, question.len(), &Control::default())
                    .unwrap(),
                &nll,
                2e-5,
            );
            sum += nll.iter().map(|&x| f64::from(x)).sum::<f64>();
            count += nll.len();
        }
        let want = file["align_loss"].as_f64().unwrap();
        let got = sum / count as f64;
        assert!((got - want).abs() < 1e-4 * want, "{got} for {want}");
    }
}

/// A GGUF has no `config.json` to copy.
#[test]
fn an_adapter_is_merged_into_every_family() {
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let dir = tiny_model();
        let mut writer = tiny::gguf(family);
        writer.str("tokenizer.ggml.model", "llama").array(
            "tokenizer.ggml.scores",
            6,
            tiny::VOCAB as u64,
            &[0; 4 * tiny::VOCAB],
        );
        let model = dir.write("model.gguf", writer.bytes());
        ok(prefold()
            .current_dir(dir.path())
            .args(["train", "align", "--model", "model.gguf", "--device", "cpu"])
            .args(["--data", "answers.jsonl", "--out", "aligned", "--rank", "3"])
            .args([
                "--targets",
                "all",
                "--steps",
                "5",
                "--lr",
                "0.05",
                "--warmup",
                "0",
            ]));
        let merge = |dtype: &str, out: &str| {
            let mut command = prefold();
            command.current_dir(dir.path()).args([
                "merge",
                "--model",
                "model.gguf",
                "--adapter",
                "aligned",
                "--dtype",
                dtype,
                "-o",
                out,
            ]);
            command
        };
        let said = ok(&mut merge("f32", "merged"));
        assert!(
            stderr(&said).contains("it serves ids only"),
            "{}",
            stderr(&said)
        );
        ok(&mut merge("bf16", "half"));
        let plain = engine(&model);
        let aligned = aligned_engine(&model, &dir.path().join("aligned"));
        let score = |engine: &Engine, ids: &[u32]| engine.score(ids, &Control::default()).unwrap();
        let text = [3, 14, 15, 9, 26, 5, 35];
        let want = score(&aligned, &text);
        let frozen = score(&plain, &text);
        assert!(want.iter().zip(&frozen).any(|(a, b)| (a - b).abs() > 1e-3));
        close(
            &score(&engine(&dir.path().join("merged")), &text),
            &want,
            1e-4,
        );
        close(&score(&engine(&dir.path().join("half")), &text), &want, 0.5);
        let again = merge("f32", "merged").output().unwrap();
        assert!(!again.status.success() && stderr(&again).contains("--output merged"));
    }
}

/// What a merged folder gets for a tokenizer cuts text as the GGUF's own does.
#[test]
fn a_ggufs_tokenizer_goes_along() {
    let texts: Value = serde_json::from_str(include_str!("../data/tokenize_fuzz.json")).unwrap();
    let mut strings = Vec::new();
    let mut values = vec![&texts];
    while let Some(value) = values.pop() {
        match value {
            Value::String(text) => strings.push(text.as_str()),
            Value::Array(list) => values.extend(list),
            Value::Object(map) => values.extend(map.values()),
            _ => {}
        }
    }
    assert!(strings.len() > 50);
    let dir = TempDir::new();
    for model in [common::smollm2(), common::qwen()].into_iter().flatten() {
        let weights = Weights::open(&model).unwrap();
        let vocab = weights.gguf().unwrap().vocab().unwrap();
        let json = prefold::text::tokenizer_json(&vocab).unwrap();
        let made = Tokenizer::from_file(&dir.write("tokenizer.json", json.to_string())).unwrap();
        let own = Tokenizer::from_vocab(vocab).unwrap();
        for text in &strings {
            for special in [false, true] {
                let [want, got] = [&own, &made].map(|t| t.encode(text, true, special).unwrap());
                assert_eq!(want.ids, got.ids, "{text:?}");
                assert_eq!(own.decode(&want.ids), made.decode(&got.ids));
            }
        }
        assert_eq!(own.token_id("<|im_end|>"), made.token_id("<|im_end|>"));
    }
}

/// Walks through the tags of an XML text: every one is closed, every `&` is an entity.
fn assert_well_formed(xml: &str) {
    let mut open = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find(['<', '&']) {
        let (what, end) = match rest.as_bytes()[at] {
            b'&' => ("entity", ';'),
            _ => ("tag", '>'),
        };
        let length = rest[at..]
            .find(end)
            .unwrap_or_else(|| panic!("an open {what}"));
        let inner = &rest[at + 1..at + length];
        rest = &rest[at + length + 1..];
        if what == "entity" {
            assert!(
                ["lt", "gt", "amp", "quot", "apos"].contains(&inner),
                "{inner}"
            );
        } else if let Some(name) = inner.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !inner.ends_with('/') && !inner.starts_with(['?', '!']) {
            assert_eq!(inner.matches('"').count() % 2, 0, "{inner}");
            open.push(inner.split_whitespace().next().unwrap());
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn plots_are_svg() {
    let dir = TempDir::new();
    let log = |name: &str, steps: u64, dev: bool| {
        let line = |step: u64| {
            let mut line = json!({
                "step": step, "loss": 3.0 / step as f64 + 0.5, "grad_norm": 1.0, "lr": 1e-4,
                "tokens": 100, "seconds": 0.5,
            });
            if dev && step.is_multiple_of(5) {
                line["dev_loss"] = json!(1.0 + 1.0 / step as f64);
            }
            format!("{line}\n")
        };
        dir.write(name, (1..=steps).map(line).collect::<String>())
    };
    let long = log("long <&> \"run\".jsonl", 80, true);
    // A line that is being written is not an error.
    let short = log("short.jsonl", 10, false);
    let text = std::fs::read_to_string(&short).unwrap() + "{\"step\": 11, \"lo";
    std::fs::write(&short, text).unwrap();
    let out = dir.path().join("curves.svg");
    for axis in ["step", "tokens", "seconds"] {
        ok(prefold()
            .arg("plot")
            .args([&long, &short])
            .args(["--axis", axis, "-o"])
            .arg(&out));
        let svg = std::fs::read_to_string(&out).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("http://www.w3.org/2000/svg"));
        assert_well_formed(&svg);
        assert!(svg.contains("long &lt;&amp;&gt;"));
        assert!(svg.contains(", dev") && svg.contains("short.jsonl") && svg.contains(axis));
        // Dots for the dev losses, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 17);
    }
    let bad = dir.write("bad.jsonl", "{\"step\": 1}\n");
    let empty = dir.write("empty.jsonl", "");
    for (path, reason) in [(&bad, "line 1"), (&empty, "no step")] {
        let refused = prefold().arg("plot").arg(path).output().unwrap();
        assert!(!refused.status.success());
        assert_eq!(stderr(&refused).lines().count(), 1);
        assert!(stderr(&refused).contains(reason), "{}", stderr(&refused));
    }
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let dir = tiny_model();
    dir.write(
        "bad.jsonl",
        "{\"ids\": [1, 2]}\n{\"ids\": [1, 99]}\n{\"ids\": [3, 2]}\n",
    );
    dir.write("text.jsonl", "{\"text\": \"hello\"}\n");
    dir.write("cut.jsonl", "{\"ids\"\n");
    let no_eos = {
        let mut config = tiny::config(Family::Llama);
        config.as_object_mut().unwrap().remove("eos_token_id");
        tiny::folder(&config, &tiny::tensors(Family::Llama))
    };
    let no_eos = no_eos.path().to_str().unwrap();
    let gpt2 = tiny::folder(&tiny::config(Family::Gpt2), &tiny::tensors(Family::Gpt2));
    let gpt2 = gpt2.path().to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--precision", "bf16"], "bf16 on a CPU"),
        (&["--steps", "0"], "--steps"),
        (&["--batch", "0"], "--batch"),
        (&["--lr", "nan"], "--lr"),
        (&["--lr", "0"], "--lr"),
        (&["--clip=-1"], "--clip"),
        (&["--dropout", "1"], "--dropout"),
        (&["--rank", "0"], "rank 0"),
        (&["--rank", "99999999999"], "rank"),
        (&["--targets", "q,w"], "--targets w"),
        (&["--memory-tokens", "24"], "--memory-tokens 24"),
        (&["--memory-tokens", "23"], "--memory-tokens 23"),
        (&["--memory-tokens", "0"], "--memory-tokens"),
        (&["--max-text-tokens", "22"], "room for 21"),
        (&["--bos", "40"], "--bos 40"),
        (&["--data", "none.jsonl"], "none.jsonl"),
        (
            &["--data", "bad.jsonl", "--shuffle-buffer", "1"],
            "bad.jsonl: line 2",
        ),
        (&["--data", "text.jsonl"], "no tokenizer"),
        (&["--data", "."], "folder"),
        (&["--eval", "bad.jsonl"], "bad.jsonl: line 2"),
        (&["--adapter", "none"], "none"),
        (&["--out", ".."], "--out"),
        (&["--out", "texts.jsonl"], "--out"),
        (&["--log", "none/log.jsonl"], "none/log.jsonl"),
        (&["--log", "run/log.jsonl"], "lies in --out"),
        (
            &["--data", "cut.jsonl", "--shuffle-buffer", "1"],
            "cut.jsonl: line 1: no JSON object: EOF while parsing an object at column 6",
        ),
        (&["--log", "texts.jsonl"], "texts.jsonl: line 1"),
        (&["--model", no_eos], "--eos"),
        (&["--model", gpt2], "GPT-2"),
    ];
    let with = |extra: &[&str]| {
        // An option that a case gives replaces the one below.
        let mut args: Vec<&str> = vec![
            "--model",
            ".",
            "--data",
            "texts.jsonl",
            "--out",
            "run",
            "--rank",
            "4",
            "--steps",
            "2",
            "--memory-tokens",
            "2",
        ];
        for pair in extra.chunks(2) {
            if let Some(at) = args.iter().position(|arg| *arg == pair[0]) {
                args.drain(at..at + 2);
            }
        }
        if extra.contains(&"--adapter") {
            args.retain(|arg| !["--rank", "4", "--memory-tokens"].contains(arg));
            let at = args.iter().rposition(|arg| *arg == "2");
            args.remove(at.unwrap());
        }
        args.extend(extra);
        let mut command = prefold();
        command
            .current_dir(dir.path())
            .args(["train", "regen", "--device", "cpu"]);
        command.args(args);
        command
    };
    for (extra, reason) in cases {
        let refused = with(extra).output().unwrap();
        let said = stderr(&refused);
        assert!(!refused.status.success(), "{extra:?} was taken");
        assert_eq!(said.lines().count(), 1, "{extra:?}: {said}");
        assert!(said.contains(reason), "{extra:?}: {said}");
    }
    // The same row, passed over by choice and said each time that it comes.
    let skipped = ok(&mut with(&["--data", "bad.jsonl", "--bad-rows", "skip"]));
    assert!(
        stderr(&skipped).contains("bad.jsonl: line 2"),
        "{}",
        stderr(&skipped)
    );
    // What is trained already is not begun anew.
    let again = with(&[]).output().unwrap();
    assert!(stderr(&again).contains("--resume"), "{}", stderr(&again));
    let other = with(&["--resume", "--seed=9"]).output().unwrap();
    assert!(stderr(&other).contains("--data"), "{}", stderr(&other));
}

#[test]
fn a_run_that_a_bad_row_ended_continues_without_the_row() {
    let dir = tiny_model();
    let good = "{\"ids\": [1, 2, 3]}\n".repeat(5);
    dir.write("rows.jsonl", format!("{good}no row\n{good}"));
    let with = |extra: &[&str]| {
        let mut command = prefold();
        command
            .current_dir(dir.path())
            .args(["train", "regen", "--device", "cpu", "--model", "."])
            .args(["--data", "rows.jsonl", "--shuffle-buffer", "1"])
            .args(["--rank", "4", "--memory-tokens", "2", "--batch", "1"])
            .args(["--steps", "8", "--save-every", "3", "--out", "run"])
            .args(extra);
        command
    };
    let ended = with(&[]).output().unwrap();
    assert!(!ended.status.success());
    let said = stderr(&ended);
    assert!(said.contains("rows.jsonl: line 6"), "{said}");
    // Five steps were taken, and none of them is lost.
    let state = std::fs::read_to_string(dir.path().join("run/trainer.json")).unwrap();
    assert!(state.contains("\"step\": 5"), "{state}");
    let more = ok(&mut with(&["--resume", "--bad-rows", "skip"]));
    assert!(stderr(&more).contains("rows.jsonl: line 6"));
    let log = std::fs::read_to_string(dir.path().join("run.log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 8, "{log}");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_stays_one() {
    let dir = tiny_model();
    dir.write("rows.jsonl", "{\"ids\": [1, 2, 3]}\n");
    std::fs::create_dir(dir.path().join("large")).unwrap();
    std::os::unix::fs::symlink("large", dir.path().join("run")).unwrap();
    ok(prefold()
        .current_dir(dir.path())
        .args(["train", "regen", "--device", "cpu", "--model", "."])
        .args(["--data", "rows.jsonl", "--out", "run", "--steps", "2"])
        .args(["--rank", "4", "--memory-tokens", "2", "--save-every", "1"]));
    assert!(dir.path().join("run").is_symlink());
    assert!(dir.path().join("large/trainer.json").exists());
}
