//! Every op once: shape, inputs, what is right, how near a backend must come, and what it costs.
//!
//! The tests of the CPU and of the kernels run small cases and compare with the oracle in f64, gradients
//! with differences of it. `benches/kernels` runs cases of a model's sizes, compares with the CPU, and
//! times them.
// Its users need different parts.
#![allow(dead_code, unused_imports)]

mod list;
mod operands;
mod run;
mod want;

use prefold::ops::{Backend, LoraPart, NllTarget, NormKind, Pairing, TopKOutput};
use rayon::prelude::*;

pub use list::{MODELS, Sizes, TINY, of_model, small};
pub use want::{Want, distance};

/// What bounds an op, if one thing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Products,
    Memory,
    Latency,
}

/// Heads of attention.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
}

impl Heads {
    /// Width of a row of q, k and v.
    fn all(self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }

    fn out(self) -> usize {
        self.queries * self.dim
    }

    /// Width of a row of k or of v.
    fn kv(self) -> usize {
        self.keys * self.dim
    }
}

/// An op, and its sizes but for the rows.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    Linear {
        inputs: usize,
        outputs: usize,
        /// A bias, and a residual that the result is added to.
        add: bool,
    },
    Nll {
        width: usize,
        vocab: usize,
    },
    NllBwd {
        width: usize,
        vocab: usize,
    },
    Norm {
        width: usize,
        kind: NormKind,
    },
    NormBwd {
        width: usize,
        kind: NormKind,
    },
    Rotate {
        heads: Heads,
        pairing: Pairing,
        normed: bool,
    },
    RotateBwd {
        heads: Heads,
        pairing: Pairing,
        normed: bool,
    },
    Swiglu {
        width: usize,
    },
    SwigluBwd {
        width: usize,
    },
    Geglu {
        width: usize,
    },
    Gelu {
        width: usize,
    },
    GeluBwd {
        width: usize,
    },
    GeluErf {
        width: usize,
    },
    Attention {
        heads: Heads,
        prefix: usize,
        window: Option<usize>,
        ahead: usize,
    },
    AttentionBwd {
        heads: Heads,
        prefix: usize,
        window: Option<usize>,
    },
    /// Of q, k and v.
    Lora {
        width: usize,
        heads: Heads,
        rank: usize,
    },
    LoraBwd {
        width: usize,
        heads: Heads,
        rank: usize,
    },
    /// The upper half of each segment of as many scores as there are rows.
    TopK {
        segments: usize,
    },
}

/// An op at a shape.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub op: Op,
    pub rows: usize,
    /// Rows before them that are left out: see [`Case::tail`].
    pub skipped: usize,
    pub seed: u64,
}

/// The operands of a case on the host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Height, width and values.
    matrices: Vec<(usize, usize, Vec<f32>)>,
    inputs: Vec<Vec<f32>>,
    /// What outputs hold before: numbers where the op adds to them, elsewhere NaN.
    outputs: Vec<Vec<f32>>,
}

/// The same on a device.
pub struct Placed<B: Backend> {
    /// The host's, and for gradients through them each transposed.
    pub matrices: Vec<B::Matrix>,
    pub inputs: Vec<B::Buf<f32>>,
    pub outputs: Vec<B::Buf<f32>>,
    ids: Vec<B::Buf<u32>>,
    pub selection: Option<TopKOutput<B>>,
}

const EPS: f32 = 1e-5;
/// Rows of a cache before a case's own: they are not touched.
const BEFORE: usize = 3;

/// So many numbers from −scale to scale, another sequence for every seed. Each is a number of bf16 too, so
/// that a product's operand is not rounded by any device.
pub fn floats(count: usize, scale: f32, seed: u64) -> Vec<f32> {
    let number = |i: usize| {
        let z = (seed << 40 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ z >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        half::bf16::from_f32(((z >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale).to_f32()
    };
    (0..count).into_par_iter().map(number).collect()
}

fn nothing(count: usize) -> Vec<f32> {
    vec![f32::NAN; count]
}

impl Case {
    /// The op's name in its trait.
    pub fn name(&self) -> &'static str {
        match self.op {
            Op::Linear { .. } => "linear",
            Op::Nll { .. } => "nll",
            Op::NllBwd { .. } => "nll_bwd",
            Op::Norm { .. } => "norm",
            Op::NormBwd { .. } => "norm_bwd",
            Op::Rotate { .. } => "rotate",
            Op::RotateBwd { .. } => "rotate_bwd",
            Op::Swiglu { .. } => "swiglu",
            Op::SwigluBwd { .. } => "swiglu_bwd",
            Op::Geglu { .. } => "geglu",
            Op::Gelu { .. } => "gelu",
            Op::GeluBwd { .. } => "gelu_bwd",
            Op::GeluErf { .. } => "gelu_erf",
            Op::Attention { .. } => "attention",
            Op::AttentionBwd { .. } => "attention_bwd",
            Op::Lora { .. } => "lora",
            Op::LoraBwd { .. } => "lora_bwd",
            Op::TopK { .. } => "topk",
        }
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        let rows = self.rows as f64;
        let seen = |prefix: usize| rows * prefix as f64 + rows * (rows + 1.0) / 2.0;
        match self.op {
            Op::Linear {
                inputs, outputs, ..
            } => 2.0 * rows * (inputs * outputs) as f64,
            Op::Nll { width, vocab } => 2.0 * rows * (width * vocab) as f64,
            // Logits are made twice.
            Op::NllBwd { width, vocab } => 6.0 * rows * (width * vocab) as f64,
            Op::Attention { heads, prefix, .. } => 4.0 * seen(prefix) * heads.out() as f64,
            Op::AttentionBwd { heads, prefix, .. } => 10.0 * seen(prefix) * heads.out() as f64,
            Op::Lora { width, heads, rank } => {
                2.0 * rows * (rank * (3 * width + heads.all())) as f64
            }
            Op::LoraBwd { width, heads, rank } => {
                2.0 * rows * (rank * (9 * width + 2 * heads.all())) as f64
            }
            _ => 0.0,
        }
    }

    /// Bytes of the operands, each once; weights have 2 bytes.
    pub fn bytes(&self) -> f64 {
        let rows = self.rows;
        let floats = |elements: usize| 4 * elements;
        let bytes = match self.op {
            Op::Linear {
                inputs, outputs, ..
            } => 2 * inputs * outputs + floats(rows * (inputs + outputs)),
            Op::Nll { width, vocab } => 2 * vocab * width + 2 * rows * width + floats(rows),
            Op::NllBwd { width, vocab } => 4 * vocab * width + floats(3 * rows * width),
            Op::Norm { width, .. } => floats(2 * rows * width),
            Op::NormBwd { width, .. } => floats(4 * rows * width),
            Op::Rotate { heads, .. } => floats(rows * (2 * heads.all() + 2 * heads.kv())),
            Op::RotateBwd { heads, .. } => floats(2 * rows * heads.all()),
            Op::Swiglu { width } | Op::Geglu { width } => floats(3 * rows * width),
            Op::SwigluBwd { width } => floats(5 * rows * width),
            Op::Gelu { width } | Op::GeluErf { width } => floats(2 * rows * width),
            Op::GeluBwd { width } => floats(3 * rows * width),
            Op::Attention { heads, prefix, .. } => {
                floats(2 * (prefix + rows) * heads.kv() + rows * (heads.all() + heads.out()))
            }
            Op::AttentionBwd { heads, .. } => {
                floats(rows * (2 * heads.all() + 2 * heads.out() + 4 * heads.kv()))
            }
            Op::Lora { width, heads, .. } => floats(rows * (width + 2 * heads.all())),
            Op::LoraBwd { width, heads, .. } => floats(rows * (3 * width + heads.all())),
            Op::TopK { segments } => 16 * rows * segments,
        };
        bytes as f64
    }

    pub fn bound(&self) -> Bound {
        match self.op {
            Op::Linear { .. } | Op::Nll { .. } | Op::NllBwd { .. } => Bound::Products,
            Op::Attention { .. } | Op::AttentionBwd { .. } => Bound::Products,
            Op::TopK { .. } => Bound::Latency,
            _ => Bound::Memory,
        }
    }

    /// How far a backend may be off: so much, and so much of the value. With `bf16` what lies between
    /// two products is rounded to 8 bits.
    pub fn tolerance(&self, bf16: bool) -> [f64; 2] {
        // Rounding grows with the root of a sum's length; tensor cores cut off what others round.
        let of_sum = |length: usize| {
            let one = if bf16 { 2e-5 } else { 2e-6 };
            one * (length as f64).sqrt() + 2e-5
        };
        match self.op {
            Op::Linear { inputs, .. } => [of_sum(inputs), 1e-5],
            Op::Nll { width, .. } => [of_sum(width), 1e-5],
            Op::NllBwd { .. } => [if bf16 { 0.02 } else { 2e-4 }, 1e-3],
            Op::Attention { .. } => [if bf16 { 0.05 } else { 2e-5 }, 1e-5],
            Op::AttentionBwd { .. } => [if bf16 { 0.1 } else { 5e-4 }, 1e-3],
            Op::Lora { .. } => [if bf16 { 0.02 } else { 5e-5 }, 1e-5],
            // Sums over the rows.
            Op::LoraBwd { .. } if bf16 => [0.01 * (self.rows as f64).sqrt(), 1e-3],
            Op::LoraBwd { .. } => [2e-4 * (self.rows as f64).sqrt(), 1e-3],
            Op::NormBwd { .. } | Op::RotateBwd { .. } => [2e-4, 1e-3],
            Op::SwigluBwd { .. } | Op::GeluBwd { .. } => [2e-4, 1e-3],
            Op::TopK { .. } => [0.0, 0.0],
            _ => [3e-5, 3e-5],
        }
    }

    /// What a likelihood is asked for.
    pub fn picks(&self, vocab: usize) -> Vec<NllTarget> {
        let target = |row: usize| ((self.skipped + row) * 7919 % vocab) as u32;
        let pick = |row: usize| NllTarget {
            row: row as u32,
            target: target(row),
        };
        (0..self.rows).map(pick).collect()
    }
}

fn parts(heads: Heads, rank: usize) -> Vec<LoraPart> {
    let mut parts = Vec::new();
    let mut output = 0;
    for (i, outputs) in [heads.out(), heads.kv(), heads.kv()]
        .into_iter()
        .enumerate()
    {
        parts.push(LoraPart {
            rank: i * rank,
            ranks: rank,
            output,
            outputs,
        });
        output += outputs;
    }
    parts
}
