//! Makes libraries of C++: of kernels, and the stand-in driver.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// The C++ of this crate.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp")
}

/// Compiles one translation unit of kernels into a library in the folder `out`, and gives its path.
/// Kernels include `cuda_emulator.h`; `include` are more folders to look in. The library's name holds
/// a fingerprint of the unit, the files directly in these folders, the emulator, `CXX` and `CXXFLAGS`: what is
/// unchanged is not compiled again. Warnings are errors. Name the unit's own folder where it has headers.
///
/// # Errors
///
/// [`Error::Platform`] elsewhere than on Linux, [`Error::NoCompiler`], [`Error::Compile`] with the compiler's report, [`Error::File`].
pub fn compile(unit: &Path, include: &[PathBuf], out: &Path) -> Result<PathBuf> {
    let folders: Vec<PathBuf> = include.iter().cloned().chain([sources()]).collect();
    let text = fs::read(unit).map_err(|source| Error::File {
        path: unit.into(),
        source,
    })?;
    let mut hash = DefaultHasher::new();
    (fingerprint(&folders)?, text).hash(&mut hash);
    for variable in ["CXX", "CXXFLAGS"] {
        std::env::var_os(variable).hash(&mut hash);
    }
    let name = unit.file_name().unwrap_or_default().to_string_lossy();
    let name = name.replace('.', "-");
    let library = out.join(format!("{name}-{:016x}.so", hash.finish()));
    shared_library(&library, |command| {
        for folder in include.iter().chain([&sources()]) {
            command.arg("-I").arg(folder);
        }
        command.args(["-x", "c++"]).arg(unit);
        command.arg(sources().join("runtime.cpp"));
    })?;
    Ok(library)
}

/// A hash of all files that lie directly in the folders.
///
/// # Errors
///
/// [`Error::File`].
pub(crate) fn fingerprint(folders: &[PathBuf]) -> Result<u64> {
    let mut hash = DefaultHasher::new();
    for folder in folders {
        let failed = |source| Error::File {
            path: folder.clone(),
            source,
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            files.push(entry.map_err(failed)?.path());
        }
        files.retain(|path| path.is_file());
        files.sort();
        for path in files {
            match fs::read(&path) {
                Ok(bytes) => bytes.hash(&mut hash),
                Err(source) => return Err(Error::File { path, source }),
            }
        }
    }
    Ok(hash.finish())
}

/// Makes a shared library unless it is there.
pub(crate) fn shared_library(library: &Path, arguments: impl FnOnce(&mut Command)) -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Err(Error::Platform);
    }
    // One at a time: threads of a test ask for the same library.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if library.exists() {
        return Ok(());
    }
    let file = |source| Error::File {
        path: library.into(),
        source,
    };
    fs::create_dir_all(library.parent().unwrap_or(Path::new("."))).map_err(file)?;
    let target = env!("CUDA_EMULATOR_TARGET");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .flags(["-g1", "-Wall", "-Wextra", "-Werror", "-shared"])
        .pic(true)
        .cargo_metadata(false)
        .target(target)
        .host(target)
        .out_dir(library.parent().unwrap_or(Path::new(".")));
    let compiler = build
        .try_get_compiler()
        .map_err(|error| Error::NoCompiler(error.to_string()))?;
    let mut command = compiler.to_command();
    arguments(&mut command);
    // Under another name until it is whole.
    let partial = library.with_extension(format!("{}.so", std::process::id()));
    let output = command
        .arg("-o")
        .arg(&partial)
        .output()
        .map_err(|_| Error::NoCompiler(compiler.path().display().to_string()))?;
    if !output.status.success() {
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Compile(report));
    }
    fs::rename(&partial, library).map_err(file)
}
