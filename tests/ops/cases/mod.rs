//! Every op once: shape, inputs, what is right, how near a backend must come, and what it costs.
//!
//! An op is a struct of its sizes, and [`OpCase`] for it, in the file of its subject. The tests of the CPU
//! and of the kernels run small cases and compare with the oracle in f64, gradients with differences of it.
//! `benches/kernels` runs cases of a model's sizes, compares with the CPU, and times them.
// Its users need different parts.
#![allow(dead_code, unused_imports)]

mod attention;
mod layer;
mod linear;
mod lora;
mod models;
mod nll;
mod topk;

use std::fmt::Debug;

use prefold::Result;
use prefold::ops::{Backend, Buffer, TopKOutput};
use rayon::prelude::*;

pub use attention::{Attention, AttentionBwd};
pub use layer::{
    Geglu, Gelu, GeluBwd, GeluErf, Norm, NormBwd, Rotate, RotateBwd, Swiglu, SwigluBwd,
};
pub use linear::Linear;
pub use lora::{Lora, LoraBwd};
pub use models::{MODELS, Sizes, TINY, of_model};
pub use nll::{Nll, NllBwd};
pub use topk::TopK;

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

const fn heads(queries: usize, keys: usize, dim: usize) -> Heads {
    Heads { queries, keys, dim }
}

/// An op at a shape.
#[derive(Debug, Clone, Copy)]
pub struct Case<O = Op> {
    /// The op with its sizes but for the rows.
    pub op: O,
    pub rows: usize,
    /// Rows before them that are left out: see [`Case::tail`].
    pub skipped: usize,
    pub seed: u64,
}

/// All that the table knows of an op. `Self` holds its sizes but for the rows.
pub trait OpCase: Copy + Debug {
    /// The op's name in its trait.
    const NAME: &'static str;
    const BOUND: Bound = Bound::Memory;

    /// Cases small enough for the oracle and for a CPU that executes kernels, with rows for each: sizes
    /// around those of tiles and vectors.
    fn small() -> Vec<(Self, Vec<usize>)>;

    /// Multiplications and additions.
    fn flops(case: &Case<Self>) -> f64 {
        let _ = case;
        0.0
    }

    /// Bytes of the operands, each once; weights have 2 bytes.
    fn bytes(case: &Case<Self>) -> usize;

    /// How far a backend may be off: so much, and so much of the value. With `bf16` what lies between
    /// two products is rounded to 8 bits.
    fn tolerance(case: &Case<Self>, bf16: bool) -> [f64; 2] {
        let _ = (case, bf16);
        [3e-5, 3e-5]
    }

    /// The operands.
    fn host(case: &Case<Self>) -> Host;

    /// What the op needs on a device besides its matrices and floats.
    fn prepare<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let _ = (case, b, on);
        Ok(())
    }

    /// Runs the op.
    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()>;

    /// What is right, by the oracle: of a gradient some elements, of all else everything.
    fn want(case: &Case<Self>, host: &Host) -> Vec<Want>;

    /// The op on its last rows alone, without the first `skip`; it takes these rows of its first input and of its
    /// outputs. `None` where it is not a part of the whole.
    fn tail(self, skip: usize) -> Option<Self> {
        let _ = skip;
        None
    }
}

/// Makes [`Op`] of the ops' structs, and a case's functions by its op.
macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        /// An op, and its sizes but for the rows.
        #[derive(Debug, Clone, Copy)]
        pub enum Op {
            $($op($op)),*
        }

        $(impl From<$op> for Op {
            fn from(op: $op) -> Op {
                Op::$op(op)
            }
        })*

        /// The small cases of every op.
        pub fn small() -> Vec<Case> {
            let mut cases = Vec::new();
            $(for (op, rows) in $op::small() {
                for rows in rows {
                    let seed = cases.len() as u64 + 1;
                    cases.push(Case { op: op.into(), rows, skipped: 0, seed });
                }
            })*
            cases
        }

        impl Case {
            /// The op's name in its trait.
            pub fn name(&self) -> &'static str {
                match self.op {
                    $(Op::$op(_) => $op::NAME),*
                }
            }

            /// What bounds it.
            pub fn bound(&self) -> Bound {
                match self.op {
                    $(Op::$op(_) => $op::BOUND),*
                }
            }

            /// Multiplications and additions.
            pub fn flops(&self) -> f64 {
                match self.op {
                    $(Op::$op(op) => OpCase::flops(&self.of(op))),*
                }
            }

            /// Bytes of the operands.
            pub fn bytes(&self) -> f64 {
                let bytes = match self.op {
                    $(Op::$op(op) => OpCase::bytes(&self.of(op))),*
                };
                bytes as f64
            }

            /// How far a backend may be off.
            pub fn tolerance(&self, bf16: bool) -> [f64; 2] {
                match self.op {
                    $(Op::$op(op) => OpCase::tolerance(&self.of(op), bf16)),*
                }
            }

            /// The operands.
            pub fn host(&self) -> Host {
                match self.op {
                    $(Op::$op(op) => OpCase::host(&self.of(op))),*
                }
            }

            fn prepare<B: Backend>(&self, b: &B, on: &mut Placed<B>) -> Result<()> {
                match self.op {
                    $(Op::$op(op) => OpCase::prepare(&self.of(op), b, on)),*
                }
            }

            /// Runs the op.
            pub fn run<B: Backend>(&self, b: &B, on: &mut Placed<B>) -> Result<()> {
                match self.op {
                    $(Op::$op(op) => OpCase::run(&self.of(op), b, on)),*
                }
            }

            /// What is right, by the oracle.
            pub fn want(&self, host: &Host) -> Vec<Want> {
                match self.op {
                    $(Op::$op(op) => OpCase::want(&self.of(op), host)),*
                }
            }

            fn tail_of(&self, skip: usize) -> Option<Op> {
                match self.op {
                    $(Op::$op(op) => op.tail(skip).map(Op::from)),*
                }
            }
        }
    };
}

ops!(
    Linear,
    Nll,
    NllBwd,
    Norm,
    NormBwd,
    Rotate,
    RotateBwd,
    Swiglu,
    SwigluBwd,
    Geglu,
    Gelu,
    GeluBwd,
    GeluErf,
    Attention,
    AttentionBwd,
    Lora,
    LoraBwd,
    TopK,
);

/// The operands of a case on the host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Height, width and values.
    matrices: Vec<(usize, usize, Vec<f32>)>,
    /// The matrices are needed transposed as well: gradients go through them.
    transposed: bool,
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

/// Elements of an output, and what they should be.
pub struct Want {
    pub output: usize,
    pub at: Vec<usize>,
    pub values: Vec<f64>,
}

impl Want {
    /// Every element of an output.
    fn all(output: usize, values: Vec<f64>) -> Self {
        Want {
            output,
            at: (0..values.len()).collect(),
            values,
        }
    }

    /// Some elements of the gradient of `Σ dy · forward` with respect to one input, by central differences, added
    /// to what was there.
    fn slopes(
        host: &Host,
        input: usize,
        dy: &[f32],
        output: usize,
        before: &[f32],
        forward: impl Fn(&Host) -> Vec<f64>,
    ) -> Self {
        const STEP: f32 = 1.0 / 1024.0;
        let at = spread(host.inputs[input].len(), 60);
        let mut moved = host.clone();
        let mut loss = |i: usize, value: f32| -> f64 {
            let old = std::mem::replace(&mut moved.inputs[input][i], value);
            let out = forward(&moved);
            moved.inputs[input][i] = old;
            out.iter().zip(dy).map(|(y, &dy)| y * f64::from(dy)).sum()
        };
        let slope = |i: usize| {
            let x = host.inputs[input][i];
            let (high, low) = (x + STEP, x - STEP);
            let slope = (loss(i, high) - loss(i, low)) / (f64::from(high) - f64::from(low));
            slope + before.get(i).map_or(0.0, |&old| f64::from(old))
        };
        let values = at.iter().copied().map(slope).collect();
        Want { output, at, values }
    }
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

/// Bytes of so many f32.
fn f32s(elements: usize) -> usize {
    4 * elements
}

/// So many places, spread over all; all if there are few.
fn spread(len: usize, count: usize) -> Vec<usize> {
    (0..len).step_by(len.div_ceil(count).max(1)).collect()
}

/// What a matmul's result may be off: rounding grows with the root of a sum's length, and tensor cores cut off what
/// others round.
fn of_sum(length: usize, bf16: bool) -> f64 {
    let one = if bf16 { 2e-5 } else { 2e-6 };
    one * (length as f64).sqrt() + 2e-5
}

impl<O> Case<O> {
    /// The same rows of one op.
    fn of<P>(&self, op: P) -> Case<P> {
        Case {
            op,
            rows: self.rows,
            skipped: self.skipped,
            seed: self.seed,
        }
    }

    /// So many numbers, another sequence for each `which` of a case.
    fn numbers(&self, count: usize, scale: f32, which: u64) -> Vec<f32> {
        floats(count, scale, 16 * self.seed + which)
    }
}

impl Case {
    /// Brings operands to a device.
    pub fn place<B: Backend>(&self, b: &B, host: &Host) -> Result<Placed<B>> {
        let mut matrices = Vec::new();
        for (outputs, inputs, values) in &host.matrices {
            matrices.push(b.matrix(*outputs, *inputs, values)?);
        }
        if host.transposed {
            for i in 0..host.matrices.len() {
                matrices.push(b.transposed(&matrices[i])?);
            }
        }
        self.place_beside(b, host, matrices)
    }

    /// The same beside matrices that are there already: those of a case of other rows.
    pub fn place_beside<B: Backend>(
        &self,
        b: &B,
        host: &Host,
        matrices: Vec<B::Matrix>,
    ) -> Result<Placed<B>> {
        let upload = |all: &[Vec<f32>]| -> Result<Vec<B::Buf<f32>>> {
            all.iter().map(|values| b.upload(values)).collect()
        };
        let mut placed = Placed {
            matrices,
            inputs: upload(&host.inputs)?,
            outputs: upload(&host.outputs)?,
            ids: Vec::new(),
            selection: None,
        };
        self.prepare(b, &mut placed)?;
        Ok(placed)
    }

    /// What the outputs hold; of a selection its mask.
    pub fn read<B: Backend>(&self, b: &B, on: &Placed<B>) -> Result<Vec<Vec<f32>>> {
        if let Some(selection) = &on.selection {
            let mask = b.download(&selection.mask, 0..selection.mask.len())?;
            return Ok(vec![mask.into_iter().map(|kept| kept as f32).collect()]);
        }
        let outputs = on.outputs.iter();
        outputs.map(|out| b.download(out, 0..out.len())).collect()
    }

    /// A case whose outputs are the last rows of this one's, with the operands for it: enough to look at
    /// where the whole takes too long. `None` where it does not.
    pub fn tail(&self, host: &Host, few: usize) -> Option<(Case, Host)> {
        let skip = self.rows.checked_sub(few)?;
        let op = self.tail_of(skip)?;
        let last = |values: &[f32]| values[values.len() / self.rows * skip..].to_vec();
        let mut host = host.clone();
        host.inputs[0] = last(&host.inputs[0]);
        for output in &mut host.outputs {
            *output = last(output);
        }
        let case = Case {
            op,
            rows: few,
            skipped: skip,
            seed: self.seed,
        };
        Some((case, host))
    }
}

/// How far outputs are from what they should be, in multiples of what is allowed: up to 1 is right. What
/// is not a number is infinitely far.
pub fn distance(got: &[Vec<f32>], want: &[Want], [atol, rtol]: [f64; 2]) -> f64 {
    let mut worst = 0.0f64;
    for want in want {
        for (&at, &value) in want.at.iter().zip(&want.values) {
            let off = (f64::from(got[want.output][at]) - value).abs();
            let allowed = atol + rtol * value.abs();
            let far = if off == 0.0 { 0.0 } else { off / allowed };
            worst = if far.is_nan() {
                f64::INFINITY
            } else {
                worst.max(far)
            };
        }
    }
    worst
}
