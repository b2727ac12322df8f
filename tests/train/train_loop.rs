//! The loop of training over a loss whose minimum is known: order, resume, logs and checkpoints.

use crate::common;

use std::path::{Path, PathBuf};
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{TempDir, tiny};
use prefold::model::config::Family;
use prefold::model::lora::Target;
use prefold::model::weights::Weights;
use prefold::soft::Settings;
use prefold::train::MemoryStart;
use prefold::train::adamw::AdamW;
use prefold::train::checkpoint::{self, AdapterMetadata};
use prefold::train::data::{self, BadRows, Order, Position, Reading, Stream, Task};
use prefold::train::log::{self, Line};
use prefold::train::objective::{Gradient, LoraShape, Sample, Tensor};
use prefold::train::parameters::Parameters;
use prefold::train::plot::{Axis, svg};
use prefold::train::run::{Data, Event, Options, Source, Start, Summary, run};
use prefold::train::schedule::Schedule;
use prefold::{CancelToken, Control, Device, Engine, Error, Result};
use serde_json::{Map, json};

/// Half the squared distance of every value from a number that the sample names, plus noise.
struct Bowl;

impl Source for Bowl {
    fn gradient(&mut self, at: &Parameters, batch: &[Sample], seed: u64) -> Result<Gradient> {
        let goal = |sample: &Sample| match sample {
            Sample::Regenerate { text } => text[0] as f32 / 40.0,
            other => panic!("{other:?}"),
        };
        let noise = (seed % 1000) as f32 * 1e-5;
        let mut nll = 0.0;
        let mut gradients = at.tensors.clone();
        for tensor in &mut gradients {
            for value in &mut tensor.values {
                let away: Vec<f32> = batch.iter().map(|s| *value - goal(s) + noise).collect();
                nll += away.iter().map(|&d| f64::from(d * d) / 2.0).sum::<f64>();
                *value = away.iter().sum();
            }
        }
        Ok(Gradient {
            nll,
            targets: batch.len(),
            tokens: 3 * batch.len(),
            gradients,
        })
    }

    fn nll(&mut self, at: &Parameters, batch: &[Sample]) -> Result<(f64, usize)> {
        let all = self.gradient(at, batch, 0)?;
        Ok((all.nll, all.targets))
    }
}

struct Setting {
    dir: TempDir,
    weights: Weights,
    engine: Engine,
    rows: PathBuf,
}

fn setting() -> Setting {
    let dir = tiny::folder(&tiny::config(Family::Llama), &tiny::tensors(Family::Llama));
    let rows: String = (0..17)
        .map(|i| format!("{{\"ids\": [{i}, 3]}}\n"))
        .collect();
    Setting {
        weights: Weights::open(dir.path()).unwrap(),
        engine: Engine::builder(dir.path())
            .device(Device::Cpu)
            .build()
            .unwrap(),
        rows: dir.write("rows.jsonl", rows),
        dir,
    }
}

fn reading(task: Task) -> Reading {
    Reading {
        task,
        max_text_tokens: 4,
        question: data::QUESTION.into(),
        answer: data::ANSWER.into(),
        vocab: tiny::VOCAB,
        room: 20,
    }
}

fn order(path: &Path, seed: u64, buffer: usize) -> Order {
    Order {
        paths: vec![path.into()],
        seed,
        buffer,
        bad_rows: BadRows::Fail,
    }
}

fn lora() -> LoraShape {
    LoraShape {
        rank: 2,
        alpha: 32.0,
        targets: vec![Target::Q, Target::V],
    }
}

impl Setting {
    fn options(&self, name: &str) -> Options {
        let mut identity = Map::new();
        identity.insert("lr".into(), json!(0.05));
        Options {
            steps: 30,
            batch: 2,
            accumulate: 2,
            lr: 0.05,
            warmup: 3,
            schedule: Schedule::Constant,
            adamw: AdamW::default(),
            clip: Some(1.0),
            seed: 5,
            eval_every: 0,
            save_every: 4,
            out: self.dir.path().join(name),
            log: Some(self.dir.path().join(format!("{name}.jsonl"))),
            resume: false,
            identity,
        }
    }

    /// Runs until `halt` steps are done.
    fn run(&self, options: &Options, halt: u64) -> Result<Summary> {
        let stop = CancelToken::default();
        run(
            &mut Bowl,
            Start {
                config: self.weights.config(),
                parameters: self.engine.training().new_adapter(
                    lora(),
                    2,
                    MemoryStart::Normal,
                    3,
                )?,
                card: AdapterMetadata {
                    model: "tiny".into(),
                    dropout: 0.05,
                    settings: Some(Settings::default()),
                    prefix: None,
                },
            },
            Data {
                reading: reading(Task::Regen),
                order: order(&self.rows, 9, 5),
                tokenizer: None,
                dev: &[Sample::Regenerate { text: vec![8] }],
            },
            options,
            &Control::default().with_cancel(stop.clone()),
            &mut |event| {
                if let Event::Step(line) = event
                    && line.step >= halt
                {
                    stop.cancel();
                }
            },
        )
    }
}

#[test]
fn it_goes_down_and_writes_what_peft_would() {
    let setting = setting();
    let options = setting.options("run");
    let done = setting.run(&options, 99).unwrap();
    assert_eq!((done.step, done.stopped, done.tokens), (30, false, 30 * 12));
    let lines = log::read(options.log.as_ref().unwrap()).unwrap();
    assert_eq!(lines.len(), 30);
    assert!((1..).zip(&lines).all(|(step, line)| line.step == step));
    assert!(lines[29].loss < 0.8 * lines[0].loss);
    assert!((lines[0].lr - 0.05 / 3.0).abs() < 1e-12 && lines[2].lr == 0.05);
    assert!(lines[29].dev_loss.is_some() && lines[28].dev_loss.is_none());

    let state = checkpoint::read_state(&options.out).unwrap();
    let (parameters, moments) =
        checkpoint::read(&options.out, setting.weights.config(), &state).unwrap();
    assert_eq!((state.step, moments.step), (30, 30));
    assert_eq!(parameters.memory_tokens(), 2);
    assert_eq!(parameters.targets(), ["q_proj", "v_proj"]);
    // 120 samples of 17 rows.
    assert_eq!(state.position, Position { epoch: 7, drawn: 1 });
    // The engine reads it as it reads any adapter.
    let adapter = setting.engine.prefixes().adapter(&options.out).unwrap();
    assert_eq!(adapter.num_mem(), 2);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(options.out.join("adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(config["target_modules"], json!(["q_proj", "v_proj"]));
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&json!(2), &json!(32))
    );
}

#[test]
fn a_resumed_run_is_the_run_itself() {
    let setting = setting();
    let whole = setting.options("whole");
    setting.run(&whole, 99).unwrap();
    let mut parts = setting.options("parts");
    parts.resume = true;
    // Stopped after a checkpoint, before one, and on one; then as a kill leaves it, which is with a
    // checkpoint of an earlier step than the log's last one, and that one half written.
    for halt in [3, 5, 8, 9] {
        let done = setting.run(&parts, halt).unwrap();
        assert!(done.stopped && done.step == halt);
    }
    let log = parts.log.clone().unwrap();
    let copy = setting.dir.path().join("copy");
    std::fs::rename(&parts.out, &copy).unwrap();
    parts.resume = false;
    setting.run(&parts, 4).unwrap();
    let mut text = std::fs::read_to_string(&log).unwrap();
    std::fs::rename(&parts.out, setting.dir.path().join("gone")).unwrap();
    // As if killed between the two renames of a checkpoint.
    std::fs::rename(&copy, setting.dir.path().join(".parts.old")).unwrap();
    for step in 5..14 {
        text += &format!(
            "{{\"step\":{step},\"loss\":1.0,\"grad_norm\":1.0,\"lr\":0.05,\"tokens\":12,\"seconds\":0.1}}\n"
        );
    }
    std::fs::write(&log, text + "{\"step\":14,\"lo").unwrap();
    parts.resume = true;
    setting.run(&parts, 99).unwrap();

    let [whole_lines, lines] =
        [&whole, &parts].map(|o| log::read(o.log.as_ref().unwrap()).unwrap());
    assert_eq!(lines.len(), 30);
    for (a, b) in whole_lines.iter().zip(&lines) {
        assert_eq!(a.step, b.step);
        // What was made up above stays what it is: the log is kept up to the checkpoint.
        if !(5..=9).contains(&a.step) {
            assert_eq!(a.loss.to_bits(), b.loss.to_bits(), "step {}", a.step);
            assert_eq!(a.grad_norm.to_bits(), b.grad_norm.to_bits());
        }
    }
    for name in [
        "adapter_model.safetensors",
        "memory_embeddings.safetensors",
        "optimizer.safetensors",
    ] {
        let [a, b] = [&whole, &parts].map(|o| std::fs::read(o.out.join(name)).unwrap());
        assert!(a == b, "{name}");
    }
}

#[test]
fn a_run_is_not_overwritten_nor_resumed_as_another() {
    let setting = setting();
    let mut options = setting.options("run");
    setting.run(&options, 2).unwrap();
    let again = setting.run(&options, 99).unwrap_err().to_string();
    assert!(again.contains("`resume`"), "{again}");
    options.resume = true;
    options.identity.insert("lr".into(), json!(0.1));
    let other = setting.run(&options, 99).unwrap_err().to_string();
    assert!(
        other.starts_with("lr: 0.1") && other.contains("0.05"),
        "{other}"
    );

    let mut elsewhere = setting.options("elsewhere");
    std::fs::create_dir(&elsewhere.out).unwrap();
    std::fs::write(elsewhere.out.join("thesis.txt"), "dear").unwrap();
    for resume in [false, true] {
        elsewhere.resume = resume;
        let refused = setting.run(&elsewhere, 99).unwrap_err();
        assert!(matches!(refused, Error::Input { .. }), "{refused}");
    }
    assert!(elsewhere.out.join("thesis.txt").exists());
}

#[test]
fn hostile_checkpoints_are_refused() {
    let setting = setting();
    let mut options = setting.options("run");
    setting.run(&options, 2).unwrap();
    options.resume = true;
    for (name, bytes) in [
        ("trainer.json", b"{}".as_slice()),
        ("optimizer.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        ("optimizer.safetensors", b""),
        (
            "adapter_model.safetensors",
            b"\xff\xff\xff\xff\xff\xff\xff\xff{",
        ),
    ] {
        let path = options.out.join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let refused = setting.run(&options, 99).unwrap_err();
        assert!(matches!(refused, Error::Format { .. }), "{name}: {refused}");
        assert!(!refused.to_string().contains('\n'));
        std::fs::write(&path, good).unwrap();
    }
    assert_eq!(setting.run(&options, 99).unwrap().step, 30);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_not_the_checkpoint() {
    struct Cliff(u32);
    impl Source for Cliff {
        fn gradient(&mut self, at: &Parameters, batch: &[Sample], seed: u64) -> Result<Gradient> {
            self.0 += 1;
            let mut gradient = Bowl.gradient(at, batch, seed)?;
            if self.0 == 12 {
                gradient.gradients[0].values[0] = f32::NAN;
            }
            Ok(gradient)
        }

        fn nll(&mut self, at: &Parameters, batch: &[Sample]) -> Result<(f64, usize)> {
            Bowl.nll(at, batch)
        }
    }
    let setting = setting();
    let options = setting.options("run");
    let failed = run(
        &mut Cliff(0),
        Start {
            config: setting.weights.config(),
            parameters: setting
                .engine
                .training()
                .new_adapter(lora(), 2, MemoryStart::Normal, 3)
                .unwrap(),
            card: AdapterMetadata {
                model: "tiny".into(),
                dropout: 0.0,
                settings: None,
                prefix: None,
            },
        },
        Data {
            reading: reading(Task::Regen),
            order: order(&setting.rows, 9, 5),
            tokenizer: None,
            dev: &[],
        },
        &options,
        &Control::default(),
        &mut |_| {},
    );
    let failed = failed.unwrap_err().to_string();
    assert!(
        failed.contains("step 6") && failed.contains("of step 4"),
        "{failed}"
    );
    assert_eq!(checkpoint::read_state(&options.out).unwrap().step, 4);
}

/// First ids of the next samples.
fn draw(stream: &mut Stream<'_>, count: usize) -> Vec<u32> {
    let mut first = || match stream.next(&mut |_| {}).unwrap() {
        Sample::Regenerate { text } => text[0],
        other => panic!("{other:?}"),
    };
    (0..count).map(|_| first()).collect()
}

#[test]
fn rows_are_shuffled_by_seed_and_each_comes_once_an_epoch() {
    let setting = setting();
    let open = |seed, buffer, position| {
        Stream::open(
            order(&setting.rows, seed, buffer),
            reading(Task::Regen),
            None,
            position,
        )
        .unwrap()
    };
    let from_start =
        |seed, buffer, count| draw(&mut open(seed, buffer, Position::default()), count);
    let all = from_start(1, 6, 51);
    assert_eq!(all, from_start(1, 6, 51));
    assert_ne!(all, from_start(2, 6, 51));
    assert_ne!(all[..17], all[17..34]);
    for epoch in all.chunks(17) {
        let mut sorted = epoch.to_vec();
        sorted.sort();
        assert_eq!(sorted, (0..17).collect::<Vec<_>>());
    }
    assert_eq!(from_start(1, 1, 17), (0..17).collect::<Vec<_>>());
    // From anywhere it continues as if it had never stopped.
    for taken in [0, 1, 16, 17, 18, 34, 40] {
        let mut stream = open(1, 6, Position::default());
        draw(&mut stream, taken);
        let mut resumed = open(1, 6, stream.position());
        assert_eq!(draw(&mut resumed, 11), all[taken..taken + 11], "{taken}");
    }
    let beyond = Position {
        epoch: 0,
        drawn: 18,
    };
    let refused = Stream::open(
        order(&setting.rows, 1, 6),
        reading(Task::Regen),
        None,
        beyond,
    );
    assert!(matches!(refused.err(), Some(Error::Format { .. })));
}

#[test]
fn packed_rows_are_the_rows() {
    let Some(mut path) = common::training_data("corpus.jsonl.xz") else {
        return;
    };
    let reading = Reading {
        max_text_tokens: 500,
        room: 1000,
        ..reading(Task::Regen)
    };
    // What is packed here is text without a tokenizer: that is known of each row only
    // when it is unpacked and parsed, and its number with it.
    let numbers = |path: &Path, want: usize| {
        let mut seen = Vec::new();
        let mut lines = prefold::train::rows::Lines::new(&[path.to_owned()]);
        while seen.len() < want
            && let Some(line) = lines.next_line().unwrap()
        {
            let refused = reading.sample(None, &line.bytes).unwrap_err();
            assert!(refused.contains("no tokenizer"), "{refused}");
            seen.push(line.number);
        }
        seen.len()
    };
    assert_eq!(numbers(&path, 3000), 3000);
    path.set_file_name("corpus_dev.jsonl");
    assert_eq!(numbers(&path, 3000), 500);
}

/// Two frames with a skippable one between them, as `zstd` and `pzstd` write; and two xz streams.
/// Each holds `{"ids": [1, 3]}` and `{"ids": [2, 3]}`, a line each. Made by Python's `lzma` and
/// by `zstd --check`.
const ZST: &[u8] = &[
    40, 181, 47, 253, 4, 88, 129, 0, 0, 123, 34, 105, 100, 115, 34, 58, 32, 91, 49, 44, 32, 51, 93,
    125, 10, 154, 215, 209, 113, 83, 42, 77, 24, 5, 0, 0, 0, 104, 101, 108, 108, 111, 40, 181, 47,
    253, 4, 88, 129, 0, 0, 123, 34, 105, 100, 115, 34, 58, 32, 91, 50, 44, 32, 51, 93, 125, 10,
    188, 15, 149, 74,
];
const XZ: &[u8] = &[
    253, 55, 122, 88, 90, 0, 0, 4, 230, 214, 180, 70, 2, 0, 33, 1, 22, 0, 0, 0, 116, 47, 229, 163,
    1, 0, 15, 123, 34, 105, 100, 115, 34, 58, 32, 91, 49, 44, 32, 51, 93, 125, 10, 0, 163, 99, 13,
    107, 160, 74, 80, 181, 0, 1, 40, 16, 229, 11, 108, 96, 31, 182, 243, 125, 1, 0, 0, 0, 0, 4, 89,
    90, 253, 55, 122, 88, 90, 0, 0, 4, 230, 214, 180, 70, 2, 0, 33, 1, 22, 0, 0, 0, 116, 47, 229,
    163, 1, 0, 15, 123, 34, 105, 100, 115, 34, 58, 32, 91, 50, 44, 32, 51, 93, 125, 10, 0, 151,
    206, 6, 54, 75, 93, 97, 210, 0, 1, 40, 16, 229, 11, 108, 96, 31, 182, 243, 125, 1, 0, 0, 0, 0,
    4, 89, 90,
];

#[test]
fn frames_and_streams_are_joined_and_damage_is_said() {
    let dir = TempDir::new();
    for (name, bytes) in [("rows.jsonl.zst", ZST), ("rows.jsonl.xz", XZ)] {
        let path = dir.write(name, bytes);
        let open = |path: &Path| {
            Stream::open(
                order(path, 0, 1),
                reading(Task::Regen),
                None,
                Position::default(),
            )
        };
        assert_eq!(draw(&mut open(&path).unwrap(), 4), [1, 2, 1, 2], "{name}");
        // Cut short, and one bit wrong somewhere.
        for at in 0..bytes.len() {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= 4;
            for bytes in [&wrong[..], &bytes[..at]] {
                let path = dir.write(&format!("bad-{name}"), bytes);
                let read = data::read_all(
                    &path,
                    &reading(Task::Regen),
                    None,
                    BadRows::Fail,
                    9,
                    &mut |_| {},
                );
                match read {
                    // Some bits say nothing: reserved ones, and those of a skipped frame; and a file
                    // may end between two frames.
                    Ok(samples) => assert!(samples.len() <= 2),
                    Err(error) => {
                        let line = error.to_string();
                        assert!(line.contains("bad-rows"), "{line}");
                        assert!(!line.contains('\n'), "{line}");
                    }
                }
            }
        }
    }
}

#[test]
fn bad_rows_are_named_and_skipped_or_fatal() {
    let dir = TempDir::new();
    let rows = "{\"ids\": [1]}\n\n{\"ids\": [1, 40]}\n{\"ids\": [2]\n{\"text\": \"hello\"}\n{\"ids\": []}\n\
                {\"other\": 1}\n[1]\n{\"ids\": [3, -1]}\n\u{0}\n{\"ids\": [2, 3, 4, 5, 6, 7]}";
    let path = dir.write("rows.jsonl", rows);
    let mut order = order(&path, 0, 1);
    let open = |order: &Order| {
        Stream::open(
            order.clone(),
            reading(Task::Regen),
            None,
            Position::default(),
        )
        .unwrap()
    };
    let mut stream = open(&order);
    draw(&mut stream, 1);
    let fatal = stream.next(&mut |_| {}).unwrap_err().to_string();
    let wanted = format!(
        "{}: line 3: `ids`: 40 is outside the vocabulary of 40",
        path.display()
    );
    assert_eq!(fatal, wanted);

    order.bad_rows = BadRows::Skip;
    let mut said = Vec::new();
    let mut stream = open(&order);
    let mut texts = Vec::new();
    for _ in 0..2 {
        match stream.next(&mut |line| said.push(line.to_owned())).unwrap() {
            Sample::Regenerate { text } => texts.push(text),
            other => panic!("{other:?}"),
        }
    }
    // The last one is cut.
    assert_eq!(texts, [vec![1], vec![2, 3, 4, 5]]);
    let numbers: Vec<String> = (3..=10).map(|n| format!("line {n}:")).collect();
    assert_eq!(said.len(), numbers.len());
    for (said, number) in said.iter().zip(&numbers) {
        assert!(said.contains(number.as_str()), "{said}");
    }
    // Nothing but bad rows is an end, not a loop without one.
    order.paths = vec![dir.write("none.jsonl", "{}\n{}\n")];
    let none = open(&order).next(&mut |_| {}).unwrap_err().to_string();
    assert!(none.ends_with("no row to train on found"), "{none}");
}

#[test]
fn rows_of_every_kind_are_read() {
    let ids = |task, row: &str| reading(task).sample(None, row.as_bytes());
    assert_eq!(
        ids(
            Task::Qa,
            r#"{"context_ids": [1, 2, 3, 4, 5], "question_ids": [6], "answer_ids": [7, 8]}"#
        ),
        Ok(Sample::Answer {
            context: vec![1, 2, 3, 4],
            question: vec![6],
            answer: vec![7, 8],
        })
    );
    assert_eq!(
        ids(
            Task::Align,
            r#"{"question_ids": [6], "answer_ids": [7, 8]}"#
        ),
        Ok(Sample::Align {
            question: vec![6],
            answer: vec![7, 8],
        })
    );
    let missing = ids(Task::Qa, r#"{"context_ids": [1], "question_ids": [6]}"#).unwrap_err();
    assert!(missing.contains("answer_ids"), "{missing}");
    // A text among questions is reconstructed, as in pretraining; one with a question lacks its context.
    let text = Sample::Regenerate {
        text: vec![1, 2, 3, 4],
    };
    for task in [Task::Regen, Task::Qa] {
        assert_eq!(ids(task, r#"{"ids": [1, 2, 3, 4, 5]}"#), Ok(text.clone()));
    }
    let half = ids(Task::Qa, r#"{"ids": [1, 2], "question_ids": [6]}"#).unwrap_err();
    assert!(half.contains("`context`"), "{half}");
    // So does one whose question is misspelt.
    let misspelt = ids(
        Task::Qa,
        r#"{"ids": [1, 2], "qestion_ids": [6], "answer_ids": [7]}"#,
    );
    let misspelt = misspelt.unwrap_err();
    assert!(misspelt.contains("`context`"), "{misspelt}");
    assert!(ids(Task::Align, r#"{"ids": [1, 2]}"#).is_err());
    let long = format!(r#"{{"question_ids": {:?}, "answer_ids": [7]}}"#, [1; 20]);
    let long = ids(Task::Align, &long).unwrap_err();
    assert!(long.contains("room for 20"), "{long}");

    let Some(model) = common::smollm2() else {
        return;
    };
    let engine = Engine::builder(&model).device(Device::Cpu).build().unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let words = |text: &str| tokenizer.encode(text, false, false).unwrap().ids;
    let reading = Reading {
        vocab: engine.info().vocab,
        room: 100,
        ..reading(Task::Qa)
    };
    let row = br#"{"context": "A hen lays an egg a day.", "question": "Who {}?", "answers": ["A hen", "hens"]}"#;
    assert_eq!(
        reading.sample(Some(tokenizer), row),
        Ok(Sample::Answer {
            context: words("A hen lays an egg a day.")[..4].to_vec(),
            question: words("Question: Who {}?\nAnswer:"),
            answer: words(" A hen"),
        })
    );
}

#[test]
fn memory_embeddings_begin_where_they_are_told() {
    let setting = setting();
    let memory = |start| {
        let made = setting
            .engine
            .training()
            .new_adapter(lora(), 2, start, 3)
            .unwrap();
        made.tensors.last().unwrap().clone()
    };
    let embeddings = setting.weights.get("model.embed_tokens.weight").unwrap();
    let embeddings = embeddings.to_f32().unwrap();
    let column = |j: usize| embeddings.iter().skip(j).step_by(tiny::HIDDEN);
    let Tensor { shape, values, .. } = memory(MemoryStart::Mean);
    assert_eq!(shape, [2, tiny::HIDDEN]);
    for (i, value) in values.iter().enumerate() {
        let mean = column(i % tiny::HIDDEN).sum::<f32>() / tiny::VOCAB as f32;
        assert!((value - mean).abs() < 1e-6, "{value} for {mean}");
    }
    let drawn = memory(MemoryStart::Normal).values;
    assert!(drawn[..tiny::HIDDEN] != drawn[tiny::HIDDEN..]);
    let refused = |lora: LoraShape, memory_tokens| {
        let made = setting
            .engine
            .training()
            .new_adapter(lora, memory_tokens, MemoryStart::Mean, 3);
        let refused = made.unwrap_err();
        assert!(matches!(refused, Error::Input { .. }), "{refused}");
    };
    refused(LoraShape { rank: 0, ..lora() }, 2);
    refused(
        LoraShape {
            rank: 1 << 40,
            ..lora()
        },
        2,
    );
    refused(
        LoraShape {
            targets: Vec::new(),
            ..lora()
        },
        2,
    );
    refused(
        LoraShape {
            alpha: f32::NAN,
            ..lora()
        },
        2,
    );
    refused(lora(), 1 << 40);
}

#[test]
fn curves_of_any_numbers_are_drawn() {
    let lines = |losses: &[f64]| -> Vec<Line> {
        let line = |(step, &loss): (u64, &f64)| Line {
            step,
            loss,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens: u64::MAX,
            seconds: 1e308,
            dev_loss: Some(loss),
        };
        (1..).zip(losses).map(line).collect()
    };
    for losses in [&[1e308, -1e308, 2.0][..], &[1e20, 1e20, 1e20], &[0.0; 3]] {
        for axis in [Axis::Step, Axis::Tokens] {
            let drawn = svg(&[("run".into(), lines(losses))], axis).unwrap();
            assert!(
                drawn.contains("<circle") && !drawn.contains("NaN"),
                "{drawn}"
            );
        }
        assert!(svg(&[("run".into(), lines(losses))], Axis::Seconds).is_err());
    }
}

/// A reader of a run's folder finds the one version or the other while it is replaced.
#[cfg(target_os = "linux")]
#[test]
fn a_runs_folder_is_there_at_any_time() {
    let setting = setting();
    let mut options = setting.options("always");
    (options.steps, options.save_every) = (400, 1);
    let done = AtomicBool::new(false);
    let (polls, misses) = std::thread::scope(|scope| {
        let poll = scope.spawn(|| {
            let (mut polls, mut misses) = (0u64, 0u64);
            while !done.load(Ordering::Relaxed) {
                let there = std::fs::symlink_metadata(&options.out).is_ok();
                polls += u64::from(there || polls > 0);
                misses += u64::from(!there && polls > 0);
            }
            (polls, misses)
        });
        setting.run(&options, u64::MAX).unwrap();
        done.store(true, Ordering::Relaxed);
        poll.join().unwrap()
    });
    assert!(polls > 400, "{polls}");
    assert_eq!(misses, 0, "of {polls}");
}

/// What a killed run left beside its folder is cleared by the next one.
#[test]
fn leftovers_of_a_killed_run_are_cleared() {
    let setting = setting();
    let options = setting.options("killed");
    setting.run(&options, 4).unwrap();
    for name in [".killed.new", ".killed.old"] {
        let left = setting.dir.path().join(name);
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("adapter_model.safetensors"), "cut sho").unwrap();
    }
    assert_eq!(
        checkpoint::look(&options.out).unwrap(),
        checkpoint::Found::Run
    );
    for entry in std::fs::read_dir(setting.dir.path()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with(".killed"), "{name:?}");
    }
}
