//! Negative log-likelihoods: LM head, log-softmax and gather in one.

use super::gemm::{GemmOp, Shaped, expect_matrix};
use super::storage::Buffer;
use super::{Checked, expect_ids, expect_len};
use crate::error::{Error, Result};

/// A row of hidden states and the token that it should predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NllTarget {
    /// Row of the hidden states.
    pub row: u32,
    /// Token id.
    pub target: u32,
}

/// Scores of targets.
pub trait NllOp: GemmOp {
    /// `out[i] = -ln softmax(x[row_i] · headᵀ)[target_i]` for each target; x of `[rows, width]`, head of
    /// `[vocab, width]`.
    fn nll(
        &self,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        picks: &[NllTarget],
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        check("nll", width, x.len(), head, picks, out.len())?;
        self.nll_checked(Checked(()), width, x, head, picks, out)
    }

    /// [`NllOp::nll`] from logits such as [`GemmOp::estimate`] gives.
    fn estimate_nll(
        &self,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        picks: &[NllTarget],
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        check("nll", width, x.len(), head, picks, out.len())?;
        self.estimate_nll_checked(Checked(()), width, x, head, picks, out)
    }

    /// [`NllOp::nll`] and its gradient in one, which the logits of a row, made once, serve both:
    /// `dx[row_i] += (softmax(logits_i) - onehot(target_i)) · head`, that of the sum of `out`. Logits
    /// are made in blocks of rows and never lie in memory whole. `across` is `head`
    /// transposed ([`GemmOp::transposed`]).
    #[allow(clippy::too_many_arguments)]
    fn nll_bwd(
        &self,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        across: &Self::Matrix,
        picks: &[NllTarget],
        out: &mut Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let op = "nll_bwd";
        check(op, width, x.len(), head, picks, out.len())?;
        expect_matrix(op, across, [width, head.shape()[0]])?;
        expect_rows(op, "dx", width, picks, dx.len())?;
        self.nll_bwd_checked(Checked(()), width, x, head, across, picks, out, dx)
    }

    /// [`NllOp::nll`], after its checks.
    fn nll_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        picks: &[NllTarget],
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`NllOp::estimate_nll`], after its checks.
    fn estimate_nll_checked(
        &self,
        checked: Checked,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        picks: &[NllTarget],
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        self.nll_checked(checked, width, x, head, picks, out)
    }

    /// [`NllOp::nll_bwd`], after its checks.
    #[allow(clippy::too_many_arguments)]
    fn nll_bwd_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        across: &Self::Matrix,
        picks: &[NllTarget],
        out: &mut Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()>;
}

/// What all three demand of their operands.
fn check(
    op: &'static str,
    width: usize,
    x: usize,
    head: &impl Shaped,
    picks: &[NllTarget],
    out: usize,
) -> Result<()> {
    let [vocab, inputs] = head.shape();
    if inputs != width {
        return Err(Error::Shape {
            op,
            want: format!("a head of width {width}"),
            got: inputs.to_string(),
        });
    }
    expect_len(op, "the output", picks.len(), out)?;
    expect_rows(op, "x", width, picks, x)?;
    expect_ids(picks.iter().map(|pick| pick.target), vocab)
}

fn expect_rows(
    op: &'static str,
    what: &str,
    width: usize,
    picks: &[NllTarget],
    held: usize,
) -> Result<()> {
    let rows = picks.iter().map(|pick| pick.row as usize + 1).max();
    expect_len(op, what, rows.unwrap_or(0) * width, held)
}
