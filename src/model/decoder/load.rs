//! A decoder brought from a file to a device.

use std::sync::{Arc, Mutex};

use super::Model;
use super::layers::{Layer, NormWeights, Projection};
use crate::error::{Error, Result};
use crate::model::config::Family;
use crate::model::rows::Stacked;
use crate::model::weights::Weights;
use crate::ops::{Backend, RowSource};

impl<B: Backend> Model<B> {
    /// Brings the weights to a device, as f32. A device that keeps its own layout of them only as it
    /// needs it, as the CPU does, reads the files later: they stay mapped as long as the model lives.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for an encoder or heads of odd width; [`Error::Format`] for a tensor that is
    /// missing; [`Error::Device`] if the device fails.
    pub fn load(backend: B, weights: &Weights) -> Result<Self> {
        let config = weights.config().clone();
        if config.encoder.is_some() {
            return Err(Error::Unsupported {
                what: format!(
                    "{}: an encoder ({}) where a decoder is wanted",
                    weights.path().display(),
                    config.family.name()
                ),
                have: "llama, mistral, qwen2, qwen3, gpt2".into(),
            });
        }
        if config.head_dim % 2 == 1 {
            return Err(Error::Unsupported {
                what: format!("heads of odd width {}", config.head_dim),
                have: "even ones".into(),
            });
        }
        let loader = Loader {
            backend: &backend,
            weights,
        };
        let gpt2 = config.family == Family::Gpt2;
        let (outer, embedding, norm) = if gpt2 {
            ("transformer.", "wte", "ln_f")
        } else {
            ("model.", "embed_tokens", "norm")
        };
        Ok(Model {
            embedding: loader.matrix(&format!("{outer}{embedding}.weight"))?,
            positions: match gpt2 {
                true => Some(loader.matrix("transformer.wpe.weight")?),
                false => None,
            },
            layers: (0..config.layers)
                .map(|layer| match gpt2 {
                    true => loader.gpt2_layer(&format!("transformer.h.{layer}")),
                    false => loader.llama_layer(&format!("model.layers.{layer}")),
                })
                .collect::<Result<_>>()?,
            norm: loader.norm(&format!("{outer}{norm}"))?,
            head: match config.tied {
                true => None,
                false => Some(loader.matrix("lm_head.weight")?),
            },
            frequencies: config.rope().map(|rope| rope.frequencies()),
            pool: Mutex::default(),
            workspaces: Mutex::default(),
            config,
            backend,
        })
    }
}

/// Reads tensors and lays them out for the device.
pub(in crate::model) struct Loader<'a, B: Backend> {
    pub(in crate::model) backend: &'a B,
    pub(in crate::model) weights: &'a Weights,
}

impl<B: Backend> Loader<'_, B> {
    pub(in crate::model) fn matrix(&self, name: &str) -> Result<B::Matrix> {
        Ok(self.stacked(&[name])?.0)
    }

    /// Matrices of one width, one above the other, with their height and width.
    fn stacked(&self, names: &[&str]) -> Result<(B::Matrix, usize, usize)> {
        let mut parts = Vec::with_capacity(names.len());
        let mut inputs = None;
        for name in names {
            let part = self.weights.rows(name)?;
            let shape = part.shape();
            if *inputs.get_or_insert(shape[1]) != shape[1] {
                return Err(Error::format(
                    self.weights.path(),
                    format!("tensor {name} has an unexpected shape {shape:?}"),
                ));
            }
            parts.push(part);
        }
        let source: Arc<dyn RowSource> = match parts.len() {
            1 => parts.remove(0),
            _ => Arc::new(Stacked(parts)),
        };
        let [outputs, inputs] = source.shape();
        Ok((self.backend.matrix_of(source)?, outputs, inputs))
    }

    /// The layers `names` of `layer`, one above the other; an empty name is the layer itself.
    pub(in crate::model) fn projection(
        &self,
        layer: &str,
        names: &[&str],
    ) -> Result<Projection<B>> {
        let full = |suffix| -> Vec<String> {
            names
                .iter()
                .map(|name| match name.is_empty() {
                    true => format!("{layer}.{suffix}"),
                    false => format!("{layer}.{name}.{suffix}"),
                })
                .collect()
        };
        let (weights, biases) = (full("weight"), full("bias"));
        let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
        let (weight, outputs, inputs) = self.stacked(&weights)?;
        let mut bias = Vec::new();
        for name in &biases {
            if self.weights.has(name) {
                bias.extend(self.weights.get(name)?.to_f32()?);
            }
        }
        Ok(Projection {
            inputs,
            outputs,
            weight,
            bias: match bias.is_empty() {
                true => None,
                false => Some(self.backend.upload(&bias)?),
            },
        })
    }

    fn vector(&self, name: &str) -> Result<B::Buf<f32>> {
        self.backend.upload(&self.weights.get(name)?.to_f32()?)
    }

    pub(in crate::model) fn norm(&self, name: &str) -> Result<NormWeights<B>> {
        let bias = format!("{name}.bias");
        Ok(NormWeights {
            weight: self.vector(&format!("{name}.weight"))?,
            bias: match self.weights.has(&bias) {
                true => Some(self.vector(&bias)?),
                false => None,
            },
        })
    }

    fn llama_layer(&self, at: &str) -> Result<Layer<B>> {
        let q_norm = format!("{at}.self_attn.q_norm.weight");
        Ok(Layer {
            attention_norm: self.norm(&format!("{at}.input_layernorm"))?,
            qkv: self.projection(
                at,
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            )?,
            qk_norm: match self.weights.has(&q_norm) {
                true => Some([
                    self.vector(&q_norm)?,
                    self.vector(&format!("{at}.self_attn.k_norm.weight"))?,
                ]),
                false => None,
            },
            output: self.projection(at, &["self_attn.o_proj"])?,
            mlp_norm: self.norm(&format!("{at}.post_attention_layernorm"))?,
            up: self.projection(at, &["mlp.gate_proj", "mlp.up_proj"])?,
            down: self.projection(at, &["mlp.down_proj"])?,
        })
    }

    fn gpt2_layer(&self, at: &str) -> Result<Layer<B>> {
        Ok(Layer {
            attention_norm: self.norm(&format!("{at}.ln_1"))?,
            qkv: self.projection(at, &["attn.c_attn"])?,
            qk_norm: None,
            output: self.projection(at, &["attn.c_proj"])?,
            mlp_norm: self.norm(&format!("{at}.ln_2"))?,
            up: self.projection(at, &["mlp.c_fc"])?,
            down: self.projection(at, &["mlp.c_proj"])?,
        })
    }
}
