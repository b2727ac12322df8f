//! What comes out of the exact mode reads as what went in: whole words, figures, lines and elements,
//! nothing invented, and never more tokens than asked for.

use std::collections::HashSet;

use crate::common::fake::{AnyScores, byte_tokenizer};
use prefold::hard::{self, Budget, Compressed, ContentKind, Effort, Exact, Granularity, Request};
use prefold::text::count_cl100k;

const PROSE: &str = include_str!("../data/gallery/prose.txt");
const MARKDOWN: &str = include_str!("../data/gallery/readme.md");
const PYTHON: &str = include_str!("../data/gallery/script.py");
const RUST: &str = include_str!("../data/gallery/module.rs");
const LOG: &str = include_str!("../data/gallery/log.txt");
const LISTING: &str = include_str!("../data/gallery/listing.txt");
const TABLE: &str = include_str!("../data/gallery/table.csv");
const PAGE: &str = include_str!("../data/gallery/page.html");

/// A budget with options of the exact mode.
type Asked = (Budget, Exact);

fn compress(contexts: &[&str], question: &str, (budget, options): Asked) -> Compressed {
    let request = Request::new(contexts.iter().copied())
        .with_question(question)
        .with_budget(budget)
        .with_mode(options);
    hard::compress(&AnyScores, byte_tokenizer(), &request)
        .unwrap_or_else(|error| panic!("{error}: {:?}, {:?}", request.budget, request.mode))
}

fn target(tokens: usize) -> Asked {
    (Budget::Tokens(tokens), Exact::default())
}

fn rate(rate: f64) -> Asked {
    (Budget::Rate(rate), Exact::default())
}

/// The texts of each kind.
fn texts() -> Vec<(ContentKind, String)> {
    let jsonl: String = (0..60)
        .map(|i| format!("{{\"id\": {}, \"name\": \"user {i}\", \"score\": {}.5, \"tags\": [\"a\", \"b{i}\"]}}\n", 987_654 + i, i * 7 % 50))
        .collect();
    let grep: String = RUST
        .lines()
        .enumerate()
        .filter(|(_, line)| line.len() > 20)
        .map(|(i, line)| format!("src/hard/rank_text.rs:{}:{line}\n", i + 1))
        .collect();
    let japanese = "桜の公園へ散歩に行きました。東京タワーは1958年に完成した。高さは333メートルで、三十五人が働いている。明日は雨が降らないでしょう。".repeat(4);
    vec![
        (ContentKind::Text, PROSE.into()),
        (ContentKind::Text, PROSE.split_whitespace().collect::<Vec<_>>().join(" ")),
        (ContentKind::Text, japanese),
        (ContentKind::Text, "यह पुस्तक बहुत अच्छी है। कीमत 1,250.50 रुपये है। दुकान 27b गली में है।".repeat(6)),
        (ContentKind::Text, "الكتاب على الطاولة. السعر 129.95 ريال. المكتب رقم 14 في الطابق 2.\n".repeat(8)),
        (ContentKind::Text, "ราคา 250บาท ฉันรักภาษาไทยมาก เขาไม่มา วันนี้ฝนตก ".repeat(9)),
        (ContentKind::Text, "The flat is number 27b. Take 2 pills a day, never 200000. It costs 129.95, or 0.05% of 1,234,567.89 in version 3.2.1.".into()),
        (ContentKind::Markdown, MARKDOWN.into()),
        (ContentKind::Code, PYTHON.into()),
        (ContentKind::Code, RUST.into()),
        (ContentKind::Log, LOG.into()),
        (ContentKind::Log, LISTING.into()),
        (ContentKind::Log, grep),
        (ContentKind::Jsonl, jsonl),
        (ContentKind::Csv, TABLE.into()),
        (ContentKind::Html, PAGE.into()),
    ]
}

/// The runs of characters that are not white space.
fn chunks(text: &str) -> HashSet<&str> {
    text.split_whitespace().collect()
}

/// Holds a result against its context, whatever the kind.
fn check_any(text: &str, kind: ContentKind, result: &Compressed, what: &str) {
    let out = &result.text;
    let limit = result.target.expect("an exact budget");
    assert!(
        result.tokens_after <= limit,
        "{what}: {} of {limit} tokens",
        result.tokens_after
    );
    assert_eq!(result.tokens_after, count_cl100k(out), "{what}");
    let pieces: String = result.pieces.iter().map(|p| p.text.as_str()).collect();
    assert_eq!(
        pieces.trim(),
        text.trim(),
        "{what}: the pieces are the prompt"
    );
    // Spans are verbatim, in order, and nothing but white space and marks stands between them.
    let mut last = 0;
    for kept in &result.contexts {
        let mut rest = kept.text.as_str();
        for span in &kept.spans {
            assert!(
                span.start >= last && span.start < span.end,
                "{what}: {:?}",
                kept.spans
            );
            last = span.end;
            let own = text[span.clone()].trim_end();
            let at = rest
                .find(own)
                .unwrap_or_else(|| panic!("{what}: {own:?} is not in {rest:?}"));
            check_invented(&rest[..at], kind, what);
            rest = &rest[at + own.len()..];
        }
        check_invented(rest, kind, what);
        check_edges(text, &kept.spans, what);
    }
}

/// What a result may hold that its context does not: white space, and in code a comment.
fn check_invented(between: &str, kind: ContentKind, what: &str) {
    for line in between.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let code = matches!(kind, ContentKind::Code | ContentKind::Markdown);
        assert!(
            code && matches!(line, "# …" | "// …" | "-- …"),
            "{what}: {line:?} was invented"
        );
    }
}

/// No word or figure is cut.
fn check_edges(text: &str, spans: &[std::ops::Range<usize>], what: &str) {
    let unspaced = |c: char| {
        !c.is_ascii()
            && c.is_alphabetic()
            && !matches!(c, '\u{80}'..='\u{8ff}' | '\u{900}'..='\u{dff}')
    };
    for span in spans {
        for at in [span.start, span.end] {
            let (before, after) = (text[..at].chars().next_back(), text[at..].chars().next());
            let (Some(before), Some(after)) = (before, after) else {
                continue;
            };
            let space = before.is_whitespace() || after.is_whitespace();
            let figure = before.is_numeric()
                && (after.is_alphanumeric() || matches!(after, '%' | '.' | ',' | ':'));
            let joins = before.is_alphanumeric() && after.is_alphanumeric();
            let parted = space || (!figure && (!joins || unspaced(before) || unspaced(after)));
            assert!(
                parted,
                "{what}: cut at {:?}|{:?}",
                &text[text.floor_char_boundary(at.saturating_sub(12))..at],
                after
            );
        }
    }
}

/// Every line that came out is one that went in.
fn check_lines(text: &str, out: &str, what: &str) {
    let lines: HashSet<&str> = text.lines().map(str::trim_end).collect();
    for line in out.lines() {
        let mark = matches!(line.trim(), "# …" | "// …" | "");
        assert!(
            mark || lines.contains(line.trim_end()),
            "{what}: {line:?} is not a line of the text"
        );
    }
}

/// Every HTML tag that may be closed is.
fn check_balance(out: &str, what: &str) {
    let mut open: Vec<String> = Vec::new();
    for part in out.split('<').skip(1) {
        let tag = part.split('>').next().unwrap_or_default();
        let name: String = tag
            .trim_start_matches('/')
            .chars()
            .take_while(|c| c.is_alphanumeric())
            .collect();
        if tag.starts_with('!')
            || ["meta", "link", "br", "hr", "img", "p", "li", "input"].contains(&name.as_str())
        {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "{what}: {out}");
        } else {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{what}: {open:?} in {out}");
}

/// Holds a result against the form of its kind.
fn check_kind(text: &str, kind: ContentKind, out: &str, what: &str) {
    match kind {
        ContentKind::Code | ContentKind::Log | ContentKind::Csv | ContentKind::Jsonl => {
            check_lines(text, out, what)
        }
        ContentKind::Html => check_balance(out, what),
        _ => {}
    }
    match kind {
        ContentKind::Csv if !out.is_empty() => {
            assert_eq!(
                out.lines().next(),
                text.lines().next(),
                "{what}: the header is kept"
            );
        }
        ContentKind::Jsonl => {
            for line in out.lines() {
                serde_json::from_str::<serde_json::Value>(line)
                    .unwrap_or_else(|e| panic!("{what}: {line}: {e}"));
            }
        }
        ContentKind::Markdown => {
            let fences = out
                .lines()
                .filter(|l| l.trim_start().starts_with("```"))
                .count();
            assert_eq!(fences % 2, 0, "{what}: fences balance: {out}");
            let rows: Vec<&str> = out.lines().filter(|l| l.starts_with('|')).collect();
            let whole: HashSet<&str> = text.lines().collect();
            assert!(
                rows.iter().all(|row| whole.contains(row)),
                "{what}: rows are whole"
            );
        }
        ContentKind::Code => {
            // Whatever is indented has something above it that is not.
            let mut shown = out
                .lines()
                .filter(|l| !l.trim().is_empty() && !l.trim().ends_with('…'));
            assert!(
                shown.next().is_none_or(|l| !l.starts_with(' ')),
                "{what}: {out}"
            );
            for (a, b) in [('{', '}'), ('(', ')'), ('[', ']')] {
                if text.matches(a).count() == text.matches(b).count() {
                    assert_eq!(
                        out.matches(a).count(),
                        out.matches(b).count(),
                        "{what}: {out}"
                    );
                }
            }
        }
        ContentKind::Text if text.is_ascii() => {
            let given = chunks(text);
            assert!(chunks(out).is_subset(&given), "{what}: {out}");
        }
        _ => {}
    }
}

#[test]
fn kinds_are_found() {
    for (kind, text) in texts() {
        assert_eq!(
            ContentKind::of(&text),
            kind,
            "{}",
            &text[..text.floor_char_boundary(200)]
        );
    }
}

#[test]
fn every_kind_keeps_its_form_at_every_rate() {
    for (i, (kind, text)) in texts().into_iter().enumerate() {
        for share in [0.05, 0.1, 0.2, 0.33, 0.5, 0.66, 0.8, 0.95] {
            for granularity in [
                Granularity::Passage,
                Granularity::Sentence,
                Granularity::Token,
                Granularity::Context,
            ] {
                let what = format!("{i}: {kind:?} at {share}, {granularity:?}");
                let options = (
                    Budget::Rate(share),
                    Exact::default().with_granularity(granularity),
                );
                let result = compress(&[&text], "", options);
                let want = (count_cl100k(text.trim()) as f64 * share).round() as usize;
                assert_eq!(result.target, Some(want), "{what}");
                check_any(&text, kind, &result, &what);
                check_kind(&text, kind, &result.text, &what);
            }
        }
    }
}

#[test]
fn every_kind_keeps_its_form_at_every_budget() {
    for (i, (kind, text)) in texts().into_iter().enumerate() {
        for tokens in [
            5, 7, 10, 16, 25, 40, 64, 100, 160, 250, 400, 640, 1000, 5000,
        ] {
            let what = format!("{i}: {kind:?} at {tokens} tokens");
            let result = compress(&[&text], "", target(tokens));
            check_any(&text, kind, &result, &what);
            check_kind(&text, kind, &result.text, &what);
            // Prose comes near the budget: less than one of its longest words away.
            if kind == ContentKind::Text && text.is_ascii() && tokens < count_cl100k(text.trim()) {
                let short = tokens - result.tokens_after;
                assert!(short <= 12.max(tokens / 8), "{what}: {short} tokens short");
            }
        }
    }
}

#[test]
fn the_question_does_not_change_the_form() {
    for (i, (kind, text)) in texts().into_iter().enumerate() {
        for share in [0.2, 0.5] {
            let what = format!("{i}: {kind:?} at {share} with a question");
            let result = compress(&[&text], "What is the number of the office?", rate(share));
            let out = result
                .text
                .strip_suffix("What is the number of the office?");
            check_kind(&text, kind, out.expect("the question").trim_end(), &what);
            assert!(result.tokens_after <= result.target.unwrap_or(0), "{what}");
        }
    }
}

/// The first of two runs with `fill` comes near the budget, and is never over it.
#[test]
fn the_last_token_is_spent_on_request() {
    for (kind, text) in texts()
        .into_iter()
        .filter(|(kind, _)| *kind == ContentKind::Text)
    {
        let whole = count_cl100k(text.trim());
        for share in [0.1, 0.3, 0.5, 0.9] {
            let want = (whole as f64 * share) as usize;
            let result = compress(
                &[&text],
                "",
                (
                    Budget::Tokens(want),
                    Exact::default().with_fill(true).with_dedupe(false),
                ),
            );
            let got = result.tokens_after;
            assert!(
                got <= want && got + 3 >= want,
                "{kind:?} at {want}: {got}, {:?}",
                result.text
            );
        }
    }
}

#[test]
fn figures_and_words_are_whole_or_absent() {
    for (text, tokens, whole) in [
        ("The flat is number 27b.", 5, "The flat is number"),
        (
            "Take 2 pills a day, never 200000.",
            10,
            "Take 2 pills a day, never",
        ),
        (
            "Cora works in office 14 on floor 2.",
            6,
            "Cora works in office",
        ),
    ] {
        let out = compress(&[text], "", target(tokens)).text;
        assert_eq!(out, whole, "{text}");
    }
    #[cfg(feature = "segmenter")]
    {
        let out = compress(&["桜の公園へ散歩に行きました。"], "", target(5)).text;
        assert!(
            "桜の公園へ散歩に".starts_with(&out) && out.ends_with(['の', 'へ', 'に']),
            "{out}"
        );
    }
    // Budgets from nothing to everything, in scripts that are cut at spaces.
    for text in [
        "वह कार्यालय 14 में काम करती है और 27b में रहती है।",
        "تعمل كورا في المكتب 14 في الطابق 2 ولا تعمل في 200000.",
        "Она работает в офисе 14 на 2 этаже, а не в 200000.",
        "그녀는 2층 14호 사무실에서 일하고 200000호에서는 일하지 않는다.",
    ] {
        for tokens in 1..count_cl100k(text) {
            let out = compress(&[text], "", target(tokens)).text;
            assert!(chunks(&out).is_subset(&chunks(text)), "{tokens}: {out}");
        }
    }
}

#[test]
fn token_granularity_changes_no_figure_and_joins_no_words() {
    let text = "It costs 129.95, or 0.05% of 1,234,567.89 in version 3.2.1 of worker-1, not -5 or +3% (27b).";
    let rows = "id,price\n1,129.95\n2,0.05\n3,12.5\n4,7.25\n5,3.75\n";
    for share in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] {
        for digits in [false, true] {
            let exact = Exact::default()
                .with_granularity(Granularity::Token)
                .with_force_digits(digits);
            let options = (Budget::Rate(share), exact);
            let out = compress(&[text], "", options.clone()).text;
            assert!(chunks(&out).is_subset(&chunks(text)), "{share}: {out}");
            check_lines(rows, &compress(&[rows], "", options).text, "rows");
        }
    }
}

const TOWN: &str = "The town hall was built in 1901. It has a clock and two towers. The roof is green.\n\
    The school stands by the river. It has nine rooms and a yard. Lessons begin at eight.\n\
    The baker opens at six. His bread is dark and sells out by noon.\n\
    The mayor is called Ilse Brandt. She was elected in May and likes to sail.\n";

#[test]
fn a_single_document_is_cut_by_what_its_sentences_are_worth() {
    for share in [0.3, 0.4, 0.5, 0.6] {
        let out = compress(&[TOWN], "Who is the mayor?", rate(share)).text;
        assert!(
            out.contains("The mayor is called Ilse Brandt."),
            "{share}: {out}"
        );
        let out = compress(&[TOWN], "When does the baker open?", rate(share)).text;
        assert!(out.contains("The baker opens at six."), "{share}: {out}");
    }
    // What stays does so in the order of the document, a line apart where it stood lines apart.
    let out = compress(
        &[TOWN],
        "When was the town hall built, and who is the mayor?",
        rate(0.6),
    )
    .text;
    let (hall, mayor) = (out.find("town hall was"), out.find("The mayor is"));
    assert!(
        hall.is_some() && hall < mayor && out[..mayor.unwrap_or(0)].ends_with('\n'),
        "{out}"
    );
}

fn served() -> String {
    (0..12)
        .map(|i| match i {
            7 => "2024-03-01T10:00:07Z ERROR worker-1 lost the database, no more pool left\n"
                .to_string(),
            i => format!(
                "2024-03-01T10:00:{i:02}Z INFO worker-1 served request 1{i:02} in {i:02} ms\n"
            ),
        })
        .collect()
}

#[test]
fn lines_of_a_log_are_whole_and_copies_come_last() {
    let log = served();
    for share in [0.1, 0.2, 0.5, 0.8] {
        let result = compress(&[&log], "Why did the database fail?", rate(share));
        let out = &result.text;
        check_lines(
            &log,
            out.strip_suffix("\n\nWhy did the database fail?")
                .unwrap_or(""),
            out,
        );
        assert!(
            share < 0.2
                || out.contains(
                    "2024-03-01T10:00:07Z ERROR worker-1 lost the database, no more pool left\n"
                ),
            "{out}"
        );
        // Without a question the line unlike the others comes with the first.
        let out = compress(&[&log], "", rate(share)).text;
        assert!(share < 0.2 || out.contains("ERROR"), "{out}");
    }
}

#[test]
fn a_rate_never_fails_and_says_what_it_could_not_do() {
    let question = "Please tell me in one full sentence what this note is about.";
    let result = compress(&["A short note."], question, rate(0.5));
    assert!(result.text.ends_with(question));
    assert!(
        result
            .warnings
            .iter()
            .any(|w| w.contains("instruction and question alone are")),
        "{:?}",
        result.warnings
    );
    let result = compress(&[], question, rate(0.5));
    assert_eq!(result.text, question);
    let result = compress(&[], "", rate(0.5));
    assert_eq!((result.text.as_str(), result.warnings.len()), ("", 0));
    // What is forced stays too.
    let exact = Exact::default()
        .with_force_tokens(vec!["note".into()])
        .with_force_contexts(vec![0]);
    let options = (Budget::Rate(0.1), exact);
    let result = compress(&["A short note."], "", options);
    assert_eq!(result.text, "A short note.");
    assert_eq!(result.warnings.len(), 1, "{:?}", result.warnings);
    // A target is a promise.
    let request = Request::new(["A short note."])
        .with_question(question)
        .with_tokens(5);
    hard::compress(&AnyScores, byte_tokenizer(), &request).unwrap_err();
}

#[test]
fn white_space_does_not_eat_the_budget() {
    let text = format!("a{}b", " ".repeat(3000));
    assert_eq!(compress(&[&text], "", rate(0.5)).text, "a b");
    let text = format!("One line.{}Another line.", "\n".repeat(3000));
    assert_eq!(
        compress(&[&text], "", rate(0.5)).text,
        "One line.\n\nAnother line."
    );
}

#[test]
fn copies_cost_nothing() {
    let other = "The river rises in the hills of the north. It runs through three towns. Its water is cold in May.";
    let three = [TOWN, other, TOWN];
    let result = compress(&three, "", rate(0.6));
    assert_eq!(
        result.text.matches("Ilse Brandt").count(),
        1,
        "{}",
        result.text
    );
    assert!(result.text.contains("cold in May"), "{}", result.text);
    let result = compress(
        &three,
        "",
        (Budget::Rate(0.9), Exact::default().with_dedupe(false)),
    );
    assert_eq!(result.text.matches("town hall").count(), 2);
    // Whatever fits whole is left as it is.
    let result = compress(&three, "", rate(1.0));
    assert_eq!(result.text.matches("Ilse Brandt").count(), 2);
}

#[test]
fn gaps_are_marked_on_request_and_the_marks_are_counted() {
    let options = |mark: &str, share: f64| {
        (
            Budget::Rate(share),
            Exact::default().with_mark(Some(mark.into())),
        )
    };
    let result = compress(&[TOWN], "Who is the mayor?", options("[…]", 0.5));
    assert!(result.text.contains("[…]"), "{}", result.text);
    assert!(result.tokens_after <= result.target.unwrap_or(0));
    let plain = compress(&[RUST], "", rate(0.4)).text;
    assert!(plain.lines().any(|l| l.trim() == "// …"), "{plain}");
    let none = compress(&[RUST], "", options("", 0.4)).text;
    assert!(!none.contains('…'), "{none}");
    let python = compress(&[PYTHON], "", rate(0.4)).text;
    assert!(python.lines().any(|l| l.trim() == "# …"), "{python}");
}

#[test]
fn comments_go_before_code() {
    let code = "import os\n\n# Adds two numbers and gives back what comes out of that.\ndef add(a, b):\n    \"\"\"Gives a and b together, as anybody would.\"\"\"\n    total = a + b\n    return total\n";
    let out = compress(
        &[code],
        "",
        (
            Budget::Rate(0.6),
            Exact::default().with_mark(Some(String::new())),
        ),
    )
    .text;
    assert_eq!(
        out,
        "import os\n\ndef add(a, b):\n    total = a + b\n    return total"
    );
}

#[test]
fn named_kinds_override_what_a_text_looks_like() {
    let text = "One line of words, and more. Another one.\nA second line of words, too. And on.\nA third, shorter.\n";
    let options = (
        Budget::Rate(0.5),
        Exact::default().with_as_kind(Some(ContentKind::Log)),
    );
    check_lines(text, &compress(&[text], "", options).text, "as a log");
}

#[test]
fn long_and_odd_texts_take_linear_time() {
    // Ten times the text takes about ten times as long; a square would take a hundred times.
    let seconds = |length: usize| {
        let start = std::time::Instant::now();
        let fast = || Exact::default().with_effort(Effort::Fast);
        let breaks = format!("a{}b", "\n".repeat(length * 3));
        compress(&[&breaks], "", (Budget::Rate(0.5), fast()));
        let lines = "a\n".repeat(length);
        compress(&[&lines], "", (Budget::Rate(0.5), fast()));
        let words = "some more text here ".repeat(length / 4);
        let options = fast().with_force_tokens(vec!["e".into()]);
        compress(&[&words], "", (Budget::Rate(0.8), options));
        start.elapsed().as_secs_f64()
    };
    let (short, long) = (seconds(10_000), seconds(100_000));
    assert!(long < 40.0 * short, "{short} s, then {long} s");
}
