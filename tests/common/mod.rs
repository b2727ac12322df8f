//! What several tests need.
#![allow(dead_code)]

pub mod compare;
pub mod device;
pub mod emu;
pub mod encoders;
pub mod fake;
pub mod gguf;
pub mod mutate;
pub mod oracle;
pub mod tiny;
pub mod unpacked;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Test binaries that were carried elsewhere find here what they need: `$PREFOLD_TEST_ROOT` holds
/// `shared/`, the kernels as libraries, and files that come and go.
pub fn carried() -> Option<PathBuf> {
    std::env::var_os("PREFOLD_TEST_ROOT").map(PathBuf::from)
}

/// Where tests may write.
pub fn scratch() -> PathBuf {
    match carried() {
        Some(root) => root.join("tmp"),
        None => env!("CARGO_TARGET_TMPDIR").into(),
    }
}

/// The folder that holds `golden/`: values made with the reference implementations (`tests/data/golden/README.md`).
/// They lie in the repository; where they are missing a test fails, not skips.
pub fn shared() -> Option<PathBuf> {
    let folder = match carried() {
        Some(root) => root.join("shared"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"),
    };
    assert!(
        folder.join("golden").is_dir(),
        "{} holds no golden values",
        folder.display()
    );
    Some(folder)
}

/// A file of training data beside the checkout; absent on most machines, and the test that asks for it says
/// that it is skipped.
pub fn training_data(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/data")
        .join(name);
    let found = existing(path);
    if found.is_none() {
        eprintln!("skipped: no ../shared/data/{name}");
    }
    found
}

/// SmolLM2-135M-Instruct in Q4_1: `$PREFOLD_MODEL` or the copy in `.cache/models`. Under `CI=true` a
/// test that asks for it fails where it is missing.
pub fn smollm2() -> Option<PathBuf> {
    let path = model("PREFOLD_MODEL", "SmolLM2-135M-Instruct-Q4_1.gguf");
    let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(path.is_some() || !ci, "`make model` fetches the model");
    path
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

/// `path` where it is there, and otherwise a line that the test runner does not capture (as it does
/// `eprintln!` in a test that passes), so that what was skipped is not taken for tested.
fn existing(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    say(&format!("skipped: {test}: {} is not there", path.display()));
    None
}

/// A line past the test runner, once: what is missing is missing for every case.
pub fn say(line: &str) {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.iter().any(|before| before == line) {
        let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
        said.push(line.into());
    }
}

/// A fresh folder that goes when the test is done.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = scratch().join(name);
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the folder.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The number in a variable of the environment; `otherwise` where it is not set.
pub fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(number) => number
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number")),
        Err(_) => otherwise,
    }
}

/// The generator SplitMix64: small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 to `end` − 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From −1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
