//! The C ABI as a C program meets it: built by `cc` against both libraries, run under a memory checker.

use crate::common;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

/// `libprefold.so` or `libprefold.a`, beside the program or among its dependencies.
fn library(suffix: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_prefold")).parent().unwrap();
    let newest = |folder: PathBuf| {
        let files = std::fs::read_dir(folder).ok()?;
        files
            .filter_map(|file| Some(file.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.starts_with("libprefold") && name.ends_with(suffix)
            })
            .max_by_key(|path| path.metadata().unwrap().modified().unwrap())
    };
    newest(folder.join("deps"))
        .or_else(|| newest(folder.to_path_buf()))
        .unwrap_or_else(|| panic!("no libprefold*{suffix} in {}", folder.display()))
}

fn run(command: &mut Command) -> String {
    let done = command.output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}\n{text}{complaint}");
    text
}

/// Builds a C program with `cc` against `libprefold.so` or `libprefold.a`.
fn build(folder: &common::TempDir, source: &str, suffix: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.path().join(suffix);
    let library = library(suffix);
    let beside = library.parent().unwrap().display();
    run(Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g"])
        .args(flags)
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join(source))
        .arg(&library)
        .arg(format!("-Wl,-rpath,{beside}"))
        .args(["-lz", "-lpthread", "-ldl", "-lm", "-o"])
        .arg(&program));
    program
}

fn run_with<S: AsRef<OsStr>>(mut command: Command, arguments: &[S]) -> String {
    let said = run(command.env("RAYON_NUM_THREADS", "2").args(arguments));
    assert!(said.ends_with("all good\n"), "{said}");
    said
}

/// What a C program says that is linked with the static library and AddressSanitizer.
fn run_static<S: AsRef<OsStr>>(source: &str, arguments: &[S]) -> String {
    let folder = common::TempDir::new();
    let program = build(&folder, source, ".a", &["-fsanitize=address"]);
    run_with(Command::new(program), arguments)
}

/// The same with the shared library, under valgrind if there is one.
fn run_shared<S: AsRef<OsStr>>(source: &str, arguments: &[S]) -> String {
    let folder = common::TempDir::new();
    let program = build(&folder, source, ".so", &[]);
    let valgrind = Command::new("valgrind").arg("--version").output();
    if !valgrind.is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: no valgrind; AddressSanitizer alone looks on");
        return run_with(Command::new(program), arguments);
    }
    let mut command = Command::new("valgrind");
    command.args(["-q", "--error-exitcode=9", "--leak-check=full"]);
    // Threads of the pool are there until the end.
    command.args([
        "--errors-for-leak-kinds=definite",
        "--show-leak-kinds=definite",
    ]);
    command.arg(&program);
    run_with(command, arguments)
}

/// The golden models, or a line that says what is skipped.
fn golden() -> Option<PathBuf> {
    let found = common::shared().map(|shared| shared.join("golden"));
    if found.is_none() {
        eprintln!("skipped: no golden values beside the crate");
    }
    found
}

#[test]
fn a_c_program_uses_prefixes_and_misuses_them() {
    let Some(golden) = golden() else { return };
    let folder = common::TempDir::new();
    let arguments = [
        golden.join("500x/tiny"),
        golden.join("500x/tiny-adapter-all"),
        golden.join("models/llama3"),
        folder.path().into(),
    ];
    let source = "examples/prefix.c";
    assert_eq!(
        run_static(source, &arguments),
        run_shared(source, &arguments)
    );
}

#[test]
fn many_c_threads_use_the_same_handles() {
    let Some(golden) = golden() else { return };
    let (model, adapter) = (
        golden.join("500x/tiny"),
        golden.join("500x/tiny-adapter-qv"),
    );
    run_static("tests/c/threads.c", &[model, adapter]);
}

#[test]
fn a_c_program_works_on_texts() {
    let Some(model) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2; `make model` fetches it");
        return;
    };
    run_static("tests/c/text.c", &[model]);
}

/// ICAE's [AE] is not an id: the C ABI has a function that begins with it.
#[test]
fn a_c_program_asks_for_a_text_by_an_embedding() {
    let Some(golden) = golden() else { return };
    let (model, folder) = (golden.join("500x/tiny"), common::TempDir::new());
    for file in std::fs::read_dir(golden.join("500x/tiny-adapter-qv")).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        folder.write(&name, std::fs::read(file.path()).unwrap());
    }
    let values = |value: &Value| -> Vec<String> {
        let list = value.as_array().unwrap();
        list.iter().map(Value::to_string).collect()
    };
    let want: Value = serde_json::from_str(include_str!("../data/icae.json")).unwrap();
    let begin: Vec<u8> = values(&want["ae"])
        .iter()
        .flat_map(|value| value.parse::<f32>().unwrap().to_le_bytes())
        .collect();
    let view = TensorView::new(Dtype::F32, vec![begin.len() / 4], &begin).unwrap();
    let file = safetensors::serialize([("ae_embedding", view)], None).unwrap();
    folder.write("ae_embedding.safetensors", file);

    let facts = std::fs::read(golden.join("500x/tiny-qv.golden.json")).unwrap();
    let facts: Value = serde_json::from_slice(&facts).unwrap();
    let mut arguments = vec![
        model.display().to_string(),
        folder.path().display().to_string(),
    ];
    arguments.extend(values(&facts["ids"][0]));
    let made = run_static("tests/c/icae.c", &arguments);
    let want = values(&want["greedy_from_ae"]).join(" ");
    assert_eq!(made, format!("{want} all good\n"));
}

/// The header can be included from C++.
#[test]
fn the_header_is_c_plus_plus_too() {
    let folder = common::TempDir::new();
    let source = folder.write(
        "a.cpp",
        "#include \"prefold.h\"\nint main() { return 0; }\n",
    );
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let checked = Command::new("c++")
        .args(["-fsyntax-only", "-Wall", "-Werror", "-pedantic", "-I"])
        .arg(include)
        .arg(source)
        .output();
    match checked {
        Ok(done) => assert!(done.status.success(), "{done:?}"),
        Err(error) => eprintln!("skipped: no c++: {error}"),
    }
}
