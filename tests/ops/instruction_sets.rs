//! The same tokens whatever the processor has: each instruction set in process, and the program on an
//! emulated processor without AVX.

use std::path::Path;
use std::process::Command;

use crate::common::{smollm2, tiny};
use prefold::cpu::{Cpu, Isa};
use prefold::hard::{self, LlmLingua, Request};
use prefold::model::Model;
use prefold::model::weights::Weights;
use prefold::text::Tokenizer;

const TEXT: &str = "It chose the smaller of the two bridges, because the larger one would have cost \
    nine million more.";

/// The text as the reference mode leaves it, on one instruction set.
fn compressed(isa: Isa, weights: &Weights, tokenizer: &Tokenizer) -> String {
    let model = Model::load(Cpu::with_isa(isa).unwrap(), weights).unwrap();
    let request = Request::new([TEXT])
        .with_rate(0.5)
        .with_mode(LlmLingua::default().with_iterative_size(20));
    let result = hard::compress(&model, tokenizer, &request).unwrap();
    result.text
}

#[test]
fn reference_mode_gives_the_same_tokens_on_every_instruction_set() {
    let folder = tiny::byte_model(512);
    let byte_tokenizer = tiny::byte_tokenizer();
    let mut models = vec![(Weights::open(folder.path()).unwrap(), byte_tokenizer)];
    if let Some(path) = smollm2() {
        let weights = Weights::open(&path).unwrap();
        let vocab = weights.gguf().unwrap().vocab().unwrap();
        models.push((weights, Tokenizer::from_vocab(vocab).unwrap()));
    }
    for (weights, tokenizer) in models {
        let all: Vec<_> = Isa::available()
            .map(|isa| (isa, compressed(isa, &weights, &tokenizer)))
            .collect();
        assert!(all.iter().any(|(isa, _)| *isa == Isa::Scalar));
        for (isa, text) in &all {
            assert!(text.len() < TEXT.len(), "{isa:?}: {text}");
            assert_eq!(text, &all[0].1, "{isa:?}, not {:?}", all[0].0);
        }
    }
}

#[test]
fn an_instruction_set_that_is_not_there_is_an_error() {
    for isa in Isa::ALL {
        assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        let there = Isa::available().any(|available| available == isa);
        match Cpu::with_isa(isa) {
            Ok(cpu) => assert!(there && cpu.isa() == isa),
            Err(error) => assert!(!there && error.to_string().contains(isa.name()), "{error}"),
        }
    }
    let error = "sse9".parse::<Isa>().unwrap_err().to_string();
    assert!(error.contains("sse9") && error.contains("avx2"), "{error}");
}

/// What the program prints, run by `program` and its first arguments.
fn program(prefix: &[&str], model: &Path, arguments: &[&str], text: &Path) -> String {
    let mut line = prefix.to_vec();
    line.push(env!("CARGO_BIN_EXE_prefold"));
    line.extend(arguments);
    let run = Command::new(line[0])
        .args(&line[1..])
        .args(["--device", "cpu", "--model"])
        .arg(model)
        .arg(text)
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{prefix:?}: {complaint}");
    String::from_utf8(run.stdout).unwrap()
}

/// QEMU's `qemu64` has what every x86-64 processor has, and little more.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_program_runs_on_a_processor_without_avx() {
    const EMULATOR: &str = "qemu-x86_64";
    if Command::new(EMULATOR).arg("--version").output().is_err() {
        crate::common::say(&format!(
            "skipped: {EMULATOR} is not there (apt: qemu-user)"
        ));
        return;
    }
    let folder = tiny::byte_model(512);
    let text = folder.write("text.txt", TEXT);
    let mean = |score: &str| -> f64 {
        let score: serde_json::Value = serde_json::from_str(score).unwrap();
        score["mean_nll"].as_f64().unwrap()
    };
    let reference = [
        "compress",
        "--reference",
        "--rate",
        "0.5",
        "--iterative-size",
        "20",
    ];
    let want = program(&[], folder.path(), &reference, &text);
    assert!(!want.is_empty() && want.len() < TEXT.len(), "{want}");
    let score = mean(&program(&[], folder.path(), &["score", "--json"], &text));
    let emulated = [EMULATOR, "-cpu", "qemu64"];
    let run = |arguments: &[&str]| program(&emulated, folder.path(), arguments, &text);
    assert_eq!(run(&reference), want);
    // Without fused multiply-adds the last digits differ.
    let there = mean(&run(&["score", "--json"]));
    assert!((there - score).abs() < 1e-5, "{there}, not {score}");
    // The default mode, whose estimates are computed in f32 there.
    let shorter = run(&["compress", "--rate", "0.5"]);
    assert!(
        !shorter.is_empty() && shorter.len() < TEXT.len(),
        "{shorter}"
    );
}
