//! The commands about KV prefixes as a user meets them: the built binary, good input and bad.

use crate::common;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const IDS: &str = "[5, 17, 101, 9, 44, 230, 12, 66, 81, 3, 150, 27]";

/// Exit code, standard output, standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = done.status.code().expect("ended by a signal");
    (code, text(done.stdout), text(done.stderr))
}

#[track_caller]
fn good(arguments: &[&str]) -> String {
    let (code, out, err) = run(arguments);
    assert_eq!(code, 0, "{err}");
    out
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&good(arguments)).unwrap()
}

/// The complaint of a run that must fail with code 1 in one line, leaving no output.
#[track_caller]
fn bad(arguments: &[&str], says: &[&str]) {
    refused(1, arguments, says);
}

fn refused(exit: i32, arguments: &[&str], says: &[&str]) {
    let (code, out, err) = run(arguments);
    assert_eq!((code, out.as_str()), (exit, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("prefold: "), "{err}");
    for word in says {
        assert!(err.contains(word), "{err:?} does not say {word:?}");
    }
}

struct Case {
    folder: common::TempDir,
    golden: PathBuf,
}

impl Case {
    fn new() -> Option<Self> {
        Some(Case {
            golden: common::shared()?.join("golden"),
            folder: common::TempDir::new(),
        })
    }

    fn golden(&self, name: &str) -> String {
        self.golden.join(name).display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A prefilled prefix of `model`.
    fn prefilled(&self, model: &str, more: &[&str]) -> String {
        let path = self.path(&model.replace('/', "-"));
        let model = self.golden(model);
        let common = ["prefill", "--ids", IDS, "-m", &model, "-o", &path];
        good(&[&common, more].concat());
        path
    }
}

#[test]
fn a_prefilled_prefix_is_shown_read_and_exported() {
    let Some(case) = Case::new() else { return };
    let model = case.golden("500x/tiny");
    let prefix = case.prefilled("500x/tiny", &["--dtype", "f32"]);
    let shown = json(&["inspect", "--json", &prefix]);
    assert_eq!(shown["shape"]["tokens"], 12);
    assert_eq!(shown["next_pos"], 12);
    assert_eq!(shown["source_ids"].to_string(), IDS.replace(' ', ""));
    let text = good(&["inspect", &prefix]);
    assert!(
        text.contains("prefill") && text.contains("12 rows"),
        "{text}"
    );

    let asked = [
        "generate",
        "--json",
        "--ignore-eos",
        "-n",
        "6",
        "-m",
        &model,
    ];
    let after = [&asked[..], &["-p", &prefix, "--prompt-ids", "[7, 8]"]].concat();
    let whole = format!("{}, 7, 8]", IDS.trim_end_matches(']'));
    let whole = [&asked[..], &["--prompt-ids", &whole]].concat();
    let (after, whole) = (json(&after), json(&whole));
    assert_eq!(after["ids"], whole["ids"]);
    assert_eq!(after["ids"].as_array().unwrap().len(), 6);
    assert_eq!(after["prefix_tokens"], 12);
    assert_eq!(after["prompt_ids"].to_string(), "[7,8]");

    let out = case.path("out");
    let told = json(&["export", "--to", "llama.cpp", &prefix, "-o", &out]);
    assert_eq!(told["tokens"], shown["source_ids"]);
    let bytes = std::fs::metadata(&out).unwrap().len();
    assert_eq!(told["bytes"], bytes);
    let told = json(&["export", "--to", "transformers", &prefix, "-o", &out]);
    assert_eq!(told["next_pos"], 12);
    let told = json(&["export", "--to", "vllm", &prefix, "-o", &out]);
    assert_eq!(told["kv_transfer_params"]["prefix"], "out");
    assert_eq!(told["cache_salt"], shown["content_id"]);
}

#[test]
fn a_soft_prefix_is_encoded_and_read_greedily_and_by_seed() {
    let Some(case) = Case::new() else { return };
    let (model, adapter) = (
        case.golden("500x/tiny"),
        case.golden("500x/tiny-adapter-qv"),
    );
    let prefix = case.path("soft");
    let encode = [
        "encode", "-a", &adapter, "-m", &model, "-o", &prefix, "--ids", IDS,
    ];
    good(&encode);
    let shown = json(&["inspect", "--json", &prefix]);
    assert_eq!(shown["origin"]["method"], "500xcompressor");
    assert_eq!(shown["origin"]["source_tokens"], 12);
    assert_eq!(shown["next_pos"], shown["shape"]["tokens"]);
    let asked = [
        "generate",
        "-p",
        &prefix,
        "--prompt-ids",
        "[1]",
        "--json",
        "--ignore-eos",
        "-n",
        "20",
        "-m",
        &model,
    ];
    let ids = |more: &[&str]| json(&[&asked[..], more].concat())["ids"].clone();
    let greedy = ids(&[]);
    let sampled = ids(&["--temperature", "2", "--seed", "3"]);
    assert_ne!(sampled, greedy);
    assert_eq!(ids(&["--temperature", "2", "--seed", "3"]), sampled);
    assert_eq!(ids(&["--temperature", "2", "--top-p", "1e-6"]), greedy);
    // Pieces of six tokens have a run of memory tokens each.
    good(&[&encode[..], &["--piece-tokens", "6"]].concat());
    let cut = json(&["inspect", "--json", &prefix]);
    assert_eq!(cut["origin"]["pieces"], 2);
    let rows = shown["shape"]["tokens"].as_u64().unwrap();
    assert_eq!(cut["shape"]["tokens"], 2 * rows);
}

/// The adapter that comes with the crate, chosen by the model: much of a short text comes back.
#[test]
fn the_default_adapter_is_for_the_default_model() {
    let folder = common::TempDir::new();
    let prefix = folder.path().join("prefix").display().to_string();
    let Some(model) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2; `make model` fetches it");
        return;
    };
    let model = model.display().to_string();
    let text = "The town lies on the river and was first settled in the nineteenth century.";
    let encode = |model: &str| {
        run(&[
            "encode", "--text", text, "-m", model, "-o", &prefix, "--device", "cpu",
        ])
    };
    let (code, _, err) = encode(&model);
    assert_eq!(code, 0, "{err}");
    let asked = ["generate", "-p", &prefix, "-m", &model, "--device", "cpu"];
    let back = good(&asked);
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric());
        words.map(str::to_lowercase).collect()
    };
    let back = words(&back);
    let found = words(text).iter().filter(|w| back.contains(w)).count();
    assert!(found * 2 > words(text).len(), "{back:?}");

    let Some(shared) = common::shared() else {
        return;
    };
    let other = shared.join("golden/500x/tiny").display().to_string();
    let (code, _, err) = run(&["encode", "--ids", IDS, "-m", &other, "-o", &prefix]);
    assert_eq!((code, err.lines().count()), (2, 1), "{err}");
    assert!(err.contains("--adapter"), "{err}");
}

/// A prompt is read as `generate` reads one, and a compressed one goes in by a pipe.
#[test]
fn prompts_are_prefilled_compressed_or_not() {
    let Some(model) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2; `make model` fetches it");
        return;
    };
    let model = model.display().to_string();
    let folder = common::TempDir::new();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (prefix, short) = (path("prefix"), path("short"));
    let text = "<|im_start|>user\nThe old lighthouse on the rock was built by an engineer from Leeds in the \
                year 1887, and today it is a museum with nine rooms.";
    let tail = "<|im_end|>\n<|im_start|>assistant\n";
    let more = ["--json", "--ignore-eos", "-n", "6", "-m", &model];
    let check = |text: &str| {
        let after = ["generate", "-p", &prefix, "--prompt", tail];
        let after = json(&[&after[..], &more].concat());
        let whole = format!("{text}{tail}");
        let whole = json(&[&["generate", "--prompt", &whole], &more[..]].concat());
        let read = json(&["inspect", "--json", &prefix])["source_ids"].clone();
        let ids = |value: &Value| value.as_array().unwrap().clone();
        let joined = [ids(&read), ids(&after["prompt_ids"])].concat();
        assert_eq!(Value::from(joined), whole["prompt_ids"]);
        assert_eq!(after["ids"], whole["ids"]);
        ids(&read).len()
    };
    good(&["prefill", "--text", text, "-m", &model, "-o", &prefix]);
    let all = check(text);
    let source = folder.write("text", text);
    let source = source.display().to_string();
    let compress = ["compress", "--rate", "0.6", "-m", &model, "-o", &short];
    good(&[&compress[..], &[&source]].concat());
    good(&["prefill", &short, "-m", &model, "-o", &prefix]);
    let some = check(&std::fs::read_to_string(&short).unwrap());
    assert!(some < all, "{some} of {all}");
}

#[test]
fn what_cannot_be_right_is_one_line() {
    let Some(case) = Case::new() else { return };
    let (model, out) = (case.golden("500x/tiny"), case.path("out"));
    let other = case.golden("models/llama3");
    let nowhere = case.path("nowhere");
    let prefix = case.prefilled("500x/tiny", &[]);
    let read = |prefix: &str, model: &str, says: &[&str]| {
        bad(
            &[
                "generate",
                "-p",
                prefix,
                "--prompt-ids",
                "[1]",
                "--json",
                "-m",
                model,
            ],
            says,
        );
    };
    // Both models are named.
    read(&prefix, &other, &["tiny", "llama3"]);
    let bytes = std::fs::read(&prefix).unwrap();
    for cut in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        let short = case.folder.write("short", &bytes[..cut]);
        read(&short.display().to_string(), &model, &["short"]);
        bad(&["inspect", &short.display().to_string()], &["short"]);
        bad(
            &[
                "export",
                "--to",
                "llama.cpp",
                &short.display().to_string(),
                "-o",
                &out,
            ],
            &["short"],
        );
    }
    read(&nowhere, &model, &["nowhere"]);
    bad(
        &[
            "encode", "-a", &nowhere, "--ids", IDS, "-m", &model, "-o", &out,
        ],
        &["nowhere"],
    );
    let adapter = case.golden("500x/tiny-adapter-qv");
    bad(
        &[
            "encode", "-a", &adapter, "--ids", IDS, "-m", &other, "-o", &out,
        ],
        &["adapter"],
    );
    for command in [vec!["prefill"], vec!["encode", "-a", &adapter]] {
        let common = ["-m", &model, "-o", &out];
        bad(
            &[&command[..], &["--ids", "[]"], &common].concat(),
            &["no tokens"],
        );
        bad(
            &[&command[..], &["--ids", "[99999]"], &common].concat(),
            &["99999"],
        );
    }
    for rate in ["0", "1.5", "-1", "NaN"] {
        let keep = format!("--keep={rate}");
        refused(
            2,
            &["prefill", "--ids", IDS, &keep, "-m", &model, "-o", &out],
            &["--keep", rate],
        );
    }
    let template = case.folder.write("template", b"no slot at all");
    let template = template.display().to_string();
    bad(
        &[
            "export",
            "--to",
            "llama.cpp",
            "--template",
            &template,
            &prefix,
            "-o",
            &out,
        ],
        &["template"],
    );
    bad(
        &[
            "export",
            "--to",
            "llama.cpp",
            "--slot-version",
            "5",
            &prefix,
            "-o",
            &out,
        ],
        &["3 and 4"],
    );
    let export = ["export", "--to", "llama.cpp", &prefix, "-o", &out];
    let beyond = ["--placeholder", "4294967295"];
    refused(
        2,
        &[&export[..], &beyond].concat(),
        &["placeholder", "4294967295"],
    );
    let name = b"\"architecture\":\"llama\"";
    let at = bytes.windows(name.len()).position(|part| part == name);
    let mut strange = bytes.clone();
    strange[at.unwrap() + name.len() - 2] = b'o';
    let strange = case.folder.write("strange", strange).display().to_string();
    bad(
        &["export", "--to", "llama.cpp", &strange, "-o", &out],
        &["llamo", "qwen2"],
    );
    // Said before the model is loaded.
    let lost = case.path("no/such/folder/out");
    for command in [vec!["prefill"], vec!["encode", "-a", &adapter]] {
        let common = ["--ids", IDS, "-m", &nowhere, "-o", &lost];
        bad(&[&command[..], &common].concat(), &["no/such/folder"]);
    }
    assert!(!Path::new(&out).exists());
    for wrong in [
        &["generate", "-m", &model][..],
        &["prefill", "--ids", "{}", "-m", &model, "-o", &out],
    ] {
        let (code, _, err) = run(wrong);
        assert_eq!(code, 2, "{err}");
    }
}

#[test]
fn a_window_of_attention_refuses_gaps() {
    let Some(case) = Case::new() else { return };
    let golden = case.golden.join("models/mistral");
    let config = std::fs::read_to_string(golden.join("config.json")).unwrap();
    let windowed = config.replace("\"sliding_window\": null", "\"sliding_window\": 64");
    assert_ne!(windowed, config);
    case.folder.write("config.json", windowed);
    let weights = std::fs::read(golden.join("model.safetensors")).unwrap();
    case.folder.write("model.safetensors", weights);
    let (model, prefix) = (case.path(""), case.path("prefix"));
    let made = ["prefill", "--ids", IDS, "-m", &model, "-o", &prefix];
    let asked = [
        "generate",
        "--prompt-ids",
        "[1]",
        "--json",
        "-m",
        &model,
        "-p",
        &prefix,
    ];
    good(&[&made[..], &["--keep", "0.5"]].concat());
    bad(&asked, &["gaps", "windowed attention"]);
    good(&made);
    good(&asked);
}
