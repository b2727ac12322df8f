//! The low-rank update of projections (arXiv 2106.09685): `y += (drop(x) · aᵀ) · bᵀ`.
//!
//! Projections that read the same input are updated together: the rows of their a's follow each other, their
//! b's are blocks on the diagonal of one matrix, and zeros fill the rest. Scales are in b already.

use super::gemm::expect_matrix;
use super::layer::{Dropout, LayerOp};
use super::storage::Buffer;
use super::{Checked, expect_len};
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
    fn check(&self, op: &'static str) -> Result<()> {
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
    /// a transposed.
    pub a_across: &'a M,
    /// b transposed.
    pub b_across: &'a M,
}

/// The low-rank update.
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
        let op = "lora";
        shape.check(op)?;
        expect_len(op, "x", shape.rows * shape.inputs, x.len())?;
        expect_len(op, "y", shape.rows * shape.outputs, y.len())?;
        expect_matrix(op, a, [shape.ranks, shape.inputs])?;
        expect_matrix(op, b, [shape.outputs, shape.ranks])?;
        self.lora_checked(Checked(()), shape, x, a, b, y)
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
        let op = "lora_bwd";
        shape.check(op)?;
        let &LoraUpdate {
            rows,
            inputs,
            outputs,
            ranks,
            parts,
            ..
        } = shape;
        expect_len(op, "x", rows * inputs, x.len())?;
        expect_len(op, "dy", rows * outputs, dy.len())?;
        if let Some(dx) = &dx {
            expect_len(op, "dx", rows * inputs, dx.len())?;
        }
        expect_matrix(op, factors.a, [ranks, inputs])?;
        expect_matrix(op, factors.a_across, [inputs, ranks])?;
        expect_matrix(op, factors.b_across, [ranks, outputs])?;
        for (part, gradients) in parts.iter().zip(&*gradients) {
            if let Some([da, db]) = gradients {
                expect_len(op, "the gradient of a", part.ranks * inputs, da.len())?;
                expect_len(op, "the gradient of b", part.ranks * part.outputs, db.len())?;
            }
        }
        self.lora_bwd_checked(Checked(()), shape, factors, x, dy, dx, gradients)
    }

    /// [`LoraOp::lora`], after its checks.
    fn lora_checked(
        &self,
        _: Checked,
        shape: &LoraUpdate<'_>,
        x: &Self::Buf<f32>,
        a: &Self::Matrix,
        b: &Self::Matrix,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LoraOp::lora_bwd`], after its checks.
    #[allow(clippy::too_many_arguments)]
    fn lora_bwd_checked(
        &self,
        _: Checked,
        shape: &LoraUpdate<'_>,
        factors: &LoraFactors<'_, Self::Matrix>,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: Option<&mut Self::Buf<f32>>,
        gradients: &mut [Option<[&mut Self::Buf<f32>; 2]>],
    ) -> Result<()>;
}
