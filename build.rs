//! Compiles `kernels/*.cu` with nvcc, where there is one, into images that the program embeds.
//!
//! Looked for: `NVCC`, `CUDA_HOME`, `CUDA_PATH`, the checkout's `.venv-cuda`, `PATH`, `/usr/local/cuda`.
//! It compiles for those of our architectures that it knows, and newer devices take the PTX. Without an
//! nvcc that works everything else is built, a warning says why, and opening a CUDA device says that
//! its kernels are missing; with `PREFOLD_REQUIRE_NVCC` the build fails instead. Images are kept by a hash
//! of their sources and options, so that an unrelated change costs no compilation.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Real architectures, each followed by what is taken instead where nvcc does not know it. Of the first
/// there is PTX too, for those that are not here.
const ARCHITECTURES: [&[&str]; 5] = [&["80"], &["89"], &["90a", "90"], &["100"], &["120"]];
/// What `make cuda-toolkit` makes last.
const TOOLKIT: &str = ".venv-cuda/pyvenv.cfg";
/// Every kernel file.
const FILES: [&str; 7] = ["attention", "gemm", "layer", "lora", "nll", "prune", "topk"];

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PREFOLD_REQUIRE_NVCC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Only where it is: cargo takes an absent file for a changed one and would build everything again at
    // every call. `make cuda-toolkit` touches this file when it makes the folder.
    if Path::new(TOOLKIT).exists() {
        println!("cargo:rerun-if-changed={TOOLKIT}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let images = if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        Vec::new()
    } else {
        let found = nvcc().ok_or_else(|| "nvcc was not found".to_owned());
        found
            .and_then(|nvcc| compile(&nvcc, &out))
            .unwrap_or_else(|reason| {
                // Fatal only where a build without kernels would be a mistake.
                if env::var_os("PREFOLD_REQUIRE_NVCC").is_some() {
                    eprintln!("{reason}, and PREFOLD_REQUIRE_NVCC is set");
                    std::process::exit(1);
                }
                println!(
                    "cargo:warning={reason}: built without CUDA kernels (`make cuda-toolkit` fetches an nvcc)"
                );
                Vec::new()
            })
    };
    let entries: String = images
        .iter()
        .map(|(name, path)| format!("    ({name:?}, include_bytes!({path:?})),\n"))
        .collect();
    let code = format!("static IMAGES: &[(&str, &[u8])] = &[\n{entries}];\n");
    fs::write(out.join("images.rs"), code).expect("OUT_DIR can be written");
}

fn nvcc() -> Option<PathBuf> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from);
    let mut candidates: Vec<PathBuf> = variable("NVCC").into_iter().collect();
    for home in ["CUDA_HOME", "CUDA_PATH"] {
        candidates.extend(variable(home).map(|home| home.join("bin/nvcc")));
    }
    // The wheels' folder names the version of Python.
    let libraries = fs::read_dir(".venv-cuda/lib").into_iter().flatten();
    for python in libraries.flatten() {
        candidates.push(python.path().join("site-packages/nvidia/cu13/bin/nvcc"));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    candidates.extend(env::split_paths(&path).map(|folder| folder.join("nvcc")));
    candidates.push("/usr/local/cuda/bin/nvcc".into());
    candidates.into_iter().find(|nvcc| nvcc.is_file())
}

/// What nvcc prints, or one line about why it does not.
fn ask(nvcc: &Path, option: &str) -> Result<String, String> {
    let output = Command::new(nvcc).arg(option).output();
    let output = output.map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if !output.status.success() {
        let said = first_line(&output.stderr);
        return Err(format!("{} {option}: {said}", nvcc.display()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first line that says something; a warning of several lines would look like several.
fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or("it failed without a word").trim().to_owned()
}

/// The major version in what `nvcc --version` prints: `… release 12.8, V12.8.93`.
fn major(version: &str) -> Option<u32> {
    let (_, release) = version.split_once("release ")?;
    release.split(['.', ',']).next()?.parse().ok()
}

/// Options for this nvcc, and the names of the architectures.
fn options(nvcc: &Path, version: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let listed = ask(nvcc, "--list-gpu-code")?;
    // Those of one architecture alone (sm_90a) are in no list, but named in the help.
    let help = ask(nvcc, "--help")?;
    let known = |name: &str| {
        let code = format!("sm_{name}");
        listed.split_whitespace().any(|listed| listed == code)
            || help.contains(&format!("'{code}'"))
    };
    let names: Vec<&str> = ARCHITECTURES
        .iter()
        .filter_map(|choices| choices.iter().copied().find(|name| known(name)))
        .collect();
    let Some(oldest) = names.first() else {
        let wanted: Vec<_> = ARCHITECTURES.iter().map(|choices| choices[0]).collect();
        let wanted = wanted.join(", sm_");
        return Err(format!(
            "{} compiles for none of sm_{wanted}",
            nvcc.display()
        ));
    };
    let mut options = ["-std=c++17", "-O3", "-fatbin"].map(String::from).to_vec();
    // Drivers before 12.4 cannot unpack such images; those that take images of CUDA 13 all can.
    if major(version) >= Some(13) && help.contains("-compress-mode") {
        options.push("-compress-mode=size".into());
    }
    for name in &names {
        options.push("-gencode".into());
        options.push(format!("arch=compute_{name},code=sm_{name}"));
    }
    options.push("-gencode".into());
    options.push(format!("arch=compute_{oldest},code=compute_{oldest}"));
    Ok((options, names.into_iter().map(String::from).collect()))
}

/// Compiles every kernel file; gives their names and where the images lie.
fn compile(nvcc: &Path, out: &Path) -> Result<Vec<(String, String)>, String> {
    let version = ask(nvcc, "--version")?;
    let (options, architectures) = options(nvcc, &version)?;
    let mut headers: Vec<PathBuf> = ["kernels", "kernels/arch"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && path.extension().is_some_and(|e| e == "h" || e == "cuh"))
        .collect();
    headers.sort();
    let (mut images, mut running) = (Vec::new(), Vec::new());
    for file in FILES {
        let mut hash = DefaultHasher::new();
        (&version, &options).hash(&mut hash);
        let source = PathBuf::from(format!("kernels/{file}.cu"));
        for path in &headers {
            fs::read(path).unwrap_or_default().hash(&mut hash);
        }
        fs::read(&source).unwrap_or_default().hash(&mut hash);
        let image = out.join(format!("{file}-{:016x}.fatbin", hash.finish()));
        if !image.is_file() {
            // Under another name until it is whole.
            let partial = image.with_extension("partial");
            let child = Command::new(nvcc)
                .args(&options)
                .arg(&source)
                .arg("-o")
                .arg(&partial)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| format!("{}: {error}", nvcc.display()));
            running.push((file, child, partial, image.clone()));
        }
        images.push((file.to_owned(), image.to_string_lossy().into_owned()));
    }
    let fresh = running.len();
    let mut failed = None;
    // All are waited for: none must write on when the build is over.
    for (file, child, partial, image) in running {
        let done = child.and_then(|child| {
            let output = child.wait_with_output();
            let output = output.map_err(|error| format!("{}: {error}", nvcc.display()))?;
            if !output.status.success() {
                let said = first_line(&output.stderr);
                return Err(format!(
                    "{} failed on kernels/{file}.cu: {said}",
                    nvcc.display()
                ));
            }
            // To ptxas these are remarks: setmaxnreg ignored, products of a warpgroup one after the other.
            let said = String::from_utf8_lossy(&output.stderr);
            if let Some(line) = said.lines().find(|line| line.contains("(C75")) {
                return Err(format!("kernels/{file}.cu: {}", line.trim()));
            }
            fs::rename(&partial, &image).map_err(|error| format!("{}: {error}", image.display()))
        });
        if let Err(reason) = done {
            let _ = fs::remove_file(&partial);
            failed.get_or_insert(reason);
        }
    }
    if let Some(reason) = failed {
        return Err(reason);
    }
    if fresh > 0 {
        println!(
            "cargo:warning=compiled {fresh} kernel files for sm_{} with {}",
            architectures.join(", sm_"),
            nvcc.display()
        );
    }
    Ok(images)
}
