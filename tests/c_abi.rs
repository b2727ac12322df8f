//! The C ABI as a C program meets it: built by `cc` against both libraries, run under a memory checker.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

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

#[test]
fn a_c_program_uses_prefixes_and_misuses_them() {
    let Some(golden) = common::shared().map(|shared| shared.join("golden")) else {
        eprintln!("skipped: no golden values beside the crate");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = common::TempDir::new();
    let mut outputs = Vec::new();
    for (name, suffix, flags) in [
        ("shared", ".so", &["-g"][..]),
        ("address", ".a", &["-g", "-fsanitize=address"]),
    ] {
        let program = folder.path().join(name);
        let library = library(suffix);
        run(Command::new("cc")
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"])
            .args(flags)
            .arg("-I")
            .arg(root.join("include"))
            .arg(root.join("examples/prefix.c"))
            .arg(&library)
            .arg(format!(
                "-Wl,-rpath,{}",
                library.parent().unwrap().display()
            ))
            .args(["-lz", "-lpthread", "-ldl", "-lm", "-o"])
            .arg(&program));
        let valgrind = Command::new("valgrind").arg("--version").output();
        let checked = name == "shared" && valgrind.is_ok_and(|done| done.status.success());
        let mut command = match checked {
            true => {
                let mut command = Command::new("valgrind");
                command.args(["-q", "--error-exitcode=9", "--leak-check=full"]);
                // Threads of the pool are there until the end.
                command.args([
                    "--errors-for-leak-kinds=definite",
                    "--show-leak-kinds=definite",
                ]);
                command.arg(&program);
                command
            }
            false => {
                if name == "shared" {
                    eprintln!("skipped: no valgrind; AddressSanitizer alone looks on");
                }
                Command::new(&program)
            }
        };
        command.env("RAYON_NUM_THREADS", "2");
        outputs.push(run(command
            .arg(golden.join("500x/tiny"))
            .arg(golden.join("500x/tiny-adapter-all"))
            .arg(golden.join("models/llama3"))
            .arg(folder.path())));
    }
    assert!(outputs[0].ends_with("all good\n"), "{}", outputs[0]);
    assert_eq!(outputs[0], outputs[1]);
}

/// Whoever includes the header may write C++.
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
