//! What is trained: LoRA's matrices and memory embeddings, new or of an adapter.

use std::path::Path;

use super::objective::{LoraShape, Tensor};
use super::start::MEMORY;
use crate::error::{Error, Result};
use crate::kv_prefix::{KRope, KvPrefix};
use crate::model::config::{Config, Family};
use crate::model::lora::{self, LoraWeights, Target};
use crate::model::prefix::exchange;
use crate::soft::{read_memory, untrained_rows};

/// An adapter as it is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Rank, alpha and projections.
    pub lora: LoraShape,
    /// The matrices, layer by layer, A before B, and the memory embeddings last, if there are any.
    pub tensors: Vec<Tensor>,
}

/// Checks the shape of a new adapter for a model of `c`, and its number of memory tokens.
///
/// # Errors
/// [`Error::Input`] for a rank, a scale, targets or a number of memory tokens that the model cannot have;
/// [`Error::Unsupported`] for GPT-2.
pub fn check(c: &Config, lora: &LoraShape, memory_tokens: usize) -> Result<()> {
    if c.family == Family::Gpt2 {
        return Err(Error::Unsupported {
            what: "an adapter for GPT-2".into(),
            have: "Llama, Mistral, Qwen2, Qwen3".into(),
        });
    }
    if !(1..=c.hidden).contains(&lora.rank) {
        let reason = format!("expected 1 to the model's width of {}", c.hidden);
        return Err(Error::input(format!("rank {}", lora.rank), reason));
    }
    if !(lora.alpha.is_finite() && lora.alpha > 0.0) {
        let what = format!("alpha {}", lora.alpha);
        return Err(Error::input(what, "expected a positive number"));
    }
    if lora.targets.is_empty() {
        return Err(Error::input("targets", "none was given"));
    }
    if memory_tokens >= c.max_positions {
        let what = format!("memory_tokens {memory_tokens}");
        let reason = format!("the model has {} positions", c.max_positions);
        return Err(Error::input(what, reason));
    }
    Ok(())
}

/// Checks that a prefix can be trained for a model of `c`.
///
/// # Errors
/// [`Error::Unsupported`] for GPT-2.
pub(crate) fn check_prefix_model(c: &Config) -> Result<()> {
    match c.family {
        Family::Gpt2 => Err(Error::Unsupported {
            what: "training a prefix for GPT-2".into(),
            have: "Llama, Mistral, Qwen2, Qwen3".into(),
        }),
        _ => Ok(()),
    }
}

/// No adapter at all.
pub(crate) fn no_lora() -> LoraShape {
    LoraShape {
        rank: 1,
        alpha: 1.0,
        targets: Vec::new(),
    }
}

/// Layer and side (0: K, 1: V) of a tensor of a prefix, as `layers.3.k`.
pub(crate) fn prefix_part(name: &str) -> Option<(usize, usize)> {
    let (layer, side) = name.strip_prefix("layers.")?.split_once('.')?;
    let side = ["k", "v"].iter().position(|&name| name == side)?;
    Some((layer.parse().ok()?, side))
}

impl Parameters {
    /// K, rotated, and V of a prefix, layer by layer, as `[rows, kv_heads * head_dim]`.
    ///
    /// # Errors
    /// [`Error::Input`] for keys that cannot be rotated.
    pub fn of_prefix(prefix: &KvPrefix) -> Result<Self> {
        let shape = prefix.shape();
        let mut tensors = Vec::with_capacity(2 * shape.layers);
        for i in 0..shape.layers {
            let k = prefix.key_layer(i, KRope::Applied)?;
            let v = prefix.layer(i).map_or(&[][..], |[_, v]| v);
            for (side, values) in [("k", &k[..]), ("v", v)] {
                tensors.push(Tensor {
                    name: format!("layers.{i}.{side}"),
                    shape: [shape.tokens, shape.kv_heads * shape.head_dim],
                    values: exchange(values, shape.kv_heads, shape.tokens, shape.head_dim),
                });
            }
        }
        Ok(Parameters {
            lora: no_lora(),
            tensors,
        })
    }

    /// The reverse of [`Parameters::of_prefix`]: of each layer K and V, `[kv_heads, rows, head_dim]`.
    pub(crate) fn prefix_layers(&self, kv_heads: usize) -> Vec<[Vec<f32>; 2]> {
        let back = |tensor: &Tensor| {
            let [rows, width] = tensor.shape;
            exchange(&tensor.values, rows, kv_heads, width / kv_heads.max(1))
        };
        let pairs = self.tensors.as_chunks::<2>().0;
        pairs.iter().map(|[k, v]| [back(k), back(v)]).collect()
    }

    /// Those of an adapter's folder, its memory embeddings only where they are asked for.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for files that cannot be read or do not fit the model;
    /// [`Error::Unsupported`] for a kind of adapter or a module that is not built, and for ranks or scales
    /// that differ from module to module.
    pub fn open(folder: &Path, config: &Config, with_memory: bool) -> Result<Self> {
        LoraWeights::open(folder, config)?;
        let raw = lora::read_raw(folder)?;
        let mut targets: Vec<Target> = Vec::new();
        let mut tensors = Vec::new();
        for ((_, target, _), name, shape, values) in raw.factors {
            if !targets.contains(&target) {
                targets.push(target);
            }
            tensors.push(Tensor {
                name,
                shape,
                values,
            });
        }
        if tensors.len() != 2 * targets.len() * config.layers {
            return Err(Error::Unsupported {
                what: format!("{}: training some of the layers", folder.display()),
                have: "the same projections in every layer".into(),
            });
        }
        if with_memory {
            if let Some(name) = untrained_rows(folder) {
                return Err(Error::Unsupported {
                    what: format!("{}: training on with {name}", folder.display()),
                    have: "adapters without ae_embedding and after_memory".into(),
                });
            }
            let values = read_memory(folder, config)?;
            tensors.push(Tensor {
                name: MEMORY.into(),
                shape: [values.len() / config.hidden, config.hidden],
                values,
            });
        }
        Ok(Parameters {
            lora: LoraShape {
                rank: raw.rank,
                alpha: raw.alpha,
                targets,
            },
            tensors,
        })
    }

    /// What LoRA's product is multiplied by.
    pub fn scale(&self) -> f32 {
        self.lora.alpha / self.lora.rank as f32
    }

    /// Number of memory tokens.
    pub fn memory_tokens(&self) -> usize {
        match self.tensors.last() {
            Some(last) if last.name == MEMORY => last.shape[0],
            _ => 0,
        }
    }

    /// PEFT's short names of the projections, as `q_proj`.
    pub fn targets(&self) -> Vec<&'static str> {
        let held = |(target, _): &&(Target, _)| self.lora.targets.contains(target);
        let short = |&(_, module): &(_, &'static str)| short(module);
        Target::ALL.iter().filter(held).map(short).collect()
    }
}

/// The projection of a short name, as `q_proj`, or without its end, as `q`.
pub fn target(name: &str) -> Option<Target> {
    let called = |module: &'static str| {
        let short = short(module);
        short == name || short.strip_suffix("_proj") == Some(name)
    };
    let mut found = Target::ALL.iter().filter(|(_, module)| called(module));
    found.next().map(|&(target, _)| target)
}

/// `q_proj` of `self_attn.q_proj`.
pub(super) fn short(module: &'static str) -> &'static str {
    module.rsplit('.').next().unwrap_or(module)
}
