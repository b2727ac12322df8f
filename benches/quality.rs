//! What a host still knows after compression: `prefold eval qa` on the questions that come with ten
//! documents, ours beside the reference's two presets.
//!
//! ```text
//! cargo bench --bench quality -- [--limit N] [--max-new-tokens 0] [--log FILE] …
//! ```
//!
//! Whatever else `prefold eval qa` takes may follow, and what is given here overrides what stands below.

use std::process::{Command, ExitCode};

/// Options with a value, unless the caller gives them.
const DEFAULTS: [(&str, &str); 6] = [
    ("--data", "../shared/data/qa_dev.jsonl"),
    ("--model", ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf"),
    (
        "--host",
        ".cache/models/Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
    ),
    (
        "--ways",
        "full,none,gold,random-words,prefold,prefold-sentence,prefold-token",
    ),
    ("--rates", "0.5,0.25"),
    ("--limit", "16"),
];

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let has = |name: &str| {
        let long = format!("{name}=");
        given.iter().any(|a| a == name || a.starts_with(&long))
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefold"));
    command.args(["eval", "qa", "--with-docs", "--reference"]);
    for (name, value) in DEFAULTS.into_iter().filter(|(name, _)| !has(name)) {
        command.args([name, value]);
    }
    match command.args(&given).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quality: {error}");
            ExitCode::FAILURE
        }
    }
}
