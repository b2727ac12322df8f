//! Sentences against NLTK, and long texts that must not take long.

use crate::common;

use std::path::Path;
use std::time::{Duration, Instant};

use prefold::text::sentences;
use serde_json::Value;

#[test]
fn splits_as_nltk_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sentences.jsonl");
    let rows = std::fs::read_to_string(path).expect("reads");
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).expect("is JSON");
        let text = row["text"].as_str().expect("a text");
        let got: Vec<&str> = sentences(text).into_iter().map(|r| &text[r]).collect();
        let got = serde_json::json!(got);
        assert_eq!(got, row["sentences"], "{text:?}");
    }
    assert!(rows.lines().count() > 1000);
}

#[test]
fn sentences_hold_all_but_white_space() {
    let Some(path) = common::training_data("corpus_dev.jsonl") else {
        return;
    };
    let rows = std::fs::read_to_string(path).expect("reads");
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).expect("is JSON");
        let text = row["text"].as_str().expect("a text");
        let mut done = 0;
        for range in sentences(text) {
            assert!(text[done..range.start].trim().is_empty(), "{text:?}");
            assert!(!text[range.clone()].trim().is_empty(), "{text:?}");
            done = range.end;
        }
        assert!(text[done..].trim().is_empty(), "{text:?}");
    }
}

#[test]
fn long_runs_take_linear_time() {
    let units = [
        "a", ".", "!", " ", "\n", ",", "-", ". ", ".\n", ".)", "a.", "a. ", ".\" ", "!.. . ",
    ];
    for unit in units {
        let text = unit.repeat(1_000_000 / unit.len());
        let start = Instant::now();
        let found = sentences(&text);
        assert!(found.iter().all(|r| r.end <= text.len()));
        // A quadratic loop would take minutes; the bound is for a busy machine.
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{unit:?} is slow"
        );
    }
}
