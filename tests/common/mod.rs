//! What more than one test needs.
#![allow(dead_code)] // each test program uses some of it

use std::path::{Path, PathBuf};

/// The folder of golden values beside the checkout, where there is one.
pub fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    path.is_dir().then_some(path)
}

/// SmolLM2-135M-Instruct, as `make model` fetches it. Where it is missing a test that needs it is
/// skipped, but fails under `CI=true`.
pub fn smollm2() -> Option<PathBuf> {
    let path = match std::env::var_os("PREFOLD_MODEL") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf"),
    };
    if path.exists() {
        return Some(path);
    }
    let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!ci, "{}: no model; `make model` fetches it", path.display());
    None
}
