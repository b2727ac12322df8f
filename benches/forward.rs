//! Tokens per second of a scoring forward, in f32 and estimated in 8 bits, in turns.
//!
//! `cargo bench --bench forward -- [MODEL] [--json] [--rows 32,200] [--isa avx2,scalar]`; the model is a
//! GGUF file or a Hugging Face folder, by default `$PREFOLD_MODEL` or SmolLM2-135M-Instruct in
//! `.cache/models`. `--isa` takes instruction sets by name, by default the widest of the machine. Each
//! case is measured in both ways by turns, beside the machine's arithmetic ceiling at that moment (fused
//! multiply-adds in registers, with the widest vectors).

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prefold::cpu::{Cpu, Isa};
use prefold::model::config::Config;
use prefold::model::weights::Weights;
use prefold::model::{Model, Scorer};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

const ROWS: [usize; 5] = [32, 200, 300, 1200, 4000];

struct Arguments {
    model: PathBuf,
    json: bool,
    rows: Vec<usize>,
    isas: Vec<Isa>,
}

fn main() {
    let Some(arguments) = arguments() else {
        let names = Isa::ALL.map(Isa::name).join(", ");
        eprintln!("usage: forward [MODEL] [--json] [--rows N,N,...] [--isa NAME,NAME,...]");
        eprintln!("instruction sets: {names}");
        std::process::exit(2);
    };
    if !arguments.model.exists() {
        eprintln!("skipped: no {}", arguments.model.display());
        return;
    }
    if let Err(error) = run(&arguments) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn arguments() -> Option<Arguments> {
    let model = std::env::var_os("PREFOLD_MODEL").map(PathBuf::from);
    let default = ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf";
    let mut out = Arguments {
        model: model.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(default)),
        json: false,
        rows: ROWS.to_vec(),
        isas: vec![Cpu::new().isa()],
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => out.json = true,
            // Given by `cargo bench`.
            "--bench" => {}
            "--rows" => {
                let list = arguments.next()?;
                let numbers = list.split(',').map(|n| n.parse().ok().filter(|&n| n > 1));
                out.rows = numbers.collect::<Option<_>>()?;
            }
            "--isa" => {
                let list = arguments.next()?;
                let isas = list.split(',').map(|name| name.parse().ok());
                out.isas = isas.collect::<Option<_>>()?;
            }
            path if !path.starts_with('-') => out.model = path.into(),
            _ => return None,
        }
    }
    Some(out)
}

fn run(arguments: &Arguments) -> prefold::Result<()> {
    let weights = Weights::open(&arguments.model)?;
    for &isa in &arguments.isas {
        let start = Instant::now();
        let model = Model::load(Cpu::with_isa(isa)?, &weights)?;
        let load = start.elapsed().as_secs_f64();
        if !arguments.json {
            let device = model.backend().describe();
            println!(
                "{device}; {} loaded in {load:.2} s",
                arguments.model.display()
            );
            println!(
                "  case              tokens  f32 tokens/s   GFLOP/s  of ceiling  8-bit tokens/s  ratio"
            );
        }
        for &rows in &arguments.rows {
            let ids = ids(rows, model.config().vocab);
            if rows <= model.max_positions() {
                measure(arguments, &model, "one", &[&ids], 0)?;
            }
            // After 900 positions, as the chunks of a long prompt are scored.
            if rows <= 300 && 900 + rows <= model.max_positions() {
                measure(arguments, &model, "chunk after 900", &[&ids], 900)?;
            }
            // Many sentences.
            if rows >= 1200 {
                let sequences: Vec<&[u32]> = ids.chunks(24).collect();
                measure(arguments, &model, "sentences of 24", &sequences, 0)?;
            }
        }
    }
    Ok(())
}

/// Times one case for some seconds, in f32 and, without held positions, estimated; the ceiling is
/// measured between the passes.
fn measure(
    arguments: &Arguments,
    model: &Model<Cpu>,
    case: &str,
    sequences: &[&[u32]],
    held: usize,
) -> prefold::Result<()> {
    let tokens: usize = sequences.iter().map(|ids| ids.len()).sum();
    let tails: Vec<_> = sequences.iter().map(|ids| (*ids, 1)).collect();
    let mut session = model.session()?;
    session.score(&ids(held, model.config().vocab))?;
    let (mut best, mut estimated, mut peak) = (f64::MAX, f64::MAX, 0.0f64);
    let start = Instant::now();
    let mut passes = 0;
    while passes < 3 || (start.elapsed() < Duration::from_secs(4) && passes < 40) {
        let now = Instant::now();
        if held > 0 {
            black_box(session.score(sequences[0])?);
        } else {
            black_box(model.score_tails(&tails)?);
        }
        best = best.min(now.elapsed().as_secs_f64());
        session.truncate(held)?;
        if held == 0 && model.backend().estimates_in_8_bits() {
            let now = Instant::now();
            black_box(model.estimate_tails(&tails)?);
            estimated = estimated.min(now.elapsed().as_secs_f64());
        }
        peak = peak.max(ceiling());
        passes += 1;
    }
    let flops: f64 = sequences
        .iter()
        .map(|ids| flops(model.config(), ids.len(), held))
        .sum();
    let (speed, rate) = (tokens as f64 / best, flops / best);
    let fraction = rate / peak;
    let of_estimate = (estimated < f64::MAX).then(|| tokens as f64 / estimated);
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({
                "bench": "forward", "device": model.backend().describe(),
                "isa": model.backend().isa().name(), "case": case, "tokens": tokens,
                "held": held, "seconds": best, "tokens_per_second": speed,
                "gflops": rate / 1e9, "ceiling_gflops": peak / 1e9, "of_ceiling": fraction,
                "estimated_tokens_per_second": of_estimate,
            })
        );
        return Ok(());
    }
    print!(
        "  {case:16} {tokens:7} {speed:13.0} {:9.0} {:9.0} %",
        rate / 1e9,
        100.0 * fraction
    );
    match of_estimate {
        Some(of_estimate) => println!("  {of_estimate:14.0} {:6.2}", of_estimate / speed),
        None => println!(),
    }
    Ok(())
}

fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|i| ((i * 2_654_435_761 + 12_345) % vocab as u64) as u32)
        .collect()
}

/// Multiplications and additions that the model itself demands for `n` tokens after `held`, without
/// masked ones.
fn flops(c: &Config, n: usize, held: usize) -> f64 {
    let (hidden, heads) = (c.hidden as f64, (c.heads * c.head_dim) as f64);
    let gates = if c.family == prefold::model::config::Family::Gpt2 {
        2.0
    } else {
        3.0
    };
    let qkv = heads + 2.0 * (c.kv_heads * c.head_dim) as f64;
    let layer = hidden * (qkv + heads + gates * c.ffn as f64);
    let (n, held) = (n as f64, held as f64);
    let seen = n * held + n * (n + 1.0) / 2.0;
    let head = (n - 1.0) * hidden * c.vocab as f64;
    2.0 * (c.layers as f64 * (n * layer + 2.0 * seen * heads) + head)
}

/// Operations per second of all cores on fused multiply-adds that stay in registers.
fn ceiling() -> f64 {
    struct Chain;
    impl WithSimd for Chain {
        type Output = f64;

        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) -> f64 {
            const REPEATS: usize = 200_000;
            const CHAINS: usize = 12;
            let (a, b) = (s.splat_f32s(0.999), s.splat_f32s(black_box(0.001)));
            let mut sums = [b; CHAINS];
            for _ in 0..REPEATS {
                for sum in &mut sums {
                    *sum = s.mul_add_e_f32s(*sum, a, b);
                }
            }
            for sum in sums {
                black_box(s.reduce_sum_f32s(sum));
            }
            (REPEATS * CHAINS * S::F32_LANES * 2) as f64
        }
    }
    let arch = pulp::Arch::new();
    let start = Instant::now();
    let done: f64 = (0..rayon::current_num_threads())
        .into_par_iter()
        .with_max_len(1)
        .map(|_| arch.dispatch(Chain))
        .sum();
    done / start.elapsed().as_secs_f64()
}
