//! Generated texts under generated budgets: what comes out is JSON, and every byte of it was there.

use std::ops::Range;

use serde_json::Value;

use super::tree::Kind;
use super::*;
use crate::random::Random;
use crate::text::counts::count_cl100k;

/// Sentences by their full stops: enough for what is tested here.
fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut cuts = vec![0];
    cuts.extend(text.match_indices(". ").map(|(at, _)| at + 2));
    cuts.push(text.len());
    cuts.dedup();
    cuts.windows(2).map(|w| w[0]..w[1]).collect()
}

fn flat(outline: &Outline) -> Worth {
    Worth {
        blocks: vec![0.0; outline.blocks.len()],
        units: vec![0.0; outline.units.len()],
    }
}

fn shorten(text: &str, target: usize, omission: Omission) -> String {
    let tree = Tree::parse(text).unwrap();
    let outline = Outline::new(&tree, &sentences);
    let order = Order::new(&outline, &flat(&outline), &[]);
    let count = |text: &str| Ok(count_cl100k(text));
    select(&tree, &outline, &order, target, omission, count)
        .unwrap()
        .text
}

/// Whether `part` is what `whole` leaves when members, items and stretches of strings are dropped.
fn is_left_of(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|own| is_left_of(value, own))),
        (Value::Array(part), Value::Array(whole)) => {
            let mut rest = whole.iter();
            part.iter()
                .all(|value| rest.by_ref().any(|own| is_left_of(value, own)))
        }
        (Value::String(part), Value::String(whole)) => {
            let mut rest = whole.split_whitespace();
            part.split_whitespace()
                .all(|word| rest.by_ref().any(|own| own == word))
        }
        _ => part == whole,
    }
}

/// A JSON text of any shape, with odd white space, escapes and repeated names.
fn generate(random: &mut Random, depth: usize, out: &mut String) {
    let space = |random: &mut Random, out: &mut String| {
        out.push_str(["", "", " ", "\n  ", "\t"][random.below(5)]);
    };
    match random.below(if depth == 0 { 4 } else { 8 }) {
        0 => out.push_str(["0", "-1.50e+3", "12345678901234567890123", "0.05"][random.below(4)]),
        1 => out.push_str(["true", "false", "null", "{}", "[ ]"][random.below(5)]),
        2 | 3 => {
            out.push('"');
            for _ in 0..random.below(40) {
                out.push_str(
                    [
                        "word ",
                        "27,000 ",
                        "caf\u{e9} ",
                        "\\u00e9t\\u00e9 ",
                        "end. ",
                        "\\\"quote\\\" ",
                        "line\\n",
                        "\\ud83d\\ude00 ",
                        "stop. ",
                        "\u{6771}\u{4eac} ",
                        "a/b\\\\c ",
                    ][random.below(11)],
                );
            }
            out.push('"');
        }
        kind => {
            let object = kind < 6;
            out.push(if object { '{' } else { '[' });
            let n = random.below(9);
            for i in 0..n {
                space(random, out);
                if object {
                    out.push_str(["\"id\"", "\"n\\u00e4me\"", "\"\"", "\"k\""][random.below(4)]);
                    space(random, out);
                    out.push(':');
                    space(random, out);
                }
                generate(random, depth - 1, out);
                space(random, out);
                out.push_str(if i + 1 < n { "," } else { "" });
            }
            out.push(if object { '}' } else { ']' });
        }
    }
}

#[test]
fn what_is_left_is_json_at_any_budget() {
    let mut random = Random(7);
    let mut cut = 0;
    for _ in 0..300 {
        let mut text = String::from(" ");
        generate(&mut random, 5, &mut text);
        text.push('\n');
        let tree = Tree::parse(&text).unwrap();
        let outline = Outline::new(&tree, &sentences);
        let units: Vec<f64> = outline
            .units
            .iter()
            .map(|_| random.below(9) as f64)
            .collect();
        let blocks: Vec<f64> = outline
            .blocks
            .iter()
            .map(|_| random.below(9) as f64)
            .collect();
        let order = Order::new(&outline, &Worth { blocks, units }, &[]);
        let whole = count_cl100k(&text);
        let skeleton = Selection {
            kept: vec![false; outline.units.len()],
            cut: None,
        };
        let least = count_cl100k(&render(&tree, &outline, &skeleton, Omission::Silent).text);
        for percent in (5..=100).step_by(19) {
            let target = whole * percent / 100;
            let count = |text: &str| Ok(count_cl100k(text));
            let left = select(&tree, &outline, &order, target, Omission::Silent, count).unwrap();
            let value: Value = serde_json::from_str(&left.text)
                .unwrap_or_else(|error| panic!("{error}: {} of {text}", left.text));
            assert!(
                count_cl100k(&left.text) <= target.max(least),
                "{}",
                left.text
            );
            // Verbatim, in order, and nothing else.
            let spans = left.spans.iter().map(|span| &text[span.clone()]);
            assert_eq!(spans.collect::<String>(), left.text);
            assert!(left.spans.windows(2).all(|w| w[0].end < w[1].start));
            let names = serde_json::from_str::<Value>(&text).unwrap();
            // Repeated names hide members from serde_json's own maps.
            if tree
                .nodes
                .iter()
                .all(|node| node.kind != Kind::Object || node.children.len() < 2)
            {
                assert!(is_left_of(&value, &names), "{} of {text}", left.text);
                cut += usize::from(left.text != text);
            }
            if percent == 100 {
                assert_eq!(left.text, text);
            }
        }
    }
    assert!(cut > 50, "{cut}");
}

#[test]
fn items_and_members_go_with_their_commas() {
    let text = r#"{"n": 3, "rows": [{"id": 987654, "t": "a b"}, {"id": 2, "t": "c"}, {"id": 3}]}"#;
    let kept = |mask: &[bool], omission| {
        let tree = Tree::parse(text).unwrap();
        let outline = Outline::new(&tree, &sentences);
        let kept = mask.to_vec();
        render(&tree, &outline, &Selection { kept, cut: None }, omission).text
    };
    let (yes, no) = (true, false);
    let silent = Omission::Silent;
    assert_eq!(kept(&[yes; 6], silent), text);
    assert_eq!(
        kept(&[no, no, no, yes, no, yes], silent),
        r#"{"rows": [{"id": 2}, {"id": 3}]}"#
    );
    assert_eq!(kept(&[yes, no, no, no, no, no], silent), r#"{"n": 3}"#);
    assert_eq!(kept(&[no; 6], silent), "{}");
    let mask = [no, no, no, no, yes, no];
    assert_eq!(kept(&mask, silent), r#"{"rows": [{"t": "c"}]}"#);
    assert_eq!(
        kept(&mask, Omission::Element),
        r#"{"rows": ["…", {"t": "c"}]}"#
    );
    assert_eq!(
        kept(&[yes, yes, no, no, no, no], Omission::Count),
        r#"{"n": 3, "rows": [{"id": 987654}, "… 2 of 3 items omitted"]}"#
    );
    // Where nothing is omitted nothing says so.
    assert_eq!(kept(&[yes; 6], Omission::Count), text);
}

#[test]
fn strings_lose_sentences_then_words_and_keep_their_escapes() {
    let text = r#"{"id": 7, "text": "The \"caf\u00e9\" opens at 9. It closes at 17,000 hours sharp, they say.\nNo dogs. "}"#;
    assert_eq!(shorten(text, 99, Omission::Silent), text);
    let mut seen = Vec::new();
    let least = count_cl100k(r#"{"id": 7}"#);
    for target in (least..=count_cl100k(text)).rev() {
        let left = shorten(text, target, Omission::Silent);
        assert!(serde_json::from_str::<Value>(&left).is_ok(), "{left}");
        if seen.last() != Some(&left) {
            seen.push(left);
        }
    }
    assert_eq!(seen.last().unwrap(), r#"{"id": 7}"#);
    assert!(
        seen.contains(&r#"{"id": 7, "text": "The \"caf\u00e9\" opens at 9."}"#.to_string()),
        "{seen:#?}"
    );
    assert!(seen.iter().all(|left| left.contains("\"id\": 7")));
    assert!(
        !seen
            .iter()
            .any(|left| left.contains("17,\"") || left.contains("at 17\""))
    );
}

#[test]
fn a_root_of_any_kind_stays_one() {
    for (text, left) in [
        ("\"\"", "\"\""),
        ("7", "7"),
        (" [1, 2] ", " [] "),
        ("{ }", "{ }"),
    ] {
        assert_eq!(shorten(text, 0, Omission::Silent), left);
    }
    let text = "\"One two three. Four five six.\"";
    assert_eq!(shorten(text, 6, Omission::Silent), "\"One two three.\"");
    assert_eq!(shorten(text, 0, Omission::Silent), "\"\"");
}

#[test]
fn the_better_record_stays_with_its_short_fields() {
    let long = "It was built on the hill by masons. ".repeat(20);
    let text = format!(
        r#"{{"count": 3, "rows": [{{"id": 1, "name": "mill", "text": "{long}"}}, {{"id": 2, "name": "dam", "text": "{long}"}}]}}"#
    );
    let tree = Tree::parse(&text).unwrap();
    let outline = Outline::new(&tree, &sentences);
    let mut worth = flat(&outline);
    let second = text.rfind("It was").unwrap();
    let best = outline
        .blocks
        .iter()
        .position(|block| {
            block
                .units
                .iter()
                .any(|&u| outline.units[u].range.contains(&second))
        })
        .unwrap();
    worth.blocks[best] = 1.0;
    let order = Order::new(&outline, &worth, &[]);
    let count = |text: &str| Ok(count_cl100k(text));
    let left = select(&tree, &outline, &order, 60, Omission::Silent, count)
        .unwrap()
        .text;
    let value: Value = serde_json::from_str(&left).unwrap();
    assert_eq!(value["rows"][0]["id"], 2, "{left}");
    assert_eq!(value["rows"][0]["name"], "dam");
    assert!(
        value["rows"][0]["text"]
            .as_str()
            .unwrap()
            .trim()
            .ends_with("masons."),
        "{left}"
    );
}

#[test]
fn groups_have_their_shares_and_what_must_stay() {
    let words = |word: &str| format!("{word} one two three. ").repeat(40);
    let text = format!(
        r#"{{"id": 987654, "a": "{}", "b": "{}", "c": "{}"}}"#,
        words("alpha"),
        words("beta"),
        words("gamma")
    );
    let tree = Tree::parse(&text).unwrap();
    let outline = Outline::new(&tree, &sentences);
    let group = |name: &str, rate, stays| Group {
        units: outline.units_of(tree.member(0, name).unwrap()),
        rate,
        stays,
    };
    let groups = [
        group("id", 1.0, true),
        group("a", 0.2, true),
        group("b", 0.6, false),
        group("c", 0.01, true),
    ];
    let order = Order::new(&outline, &flat(&outline), &groups);
    assert_eq!(order.forced, 3);
    let target = count_cl100k(&text) * 27 / 100;
    let count = |text: &str| Ok(count_cl100k(text));
    let left = select(&tree, &outline, &order, target, Omission::Silent, count)
        .unwrap()
        .text;
    let value: Value = serde_json::from_str(&left).unwrap();
    assert_eq!(value["id"], 987654);
    let len = |key: &str| value[key].as_str().unwrap().matches("three").count();
    assert!(
        len("a") > 5 && len("b").abs_diff(3 * len("a")) <= 3 && len("c") == 1,
        "{left}"
    );
}
