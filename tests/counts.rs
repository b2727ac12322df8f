//! cl100k_base tokens against the reference implementation, and what makes that one panic.

use std::path::Path;
use std::time::{Duration, Instant};

use prefold::text::{count_cl100k, encode_cl100k};
use serde_json::Value;

fn rows(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    let text = std::fs::read_to_string(path).expect("reads");
    let rows = text.lines().map(|line| line.trim_end_matches(','));
    rows.filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str::<Value>(line).expect("is JSON"))
        .map(|row| row["text"].as_str().expect("a text").to_string())
        .collect()
}

#[test]
fn agrees_with_tiktoken() {
    let reference = tiktoken_rs::cl100k_base().expect("loads");
    let mut texts = rows("sentences.jsonl");
    texts.extend(rows("tokenize_fuzz.json"));
    assert!(texts.len() > 1300);
    let odd = [
        "\n  ",
        "x\n \n ",
        "x \n\n  y",
        "<|endoftext|>",
        "'ſ'S'Ll",
        "12345",
        "\u{85}\u{a0}x",
    ];
    texts.extend(odd.map(String::from));
    for text in &texts {
        let got = encode_cl100k(text);
        assert_eq!(got.ids, reference.encode_ordinary(text), "{text:?}");
        assert_eq!(count_cl100k(text), got.ids.len());
        let mut done = 0;
        for (id, span) in got.ids.iter().zip(&got.spans) {
            assert_eq!(span.start, done);
            let bytes = reference.decode_bytes(&[*id]).expect("a token");
            assert_eq!(bytes, &text.as_bytes()[span.clone()]);
            done = span.end;
        }
        assert_eq!(done, text.len());
    }
}

#[test]
fn long_runs_take_linear_time() {
    // The reference overflows its stack on the last.
    let texts = [
        "a".repeat(1_000_000),
        "\n".repeat(1_000_000),
        "'".repeat(1_000_000),
        " ".repeat(1_000_000) + "x",
    ];
    for text in texts {
        let start = Instant::now();
        let count = count_cl100k(&text);
        assert!(count > 0 && count < text.len());
        // A quadratic loop would take minutes; the bound is for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
