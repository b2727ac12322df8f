//! Hosts read our prefixes: each is driven by a script under tests/hosts/.

mod common;

use std::path::Path;
use std::process::Command;

/// Runs a host's script with the packages that `make test` put into `.venv`, or says what is missing.
fn run(host: &str, script: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join(".venv").join(host);
    let Some(model) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2; `make model` fetches it");
        return;
    };
    if !packages.exists() {
        eprintln!("skipped: no {host} in .venv; `make .venv/{host}` installs it");
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "{host} is missing"
        );
        return;
    }
    let folder = common::TempDir::new();
    let unpacked = folder.path().join("SmolLM2-135M-Instruct-F32.gguf");
    common::unpacked::unpack_gguf(&model, &unpacked);
    let done = Command::new("python3")
        .env("PYTHONPATH", &packages)
        .arg(root.join("tests/hosts").join(script))
        .arg(env!("CARGO_BIN_EXE_prefold"))
        .arg(&model)
        .arg(&unpacked)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    eprintln!("{out}");
    assert!(done.status.success(), "{err}");
    assert!(out.ends_with("all passed\n"), "{err}");
}

#[test]
fn llama_cpp_reads_prefixes() {
    run("llama.cpp", "llama_cpp.py");
}
