//! What is trained: LoRA's matrices and memory embeddings, new or of an adapter.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::objective::Tensor;
use crate::error::{Error, Result};
use crate::model::config::{Config, Family};
use crate::model::lora::{self, LoraWeights};
use crate::model::weights::Weights;
use crate::random::Random;
use crate::soft::read_memory;

/// The name of the memory embeddings among the parameters.
pub const MEMORY: &str = "memory_embeddings";

/// Where new memory embeddings begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Drawn from a normal distribution of deviation 0.02, as the model's own embeddings once were.
    #[default]
    Normal,
    /// At the mean of the model's embeddings, each with a hundredth of their deviation as noise: equal
    /// ones would stay equal but for their positions.
    Mean,
}

/// A new adapter; the defaults are 500xCompressor's.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Rank of LoRA's matrices, at least 1.
    pub rank: usize,
    /// LoRA's scale times its rank.
    pub alpha: f64,
    /// Projections, by the ends of their names (`q_proj`).
    pub targets: Vec<String>,
    /// Memory tokens; 0 for distribution alignment.
    pub memory_tokens: usize,
    /// Where their embeddings begin.
    pub init: Init,
    /// Decides all draws.
    pub seed: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            rank: 64,
            alpha: 32.0,
            targets: vec!["q_proj".into(), "v_proj".into()],
            memory_tokens: 16,
            init: Init::Normal,
            seed: 0,
        }
    }
}

/// An adapter as it is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Rank of every pair of matrices.
    pub rank: usize,
    /// LoRA's scale times its rank (times the root of its rank, if `rslora`).
    pub alpha: f64,
    /// The scale goes by the root of the rank (arXiv 2312.03732).
    pub rslora: bool,
    /// The matrices, layer by layer, A before B, and the memory embeddings last, if there are any.
    pub tensors: Vec<Tensor>,
}

/// The deviation of new memory embeddings.
const DEVIATION: f64 = 0.02;

impl Parameters {
    /// A new adapter for the model of `weights`: A uniform in ±1/√inputs and B zero, as PEFT begins
    /// them, so that its model is the frozen one at first.
    ///
    /// # Errors
    /// [`Error::Input`] for a rank, a target or a number of memory tokens that cannot be;
    /// [`Error::Unsupported`] for GPT-2.
    pub fn new(weights: &Weights, spec: &Spec) -> Result<Self> {
        let c = weights.config();
        if c.family == Family::Gpt2 {
            return Err(Error::Unsupported {
                what: "an adapter for GPT-2".into(),
                have: "Llama, Mistral, Qwen2, Qwen3".into(),
            });
        }
        if !(1..=c.hidden).contains(&spec.rank) {
            let reason = format!("expected 1 to the model's width of {}", c.hidden);
            return Err(Error::input(format!("rank {}", spec.rank), reason));
        }
        if !(spec.alpha.is_finite() && spec.alpha > 0.0) {
            let what = format!("alpha {}", spec.alpha);
            return Err(Error::input(what, "expected a positive number"));
        }
        if spec.memory_tokens >= c.max_positions {
            let what = format!("{} memory tokens", spec.memory_tokens);
            let reason = format!("the model has {} positions", c.max_positions);
            return Err(Error::input(what, reason));
        }
        let modules = lora::modules(c);
        let known = |name: &str| modules.iter().any(|(module, ..)| short(module) == name);
        if let Some(target) = spec.targets.iter().find(|target| !known(target)) {
            let have: Vec<&str> = modules.iter().map(|(module, ..)| short(module)).collect();
            let reason = format!("expected some of {}", have.join(", "));
            return Err(Error::input(format!("target {target}"), reason));
        }
        if spec.targets.is_empty() {
            return Err(Error::input("targets", "there is none"));
        }
        let mut random = Random::of(spec.seed, &[0]);
        let mut tensors = Vec::new();
        for layer in 0..c.layers {
            for &(module, outputs, inputs) in &modules {
                if !spec.targets.iter().any(|target| target == short(module)) {
                    continue;
                }
                let bound = 1.0 / (inputs as f64).sqrt();
                let draw = |_| ((2.0 * random.unit() - 1.0) * bound) as f32;
                tensors.push(Tensor {
                    name: lora::peft_name(layer, module, "lora_A"),
                    shape: [spec.rank, inputs],
                    values: (0..spec.rank * inputs).map(draw).collect(),
                });
                tensors.push(Tensor {
                    name: lora::peft_name(layer, module, "lora_B"),
                    shape: [outputs, spec.rank],
                    values: vec![0.0; outputs * spec.rank],
                });
            }
        }
        if spec.memory_tokens > 0 {
            tensors.push(memory(weights, spec)?);
        }
        Ok(Parameters {
            rank: spec.rank,
            alpha: spec.alpha,
            rslora: false,
            tensors,
        })
    }

    /// Those of an adapter's folder, its memory embeddings only where they are asked for.
    ///
    /// # Errors
    /// Those of [`LoraWeights::open`]; [`Error::Unsupported`] for ranks or scales that differ from
    /// module to module.
    pub fn open(folder: &Path, config: &Config, with_memory: bool) -> Result<Self> {
        LoraWeights::open(folder, config)?;
        let raw = lora::read_raw(folder)?;
        let mut tensors: Vec<Tensor> = raw
            .factors
            .into_iter()
            .map(|(name, shape, values)| Tensor {
                name,
                shape,
                values,
            })
            .collect();
        if with_memory {
            let values = read_memory(folder, config)?;
            tensors.push(Tensor {
                name: MEMORY.into(),
                shape: [values.len() / config.hidden, config.hidden],
                values,
            });
        }
        Ok(Parameters {
            rank: raw.rank,
            alpha: raw.alpha.into(),
            rslora: raw.rslora,
            tensors,
        })
    }

    /// What LoRA's product is multiplied by.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Number of memory tokens.
    pub fn memory_tokens(&self) -> usize {
        match self.tensors.last() {
            Some(last) if last.name == MEMORY => last.shape[0],
            _ => 0,
        }
    }

    /// The ends of the names of the projections that it changes.
    pub fn targets(&self) -> Vec<&str> {
        let mut targets: Vec<&str> = Vec::new();
        for tensor in &self.tensors {
            if let Some(module) = tensor.name.strip_suffix(".lora_A.weight")
                && !targets.contains(&short(module))
            {
                targets.push(short(module));
            }
        }
        targets
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.values.len()).sum()
    }

    /// True for no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `q_proj` of `self_attn.q_proj`.
fn short(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

fn memory(weights: &Weights, spec: &Spec) -> Result<Tensor> {
    let width = weights.config().hidden;
    let mut random = Random::of(spec.seed, &[1]);
    let (mean, deviation) = match spec.init {
        Init::Normal => (vec![0.0; width], DEVIATION),
        Init::Mean => {
            let embeddings = weights.get("model.embed_tokens.weight")?.to_f32()?;
            let rows = (embeddings.len() / width).max(1) as f64;
            let mut mean = vec![0.0f64; width];
            for row in embeddings.chunks_exact(width) {
                mean.iter_mut()
                    .zip(row)
                    .for_each(|(m, &x)| *m += f64::from(x));
            }
            mean.iter_mut().for_each(|m| *m /= rows);
            let squares = embeddings.chunks_exact(width).flat_map(|row| {
                let pairs = row.iter().zip(&mean);
                pairs.map(|(&x, m)| (f64::from(x) - m).powi(2))
            });
            let variance = squares.sum::<f64>() / (rows * width as f64);
            (mean, 0.01 * variance.sqrt())
        }
    };
    let values = (0..spec.memory_tokens)
        .flat_map(|_| &mean)
        .map(|m| (m + deviation * random.normal()) as f32)
        .collect();
    Ok(Tensor {
        name: MEMORY.into(),
        shape: [spec.memory_tokens, width],
        values,
    })
}
