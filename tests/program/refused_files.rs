//! Files and names that are refused: in one line, soon, and before anything is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{TempDir, tiny};
#[cfg(unix)]
use crate::train_cli::train;
use crate::train_cli::{ends_within, ok, prefold, stderr, tiny_model};

/// Many times what a refusal takes. What waits for ever is ended then.
const PATIENCE: Duration = Duration::from_secs(30);

/// All that lies in a folder and below, with its size.
fn tree(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        // Not that of what a link leads to.
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            found.extend(tree(&entry.path()));
        }
        found.push((entry.path(), meta.len()));
    }
    found.sort();
    found
}

/// The one line that a command says which is refused; it says nothing else and changes nothing in `dir`.
#[track_caller]
fn refused(dir: &TempDir, command: &mut Command) -> String {
    let before = tree(dir.path());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(ends_within(&mut child, PATIENCE), "{command:?} did not end");
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    // One that a signal ended has no code.
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| code != 0),
        "{command:?}: {}: {said}",
        output.status
    );
    assert!(output.stdout.is_empty(), "{command:?}: {output:?}");
    assert!(
        said.starts_with("prefold: ") && said.ends_with('\n') && said.lines().count() == 1,
        "{command:?}: {said}"
    );
    assert_eq!(tree(dir.path()), before, "{command:?} left something");
    said
}

// What a tokenizer.json may say.

/// A model that reads bytes, whose tokenizer.json is changed, and a text.
fn with_tokenizer(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = tiny::byte_model(64);
    let path = dir.path().join("tokenizer.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut file);
    fs::write(path, file.to_string()).unwrap();
    dir.write("text.txt", "A text, x.");
    dir
}

fn with_normalizer(normalizer: &Value) -> TempDir {
    with_tokenizer(|file| file["normalizer"] = normalizer.clone())
}

/// A command that has the text of `dir` read by its tokenizer.
fn reading(dir: &TempDir, command: &str) -> Command {
    let mut reading = prefold();
    reading
        .current_dir(dir.path())
        .args([command, "--device", "cpu", "--model", ".", "text.txt"]);
    reading
}

#[test]
fn a_post_processor_that_puts_many_ids_around_a_text_is_refused() {
    // One token of so many ids, named so often before a text.
    let named = |ids: usize, times: usize| {
        with_tokenizer(|file| {
            let special = json!({"SpecialToken": {"id": "X", "type_id": 0}});
            let text = json!({"Sequence": {"id": "A", "type_id": 0}});
            let mut single = vec![special; times];
            single.push(text);
            file["post_processor"] = json!({
                "type": "TemplateProcessing", "single": single, "pair": single,
                "special_tokens": {"X": {"id": "X", "ids": vec![1; ids], "tokens": vec!["b"; ids]}},
            });
        })
    };
    ok(&mut reading(&named(3, 2), "score"));
    for (ids, times) in [(20_000, 1), (1, 501), (40, 20)] {
        let dir = named(ids, times);
        let said = refused(&dir, &mut reading(&dir, "score"));
        assert!(
            said.contains("tokenizer.json: ") && said.contains("ids around a text"),
            "{said}"
        );
    }
}

#[test]
fn what_makes_a_text_much_longer_is_refused() {
    let replace = |by: usize| {
        let content = "y".repeat(by);
        json!({"type": "Replace", "pattern": {"Regex": "."}, "content": content})
    };
    let prepend = |by: usize| json!({"type": "Prepend", "prepend": "▁".repeat(by)});
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let nfkc = json!({"type": "NFKC"});
    // 256 units of four bytes, none of which knows a character.
    let charsmap = format!("AAQA{}AAA=", "AAAA".repeat(341));
    let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": charsmap});
    let all = |steps: &[&Value]| json!({"type": "Sequence", "normalizers": steps});
    for fine in [
        replace(12),
        all(&[&nfkc, &precompiled]),
        // Llama 2's.
        all(&[&prepend(1), &spaces]),
    ] {
        ok(&mut reading(&with_normalizer(&fine), "score"));
    }
    for bad in [
        replace(13),
        replace(60),
        prepend(20),
        all(&[&nfkc, &precompiled, &replace(2)]),
        all(&[&replace(4), &replace(4)]),
    ] {
        let dir = with_normalizer(&bad);
        let said = refused(&dir, &mut reading(&dir, "score"));
        assert!(
            said.contains("tokenizer.json: ") && said.contains("times as long"),
            "{bad}: {said}"
        );
    }
}

/// What the crate says when it panics, backtraces too, is not shown: the one line says what is to be known.
#[test]
fn a_panic_of_the_tokenizers_crate_is_one_line() {
    for normalizer in [
        json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
    ] {
        let dir = with_normalizer(&normalizer);
        for command in ["score", "compress"] {
            for backtrace in ["0", "1", "full"] {
                let mut reading = reading(&dir, command);
                let said = refused(&dir, reading.env("RUST_BACKTRACE", backtrace));
                assert!(said.contains("tokenizer.json: "), "{normalizer}: {said}");
            }
        }
    }
}

// Files that are not files, or far longer than what they should be.

/// A file of 3 GB that takes no room.
#[cfg(unix)]
fn large(dir: &TempDir) {
    let file = fs::File::create(dir.path().join("large")).unwrap();
    file.set_len(3 << 30).unwrap();
}

/// The program with 500 MB of memory, to which what is mapped of a file does not count.
#[cfg(unix)]
fn with_little_memory(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .current_dir(dir.path())
        .stdin(Stdio::null())
        // A thread's stack counts too, and some machines have many processors.
        .env("RAYON_NUM_THREADS", "2")
        .args(["-c", "ulimit -d 500000 && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_prefold"))
        .args(args);
    command
}

#[cfg(unix)]
#[test]
fn a_ranker_is_a_short_regular_file() {
    let dir = TempDir::new();
    large(&dir);
    ok(Command::new("mkfifo").arg(dir.path().join("pipe")));
    dir.write("text.txt", "A text.");
    for (file, reason) in [
        ("pipe", "pipe: not a regular file"),
        ("large", "large: longer than"),
    ] {
        let args = ["compress", "--ranker", file, "text.txt"];
        let said = refused(&dir, &mut with_little_memory(&dir, &args));
        assert!(said.contains(reason), "{said}");
    }
    // Opening a pipe would wait for its writer.
    let said = refused(&dir, &mut with_little_memory(&dir, &["inspect", "pipe"]));
    assert!(said.contains("pipe: not a regular file"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_log_is_a_regular_file_of_bounded_length() {
    let dir = TempDir::new();
    large(&dir);
    ok(Command::new("mkfifo").arg(dir.path().join("pipe")));
    for (file, reason) in [
        ("pipe", "pipe: not a regular file"),
        ("large", "large: longer than"),
    ] {
        let args = ["plot", file, "-o", "out.svg"];
        let said = refused(&dir, &mut with_little_memory(&dir, &args));
        assert!(said.contains(reason), "{said}");
    }
}

/// They are mapped, as a true prefix or a slot may take gigabytes.
#[cfg(unix)]
#[test]
fn a_large_file_that_is_not_a_prefix_or_slot_takes_no_memory() {
    let dir = tiny_model();
    large(&dir);
    ok(prefold()
        .current_dir(dir.path())
        .args(["prefill", "--model", ".", "--device", "cpu"])
        .args(["--ids", "[1, 2, 3]", "-o", "prefix"]));
    let export = ["export", "prefix", "--to", "llama.cpp", "-o", "out"];
    let template = [&export[..], &["--template", "large"]].concat();
    for args in [
        &["inspect", "large"][..],
        &["export", "large", "--to", "vllm", "-o", "out"],
        &template,
    ] {
        let said = refused(&dir, &mut with_little_memory(&dir, args));
        // What it is not, and not that memory was short.
        assert!(
            said.contains("large: ") && said.contains("not a ") && !said.contains("memory"),
            "{args:?}: {said}"
        );
    }
    // The limit itself is allowed.
    ok(&mut with_little_memory(&dir, &export));
}

// Where a training writes.

#[test]
fn a_run_needs_a_folder_that_may_be_replaced() {
    let dir = tiny_model();
    let work = dir.path().join("work");
    fs::create_dir_all(work.join("sub")).unwrap();
    for out in ["..", ".", "sub/.."] {
        let mut command = prefold();
        command
            .current_dir(&work)
            .args(["train", "regen", "--model", "..", "--device", "cpu"])
            .args([
                "--data",
                "../texts.jsonl",
                "--rank",
                "4",
                "--memory-tokens",
                "2",
            ])
            .args(["--steps", "2", "--out", out]);
        let said = refused(&dir, &mut command);
        assert!(
            said.contains(&format!("--out {out}: "))
                && said.contains("a folder that may be replaced")
                && !said.contains("--log"),
            "{said}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_to_come_stays_one() {
    use std::os::unix::fs::symlink;
    let dir = tiny_model();
    let root = fs::canonicalize(dir.path()).unwrap();
    fs::create_dir(root.join("large")).unwrap();
    for (link, to) in [
        ("relative", PathBuf::from("large/one")),
        ("absolute", root.join("two")),
        ("first", PathBuf::from("second")),
        ("second", PathBuf::from("large/three")),
    ] {
        symlink(to, root.join(link)).unwrap();
    }
    for (link, folder) in [
        ("relative", "large/one"),
        ("absolute", "two"),
        ("first", "large/three"),
    ] {
        for (steps, more) in [(2, None), (4, Some("--resume"))] {
            let mut run = train(&dir, "regen", link);
            run.args(["--save-every", "1", "--steps", &steps.to_string()])
                .args(more);
            ok(&mut run);
            let state = prefold::train::checkpoint::read_state(&root.join(folder)).unwrap();
            assert_eq!(state.step, steps, "{link}");
        }
    }
    for link in ["relative", "absolute", "first", "second"] {
        assert!(root.join(link).is_symlink(), "{link}");
    }
    // As `.one.new`, where a checkpoint is written before it gets its name.
    for (path, _) in tree(&root) {
        let name = path.file_name().unwrap().as_encoded_bytes();
        assert!(!name.starts_with(b"."), "{} is left", path.display());
    }
}

#[cfg(unix)]
#[test]
fn a_resumed_run_keeps_its_folders_mode() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tiny_model();
    // Whatever the mode of new folders is here, it is not both.
    for mode in [0o700, 0o750] {
        let out = format!("run-{mode:o}");
        let folder = dir.path().join(&out);
        let run = |steps: &str| {
            let mut run = train(&dir, "regen", &out);
            run.args(["--save-every", "1", "--steps", steps, "--resume"]);
            ok(&mut run);
        };
        run("2");
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        run("4");
        let state = prefold::train::checkpoint::read_state(&folder).unwrap();
        assert_eq!(state.step, 4);
        let kept = fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        assert_eq!(kept, mode, "{kept:o}");
    }
}

// Names in a request.

#[test]
fn a_name_in_a_request_gives_an_error_of_one_line() {
    const NAME: &str = "first\nsecond\u{202e}third";
    let dir = tiny::byte_model(64);
    let calls = [
        ("tokenize", json!({"text": "a"})),
        ("token_logprobs", json!({"ids": [1]})),
        ("compress", json!({"contexts": ["a"]})),
        ("compress_prompt", json!({"context": ["a"]})),
        ("compress_prompt_llmlingua2", json!({"context": ["a"]})),
        ("compress_messages", json!({"body": {}})),
        (
            "compress_json",
            json!({"json_data": {"a": "b"}, "json_config": {}}),
        ),
        (
            "recover",
            json!({"response": "a", "original_prompt": "a", "compressed_prompt": "a"}),
        ),
        (NAME, json!({})),
    ];
    let rows: String = calls
        .iter()
        .map(|(call, args)| {
            let mut args = args.clone();
            args[NAME] = json!(1);
            format!(
                "{}\n",
                json!({"name": call.len(), "call": call, "args": args})
            )
        })
        .collect();
    dir.write("rows.jsonl", rows);
    let output = prefold()
        .current_dir(dir.path())
        .args(["batch", "--device", "cpu", "--model", ".", "rows.jsonl"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let all = calls.len();
    assert_eq!(
        stderr(&output),
        format!("prefold: {all} of {all} rows failed\n")
    );
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!(answers.lines().count(), all, "{answers}");
    for (line, (call, _)) in answers.lines().zip(&calls) {
        let answer: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer["name"], call.len());
        let said = answer["error"].as_str().expect(line);
        // It is still to be seen which name it is.
        for part in ["first", "second", "third"] {
            assert!(said.contains(part), "{call:?}: {said}");
        }
        assert!(!said.contains(['\n', '\u{202e}']), "{call:?}: {said:?}");
    }
}
