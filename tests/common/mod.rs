//! What several tests share.
#![allow(dead_code)]

use std::path::PathBuf;

/// The golden data, beside the crate; `None` where they are not, and a test says that it skips.
pub fn shared() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    path.is_dir().then_some(path)
}

/// SmolLM2-135M-Instruct as a Q4_1 GGUF: `$PREFOLD_MODEL`, or the copy in `.cache`.
pub fn smollm2() -> Option<PathBuf> {
    let path = match std::env::var_os("PREFOLD_MODEL") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf"),
    };
    path.is_file().then_some(path)
}
