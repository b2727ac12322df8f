//! The low-rank update of projections (arXiv 2106.09685): `y += (drop(x) · aᵀ) · bᵀ`.
//!
//! Projections that read the same input are updated together: their a's stand one above the other, their
//! b's on the diagonal of one matrix, and zeros fill the rest. Scales are in b already.

use super::cpu::Cpu;
use super::gemm::{Linear, Outer, Span};
use super::layer::{Dropout, LayerOp};
use crate::error::{Error, Result};

/// One of the projections of an update: the ranks of its own, and its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraPart {
    /// Its first rank: row of a, column of b.
    pub rank: usize,
    /// How many; at least 1.
    pub ranks: usize,
    /// Its first output: row of b, column of y.
    pub output: usize,
    /// How many; at least 1.
    pub outputs: usize,
}

/// Shape of a low-rank update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraUpdate<'a> {
    /// Rows of x and y.
    pub rows: usize,
    /// Width of x.
    pub inputs: usize,
    /// Width of y.
    pub outputs: usize,
    /// Ranks of all parts.
    pub ranks: usize,
    /// One after the other, in ranks without gaps.
    pub parts: &'a [LoraPart],
    /// Rate and seed of the dropout on x: see [`Dropout`].
    pub dropout: Option<(f32, u64)>,
}

impl LoraUpdate<'_> {
    /// Errors of every backend, but for the lengths of buffers.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let (mut rank, mut output) = (0, 0);
        let fits = self.parts.iter().all(|part| {
            let follows = part.rank == rank && part.output >= output;
            let ends = part.output.checked_add(part.outputs);
            rank = part.rank.saturating_add(part.ranks);
            output = ends.unwrap_or(usize::MAX);
            follows && part.ranks > 0 && part.outputs > 0 && output <= self.outputs
        });
        if !fits || rank != self.ranks {
            return Err(Error::Shape {
                op,
                want: format!(
                    "parts that follow each other, of {} ranks and {} outputs",
                    self.ranks, self.outputs
                ),
                got: format!("{:?}", self.parts),
            });
        }
        match self.drops() {
            Some(drops) => drops.check(drops.len, drops.len),
            None => Ok(()),
        }
    }

    /// The dropout on x.
    pub(crate) fn drops(&self) -> Option<Dropout> {
        self.dropout.map(|(rate, seed)| Dropout {
            len: self.rows * self.inputs,
            rate,
            seed,
            add: false,
        })
    }
}

/// What [`LoraOp::lora_bwd`] reads: an update's factors, a of `[ranks, inputs]` and b of `[outputs, ranks]`.
pub struct LoraFactors<'a, M> {
    /// a.
    pub a: &'a M,
    /// a the other way round.
    pub a_across: &'a M,
    /// b the other way round.
    pub b_across: &'a M,
}

/// The low-rank update. Where a device has no kernel for it, it is made of products.
pub trait LoraOp: LayerOp {
    /// `y += (drop(x) · aᵀ) · bᵀ`; a is `[ranks, inputs]`, b `[outputs, ranks]`, with zeros where no part
    /// lies.
    fn lora(
        &self,
        shape: &LoraUpdate<'_>,
        x: &Self::Buf<f32>,
        a: &Self::Matrix,
        b: &Self::Matrix,
        y: &mut Self::Buf<f32>,
    ) -> Result<()> {
        shape.check("lora")?;
        let Narrowed { low, .. } = narrowed(self, shape, x, a)?;
        let up = Linear {
            rows: shape.rows,
            inputs: shape.ranks,
            outputs: shape.outputs,
            add: true,
        };
        self.linear(up, &low, b, None, y)
    }

    /// Gradients of [`LoraOp::lora`] from `dy`, that of its output: what it adds to `dx`, if that is given,
    /// and for each part those of a, `[ranks, inputs]`, and of b, `[outputs, ranks]`, where they are wanted.
    fn lora_bwd(
        &self,
        shape: &LoraUpdate<'_>,
        factors: &LoraFactors<'_, Self::Matrix>,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: Option<&mut Self::Buf<f32>>,
        gradients: &mut [Option<[&mut Self::Buf<f32>; 2]>],
    ) -> Result<()> {
        shape.check("lora_bwd")?;
        let &LoraUpdate {
            rows,
            inputs,
            outputs,
            ranks,
            ..
        } = shape;
        let Narrowed { low, dropped } = narrowed(self, shape, x, factors.a)?;
        let mut dlow = self.zeros(rows * ranks)?;
        let down = Linear {
            rows,
            inputs: outputs,
            outputs: ranks,
            add: false,
        };
        self.linear(down, dy, factors.b_across, None, &mut dlow)?;
        for (part, gradients) in shape.parts.iter().zip(gradients) {
            let Some([da, db]) = gradients else {
                continue;
            };
            let between = Span {
                stride: ranks,
                first: part.rank,
                width: part.ranks,
            };
            let of_a = Outer {
                rows,
                left: between,
                right: Span::all(inputs),
            };
            self.outer(of_a, &dlow, dropped.as_ref().unwrap_or(x), da)?;
            let of_b = Outer {
                rows,
                left: Span {
                    stride: outputs,
                    first: part.output,
                    width: part.outputs,
                },
                right: between,
            };
            self.outer(of_b, dy, &low, db)?;
        }
        let Some(dx) = dx else {
            return Ok(());
        };
        let up = |add| Linear {
            rows,
            inputs: ranks,
            outputs: inputs,
            add,
        };
        match shape.drops() {
            None => self.linear(up(true), &dlow, factors.a_across, None, dx),
            Some(drops) => {
                let mut whole = self.zeros(rows * inputs)?;
                self.linear(up(false), &dlow, factors.a_across, None, &mut whole)?;
                self.dropout(Dropout { add: true, ..drops }, &whole, dx)
            }
        }
    }
}

impl LoraOp for Cpu {}

struct Narrowed<B: LoraOp> {
    /// What stands between the factors.
    low: B::Buf<f32>,
    /// x after dropout, if there is one.
    dropped: Option<B::Buf<f32>>,
}

fn narrowed<B: LoraOp>(
    b: &B,
    shape: &LoraUpdate<'_>,
    x: &B::Buf<f32>,
    a: &B::Matrix,
) -> Result<Narrowed<B>> {
    let dropped = match shape.drops() {
        Some(drops) => {
            let mut out = b.zeros(drops.len)?;
            b.dropout(drops, x, &mut out)?;
            Some(out)
        }
        None => None,
    };
    let down = Linear {
        rows: shape.rows,
        inputs: shape.inputs,
        outputs: shape.ranks,
        add: false,
    };
    let mut low = b.zeros(shape.rows * shape.ranks)?;
    b.linear(down, dropped.as_ref().unwrap_or(x), a, None, &mut low)?;
    Ok(Narrowed { low, dropped })
}
