//! Fuzz targets on a stable compiler: seeded mutations of valid inputs, a second of each target, or
//! `PREFOLD_FUZZ_SECONDS`. The rounds begin at 0, or at `PREFOLD_FUZZ_ROUND`, so that another run has other inputs.
//! `PREFOLD_FUZZ_CORPUS=fuzz/corpus` also writes the valid inputs for libFuzzer.

#[path = "../common/mod.rs"]
mod common;
mod seeds;
mod soak;
mod targets;

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use common::mutate::{mutate, mutate_text};
use common::{Random, gguf};
use targets::TARGETS;

/// Runs one target on its seeds and on what becomes of them.
fn fuzz(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let seeds = seeds::of(name);
    if let Some(corpus) = std::env::var_os("PREFOLD_FUZZ_CORPUS") {
        let folder = std::path::Path::new(&corpus).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (index, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index}")), seed).unwrap();
        }
    }
    let seconds = common::number("PREFOLD_FUZZ_SECONDS", 1);
    let first = common::number("PREFOLD_FUZZ_ROUND", 0);
    for seed in &seeds {
        target(seed);
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut round = first;
    while Instant::now() < end || round < first + 20 {
        let mut random = Random(round);
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..1 + random.below(3) {
            match std::str::from_utf8(&input).is_ok() && random.below(3) != 0 {
                true => mutate_text(&mut input, &mut random),
                false => mutate(&mut input, 4096, &mut random),
            }
        }
        if catch_unwind(|| target(&input)).is_err() {
            let path = std::env::temp_dir().join(format!("prefold-{name}-{round}"));
            std::fs::write(&path, &input).unwrap();
            panic!(
                "{name}: round {round} fails; the input is in {}",
                path.display()
            );
        }
        round += 1;
    }
    common::say(&format!("{name}: {} inputs in {seconds} s", round - first));
}

#[test]
fn gguf_files() {
    fuzz("gguf");
}

#[test]
fn safetensors_files() {
    fuzz("safetensors");
}

#[test]
fn tokenizers() {
    fuzz("tokenizer");
}

#[test]
fn prefixes() {
    fuzz("prefix");
}

#[test]
fn requests() {
    fuzz("request");
}

#[test]
fn tagged_prompts() {
    fuzz("tagged");
}

#[test]
fn each_target_has_an_entry_for_libfuzzer() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    if !root.exists() {
        common::say("skipped: fuzz/ is not part of a packed crate");
        return;
    }
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(
            root.join(format!("fuzz_targets/{name}.rs")).exists(),
            "{name}"
        );
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
