//! Attention over a KV cache, causal or not, for any number of sequences at once.

use super::gemm::GemmOp;
use super::storage::{Buffer, Storage};
use super::{Checked, expect_len};
use crate::error::{Error, Result};

/// Shape of attention over sequences that share a prefix and do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Every sequence sees so many of the cache's rows before its own.
    pub prefix: usize,
    /// The cache row at which each sequence's prefix begins; empty where all share the rows
    /// `0..prefix`.
    pub prefixes: &'a [usize],
    /// The cache row of the first query row; the others follow.
    pub at: usize,
    /// Rows of each sequence, one after the other.
    pub lengths: &'a [usize],
    /// Keys further back than this are not seen.
    pub window: Option<usize>,
    /// Keys after its own position that a query sees, where its sequence has them: 0 in a decoder
    /// (causal), `usize::MAX` in an encoder.
    pub ahead: usize,
}

/// Attention.
pub trait AttentionOp: GemmOp {
    /// `out[row, head] = softmax(q · kᵀ / √head_dim) · v`, rows of `out` being `[heads, head_dim]`.
    /// `qkv`, `k` and `v` are as [`super::LayerOp::rotate`] leaves them.
    fn attention(
        &self,
        shape: &Attention<'_>,
        qkv: &Self::Buf<f32>,
        k: &Self::Buf<f32>,
        v: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        shape.check("attention", [qkv.len(), k.len(), v.len(), out.len()])?;
        self.attention_checked(Checked(()), shape, qkv, [k, v], out, None)
    }

    /// [`AttentionOp::attention`] that keeps what the backward needs: `lse[row, head]`, the natural
    /// logarithm of the sum of the exponentials of the row's scores.
    fn attention_lse(
        &self,
        shape: &Attention<'_>,
        qkv: &Self::Buf<f32>,
        k: &Self::Buf<f32>,
        v: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
        lse: &mut Self::Buf<f32>,
    ) -> Result<()> {
        shape.check("attention", [qkv.len(), k.len(), v.len(), out.len()])?;
        expect_len("attention", "lse", shape.rows() * shape.heads, lse.len())?;
        self.attention_checked(Checked(()), shape, qkv, [k, v], out, Some(lse))
    }

    /// The gradients of attention's operands from `dout`, that of its output. Those of q overwrite
    /// the place of q in `dqkv` (rows of `[heads + 2 · kv_heads, head_dim]`; the places of k and v
    /// stay as they are); those of k and v are added to `dk` and `dv`, row for row: rows of
    /// prefixes that sequences share gather from all of them.
    fn attention_bwd(
        &self,
        shape: &Attention<'_>,
        attended: Attended<'_, Self>,
        dout: &Self::Buf<f32>,
        dqkv: &mut Self::Buf<f32>,
        dk: &mut Self::Buf<f32>,
        dv: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let op = "attention_bwd";
        let Attended {
            qkv,
            k,
            v,
            out,
            lse,
        } = &attended;
        shape.check_causal(op)?;
        shape.check(op, [qkv.len(), k.len(), v.len(), out.len()])?;
        let (rows, d) = (shape.rows(), shape.head_dim);
        let all = shape.heads + 2 * shape.kv_heads;
        let cache = (shape.at + rows) * shape.kv_heads * d;
        expect_len(op, "dout", rows * shape.heads * d, dout.len())?;
        expect_len(op, "lse", rows * shape.heads, lse.len())?;
        expect_len(op, "dqkv", rows * all * d, dqkv.len())?;
        expect_len(op, "dk", cache, dk.len())?;
        expect_len(op, "dv", cache, dv.len())?;
        self.attention_bwd_checked(Checked(()), shape, attended, dout, dqkv, [dk, dv])
    }

    /// [`AttentionOp::attention`] or, with `lse`, [`AttentionOp::attention_lse`], after their checks.
    fn attention_checked(
        &self,
        _: Checked,
        shape: &Attention<'_>,
        qkv: &Self::Buf<f32>,
        cache: [&Self::Buf<f32>; 2],
        out: &mut Self::Buf<f32>,
        lse: Option<&mut Self::Buf<f32>>,
    ) -> Result<()>;

    /// [`AttentionOp::attention_bwd`], after its checks.
    fn attention_bwd_checked(
        &self,
        _: Checked,
        shape: &Attention<'_>,
        attended: Attended<'_, Self>,
        dout: &Self::Buf<f32>,
        dqkv: &mut Self::Buf<f32>,
        dcache: [&mut Self::Buf<f32>; 2],
    ) -> Result<()>;
}

/// What [`AttentionOp::attention_lse`] was given, and what it gave.
pub struct Attended<'a, S: Storage> {
    /// Rotated: q is read.
    pub qkv: &'a S::Buf<f32>,
    /// The cache.
    pub k: &'a S::Buf<f32>,
    /// The cache.
    pub v: &'a S::Buf<f32>,
    /// `[rows, heads, head_dim]`.
    pub out: &'a S::Buf<f32>,
    /// `[rows, heads]`.
    pub lse: &'a S::Buf<f32>,
}

impl Attention<'_> {
    /// Gradients are made of causal attention alone: encoders are not trained here.
    fn check_causal(&self, op: &'static str) -> Result<()> {
        match self.ahead {
            0 => Ok(()),
            ahead => Err(Error::Shape {
                op,
                want: "causal attention".into(),
                got: format!("queries that see {ahead} keys ahead"),
            }),
        }
    }

    /// Rows of all sequences.
    pub(crate) fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Heads in equal groups, and a window that has a key.
    pub(super) fn check_heads(&self, op: &'static str) -> Result<()> {
        let wrong = self.kv_heads == 0
            || !self.heads.is_multiple_of(self.kv_heads)
            || self.window == Some(0);
        self.unless(wrong, op)
    }

    fn unless(&self, wrong: bool, op: &'static str) -> Result<()> {
        match wrong {
            false => Ok(()),
            true => Err(Error::Shape {
                op,
                want: "heads in equal groups, a window, and prefixes before the rows".into(),
                got: format!("{self:?}"),
            }),
        }
    }

    fn check(&self, op: &'static str, [qkv, k, v, out]: [usize; 4]) -> Result<()> {
        let (heads, kv_heads, d) = (self.heads, self.kv_heads, self.head_dim);
        self.check_heads(op)?;
        let each = self.prefixes.is_empty() || self.prefixes.len() == self.lengths.len();
        let begin = self.prefixes.iter().max().copied().unwrap_or(0);
        let end = begin.checked_add(self.prefix);
        self.unless(!each || end.is_none_or(|end| end > self.at), op)?;
        let rows = self.rows();
        expect_len(op, "qkv", rows * (heads + 2 * kv_heads) * d, qkv)?;
        expect_len(op, "k and of v", (self.at + rows) * kv_heads * d, k.min(v))?;
        expect_len(op, "the output", rows * heads * d, out)
    }
}
