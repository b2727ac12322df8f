//! Tells `cc`, which runs in tests here and not in a build script, what it would read from one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").expect("cargo sets it");
    println!("cargo:rustc-env=CUDA_EMULATOR_TARGET={target}");
}
