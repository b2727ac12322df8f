//! The program as a user meets it: the built binary, good input and bad.

use crate::common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// What a run of the program left.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Its output, of a run that must have succeeded.
    #[track_caller]
    fn good(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        self.out
    }

    /// Its complaint, of a run that must have failed with `code`, in one line, printing nothing.
    #[track_caller]
    fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        let line = self.err.strip_prefix("prefold: ").expect(&self.err);
        line.trim_end().into()
    }
}

/// Runs the program in the checkout, with `input` as its standard input.
#[track_caller]
fn run_with(input: &[u8], args: &[&str]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A thread of its own, as a batch answers before it has read everything; a program that stops
    // early closes the pipe.
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    let ran = Ran {
        code: output.status.code().expect("ended by a signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran
}

#[track_caller]
fn run(args: &[&str]) -> Ran {
    run_with(b"", args)
}

/// A folder for one test's files.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("prefold-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().into()
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The model's path; without it the test is over, as `smollm2` has said.
macro_rules! model_or_skip {
    () => {
        match common::smollm2() {
            Some(path) => path.to_str().unwrap().to_string(),
            None => return,
        }
    };
}

const DOCUMENT: &str = "examples/peps/pep-0418.txt";
const QUESTION: &str = "examples/peps/question.txt";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

// Bad input, before a model is needed.

#[cfg(not(feature = "serve"))]
#[test]
fn a_command_that_was_not_built_names_its_feature() {
    let said = run_with(b"", &["serve", "--port", "0"]).bad(2);
    assert!(said.contains("--features serve"), "{said}");
}

#[test]
fn a_conversation_comes_back_as_the_same_json_shorter() {
    let Some(model) = common::smollm2() else {
        return;
    };
    let model = model.to_str().unwrap();
    let file = "tests/data/gallery/conversation.json";
    let messages = ["compress", "--model", model, "--quiet", "--rate", "0.4"];
    let short = run(&[&messages[..], &["--messages", file]].concat()).good();
    let given = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    assert!(short.len() < given.len());
    let [was, is]: [Value; 2] =
        [&given, &short].map(|text| serde_json::from_str(text).expect("JSON"));
    for same in ["model", "max_tokens", "system", "tools"] {
        assert_eq!(was[same], is[same]);
    }
    let turns = |body: &Value| body["messages"].as_array().unwrap().len();
    assert_eq!(turns(&was), turns(&is));
    // By its other name, and from standard input.
    let fast = [&messages[..], &["--effort=fast"]].concat();
    let short = run(&[&fast[..], &["--messages", file]].concat()).good();
    let named = run(&[&fast[..], &["--as", "chat", file]].concat()).good();
    assert_eq!(named, short);
    let piped = run_with(given.as_bytes(), &[&fast[..], &["--as=chat"]].concat());
    assert_eq!(piped.good(), short);
    let two = run(&[&messages[..], &["--as=chat", file, file]].concat()).bad(2);
    assert!(two.contains("one FILE"), "{two}");
    let shown = run(&[&messages[..], &["--as=chat", "--show", file]].concat()).bad(2);
    assert!(shown.contains("--show"), "{shown}");
    let broken = run_with(
        b"{\"messages\": 3",
        &[&messages[..], &["--as=chat"]].concat(),
    );
    broken.bad(1);
}

#[test]
fn a_command_line_that_makes_no_sense_is_told_so_in_a_line() {
    for (args, about) in [
        (&["compress", "--frobnicate"][..], "--frobnicate"),
        (&["compress", "--rate", "half"], "--rate"),
        (&["compress", "--rank-method", "bge"], "longllmlingua"),
        (
            &["compress", "--force-context-ids", "1,x"],
            "--force-context-ids",
        ),
        (
            &["compress", "--reference", "--granularity=token"],
            "--reference",
        ),
        (
            &[
                "compress",
                "--reference",
                "--no-strict-preserve-uncompressed",
            ],
            "--structured",
        ),
        (&["compress", "--iterative-size", "100"], "--reference"),
        (&["compress", "--no-token-level-filter"], "--reference"),
        (&["compress", "-", "-"], "standard input"),
        (&["compress", "-q", "@-"], "standard input"),
        (&["score"], "<FILE>"),
        (&["batch"], "<CASES.jsonl>"),
        (&["explode"], "explode"),
    ] {
        let line = run(args).bad(2);
        assert!(line.contains(about), "{args:?}: {line}");
    }
}

#[test]
fn help_and_version_are_not_errors() {
    assert!(run(&["--help"]).good().contains("compress"));
    assert!(run(&["compress", "--help"]).good().contains("--rate"));
    assert!(run(&["--version"]).good().starts_with("prefold "));
    let nothing = run(&[]);
    assert_eq!(nothing.code, 2);
    assert!(nothing.err.contains("Usage"), "{}", nothing.err);
}

#[test]
fn a_rate_outside_its_range_is_named_with_the_range() {
    for rate in ["0", "2", "-1", "NaN", "inf", "-0", "0%", "101%"] {
        let line = run(&["compress", "--rate", rate, DOCUMENT]).bad(2);
        assert!(line.contains("rate") && line.contains("(0, 1]"), "{line}");
    }
    for target in ["-1", "NaN", "inf", "90.5"] {
        let line = run(&["compress", "--target-token", target, DOCUMENT]).bad(2);
        assert!(line.contains("--target-token"), "{line}");
    }
    let line = run(&["compress", "-t", "90", "-r", "0.5", DOCUMENT]).bad(2);
    assert!(line.contains("--rate"), "{line}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = Folder::new("unreadable");
    let missing = folder.path("missing.txt");
    let directory = folder.path(".");
    for path in [&missing, &directory] {
        for args in [
            &["compress", path.as_str()][..],
            &["compress", DOCUMENT, path],
            &["score", path],
        ] {
            let line = run(args).bad(1);
            assert!(line.contains(path.as_str()), "{args:?}: {line}");
        }
    }
    // Perhaps the text itself begins with @, so the command line is at fault.
    let line = run(&["compress", "-q", &format!("@{missing}"), DOCUMENT]).bad(2);
    assert!(line.contains(&missing) && line.contains("@@"), "{line}");
    let line = run(&["batch", &missing]).bad(1);
    assert!(line.contains(&missing), "{line}");
}

#[test]
fn text_that_is_not_utf8_is_named_with_the_byte() {
    let folder = Folder::new("utf8");
    let bytes = b"caf\xc3\xa9, caf\xe9";
    let file = folder.file("latin1.txt", bytes);
    for command in ["compress", "score"] {
        let line = run(&[command, &file]).bad(1);
        assert_eq!(
            line,
            format!("{file}: not UTF-8 at byte 10; save it as UTF-8")
        );
        let line = run_with(bytes, &[command, "-"]).bad(1);
        assert_eq!(
            line,
            "standard input: not UTF-8 at byte 10; save it as UTF-8"
        );
    }
}

#[test]
fn a_model_that_is_none_is_named() {
    let folder = Folder::new("models");
    let noise: Vec<u8> = (0..5000u32).map(|i| (i * i % 251) as u8).collect();
    for path in [
        folder.path("missing.gguf"),
        folder.file("empty.gguf", b""),
        folder.file("noise.gguf", &noise),
        folder.file("magic-only.gguf", b"GGUF\x03\0\0\0"),
        folder.path("."),
    ] {
        for args in [
            &["compress", "-m", path.as_str(), DOCUMENT][..],
            &["score", "-m", &path, DOCUMENT],
            &["batch", "-m", &path, "-"],
        ] {
            let line = run(args).bad(1);
            let name = path.trim_end_matches('.');
            assert!(line.contains(name), "{args:?}: {line}");
        }
    }
}

#[test]
fn a_truncated_model_is_named() {
    let model = model_or_skip!();
    let folder = Folder::new("truncated");
    let whole = fs::read(model).unwrap();
    for length in [whole.len() - 1, whole.len() / 2, 100_000, 30] {
        let path = folder.file("cut.gguf", &whole[..length]);
        let line = run(&["compress", "--model", &path, DOCUMENT]).bad(1);
        assert!(line.contains("cut.gguf"), "{line}");
    }
}

#[test]
fn without_any_model_it_says_how_to_get_one() {
    let folder = Folder::new("no-model");
    let program = folder.path("prefold");
    fs::copy(env!("CARGO_BIN_EXE_prefold"), &program).unwrap();
    let text = folder.file("text.txt", b"Hello there.");
    let output = Command::new(program)
        .current_dir(&folder.0)
        .env_remove("PREFOLD_MODEL")
        .env("PREFOLD_CACHE", folder.path("cache"))
        .env("HF_HOME", folder.path("hub"))
        .env("XDG_CONFIG_HOME", folder.path("config"))
        .args(["compress", &text])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("prefold: --model: "), "{said}");
    assert!(said.contains("prefold models pull"), "{said}");
}

// Compressing.

#[test]
fn an_empty_prompt_compresses_to_itself() {
    let model = model_or_skip!();
    for mode in [&[][..], &["--reference"], &["--structured"]] {
        let args = [&["compress", "-m", &model], mode].concat();
        assert_eq!(run(&args).good(), "", "{mode:?}");
    }
    let folder = Folder::new("empty");
    let file = folder.file("empty.txt", b"");
    assert_eq!(run(&["compress", "-m", &model, &file]).good(), "");
}

#[test]
fn white_space_alone_counts_neither_before_nor_after() {
    let model = model_or_skip!();
    let folder = Folder::new("blank");
    let file = folder.file("blank.txt", b" \n\n\t \n");
    let ran = run(&["compress", "-m", &model, &file]);
    assert!(ran.err.starts_with("prefold: 0 -> 0 tokens"), "{}", ran.err);
    assert_eq!(ran.good().trim(), "");
}

#[test]
fn the_text_goes_to_stdout_and_one_line_to_stderr() {
    let model = model_or_skip!();
    let question = format!("@{QUESTION}");
    let args = ["compress", "-m", &model, "-q", &question, DOCUMENT];
    let ran = run(&args);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains(" tokens/s"), "{}", ran.err);
    let text = ran.good();
    assert!(text.ends_with(read(QUESTION).trim_end()), "{text}");
    assert!(text.len() < read(DOCUMENT).len());

    let quiet = run(&[&args[..], &["--quiet"]].concat());
    assert_eq!(quiet.err, "");
    assert_eq!(quiet.good(), text);

    let piped = run_with(read(DOCUMENT).as_bytes(), &[&args[..5], &["-"]].concat());
    assert_eq!(piped.good(), text);
}

#[test]
fn json_has_the_references_keys_and_the_time() {
    let model = model_or_skip!();
    let out = run(&["compress", "-m", &model, "--json", "-t", "100", DOCUMENT]).good();
    let row: Value = serde_json::from_str(&out).unwrap();
    for key in ["compressed_prompt", "ratio", "rate", "saving", "model"] {
        assert!(row[key].is_string(), "{key}: {row}");
    }
    for key in ["origin_tokens", "compressed_tokens"] {
        assert!(row[key].is_u64(), "{key}: {row}");
    }
    for key in ["seconds", "tokens_per_second", "load_seconds"] {
        assert!(row[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {row}");
    }
    let kept = row["compressed_tokens"].as_i64().unwrap();
    assert!(
        (95..=100).contains(&kept),
        "asked for 100 tokens, got {kept}"
    );
    // And what is left of each context.
    assert_eq!(
        (&row["target"], &row["warnings"]),
        (&json!(100), &json!([]))
    );
    let contexts = row["contexts"].as_array().unwrap();
    assert_eq!(contexts.len(), 1);
    assert_eq!(contexts[0]["index"], 0);
    assert_eq!(contexts[0]["tokens"], row["compressed_tokens"]);
    assert_eq!(contexts[0]["text"], row["compressed_prompt"]);
    let span = contexts[0]["spans"][0].as_array().unwrap();
    let [start, end] = [0, 1].map(|i| span[i].as_u64().unwrap() as usize);
    let text = row["compressed_prompt"].as_str().unwrap();
    assert!(text.starts_with(&read(DOCUMENT)[start..end]) && start < end);
}

#[test]
fn show_brackets_what_was_dropped_and_loses_nothing() {
    let model = model_or_skip!();
    for mode in [
        "--granularity=token",
        "--granularity=sentence",
        "--reference",
    ] {
        let args = ["compress", "-m", &model, mode, "--show", DOCUMENT];
        let plain = run(&args).good();
        assert!(plain.contains("[-") && !plain.contains('\u{1b}'), "{plain}");
        let original = plain.replace("[-", "").replace("-]", "");
        assert_eq!(original.trim_end(), read(DOCUMENT).trim_end(), "{mode}");
    }
    // How it is drawn is the same for all of them.
    let args = ["compress", "-m", &model, "--effort=fast", "--show"];
    let coloured = run(&[&args[..], &["--color=always", DOCUMENT]].concat()).good();
    assert!(
        coloured.contains("\u{1b}[9m") && !coloured.contains("[-"),
        "{coloured}"
    );
}

#[test]
fn html_is_one_page_with_the_numbers() {
    let model = model_or_skip!();
    let folder = Folder::new("html");
    let page = folder.path("page.html");
    run(&["compress", "-m", &model, "--html", &page, DOCUMENT]).good();
    assert_eq!(folder.names(), ["page.html"]);
    let page = fs::read_to_string(page).unwrap();
    for part in [
        "<!doctype html>",
        "tokens before",
        "<del",
        "title=\"",
        "</html>",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn an_output_file_is_whole_or_not_there() {
    let model = model_or_skip!();
    let folder = Folder::new("output");
    let target = folder.file("out.txt", b"old");
    let link = folder.path("link.txt");
    std::os::unix::fs::symlink("out.txt", &link).unwrap();
    let args = ["compress", "-m", &model, "-t", "50", DOCUMENT];
    let text = run(&args).good();
    let with = |path: &str| run(&[&args[..], &["-o", path]].concat());

    // Through a link: the link stays one, and no other file is left.
    assert_eq!(with(&link).good(), "");
    assert_eq!(fs::read_to_string(&target).unwrap(), text);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(folder.names(), ["link.txt", "out.txt"]);

    // A device is written to, not replaced.
    with("/dev/null").good();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());

    let line = with(&folder.path("no/such/folder/out.txt")).bad(1);
    assert!(line.contains("no/such/folder"), "{line}");
    // An error before the writing leaves the old file as it was.
    let line = run(&["compress", "-m", &model, "-o", &target, "/no/such/file"]).bad(1);
    assert!(line.contains("/no/such/file"), "{line}");
    assert_eq!(fs::read_to_string(&target).unwrap(), text);
}

#[test]
fn a_closed_pipe_ends_it_with_one_line() {
    let model = model_or_skip!();
    let folder = Folder::new("pipe");
    let row = json!({"name": "t", "call": "tokenize", "args": {"text": "a b c"}});
    let rows = folder.file("rows.jsonl", format!("{row}\n").repeat(50).as_bytes());
    for args in [
        &["compress", "-m", &model, DOCUMENT][..],
        &["compress", "-m", &model, "--json", DOCUMENT],
        &["score", "-m", &model, "--json", DOCUMENT],
        &["batch", "-m", &model, &rows],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_prefold"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.starts_with("prefold: standard output"),
            "{args:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    }
}

#[test]
fn a_closed_standard_error_does_not_matter() {
    let model = model_or_skip!();
    let mut child = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["compress", "-m", &model, "-t", "50", DOCUMENT])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.is_empty());
}

// Scoring.

#[test]
fn score_gives_perplexity_and_every_token() {
    let model = model_or_skip!();
    let text = "The owl flew over the naïve 東京 barn.";
    let out = run_with(text.as_bytes(), &["score", "-m", &model, "--json", "-"]).good();
    let report: Value = serde_json::from_str(&out).unwrap();
    let tokens = report["per_token"].as_array().unwrap();
    assert_eq!(report["tokens"], tokens.len());
    assert!(tokens[0]["nll"].is_null());
    let nll: Vec<f64> = tokens[1..]
        .iter()
        .map(|t| t["nll"].as_f64().unwrap())
        .collect();
    let mean = nll.iter().sum::<f64>() / nll.len() as f64;
    assert!((report["mean_nll"].as_f64().unwrap() - mean).abs() < 1e-4);
    assert!((report["perplexity"].as_f64().unwrap() / mean.exp() - 1.0).abs() < 1e-3);
    let whole: String = tokens[..3]
        .iter()
        .map(|t| t["text"].as_str().unwrap())
        .collect();
    assert!(text.starts_with(&whole), "{whole}");

    let plain = run_with(text.as_bytes(), &["score", "-m", &model, "-"]).good();
    assert!(plain.contains("perplexity"), "{plain}");
    let empty = run(&["score", "-m", &model, "--json", "-"]).good();
    let empty: Value = serde_json::from_str(&empty).unwrap();
    assert_eq!(
        (&empty["tokens"], &empty["perplexity"]),
        (&json!(0), &Value::Null)
    );
}

// Batches.

/// The answers to `rows`, and whether the exit code was 0.
#[track_caller]
fn batch(model: &str, rows: &str) -> (Vec<Value>, Ran) {
    let ran = run_with(rows.as_bytes(), &["batch", "-m", model, "-"]);
    let answers = ran.out.lines();
    (
        answers
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
        ran,
    )
}

#[test]
fn a_batch_answers_in_order_and_continues_after_bad_rows() {
    let model = model_or_skip!();
    let good = json!({"name": "good", "call": "tokenize", "args": {"text": "Hello, world!"}});
    let bad = [
        (
            json!({"name": 1, "call": "compress_prompt", "args": {"context": "a", "rate": "x"}}),
            "`rate`",
        ),
        (
            json!({"name": 2, "call": "compress_prompt", "args": {"context": "a b c", "rate": 2}}),
            "(0, 1]",
        ),
        (
            json!({"name": 3, "call": "compress_prompt", "args": {"context": "a", "ratio": 1}}),
            "`ratio`",
        ),
        (
            json!({"name": 4, "call": "compress_prompt", "args": {}}),
            "`context`",
        ),
        (json!({"name": 5, "call": "explode", "args": {}}), "explode"),
        (
            json!({"name": 6, "call": "tokenize", "args": {"txt": "a"}}),
            "`text`",
        ),
        (
            json!({"name": 7, "call": "token_logprobs", "args": {"text": "a", "ids": [1]}}),
            "one of",
        ),
        (
            json!({"name": 8, "call": "token_logprobs", "args": {"ids": [4294967295u32, 5]}}),
            "",
        ),
        (
            json!({"name": 9, "call": "token_logprobs", "args": {"ids": [-5]}}),
            "`ids`",
        ),
        (json!({"name": 10, "call": "tokenize"}), "`args`"),
        (json!({"name": 11, "args": {}}), "`call`"),
        (
            json!({"name": 12, "call": "tokenize", "args": []}),
            "`args`",
        ),
    ];
    let mut rows = String::new();
    for (row, _) in &bad {
        rows += &format!("{row}\n{good}\n\n");
    }
    rows += "{\"name\": \"broken\n[1]\n{\"call\": \"tokenize\", \"args\": {}}\n";
    let (answers, ran) = batch(&model, &rows);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err.trim(),
        format!(
            "prefold: {} of {} rows failed",
            bad.len() + 3,
            2 * bad.len() + 3
        )
    );
    assert_eq!(answers.len(), 2 * bad.len() + 3);
    for (pair, (row, about)) in answers.chunks(2).zip(&bad) {
        assert_eq!(pair[0]["name"], row["name"]);
        let said = pair[0]["error"].as_str().expect("no error");
        assert!(said.contains(about), "{row}: {said}");
        assert!(pair[0].get("result").is_none());
        assert_eq!(
            pair[1],
            json!({"name": "good", "result": {"ids": [19556, 28, 905, 17]}})
        );
    }
    for answer in &answers[2 * bad.len()..] {
        assert!(
            answer["name"].is_null() && answer["error"].is_string(),
            "{answer}"
        );
    }
}

#[test]
fn a_batch_of_good_rows_succeeds() {
    let model = model_or_skip!();
    let context = read(DOCUMENT);
    let rows = [
        json!({"name": "r", "call": "compress_prompt", "args": {"context": context, "rate": 0.5}}),
        json!({"name": "e", "call": "compress_prompt", "args": {"context": [context], "target_token": 80, "budget": "exact"}}),
        json!({"name": "s", "call": "structured_compress_prompt", "args": {
            "context": ["<llmlingua, compress=False>Keep me.</llmlingua><llmlingua, rate=0.5>But not all of this long and winding sentence about nothing.</llmlingua>"]}}),
        json!({"name": "c", "call": "compress", "args": {
            "contexts": ["Keep me.", context], "question": "Why?", "target_tokens": 90, "force_contexts": [0]}}),
        json!({"name": "t", "call": "tokenize", "args": {"text": "<|im_start|>", "parse_special": true}}),
        json!({"name": "p", "call": "token_logprobs", "args": {"ids": [19556, 28, 905, 17]}}),
    ];
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let (answers, ran) = batch(&model, &lines);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    for (answer, row) in answers.iter().zip(&rows) {
        assert_eq!(answer["name"], row["name"]);
    }
    for answer in &answers[..3] {
        let keys: Vec<&String> = answer["result"].as_object().unwrap().keys().collect();
        let want = [
            "compressed_prompt",
            "origin_tokens",
            "compressed_tokens",
            "ratio",
            "rate",
            "saving",
        ];
        assert_eq!(keys, want);
    }
    let kept = answers[1]["result"]["compressed_tokens"].as_i64().unwrap();
    // A ceiling; words and figures are whole.
    assert!((75..=80).contains(&kept), "asked for 80 tokens, got {kept}");
    let text = answers[2]["result"]["compressed_prompt"].as_str().unwrap();
    assert!(text.starts_with("Keep me."), "{text}");
    let own = answers[3]["result"].as_object().unwrap();
    let keys: Vec<&String> = own.keys().collect();
    let want = [
        "text",
        "tokens_before",
        "tokens_after",
        "target",
        "contexts",
        "warnings",
    ];
    assert_eq!(keys, want);
    assert_eq!(own["target"], 90);
    let after = own["tokens_after"].as_u64().unwrap();
    assert!((80..=90).contains(&after), "{after}");
    let contexts = own["contexts"].as_array().unwrap();
    assert_eq!(contexts.len(), 2);
    let forced = contexts.iter().find(|kept| kept["index"] == 0).unwrap();
    assert_eq!(
        (&forced["text"], &forced["spans"]),
        (&json!("Keep me."), &json!([[0, 8]]))
    );
    assert_eq!(answers[4]["result"]["ids"], json!([1]));
    assert_eq!(
        answers[5]["result"]["logprobs"].as_array().unwrap().len(),
        3
    );
}

#[test]
fn a_batch_gives_the_references_own_results() {
    let model = model_or_skip!();
    let Some(shared) = common::shared() else {
        return;
    };
    let golden = fs::read_to_string(shared.join("golden/llmlingua.jsonl")).unwrap();
    let quick = ["short", "gsm1_t150", "struct_json", "lp_gsm", "lp_unicode"];
    let rows: Vec<Value> = golden
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|row: &Value| quick.contains(&row["name"].as_str().unwrap()))
        .collect();
    assert_eq!(rows.len(), quick.len());
    // As they are: a row's other fields do not matter.
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let (answers, ran) = batch(&model, &lines);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for (answer, row) in answers.iter().zip(&rows) {
        let (got, want) = (&answer["result"], &row["result"]);
        let Some(logprobs) = want["logprobs"].as_array() else {
            assert_eq!(got, want, "{}", row["name"]);
            continue;
        };
        assert_eq!(got["ids"], want["ids"]);
        assert_eq!(got["logprobs"].as_array().unwrap().len(), logprobs.len());
        for (got, want) in got["logprobs"].as_array().unwrap().iter().zip(logprobs) {
            let apart = (got.as_f64().unwrap() - want.as_f64().unwrap()).abs();
            assert!(apart < 2e-3, "{}: {got} is not {want}", row["name"]);
        }
    }
}

/// The first Ctrl-C ends a command in good order, whatever it is at.
#[test]
#[cfg(target_os = "linux")]
fn an_interrupt_ends_a_command_in_good_order() {
    let model = model_or_skip!();
    let folder = Folder::new("interrupted");
    let long = folder.path("long.txt");
    fs::write(&long, read(DOCUMENT).repeat(200)).unwrap();
    let out = folder.path("out.txt");
    for args in [
        &["compress", "--reference", "-o", &out][..],
        &["score", "--json"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_prefold"))
            .args(args)
            .args(["-m", &model, "--device", "cpu", &long])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id();
        // The signal is caught from the moment when the work begins.
        let caught = || {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 2 != 0)
        };
        while !caught() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{args:?} was too quick"
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let told = Command::new("kill")
            .args(["-INT", &id.to_string()])
            .status();
        assert!(told.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{args:?}: {said}");
        assert_eq!(said, "prefold: interrupted\n", "{args:?}");
        assert!(
            output.stdout.is_empty() && !Path::new(&out).exists(),
            "{args:?}"
        );
    }
}
