//! Token for token what the reference gives: every row of the golden file, with the real model.

use crate::common;

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use prefold::cpu::Cpu;
use prefold::hard::{self, Compressed, Request};
use prefold::model::weights::Weights;
use prefold::model::{Model, Scorer, Session};
use prefold::{Control, Device, Engine};
use serde_json::Value;

/// Token ids, and the first of them that is scored.
type Asked = (Vec<u32>, usize);

/// The model as a scorer that reads no text twice: the golden rows are many calls over few texts, and what
/// a text scores by itself, from an empty cache, is the same for all of them.
struct Remembering {
    model: Model<Cpu>,
    scores: Mutex<HashMap<Asked, Vec<f32>>>,
}

impl Scorer for Remembering {
    fn max_positions(&self) -> usize {
        self.model.max_positions()
    }

    fn session(&self) -> prefold::Result<Box<dyn Session + '_>> {
        self.model.session()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> prefold::Result<Vec<Vec<f32>>> {
        let key = |&(ids, from): &(&[u32], usize)| (ids.to_vec(), from);
        let mut scores = self.scores.lock().unwrap();
        let new: Vec<(&[u32], usize)> = sequences
            .iter()
            .filter(|sequence| !scores.contains_key(&key(sequence)))
            .copied()
            .collect();
        let fresh = self.model.score_tails(&new)?;
        scores.extend(new.iter().map(key).zip(fresh));
        Ok(sequences.iter().map(|s| scores[&key(s)].clone()).collect())
    }
}

fn remembering() -> Option<&'static Remembering> {
    static SCORER: OnceLock<Option<Remembering>> = OnceLock::new();
    SCORER
        .get_or_init(|| {
            let weights = Weights::open(&common::smollm2()?).expect("the model opens");
            Some(Remembering {
                model: Model::load(Cpu::new(), &weights).expect("the model loads"),
                scores: Mutex::default(),
            })
        })
        .as_ref()
}

fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    ENGINE
        .get_or_init(|| {
            Some(
                Engine::builder(&common::smollm2()?)
                    .device(Device::Cpu)
                    .build()
                    .expect("the model opens"),
            )
        })
        .as_ref()
}

/// The rows whose name `wanted` accepts, or `None` with a word where there is nothing to test with.
fn rows(wanted: impl Fn(&str) -> bool) -> Option<(&'static Engine, Vec<Value>)> {
    let Some((shared, engine)) = common::shared().zip(engine()) else {
        eprintln!("skipped: no golden values or no model");
        return None;
    };
    let text = std::fs::read_to_string(shared.join("golden/llmlingua.jsonl")).expect("readable");
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a row"))
        .filter(|row| wanted(row["name"].as_str().expect("a name")))
        .collect();
    Some((engine, rows))
}

fn check(wanted: impl Fn(&str) -> bool, at_least: usize) {
    let Some(((engine, rows), scorer)) = rows(wanted).zip(remembering()) else {
        return;
    };
    assert!(rows.len() >= at_least, "only {} rows", rows.len());
    let mut failed = Vec::new();
    for row in &rows {
        let args = row["args"].as_object().expect("arguments").clone();
        let structured = row["call"] != "compress_prompt";
        let request = Request::from_python(args, structured).expect("arguments that are right");
        let tokenizer = engine.tokenizer().unwrap();
        let result = hard::compress(scorer, tokenizer, &request);
        let got = match result {
            Ok(result) => {
                let pieces: String = result.pieces.iter().map(|p| p.text.as_str()).collect();
                assert!(!pieces.is_empty());
                check_contexts(&request, &result);
                serde_json::to_value(result.llmlingua()).expect("serialisable")
            }
            Err(error) => Value::String(error.to_string()),
        };
        if got != row["result"] {
            failed.push(format!(
                "{}:\n  want {}\n  got  {got}",
                row["name"], row["result"]
            ));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {}\n{}",
        failed.len(),
        rows.len(),
        failed.join("\n")
    );
}

/// What is left of each context is the spans of it that were kept, and the result's text has it.
fn check_contexts(request: &Request, result: &Compressed) {
    assert!(!result.contexts.is_empty() && result.warnings.is_empty());
    for kept in &result.contexts {
        let given = request.contexts[kept.index].as_bytes();
        let spans = kept.spans.iter().flat_map(|span| &given[span.clone()]);
        let text = String::from_utf8_lossy(&spans.copied().collect::<Vec<_>>()).into_owned();
        assert_eq!(text, kept.text);
        assert!(
            result.text.contains(text.trim()),
            "{text:?} is not in {:?}",
            result.text
        );
    }
    let whole: usize = result
        .contexts
        .iter()
        .map(|kept| kept.text.trim().len())
        .sum();
    let own = request.instruction.len() + request.question.len();
    assert!(whole + own + 4 + 4 * result.contexts.len() >= result.text.trim().len());
}

#[test]
fn question_aware_rows_are_identical() {
    check(|name| name.starts_with("long_"), 4);
}

#[test]
fn structured_rows_are_identical() {
    check(|name| name.starts_with("struct_"), 2);
}

#[test]
fn all_other_compressions_are_identical() {
    let elsewhere = ["long_", "struct_", "lp_"];
    check(|name| !elsewhere.iter().any(|p| name.starts_with(p)), 20);
}

/// Beside the golden rows: what llmlingua 0.2.2 gives for an empty context between others.
#[test]
fn an_empty_context_has_no_sentences() {
    let Some(engine) = engine() else {
        eprintln!("skipped: no model");
        return;
    };
    let compress = |between: &str, target: u32| {
        let args = serde_json::json!({
            "context": [
                "Alpha beta gamma delta. One two three four five. Zebra quagmire xylophone.",
                between,
                "The sky is blue today. My dog is very friendly. Quantum flux capacitors hum.",
            ],
            "use_context_level_filter": false, "use_sentence_level_filter": true,
            "use_token_level_filter": false, "token_budget_ratio": 1.0, "target_token": target,
        });
        let args = args.as_object().expect("arguments").clone();
        let request = Request::from_python(args, false).expect("arguments that are right");
        engine.compress(&request)
    };
    let want =
        "Alpha beta gamma delta. Zebra quagmire xylophone.\n\n\n\nQuantum flux capacitors hum.";
    assert_eq!(compress("", 12).unwrap().text, want);
    // The reference fails at an assertion.
    let refused = compress("  ", 12).unwrap_err().to_string();
    assert!(refused.contains("white space"), "{refused}");
}

#[test]
fn log_probabilities_agree() {
    let Some((engine, rows)) = rows(|name| name.starts_with("lp_")) else {
        return;
    };
    assert_eq!(rows.len(), 3);
    for row in rows {
        let text = row["args"]["text"].as_str().expect("a text");
        let ids = engine
            .tokenizer()
            .unwrap()
            .encode(text, true, true)
            .unwrap()
            .ids;
        let want: Vec<u32> = serde_json::from_value(row["result"]["ids"].clone()).unwrap();
        assert_eq!(ids, want);
        let want: Vec<f32> = serde_json::from_value(row["result"]["logprobs"].clone()).unwrap();
        let got = engine.score(&ids, &Control::default()).unwrap();
        assert_eq!(got.len(), want.len());
        let worst = got
            .iter()
            .zip(&want)
            .map(|(nll, lp)| (nll + lp).abs())
            .fold(0.0, f32::max);
        eprintln!("{}: worst log-probability {worst:e} off", row["name"]);
        assert!(worst < 2e-3, "{worst}");
    }
}
