//! Which texts are not shortened at all, and whether a shortened one still holds together.

use std::sync::LazyLock;

use regex::Regex;
use serde::de::IgnoredAny;

/// Lines that are looked at to tell what a text is.
const LINES: usize = 400;

/// Whether a text is a diff or a list of matches in files: each line of it counts.
pub(super) fn protected(text: &str) -> bool {
    static HUNK: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^(diff --git |@@ -\d+(,\d+)? \+\d+(,\d+)? @@)")
            .expect("a constant pattern")
    });
    static MATCH: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^[\w./@+~-]*[\w@+~-](\.\w+)?[:-]\d+[:-]").expect("a constant pattern")
    });
    if HUNK.is_match(text) {
        return true;
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let (mut all, mut matches) = (0, 0);
    for line in lines.take(LINES) {
        all += 1;
        // A time of day looks like a place in a file.
        let place = MATCH.is_match(line) && !line.starts_with(|c: char| c.is_ascii_digit());
        matches += usize::from(place || line == "--");
    }
    all >= 3 && matches * 10 >= all * 8
}

/// Whether `short` can stand for `text`: JSON is still JSON, and fenced blocks are whole or absent.
pub(super) fn sound(text: &str, short: &str) -> bool {
    if is_json(text) {
        return is_json(short);
    }
    if is_json_lines(text) {
        return short.trim().is_empty()
            || short.lines().filter(|l| !l.trim().is_empty()).all(is_json);
    }
    match blocks(text) {
        // What is not balanced in the original has no blocks that could break.
        None => true,
        Some(_) => match blocks(short) {
            None => false,
            Some(left) => left.into_iter().all(|block| text.contains(block)),
        },
    }
}

/// Whether a text is an object or a list of JSON.
pub(super) fn is_json(text: &str) -> bool {
    let text = text.trim();
    text.starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn is_json_lines(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    text.trim_start().starts_with('{') && lines.all(is_json)
}

/// The fenced blocks of a text; `None` where one has no end.
fn blocks(text: &str) -> Option<Vec<&str>> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, &str)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let fence = line.trim();
        match open {
            Some((start, mark))
                if fence.starts_with(mark) && fence.trim_matches(['`', '~']).is_empty() =>
            {
                blocks.push(text[start..at + line.len()].trim_end());
                open = None;
            }
            Some(_) => {}
            None => {
                open = ["```", "~~~"]
                    .into_iter()
                    .find(|mark| fence.starts_with(mark))
                    .map(|mark| (at, mark));
            }
        }
        at += line.len();
    }
    open.is_none().then_some(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffs_and_matches_are_protected_and_prose_and_logs_are_not() {
        assert!(protected("diff --git a/x b/x\n--- a/x\n+++ b/x\n"));
        assert!(protected("text\n@@ -1,2 +3 @@ fn x\n-a\n+b\n"));
        assert!(protected(
            "src/a.rs:10:let x = 1;\nsrc/a.rs:12:let y;\n./b.py:3:pass\n"
        ));
        assert!(protected(
            "src/a.rs:10:let x = 1;\nsrc/a.rs-11-}\n--\nb.py:3:pass\n"
        ));
        assert!(!protected("One line.\nAnother one: 3 of them.\nA third."));
        assert!(!protected(
            "12:30:01 start\n12:30:02 stop\n12:30:03 start\n12:31:00 end"
        ));
        assert!(!protected(""));
    }

    #[test]
    fn json_stays_json() {
        assert!(sound(r#"{"a": [1, 2]}"#, r#"{"a": [1]}"#));
        assert!(!sound(r#"{"a": [1, 2]}"#, r#"{"a": [1"#));
        assert!(!sound("[1, 2]", ""));
        assert!(sound("{\"a\":1}\n{\"b\":2}\n", "{\"b\":2}"));
        assert!(!sound("{\"a\":1}\n{\"b\":2}\n", "{\"b\":"));
        assert!(sound("{not json", "{not"));
    }

    #[test]
    fn fenced_blocks_are_whole_or_absent() {
        let text = "Before.\n```rust\nlet x = 1;\nlet y = 2;\n```\nAfter.";
        assert!(sound(text, "Before. After."));
        assert!(sound(text, "Before.\n```rust\nlet x = 1;\nlet y = 2;\n```"));
        assert!(!sound(text, "Before.\n```rust\nlet x = 1;\n```"));
        assert!(!sound(
            text,
            "Before.\n```rust\nlet x = 1;\nlet y = 2;\nAfter."
        ));
        assert!(sound("```\nopen", "open"));
    }
}
