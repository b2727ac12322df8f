//! Compiles `kernels/*.cu` with nvcc, where there is one, into images that the program embeds.
//!
//! Looked for: `NVCC`, `CUDA_HOME`, `CUDA_PATH`, the checkout's `.venv-cuda`, `PATH`, `/usr/local/cuda`.
//! Without nvcc everything else is built, and opening a CUDA device says why it cannot be. Images are
//! kept by a hash of their sources and options, so that an unrelated change costs no compilation.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Real architectures; of the last there is PTX too, for those to come.
const ARCHITECTURES: [&str; 5] = ["80", "89", "90a", "100", "120"];
/// What `make cuda-toolkit` makes last.
const TOOLKIT: &str = ".venv-cuda/pyvenv.cfg";
/// Every kernel file.
const FILES: [&str; 7] = ["attention", "gemm", "layer", "lora", "nll", "thin", "topk"];

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
        match nvcc() {
            Some(nvcc) => compile(&nvcc, &out),
            None => {
                // Fatal only where a build without kernels would be a mistake.
                let required = env::var_os("PREFOLD_REQUIRE_NVCC").is_some();
                assert!(
                    !required,
                    "nvcc was not found, and PREFOLD_REQUIRE_NVCC is set"
                );
                println!(
                    "cargo:warning=nvcc was not found: built without CUDA kernels (`make cuda-toolkit` fetches it)"
                );
                Vec::new()
            }
        }
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

fn compile(nvcc: &Path, out: &Path) -> Vec<(String, String)> {
    let version = Command::new(nvcc).arg("--version").output();
    let version = version.map(|output| output.stdout).unwrap_or_default();
    let mut options: Vec<String> = ["-std=c++17", "-O3", "-fatbin", "-compress-mode=size"]
        .map(String::from)
        .into();
    for architecture in ARCHITECTURES {
        options.push("-gencode".into());
        options.push(format!(
            "arch=compute_{architecture},code=sm_{architecture}"
        ));
    }
    options.push("-gencode".into());
    options.push("arch=compute_80,code=compute_80".into());
    let mut headers: Vec<PathBuf> = ["kernels", "kernels/arch"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && path.extension().is_some_and(|e| e != "cu"))
        .collect();
    headers.sort();
    let (mut images, mut fresh) = (Vec::new(), 0);
    let mut running = Vec::new();
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
            fresh += 1;
            // Under another name until it is whole.
            let partial = image.with_extension("partial");
            let child = Command::new(nvcc)
                .args(&options)
                .arg(&source)
                .arg("-o")
                .arg(&partial)
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
            running.push((file, child, partial, image.clone()));
        }
        images.push((file.to_owned(), image.to_string_lossy().into_owned()));
    }
    for (file, mut child, partial, image) in running {
        let done = child.wait().is_ok_and(|status| status.success());
        assert!(done, "nvcc failed on kernels/{file}.cu");
        fs::rename(&partial, &image).expect("OUT_DIR can be written");
    }
    if fresh > 0 {
        println!(
            "cargo:warning=compiled {fresh} kernel files for sm_{} with {}",
            ARCHITECTURES.join(", sm_"),
            nvcc.display()
        );
    }
    images
}
