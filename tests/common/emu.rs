//! The kernels as a library for the host, and backends on it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use prefold::gpu::{Emu, Gpu, Order, Precision, Schedule};

/// Ways to run a launch, of which each finds other mistakes.
pub const SCHEDULES: [Schedule; 4] = [
    schedule(Order::Ascending, false),
    schedule(Order::Descending, true),
    schedule(Order::Random(1), true),
    schedule(Order::Random(2), false),
];

pub const fn schedule(order: Order, late: bool) -> Schedule {
    Schedule { order, late }
}

/// A backend that reckons with so many multiprocessors that work is split; none without a C++ compiler.
pub fn backend(schedule: Schedule, precision: Precision) -> Option<Gpu<Emu>> {
    Some(Gpu::new(launcher("library.cu", schedule)?, precision))
}

/// The kernels of a file of `kernels/host`.
pub fn launcher(unit: &'static str, schedule: Schedule) -> Option<Emu> {
    // SAFETY: made by `library`.
    Some(unsafe { Emu::open(&library(unit)?, schedule, 24) }.unwrap())
}

/// Compiles once per content of the sources; none without a C++ compiler.
pub fn library(unit: &'static str) -> Option<PathBuf> {
    static BUILT: [OnceLock<Option<PathBuf>>; 2] = [const { OnceLock::new() }; 2];
    let which = usize::from(unit != "library.cu");
    BUILT[which].get_or_init(|| build(unit)).clone()
}

fn build(unit: &str) -> Option<PathBuf> {
    let name = unit.replace('.', "-");
    // Carried along, there is nothing to compile; or nothing is to be executed by the CPU.
    if let Some(root) = super::carried() {
        let library = root.join(format!("{name}.so"));
        if library.exists() {
            return Some(library);
        }
        super::say("skipped: kernels executed by the CPU, for which nothing was carried along");
        return None;
    }
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let folders = [kernels.clone(), kernels.join("arch"), kernels.join("host")];
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = target.join(format!("{name}-{:016x}.so", hash_of(&folders)));
    let host = folders[2].clone();
    compile(&library, &|command| {
        command.args(["-x", "c++"]).arg(host.join(unit));
        command.arg(host.join("runtime.cpp"));
    })
}

/// Of all files in the folders.
pub fn hash_of(folders: &[PathBuf]) -> u64 {
    let mut hash = DefaultHasher::new();
    for folder in folders {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        for file in files {
            std::fs::read(file).unwrap().hash(&mut hash);
        }
    }
    hash.finish()
}

/// Makes a library of C++ where there is none yet. Without a compiler there is none either, which is said, and under
/// CI a failure.
pub fn compile(library: &Path, arguments: &dyn Fn(&mut Command)) -> Option<PathBuf> {
    if library.exists() {
        return Some(library.into());
    }
    let compiler = std::env::var("CXX").unwrap_or("g++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no C++ compiler to execute the kernels with"
        );
        super::say(&format!(
            "skipped: no C++ compiler ({compiler}) to execute the kernels with"
        ));
        return None;
    }
    // Under another name until it is whole.
    let partial = library.with_extension(format!("{}.so", std::process::id()));
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O2", "-g1", "-Wall", "-Wextra", "-Werror"]);
    command.args(["-fPIC", "-shared"]);
    arguments(&mut command);
    let output = command.arg("-o").arg(&partial).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&partial, library).unwrap();
    Some(library.into())
}
