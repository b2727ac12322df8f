//! cl100k_base and o200k_base tokens against the reference implementation, and what makes that one panic.

use std::path::Path;
use std::time::Instant;

use prefold::text::{Encoding, count_cl100k, count_o200k, encode_cl100k, encode_o200k};
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
    agrees(&reference, encode_cl100k, count_cl100k);
    let reference = tiktoken_rs::o200k_base().expect("loads");
    agrees(&reference, encode_o200k, count_o200k);
}

fn agrees(
    reference: &tiktoken_rs::CoreBPE,
    encode: fn(&str) -> Encoding,
    count: fn(&str) -> usize,
) {
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
        "camelCase HTTPServer ABCdef don'T I'LL it'ſ x'y",
        "a/b//c /\n/ http://x.y/z\r\n//",
        "東京A 東京a\u{301}B\u{301}c \u{301}\u{301}x -\u{301}Y",
        "ǅungla ǅ ʰa Aʰ Éa éA ΑΒγ 1ª2",
        "\t\tX \u{a0}Y\u{a0}\u{a0}",
    ];
    texts.extend(odd.map(String::from));
    for text in &texts {
        let got = encode(text);
        assert_eq!(got.ids, reference.encode_ordinary(text), "{text:?}");
        assert_eq!(count(text), got.ids.len());
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
    const SHORT: usize = 50_000;
    const LONG: usize = 20 * SHORT;
    let seconds = |text: &str| {
        let start = Instant::now();
        let count = count_cl100k(text).max(count_o200k(text));
        assert!(count > 0 && count < text.len());
        start.elapsed().as_secs_f64()
    };
    // The reference overflows its stack on the long one of the last.
    let run = |unit: &str, end: &str, n: usize| unit.repeat(n) + end;
    for (unit, end) in [
        ("a", ""),
        ("\n", ""),
        ("'", ""),
        (" ", "x"),
        ("A", "東"),
        ("東A", ""),
    ] {
        let short = run(unit, end, SHORT);
        let min = (0..5).map(|_| seconds(&short)).fold(f64::MAX, f64::min);
        // Linear is 20 times as long, quadratic 400; between them is room for a busy machine.
        assert!(
            seconds(&run(unit, end, LONG)) < 150.0 * min,
            "{unit:?}: {min} s"
        );
    }
}
