//! The parts of a layer: norms, projections, what lies between those of an MLP.

use crate::error::Result;
use crate::model::config::{Config, Mlp};
use crate::ops::{Backend, Linear, Norm};

pub(in crate::model) struct Layer<B: Backend> {
    pub(in crate::model) attention_norm: NormWeights<B>,
    /// q, k and v in one.
    pub(in crate::model) qkv: Projection<B>,
    /// Over each head of q and of k (Qwen3).
    pub(in crate::model) qk_norm: Option<[B::Buf<f32>; 2]>,
    pub(in crate::model) output: Projection<B>,
    pub(in crate::model) mlp_norm: NormWeights<B>,
    /// Gate and up in one (SwiGLU), or up alone (GELU).
    pub(in crate::model) up: Projection<B>,
    pub(in crate::model) down: Projection<B>,
}

pub(in crate::model) struct NormWeights<B: Backend> {
    pub(in crate::model) weight: B::Buf<f32>,
    pub(in crate::model) bias: Option<B::Buf<f32>>,
}

impl<B: Backend> NormWeights<B> {
    pub(in crate::model) fn apply(
        &self,
        backend: &B,
        config: &Config,
        rows: usize,
        x: &B::Buf<f32>,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        let shape = norm_shape(config, rows);
        backend.norm(shape, x, &self.weight, self.bias.as_ref(), y)
    }
}

/// The shape of a norm over the hidden states.
pub(in crate::model) fn norm_shape(config: &Config, rows: usize) -> Norm {
    Norm {
        rows,
        width: config.hidden,
        eps: config.norm_eps,
        kind: config.norm,
    }
}

/// What lies between the projections of an MLP.
pub(in crate::model) fn activate<B: Backend>(
    backend: &B,
    config: &Config,
    rows: usize,
    up: &B::Buf<f32>,
    inner: &mut B::Buf<f32>,
) -> Result<()> {
    let width = config.ffn;
    match config.mlp {
        Mlp::SwiGlu => backend.swiglu(rows, width, up, inner),
        Mlp::GeGlu => backend.geglu(rows, width, up, inner),
        Mlp::Gelu => backend.gelu(rows * width, up, inner),
        Mlp::GeluErf => backend.gelu_erf(rows * width, up, inner),
    }
}

pub(in crate::model) struct Projection<B: Backend> {
    pub(in crate::model) inputs: usize,
    pub(in crate::model) outputs: usize,
    pub(in crate::model) weight: B::Matrix,
    pub(in crate::model) bias: Option<B::Buf<f32>>,
}

impl<B: Backend> Projection<B> {
    /// Width of what comes out.
    pub(in crate::model) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `y = x · wᵀ + bias` of so many rows, or with `add` `y` more by that; with `estimate` by
    /// [`crate::ops::GemmOp::estimate`].
    pub(in crate::model) fn apply(
        &self,
        backend: &B,
        rows: usize,
        x: &B::Buf<f32>,
        add: bool,
        estimate: bool,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        let shape = Linear {
            rows,
            inputs: self.inputs,
            outputs: self.outputs,
            add,
        };
        let bias = self.bias.as_ref();
        match estimate {
            true => backend.estimate(shape, x, &self.weight, bias, y),
            false => backend.linear(shape, x, &self.weight, bias, y),
        }
    }
}
