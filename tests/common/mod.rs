//! What several tests need.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// The folder with golden values beside the checkout; absent on most machines.
pub fn shared() -> Option<PathBuf> {
    existing(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join("shared"),
    )
}

/// SmolLM2-135M-Instruct in Q4_1: `$PREFOLD_MODEL` or the copy in `.cache/models`.
pub fn smollm2() -> Option<PathBuf> {
    model("PREFOLD_MODEL", "SmolLM2-135M-Instruct-Q4_1.gguf")
}

/// Qwen2.5-Coder-0.5B-Instruct in Q4_K_M: `$PREFOLD_QWEN` or the copy in `.cache/models`.
pub fn qwen() -> Option<PathBuf> {
    model("PREFOLD_QWEN", "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf")
}

fn model(variable: &str, name: &str) -> Option<PathBuf> {
    match std::env::var_os(variable) {
        Some(path) => existing(PathBuf::from(path)),
        None => existing(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(".cache/models")
                .join(name),
        ),
    }
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.exists().then_some(path)
}
