//! Generated texts and choices: what comes out is JSON, and every byte of it was there.

use serde_json::Value;

use super::super::super::words::words;
use super::*;
use crate::hard::json_text::render::{Marks, Omission, Spliced, Stay};
use crate::random::Random;

/// The unit that holds a text.
fn unit_of(text: &str, layout: &Layout, wanted: &str) -> usize {
    let at = text.find(wanted).unwrap();
    let holds = |unit: &Unit| unit.range.contains(&at);
    layout.units.iter().position(holds).unwrap()
}

fn render(text: &str, layout: &Layout, stays: &[Stay], marks: Marks) -> Spliced {
    layout.json.as_ref().unwrap().render(text, stays, marks)
}

/// What is left where these texts' units stay, with what they need.
fn left(text: &str, wanted: &[&str], marks: Marks) -> String {
    let layout = layout(text).unwrap();
    let mut stays = vec![Stay::Nothing; layout.units.len()];
    let mut open: Vec<usize> = wanted.iter().map(|w| unit_of(text, &layout, w)).collect();
    while let Some(unit) = open.pop() {
        stays[unit] = Stay::All;
        open.extend(&layout.units[unit].needs);
    }
    render(text, &layout, &stays, marks).text
}

/// Whether `part` is what `whole` leaves when members, items and words of strings are dropped.
fn is_left_of(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|own| is_left_of(value, own))),
        (Value::Array(part), Value::Array(whole)) => {
            let mut rest = whole.iter();
            part.iter()
                .all(|value| rest.any(|own| is_left_of(value, own)))
        }
        (Value::String(part), Value::String(whole)) => {
            let mut rest = whole.split_whitespace();
            part.split_whitespace()
                .all(|word| rest.any(|own| own == word))
        }
        _ => part == whole,
    }
}

/// A JSON text of any shape, with odd white space, escapes and repeated names.
fn generate(random: &mut Random, depth: usize, repeat: bool, out: &mut String) {
    let space = |random: &mut Random, out: &mut String| {
        out.push_str(["", "", " ", "\n  ", "\t"][random.below(5)]);
    };
    match random.below(if depth == 0 { 4 } else { 8 }) {
        0 => out.push_str(["0", "-1.50e+3", "12345678901234567890123", "0.05"][random.below(4)]),
        1 => out.push_str(["true", "false", "null", "{}", "[ ]"][random.below(5)]),
        2 | 3 => {
            out.push('"');
            for _ in 0..random.below(60) {
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
                        "stop.\\n\\n",
                        "\u{6771}\u{4eac} ",
                        "a/b\\\\c ",
                        "- item\\n",
                        "\\t\\t\\t\\t\\t\\t\\t\\t",
                        "# Head\\n",
                        "`code` ",
                    ][random.below(15)],
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
                    let name = if repeat { random.below(3) } else { i };
                    out.push_str(&format!("\"n\\u00e4me {name}\""));
                    space(random, out);
                    out.push(':');
                    space(random, out);
                }
                generate(random, depth - 1, repeat, out);
                space(random, out);
                out.push_str(if i + 1 < n { "," } else { "" });
            }
            out.push(if object { '}' } else { ']' });
        }
    }
}

/// Some of everything: units whole, or some words of those that may be cut.
fn choose(random: &mut Random, text: &str, layout: &Layout, percent: usize) -> Vec<Stay> {
    let form = layout.json.as_ref().unwrap();
    let choose = |(unit, place): (&Unit, &Place)| {
        if random.below(100) < percent {
            return Stay::All;
        }
        if !place.in_string || unit.whole || random.below(3) > 0 {
            return Stay::Nothing;
        }
        let own = &text[unit.range.clone()];
        let inside = |g: &&Range<usize>| g.start >= unit.range.start && g.end <= unit.range.end;
        let glued = layout.glued.iter().filter(inside);
        let glued: Vec<Range<usize>> = glued
            .map(|g| g.start - unit.range.start..g.end - unit.range.start)
            .collect();
        let mut parts = words(own, &glued);
        parts.retain(|_| random.below(2) == 0);
        let base = unit.range.start;
        Stay::Parts(
            parts
                .iter()
                .map(|part| base + part.start..base + part.end)
                .collect(),
        )
    };
    layout.units.iter().zip(&form.places).map(choose).collect()
}

#[test]
fn whatever_stays_is_json_of_the_source_s_own_bytes() {
    let mut random = Random(7);
    let (mut cut, mut parts) = (0, 0);
    for case in 0..400 {
        let mut text = String::from(" ");
        let repeat = case % 4 == 0;
        generate(&mut random, 5, repeat, &mut text);
        text.push('\n');
        let layout = layout(&text).unwrap();
        // Gapless, with a place for each.
        let form = layout.json.as_ref().unwrap();
        assert_eq!(form.places.len(), layout.units.len());
        let mut at = 0;
        for unit in &layout.units {
            assert_eq!(unit.range.start, at);
            assert!(unit.range.end > at && unit.needs.iter().all(|&n| n < layout.units.len()));
            at = unit.range.end;
        }
        assert_eq!(at, text.len());
        let value: Value = serde_json::from_str(&text).unwrap();
        for percent in [0, 5, 20, 50, 80, 95, 100] {
            let stays = choose(&mut random, &text, &layout, percent);
            parts += stays
                .iter()
                .filter(|stay| matches!(stay, Stay::Parts(p) if !p.is_empty()))
                .count();
            let got = render(&text, &layout, &stays, Marks::default());
            let after: Value = serde_json::from_str(&got.text)
                .unwrap_or_else(|error| panic!("{error}: {} of {text}", got.text));
            assert!(got.spans.windows(2).all(|w| w[0].end < w[1].start));
            // Its bytes are the source's, but for white space between words.
            let mut rest = got.text.as_str();
            for span in &got.spans {
                let own = &text[span.clone()];
                let at = rest.find(own).expect("verbatim");
                assert!(
                    [" ", "\\n", "\\n\\n", ""].contains(&&rest[..at]),
                    "{}",
                    &rest[..at]
                );
                rest = &rest[at + own.len()..];
            }
            assert_eq!(rest, "");
            if !repeat {
                assert!(is_left_of(&after, &value), "{} of {text}", got.text);
            }
            if percent == 100 {
                assert_eq!(got.text, text);
            }
            cut += usize::from(got.text != text);
            for omission in [Omission::Element, Omission::Count] {
                let marks = Marks {
                    mark: Some("[\"…\"]"),
                    omission,
                };
                let marked = render(&text, &layout, &stays, marks).text;
                assert!(
                    serde_json::from_str::<Value>(&marked).is_ok(),
                    "{marked} of {text}"
                );
            }
        }
    }
    assert!(cut > 500 && parts > 500, "{cut} {parts}");
}

#[test]
fn items_and_members_go_with_their_commas() {
    let pad = "x".repeat(240);
    let text = format!(
        r#"{{"n": 3, "rows": [{{"id": 987654, "t": "a b"}}, {{"id": 2, "t": "c"}}, {{"id": 3}}], "pad": "{pad}"}}"#
    );
    let silent = Marks::default();
    let some = |wanted: &[&str]| left(&text, wanted, silent);
    assert_eq!(some(&["\"n\""]), r#"{"n": 3}"#);
    assert_eq!(
        some(&["rows"]),
        r#"{"rows": [{"id": 987654, "t": "a b"}, {"id": 2, "t": "c"}, {"id": 3}]}"#
    );
    assert_eq!(some(&[]), "{}");

    let rows = |n: usize| {
        (0..n)
            .map(|i| format!(r#"{{"id": {i}, "name": "name {i}"}}"#))
            .collect::<Vec<_>>()
    };
    let text = format!("[{}]", rows(9).join(", "));
    let noted = |omission| {
        left(
            &text,
            &["name 2", "name 7"],
            Marks {
                mark: None,
                omission,
            },
        )
    };
    assert_eq!(
        noted(Omission::Silent),
        r#"[{"id": 2, "name": "name 2"}, {"id": 7, "name": "name 7"}]"#
    );
    assert_eq!(
        noted(Omission::Element),
        r#"["…", {"id": 2, "name": "name 2"}, {"id": 7, "name": "name 7"}]"#
    );
    assert_eq!(
        noted(Omission::Count),
        r#"["… 7 of 9 items omitted", {"id": 2, "name": "name 2"}, {"id": 7, "name": "name 7"}]"#
    );
    let first = left(
        &text,
        &["name 0"],
        Marks {
            mark: None,
            omission: Omission::Count,
        },
    );
    assert_eq!(
        first,
        r#"[{"id": 0, "name": "name 0"}, "… 8 of 9 items omitted"]"#
    );
}

#[test]
fn strings_lose_sentences_and_keep_escapes_and_lines() {
    let text = r#"{"id": 7, "text": "The \"caf\u00e9\" opens at 9. It closes at 17,000 hours.\nNo dogs. - One\n- Two "}"#;
    let silent = Marks::default();
    assert_eq!(
        left(text, &["opens"], silent),
        r#"{"text": "The \"caf\u00e9\" opens at 9."}"#
    );
    assert_eq!(
        left(text, &["opens", "No dogs", "\"id\""], silent),
        r#"{"id": 7, "text": "The \"caf\u00e9\" opens at 9.\nNo dogs."}"#
    );
    let marked = Marks {
        mark: Some("[…]"),
        omission: Omission::Silent,
    };
    assert_eq!(
        left(text, &["opens", "No dogs"], marked),
        r#"{"text": "The \"caf\u00e9\" opens at 9.\n[…]\nNo dogs.\n[…]"}"#
    );
}

#[test]
fn a_root_of_any_kind_stays_one() {
    for (text, left_of_it) in [
        ("\"\"", "\"\""),
        ("7", "7"),
        (" [1, 2] ", " [] "),
        ("{ }", "{ }"),
    ] {
        assert_eq!(left(text, &[], Marks::default()), left_of_it);
    }
    let text = "\"One two three. Four five six.\"";
    assert_eq!(left(text, &["One"], Marks::default()), "\"One two three.\"");
    assert_eq!(left(text, &[], Marks::default()), "\"\"");
    for bad in ["", "{", "prose", "{\"a\":1} {\"b\":2}"] {
        assert!(layout(bad).is_none());
    }
}

#[test]
fn a_part_of_a_record_brings_what_says_which() {
    let long = "It was built on the hill by masons. ".repeat(20);
    let record = |id: usize| format!(r#"{{"id": {id}, "text": "{long}", "name": "mill {id}"}}"#);
    let text = format!(r#"{{"count": 3, "rows": [{}, {}]}}"#, record(1), record(2));
    let second = text.rfind("It was").unwrap();
    let layout = layout(&text).unwrap();
    let unit = layout
        .units
        .iter()
        .position(|u| u.range.contains(&second))
        .unwrap();
    let needs: Vec<&str> = layout.units[unit]
        .needs
        .iter()
        .map(|&n| &text[layout.units[n].range.clone()])
        .collect();
    assert_eq!(needs, ["}, {\"id\": 2", "\", \"name\": \"mill 2\""]);
}

#[test]
fn json_in_a_string_is_not_cut() {
    let inner =
        serde_json::to_string(&serde_json::json!({"a": "word. ".repeat(40), "b": [1, 2]})).unwrap();
    let text = serde_json::to_string(&serde_json::json!({"body": inner, "n": 1})).unwrap();
    let layout = layout(&text).unwrap();
    assert_eq!(layout.units.len(), 3);
    assert!(layout.units.iter().all(|unit| unit.whole));
}
