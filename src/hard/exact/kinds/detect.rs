//! What a text looks like: a kind by its form alone.

use std::collections::HashMap;

use super::{ContentKind, indent};

/// Sentences longer than this (bytes) are cut at their clauses, so that one that never ends cannot
/// take the whole budget.
pub(super) const LONG_SENTENCE: usize = 400;

/// Lines that are looked at.
const SAMPLE: usize = 600;

/// Finds the kind of a text.
pub(super) fn kind(text: &str) -> ContentKind {
    let shown: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(SAMPLE)
        .map(str::trim_end)
        .collect();
    if super::json::is_json(text) {
        ContentKind::Json
    } else if is_html(text) {
        ContentKind::Html
    } else if is_jsonl(&shown) {
        ContentKind::Jsonl
    } else if is_csv(text) {
        ContentKind::Csv
    } else if are_dated(&shown) || is_diff(&shown) || is_stack_trace(&shown) {
        ContentKind::Log
    } else if has_fence(&shown) {
        ContentKind::Markdown
    } else if are_code(&shown) || are_nested_keys(&shown) {
        ContentKind::Code
    } else if is_markdown(&shown) {
        ContentKind::Markdown
    } else if are_records(&shown) && are_short(&shown) {
        ContentKind::Log
    } else {
        ContentKind::Text
    }
}

#[cfg(feature = "formats")]
fn is_csv(text: &str) -> bool {
    super::csv_form::delimiter(text).is_some()
}

#[cfg(not(feature = "formats"))]
fn is_csv(_: &str) -> bool {
    false
}

/// A document of HTML, or a text with many of its block elements.
fn is_html(text: &str) -> bool {
    let head: String = text.trim_start().chars().take(256).collect();
    let head = head.to_ascii_lowercase();
    if head.starts_with("<!doctype html") || head.starts_with("<html") {
        return true;
    }
    if !head.starts_with('<') {
        return false;
    }
    let sample: String = text.chars().take(20_000).collect();
    let sample = sample.to_ascii_lowercase();
    let closing = [
        "</p>", "</div>", "</li>", "</td>", "</h1>", "</h2>", "</ul>", "</table>", "</body>",
    ];
    closing
        .iter()
        .map(|tag| sample.matches(tag).count())
        .sum::<usize>()
        >= 3
}

/// Two lines or more, each a JSON object or array.
fn is_jsonl(lines: &[&str]) -> bool {
    let value = |line: &&str| {
        let line = line.trim();
        (line.starts_with('{') && line.ends_with('}')
            || line.starts_with('[') && line.ends_with(']'))
            && serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok()
    };
    lines.len() >= 2 && lines.iter().all(value)
}

/// A line that opens or closes a fence.
pub(super) fn is_fence(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("```") || line.starts_with("~~~")
}

fn has_fence(lines: &[&str]) -> bool {
    lines.iter().filter(|line| is_fence(line)).count() >= 2
}

/// Headings, tables, links, emphasis and lists, enough of them.
fn is_markdown(lines: &[&str]) -> bool {
    let mut marks = 0;
    for (i, line) in lines.iter().enumerate() {
        let start = line.trim_start();
        let heading = {
            let rest = start.trim_start_matches('#');
            let level = start.len() - rest.len();
            (1..=6).contains(&level) && rest.starts_with(' ') && indent(line) < 4
        };
        let underline = i > 0
            && line.len() >= 3
            && (line.bytes().all(|b| b == b'=') || line.bytes().all(|b| b == b'-'));
        let delimiter = start.contains('|')
            && start.contains("--")
            && start.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '));
        let link = line.contains("](") || start.starts_with('[') && line.contains("]: ");
        let item = ["- ", "* ", "+ "]
            .iter()
            .any(|mark| start.starts_with(mark));
        let bold = line.matches("**").count() >= 2;
        marks += match () {
            () if heading || delimiter => 3,
            () if underline => 2,
            () if link || bold => 2,
            () if item => 1,
            () => 0,
        };
    }
    marks >= 4 && marks * 12 >= lines.len()
}

/// A token with its letters and digits each as one: `2024-03-01` is `9-9-9`.
fn shape(token: &str) -> String {
    let mut shape = String::new();
    for c in token.chars().take(64) {
        let c = match c {
            c if c.is_numeric() => '9',
            c if c.is_alphabetic() => 'a',
            // The punctuation of other scripts is that of their prose.
            c if !c.is_ascii() => continue,
            c => c,
        };
        if !(matches!(c, '9' | 'a') && shape.ends_with(c)) {
            shape.push(c);
        }
    }
    // What a file may do is one form.
    if shape.len() <= 12 && token.len() == 10 && token.bytes().all(|b| b"-drwxlsStT".contains(&b)) {
        return "mode".into();
    }
    // Where a line was found is one form, however deep the path.
    if let Some((path, _)) = token.split_once(':')
        && path.contains(['/', '.'])
        && token[path.len() + 1..].starts_with(|c: char| c.is_ascii_digit())
    {
        return "path:9".into();
    }
    shape
}

/// Whether a token's shape is that of a word in prose.
fn is_plain(shape: &str) -> bool {
    let bare = shape.trim_matches([
        '"', '\'', '(', ')', '.', ',', ';', '!', '?', '“', '”', '’', '‘', '«', '»', '*', '_', '–',
        '—',
    ]);
    // Words with an apostrophe or a hyphen are words.
    bare.chars().all(|c| matches!(c, 'a' | '\'' | '’' | '-')) && bare != "-"
}

/// The shapes of a line's first tokens up to one that is not a word of prose.
fn key(line: &str) -> Option<String> {
    let mut key = String::new();
    for token in line.split_whitespace().take(3) {
        let shape = shape(token);
        let plain = is_plain(&shape);
        key.push_str(if plain { "a" } else { &shape });
        if !plain {
            return Some(key);
        }
        key.push(' ');
    }
    None
}

/// A hunk of a unified diff and the name of its file.
pub(super) fn is_diff(lines: &[&str]) -> bool {
    lines.iter().any(|line| line.starts_with("@@ -"))
        && lines.iter().any(|line| line.starts_with("+++ "))
}

/// Two calls or more, a quarter of the lines at least, as Python, Java, JavaScript, .NET, Rust and Go tell
/// them: each on a line of its own, with the place in the source.
fn is_stack_trace(lines: &[&str]) -> bool {
    let place = |text: &str| {
        let mut parts = text.split(':').skip(1);
        parts.any(|part| part.starts_with(|c: char| c.is_ascii_digit()))
    };
    let call = |line: &&&str| {
        let own = line.trim_start();
        own.starts_with("File \"") && own.contains(", line ")
            || own.starts_with("at ")
                && (place(own) || own.ends_with(')') || own.contains(":line "))
            || own.contains(".go:") && place(own) && indent(line) > 0
    };
    let calls = lines.iter().filter(call).count();
    calls >= 2 && calls * 4 >= lines.len()
}

/// Keys with values under keys, as in YAML.
fn are_nested_keys(lines: &[&str]) -> bool {
    let keyed = |line: &&&str| {
        let own = line.trim_start();
        let item = own.strip_prefix("- ").unwrap_or(own);
        let key = item
            .split_once(':')
            .filter(|(_, value)| value.is_empty() || value.starts_with(' '));
        own.starts_with('#')
            || item.len() < own.len()
            || key.is_some_and(|(key, _)| !key.is_empty() && !key.contains(' '))
    };
    let nested = lines
        .iter()
        .any(|line| indent(line) > 0 && line.contains(": "));
    let opens = lines.iter().any(|line| line.ends_with(':'));
    lines.len() >= 3
        && nested
        && opens
        && lines.iter().filter(keyed).count() * 10 >= lines.len() * 9
}

/// Whether lines are short enough to be kept or dropped whole.
fn are_short(lines: &[&str]) -> bool {
    lines
        .iter()
        .filter(|line| line.len() > LONG_SENTENCE)
        .count()
        * 10
        <= lines.len()
}

/// Whether most lines begin with a time or with the place where they were found, whatever follows.
fn are_dated(lines: &[&str]) -> bool {
    let dated = |line: &&&str| {
        let shape = shape(line.split_whitespace().next().unwrap_or_default());
        shape.matches('9').count() >= 3 || shape == "path:9"
    };
    let starts = lines.iter().take(SAMPLE).filter(|line| indent(line) == 0);
    let (all, with) = starts.fold((0, 0), |(all, with), line| {
        (all + 1, with + usize::from(dated(&line)))
    });
    all >= 3 && with * 10 >= all * 6
}

/// Whether most lines begin in one form that prose does not begin in: a time, a path, a key.
pub(super) fn are_records(lines: &[&str]) -> bool {
    let mut counts: HashMap<String, usize> = HashMap::new();
    // What is indented continues the record before it, as a stack trace does.
    let (mut starts, mut sampled) = (0, 0);
    for line in lines.iter().filter(|l| !l.is_empty()).take(SAMPLE) {
        sampled += 1;
        if indent(line) > 0 && sampled > 1 && indent(line) > indent(lines[0]) {
            continue;
        }
        starts += 1;
        if let Some(key) = key(line) {
            *counts.entry(key).or_insert(0) += 1;
        }
    }
    if starts >= 3 && are_columns(lines) {
        return true;
    }
    let Some((key, &common)) = counts.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0))) else {
        return false;
    };
    let figures = key.matches('9').count();
    match starts {
        0 | 1 => false,
        // Two lines alike may be chance, unless they tell a time.
        2 => common == 2 && figures >= 3,
        _ => common * 10 >= starts * 6 && starts * 4 >= sampled,
    }
}

/// Whether most lines have columns: two gaps or more of several spaces.
fn are_columns(lines: &[&str]) -> bool {
    let shown = lines.iter().filter(|l| !l.trim().is_empty()).take(SAMPLE);
    let (mut all, mut columns) = (0, 0);
    for line in shown {
        all += 1;
        let gaps = line
            .trim()
            .split("  ")
            .filter(|part| !part.is_empty())
            .count();
        columns += usize::from(gaps > 2 || line.trim().matches('\t').count() >= 2);
    }
    all >= 3 && columns * 10 >= all * 7
}

/// The line that names the columns of a listing, if one of the first does: words alone, where the
/// lines after it have figures or as many columns.
pub(super) fn table_header(lines: &[&str]) -> Option<usize> {
    let figures = |line: &str| line.contains(|c: char| c.is_numeric());
    let at = lines.iter().take(3).position(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let capitals = words
            .iter()
            .filter(|w| w.chars().all(|c| !c.is_lowercase()))
            .count();
        let columns = line
            .trim()
            .split("  ")
            .filter(|part| !part.is_empty())
            .count()
            > 2;
        words.len() >= 3 && !figures(line) && (capitals * 2 > words.len() || columns)
    })?;
    let rest = &lines[at + 1..];
    let shown = rest.iter().filter(|l| !l.trim().is_empty());
    let (all, with) = shown.fold((0, 0), |(n, f), l| (n + 1, f + usize::from(figures(l))));
    (all > 0 && with * 2 >= all).then_some(at)
}

/// Whether most lines are those of a programming language.
pub(super) fn are_code(lines: &[&str]) -> bool {
    let (mut code, mut strong, mut shown) = (0, 0, 0);
    let mut inside = false;
    for line in lines.iter().filter(|l| !l.trim().is_empty()).take(SAMPLE) {
        let trimmed = line.trim();
        // Comments say nothing about it, whatever their language.
        if inside
            || trimmed.starts_with("/*")
            || trimmed.starts_with('*') && trimmed.len() < 120 && code > 0
        {
            inside = !trimmed.contains("*/");
            continue;
        }
        shown += 1;
        let (is, sure) = code_line(trimmed);
        code += usize::from(is);
        strong += usize::from(sure);
    }
    shown >= 3 && code * 2 >= shown && strong >= 2.min(shown / 3).max(1)
}

/// Words that a statement begins with, where more than prose follows.
const STATEMENTS: &str = " def class import from fn pub let const var function func if for while return switch case \
    struct enum impl trait mod use public private protected static final void int char unsigned package namespace using \
    #include #define #ifdef #ifndef #endif #pragma export async await try except catch finally raise throw else elif with \
    yield assert lambda print echo local then fi done esac end begin module interface type unless require SELECT INSERT \
    CREATE UPDATE DELETE FROM WHERE JOIN extends override val template typedef extern inline virtual elsif pass break \
    continue del global nonlocal match do goto ";

/// Whether a line looks like code, and whether it cannot be anything else.
fn code_line(line: &str) -> (bool, bool) {
    let comment = line.starts_with("//")
        || line.starts_with("# ")
        || line.starts_with("#!")
        || line.starts_with("-- ");
    if comment {
        return (true, line.starts_with("//") || line.starts_with("#!"));
    }
    let bracket = line.chars().all(|c| "{}()[];,:".contains(c));
    let ends = line.ends_with(['{', '}', ';'])
        || line.ends_with(");")
        || line.ends_with("),")
        || line.ends_with("](");
    let first = line
        .split(|c: char| c.is_whitespace() || matches!(c, '(' | ':' | '{' | ';'))
        .next()
        .unwrap_or_default();
    let statement = STATEMENTS.contains(&format!(" {first} ")) && !first.is_empty();
    let formed =
        line.contains(['(', '{', '=', ';', '[']) || line.ends_with(':') || line.contains("::");
    let assigns = line
        .split_once(" = ")
        .or_else(|| line.split_once(" := "))
        .or_else(|| line.split_once(" += "))
        .is_some_and(|(left, _)| {
            left.split_whitespace().count() <= 3
                && left
                    .chars()
                    .all(|c| c.is_alphanumeric() || "_.[]:\"'$ ,*&<>@".contains(c))
        });
    let call = line
        .find('(')
        .is_some_and(|at| at > 0 && !line[..at].contains(' ') && line.ends_with([')', '(', ',']));
    let decorator = line.starts_with('@') && !line.contains(' ') || line.starts_with("#[");
    let tag = line.starts_with('<') && line.ends_with('>');
    let sure = bracket && !line.is_empty()
        || ends
        || (statement && formed && !line.ends_with('.'))
        || assigns
        || call
        || decorator;
    let bare =
        statement && line.split_whitespace().count() <= 4 && !line.ends_with(['.', ',', '?', '!']);
    let field = line.ends_with(',')
        && line.split_whitespace().count() <= 4
        && line.contains(['"', '\'', ':', '=', '.', '_']);
    (sure || bare || field || tag, sure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(kind: ContentKind, text: &str) {
        assert_eq!(super::kind(text), kind, "{text}");
    }

    #[test]
    fn prose_is_text() {
        is(ContentKind::Text, "");
        is(ContentKind::Text, "A short note.");
        is(
            ContentKind::Text,
            "The town hall was built in 1901. It has a clock.\nThe school stands by the river.\n",
        );
        is(
            ContentKind::Text,
            "Ilse Brandt: Ilse Brandt (born 1950) is a mayor, a sailor, and a baker.",
        );
        is(
            ContentKind::Text,
            "桜の公園へ散歩に行きました。\n今日は晴れです。\n明日も。",
        );
        is(
            ContentKind::Text,
            "One, two, three.\nFour, five, six.\nSeven, eight, nine of them.",
        );
        is(
            ContentKind::Text,
            "To Sherlock Holmes she is always the woman. I have seldom heard him\n\
             mention her under any other name. In his eyes she eclipses and\n\
             predominates the whole of her sex. It was not that he felt any emotion\n\
             akin to love for Irene Adler.\n",
        );
    }

    #[test]
    fn stack_traces_are_lines() {
        is(
            ContentKind::Log,
            "Traceback (most recent call last):\n  File \"/app/server.py\", line 214, in handle\n    \
             result = await self.dispatch(request)\n  File \"/app/orders.py\", line 33, in create_order\n    \
             total = sum(item[\"price\"] for item in body[\"items\"])\nKeyError: 'price'\n",
        );
        is(
            ContentKind::Log,
            "java.lang.IllegalStateException: order 4711 has no customer\n\
             \tat com.example.OrderService.place(OrderService.java:88)\n\
             \tat java.base/java.lang.reflect.Method.invoke(Method.java:580)\n\t... 42 more\n",
        );
        is(
            ContentKind::Log,
            "TypeError: x is undefined\n    at f (/app/a.js:10:15)\n    at async main (/app/b.js:3:1)\n",
        );
        is(
            ContentKind::Text,
            "We met at noon.\nShe stood at the door (as ever).\nAt 10:30 we left at last.\n",
        );
    }

    #[test]
    fn forms_are_told_apart() {
        is(
            ContentKind::Html,
            "<!DOCTYPE html>\n<html><body><p>Hi</p></body></html>",
        );
        is(ContentKind::Html, "<div><p>One</p><p>Two</p></div>");
        is(ContentKind::Jsonl, "{\"a\": 1}\n{\"a\": 2}\n");
        is(
            ContentKind::Csv,
            "name,year,city\nIlse,1950,Bonn\nOlaf,1960,Kiel\n\"Doe, J.\",1970,Ulm\n",
        );
        is(ContentKind::Csv, "a\tb\n1\t2\n3\t4\n");
        is(
            ContentKind::Markdown,
            "# Title\n\nText with a [link](http://x.org).\n",
        );
        is(
            ContentKind::Markdown,
            "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n**Note** that.",
        );
        is(
            ContentKind::Code,
            "def f(x):\n    # twice\n    y = x * 2\n    return y\n\nprint(f(3))\n",
        );
        is(
            ContentKind::Code,
            "fn main() {\n    let x = 3;\n    println!(\"{x}\");\n}\n",
        );
        is(
            ContentKind::Code,
            "#include <stdio.h>\n\nint main(void)\n{\n    printf(\"x\");\n    return 0;\n}\n",
        );
        is(ContentKind::Code, include_str!("detect.rs"));
        is(
            ContentKind::Code,
            "version: 2\njobs:\n  build:\n    image: rust\n    steps:\n      - checkout\n      - run: make\n",
        );
        is(
            ContentKind::Log,
            "--- a/x.rs\n+++ b/x.rs\n@@ -1,3 +1,3 @@\n fn f() {\n-    a();\n+    b();\n }\n",
        );
        is(
            ContentKind::Log,
            "Ann: Where is it?\nBob: In the shed.\nAnn: Which one?\nBob: The red one.\n",
        );
        is(
            ContentKind::Log,
            "2024-03-01T10:00:00Z INFO a b\n2024-03-01T10:00:01Z INFO c d\n2024-03-01T10:00:02Z ERROR e\n",
        );
        is(
            ContentKind::Log,
            "total 32\n-rw-r--r--  1 root root  120 Nov 29 17:02 a.txt\ndrwxr-xr-x 13 root root 4096 Nov 29 17:02 api\n-rw-r--r--  1 root root 1200 Nov 29 17:02 b.md\n",
        );
        is(
            ContentKind::Log,
            "src/a.rs:12:    let x = 3\nsrc/b/c.rs:7:fn main\nsrc/a.rs:40:}\nsrc/b/d.rs:9: // no\n",
        );
    }
}
