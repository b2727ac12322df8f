//! Seconds and peak memory of a training step: the gradient of a batch, and AdamW.
//!
//! `cargo bench --bench train -- [MODEL] [--batch 4] [--tokens 64] [--memory 8] [--rank 64]
//! [--activations MB] [--steps 5] [--method 500xcompressor|icae] [--device cpu|cuda|cuda-f32] [--json]`;
//! q and v are trained; a CUDA device works in bf16 unless it is told otherwise. The model is a GGUF file or a Hugging Face folder, by default `$PREFOLD_MODEL` or
//! SmolLM2-135M-Instruct in `.cache/models`. Before it measures, it checks that the gradient is the
//! slope of the loss.

use std::path::{Path, PathBuf};
use std::time::Instant;

use prefold::cpu::Cpu;
use prefold::gpu::{Cuda, Gpu, Precision};
use prefold::model::Model;
use prefold::model::lora::Target;
use prefold::model::weights::Weights;
use prefold::ops::Backend;
use prefold::prefix::Method;
use prefold::train::adamw::{AdamW, Moments};
use prefold::train::objective::{LoraShape, Objective, Sample, Tensor};
use prefold::train::{MemoryStart, TrainableModel};

/// Of AdamW, the paper's.
const LR: f64 = 1e-4;

struct Arguments {
    model: PathBuf,
    batch: usize,
    tokens: usize,
    memory: usize,
    rank: usize,
    activations: usize,
    steps: usize,
    method: Method,
    /// Of a CUDA device.
    cuda: Option<Precision>,
    json: bool,
}

fn main() {
    let Some(arguments) = arguments() else {
        eprintln!(
            "usage: train [MODEL] [--batch N] [--tokens N] [--memory N] [--rank N] [--activations MB] \
             [--steps N] [--method 500xcompressor|icae] [--device cpu|cuda|cuda-f32] [--json]"
        );
        std::process::exit(2);
    };
    if !arguments.model.exists() {
        eprintln!("skipped: no {}", arguments.model.display());
        return;
    }
    let done = match arguments.cuda {
        None => {
            let cpu = Cpu::new();
            let named = cpu.describe();
            run(cpu, named, &arguments)
        }
        Some(precision) => Cuda::open(0).and_then(|cuda| {
            let gpu = Gpu::new(cuda, precision);
            let named = gpu.describe();
            run(gpu, named, &arguments)
        }),
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn arguments() -> Option<Arguments> {
    let model = std::env::var_os("PREFOLD_MODEL").map(PathBuf::from);
    let default = ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf";
    let mut out = Arguments {
        model: model.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(default)),
        batch: 4,
        tokens: 64,
        memory: 8,
        rank: 64,
        activations: 1024,
        steps: 5,
        method: Method::FiveHundredX,
        cuda: None,
        json: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next()?.parse().ok();
        match argument.as_str() {
            "--json" => out.json = true,
            // Given by `cargo bench`.
            "--bench" => {}
            "--batch" => out.batch = number()?,
            "--tokens" => out.tokens = number()?,
            "--memory" => out.memory = number()?,
            "--rank" => out.rank = number()?,
            "--activations" => out.activations = number()?,
            "--steps" => out.steps = number()?,
            "--device" => {
                out.cuda = match arguments.next()?.as_str() {
                    "cpu" => None,
                    "cuda" => Some(Precision::Bf16),
                    "cuda-f32" => Some(Precision::F32),
                    _ => return None,
                }
            }
            "--method" => {
                out.method = match arguments.next()?.as_str() {
                    "500xcompressor" => Method::FiveHundredX,
                    "icae" => Method::Icae,
                    _ => return None,
                }
            }
            path if !path.starts_with('-') => out.model = path.into(),
            _ => return None,
        }
    }
    Some(out)
}

fn run<B: Backend>(backend: B, device: String, arguments: &Arguments) -> prefold::Result<()> {
    let model = Model::load(backend, &Weights::open(&arguments.model)?)?;
    let start = Instant::now();
    let shape = LoraShape {
        rank: arguments.rank,
        alpha: 32.0,
        targets: vec![Target::Q, Target::V],
    };
    let trainable = TrainableModel::new(&model, shape, arguments.activations << 20)?;
    let made_ready = start.elapsed().as_secs_f64();
    let c = model.config();
    let objective = Objective {
        method: arguments.method,
        bos: c.bos.unwrap_or(0),
        eos: c.eos.unwrap_or(0),
        dropout: 0.0,
        nested: false,
        vectors: 0,
    };
    let start_values = trainable.initial(arguments.memory, MemoryStart::Mean, 1)?;
    let batch: Vec<Sample> = (0..arguments.batch)
        .map(|i| Sample::Regenerate {
            text: ids(i, arguments.tokens, c.vocab),
        })
        .collect();

    // Downhill the loss sinks by as much as the gradient says.
    let before = trainable.gradient(&start_values, &batch, &objective, 1)?;
    let squares = |tensor: &Tensor| {
        tensor
            .values
            .iter()
            .map(|&v| f64::from(v).powi(2))
            .sum::<f64>()
    };
    // Of the mean: as long as B is zero they depend on no draw, so that another program can check them.
    let loss = before.mean();
    let slope = before.gradients.last().map_or(0.0, squares).sqrt() / before.targets as f64;
    let square: f64 = before.gradients.iter().map(squares).sum();
    let wanted = 2e-3 * before.nll;
    // A step of that much each way, so that the curvature cancels.
    let at = |steps: f64| -> prefold::Result<f64> {
        let mut parameters = start_values.clone();
        for (parameter, gradient) in parameters.iter_mut().zip(&before.gradients) {
            for (value, g) in parameter.values.iter_mut().zip(&gradient.values) {
                *value -= (steps * wanted / square * f64::from(*g)) as f32;
            }
        }
        Ok(trainable.loss(&parameters, &batch, &objective)?.nll)
    };
    let sunk = (at(-1.0)? - at(1.0)?) / (2.0 * wanted);
    assert!(
        (0.5..1.5).contains(&sunk),
        "the gradient is not a slope: {sunk}"
    );

    let (cpu, start) = (cpu_seconds(), Instant::now());
    let mut parameters = start_values;
    let mut moments = Moments::new(&parameters);
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..arguments.steps {
        let start = Instant::now();
        let sum = trainable.gradient(&parameters, &batch, &objective, step as u64)?;
        losses.push(sum.mean());
        let gradients = sum.means(&parameters)?;
        AdamW::default().step(&mut parameters, &gradients, &mut moments, LR)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let busy = (cpu_seconds() - cpu) / start.elapsed().as_secs_f64();
    seconds.sort_by(f64::total_cmp);
    let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
    let peak = peak_megabytes();
    if arguments.json {
        let line = serde_json::json!({
            "device": device, "batch": arguments.batch, "tokens": arguments.tokens,
            "memory": arguments.memory, "rank": arguments.rank, "steps": arguments.steps,
            "activations_mb": arguments.activations, "seconds_median": median, "seconds_best": best,
            "cores_busy": busy, "peak_mb": peak, "tokens_per_step": before.tokens,
            "loss": loss, "memory_gradient": slope, "losses": losses,
        });
        println!("{line}");
    } else {
        println!(
            "{device}: {} x {} tokens into {}, rank {}: {median:.3} s a step (best {best:.3} s, \
             {busy:.1} cores busy), peak {peak} MB; made ready in {made_ready:.2} s",
            arguments.batch, arguments.tokens, arguments.memory, arguments.rank,
        );
    }
    Ok(())
}

/// Some ids, the same every time.
fn ids(text: usize, len: usize, vocab: usize) -> Vec<u32> {
    let mut state = 12_345 + text as u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % vocab
    };
    (0..len).map(|_| next() as u32).collect()
}

/// CPU time of this process so far; 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: f64 = fields
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

/// Most memory this process has held; 0 where the system does not say.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) / 1024
}
