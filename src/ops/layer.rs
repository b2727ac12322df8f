//! What lies between the matmuls of a decoder layer: embedding, norms, rotary positions with the KV
//! append, activations. All are bound by memory, not by arithmetic.

use super::gemm::{GemmOp, Shaped};
use super::storage::Buffer;
use super::{Checked, expect_ids, expect_len};
use crate::error::{Error, Result};

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Divides by the root mean square.
    Rms,
    /// Takes off the mean, then divides by the standard deviation.
    Layer,
}

/// Shape of a normalisation over the rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Rows.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// Which.
    pub kind: NormKind,
}

/// Which elements of a head its `i`-th angle rotates.
///
/// Both give the same scores where the weights of q and k stand in the order that they were trained with.
/// Hugging Face's models pair halves; GGUF files of the Llama family hold q and k for interleaved pairs,
/// which are brought to halves when they are loaded, as K of a cache and of a prefix is in halves too: the
/// decoder asks for halves only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pairing {
    /// `i` and `i + head_dim / 2`.
    #[default]
    Halves,
    /// `2i` and `2i + 1`.
    Interleaved,
}

/// Shape of [`LayerOp::rotate`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotate {
    /// Rows of `qkv`.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The row of `k` and `v` that the first row of `qkv` goes to.
    pub at: usize,
    /// Epsilon of the norm over each head of q and k.
    pub eps: f32,
    /// What the angles rotate.
    pub pairing: Pairing,
}

/// The ops between the products.
pub trait LayerOp: GemmOp {
    /// `out[i] = table[ids[i]]`, or with `add` `out[i] += table[ids[i]]`; out of `[ids, width]`.
    fn embed(
        &self,
        ids: &[u32],
        table: &Self::Matrix,
        add: bool,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        check_ids(ids, table, out.len())?;
        self.embed_checked(Checked(()), ids, table, add, out)
    }

    /// `y = norm(x) · weight + bias`, row by row.
    fn norm(
        &self,
        shape: Norm,
        x: &Self::Buf<f32>,
        weight: &Self::Buf<f32>,
        bias: Option<&Self::Buf<f32>>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()> {
        shape.check("norm", weight.len(), [("x", x.len()), ("y", y.len())])?;
        if let Some(bias) = bias {
            expect_len("norm", "the bias", shape.width, bias.len())?;
        }
        self.norm_checked(Checked(()), shape, x, weight, bias, y)
    }

    /// Makes `qkv`, rows of `[heads + kv_heads + kv_heads, head_dim]`, ready for attention:
    /// `norms` are the weights of an RMSNorm over each head of q and of k (Qwen3); then q and k are
    /// rotated by `angles`, for each row `head_dim / 2` cosines and as many sines (in which any stretch of
    /// the frequencies is), of pairs as the shape says; then k and v go to rows `at..` of the cache, whose
    /// rows are `[kv_heads, head_dim]`.
    fn rotate(
        &self,
        shape: Rotate,
        qkv: &mut Self::Buf<f32>,
        norms: Option<[&Self::Buf<f32>; 2]>,
        angles: Option<&Self::Buf<f32>>,
        k: &mut Self::Buf<f32>,
        v: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let cached = (shape.at + shape.rows) * shape.kv_heads * shape.head_dim;
        shape.check("rotate", ("qkv", qkv.len()), norms, angles)?;
        expect_len("rotate", "k", cached, k.len())?;
        expect_len("rotate", "v", cached, v.len())?;
        self.rotate_checked(Checked(()), shape, qkv, norms, angles, k, v)
    }

    /// `y[r] = silu(gate) · up` for rows `[gate[width], up[width]]` of `x`.
    fn swiglu(
        &self,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()> {
        check_gate("swiglu", rows, width, x.len(), ("y", y.len()))?;
        self.swiglu_checked(Checked(()), rows, width, x, y)
    }

    /// `y = gelu(x)`, GPT-2's approximation by a hyperbolic tangent.
    fn gelu(&self, len: usize, x: &Self::Buf<f32>, y: &mut Self::Buf<f32>) -> Result<()> {
        check_elements("gelu", len, [("x", x.len()), ("y", y.len())])?;
        self.gelu_checked(Checked(()), len, x, y)
    }

    /// `y = gelu(x) = x/2 · (1 + erf(x / √2))`, as BERT and its kin have it.
    fn gelu_erf(&self, len: usize, x: &Self::Buf<f32>, y: &mut Self::Buf<f32>) -> Result<()> {
        check_elements("gelu_erf", len, [("x", x.len()), ("y", y.len())])?;
        self.gelu_erf_checked(Checked(()), len, x, y)
    }

    /// `y[r] = gelu(gate) · up` for rows `[gate[width], up[width]]` of `x`, by the GELU of
    /// [`LayerOp::gelu_erf`] (ModernBERT).
    fn geglu(
        &self,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()> {
        check_gate("geglu", rows, width, x.len(), ("y", y.len()))?;
        self.geglu_checked(Checked(()), rows, width, x, y)
    }

    /// Adds to `dx` the gradient of the input of [`LayerOp::norm`], whose output has the gradient
    /// `dy`. (The bias does not matter.)
    fn norm_bwd(
        &self,
        shape: Norm,
        x: &Self::Buf<f32>,
        weight: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let held = [("x", x.len()), ("dy", dy.len()), ("dx", dx.len())];
        shape.check("norm_bwd", weight.len(), held)?;
        self.norm_bwd_checked(Checked(()), shape, x, weight, dy, dx)
    }

    /// The gradient of what [`LayerOp::rotate`] was given. `dqkv` holds that of the rotated q in the
    /// place of q, and `dk` and `dv` those of rows `at..` of the cache; `dqkv` is made whole. Only with
    /// `norms` is `qkv` read: what [`LayerOp::rotate`] was given.
    #[allow(clippy::too_many_arguments)]
    fn rotate_bwd(
        &self,
        shape: Rotate,
        qkv: &Self::Buf<f32>,
        norms: Option<[&Self::Buf<f32>; 2]>,
        angles: Option<&Self::Buf<f32>>,
        dk: &Self::Buf<f32>,
        dv: &Self::Buf<f32>,
        dqkv: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let cached = (shape.at + shape.rows) * shape.kv_heads * shape.head_dim;
        let op = "rotate_bwd";
        shape.check(op, ("dqkv", dqkv.len()), norms, angles)?;
        expect_len(op, "dk", cached, dk.len())?;
        expect_len(op, "dv", cached, dv.len())?;
        if norms.is_some() {
            let all = shape.heads + 2 * shape.kv_heads;
            expect_len(op, "qkv", shape.rows * all * shape.head_dim, qkv.len())?;
        }
        self.rotate_bwd_checked(Checked(()), shape, qkv, norms, angles, dk, dv, dqkv)
    }

    /// The gradient of [`LayerOp::swiglu`]'s input `x`: `dx` of `[rows, 2 · width]` from `dy` of
    /// `[rows, width]`.
    fn swiglu_bwd(
        &self,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()> {
        check_gate("swiglu_bwd", rows, width, x.len(), ("dy", dy.len()))?;
        expect_len("swiglu_bwd", "dx", rows * width * 2, dx.len())?;
        self.swiglu_bwd_checked(Checked(()), rows, width, x, dy, dx)
    }

    /// The gradient of [`LayerOp::gelu`]'s input `x`.
    fn gelu_bwd(
        &self,
        len: usize,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let held = [("x", x.len()), ("dy", dy.len()), ("dx", dx.len())];
        check_elements("gelu_bwd", len, held)?;
        self.gelu_bwd_checked(Checked(()), len, x, dy, dx)
    }

    /// `y = x / (1 - rate)` where [`Dropout::keeps`] and 0 elsewhere, or with `add` `y` more by that.
    /// It is its own backward.
    fn dropout(&self, shape: Dropout, x: &Self::Buf<f32>, y: &mut Self::Buf<f32>) -> Result<()> {
        shape.check(x.len(), y.len())?;
        self.dropout_checked(Checked(()), shape, x, y)
    }

    /// [`LayerOp::embed`], after its checks.
    fn embed_checked(
        &self,
        _: Checked,
        ids: &[u32],
        table: &Self::Matrix,
        add: bool,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::norm`], after its checks.
    fn norm_checked(
        &self,
        _: Checked,
        shape: Norm,
        x: &Self::Buf<f32>,
        weight: &Self::Buf<f32>,
        bias: Option<&Self::Buf<f32>>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::rotate`], after its checks.
    #[allow(clippy::too_many_arguments)]
    fn rotate_checked(
        &self,
        _: Checked,
        shape: Rotate,
        qkv: &mut Self::Buf<f32>,
        norms: Option<[&Self::Buf<f32>; 2]>,
        angles: Option<&Self::Buf<f32>>,
        k: &mut Self::Buf<f32>,
        v: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::swiglu`], after its checks.
    fn swiglu_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::gelu`], after its checks.
    fn gelu_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::gelu_erf`], after its checks.
    fn gelu_erf_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::geglu`], after its checks.
    fn geglu_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::norm_bwd`], after its checks.
    fn norm_bwd_checked(
        &self,
        _: Checked,
        shape: Norm,
        x: &Self::Buf<f32>,
        weight: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::rotate_bwd`], after its checks.
    #[allow(clippy::too_many_arguments)]
    fn rotate_bwd_checked(
        &self,
        _: Checked,
        shape: Rotate,
        qkv: &Self::Buf<f32>,
        norms: Option<[&Self::Buf<f32>; 2]>,
        angles: Option<&Self::Buf<f32>>,
        dk: &Self::Buf<f32>,
        dv: &Self::Buf<f32>,
        dqkv: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::swiglu_bwd`], after its checks.
    fn swiglu_bwd_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::gelu_bwd`], after its checks.
    fn gelu_bwd_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`LayerOp::dropout`], after its checks.
    fn dropout_checked(
        &self,
        _: Checked,
        shape: Dropout,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;
}

/// Shape of [`LayerOp::dropout`], and which elements it drops: a function of their index, so that no
/// mask is stored and every device drops the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Elements, below 2³².
    pub len: usize,
    /// Share that is dropped, at least 0 and below 1.
    pub rate: f32,
    /// Chooses them.
    pub seed: u64,
    /// Adds to what `y` holds.
    pub add: bool,
}

impl Dropout {
    /// Elements whose hash is below this are dropped.
    pub fn threshold(&self) -> u32 {
        (f64::from(self.rate) * 4_294_967_296.0) as u32
    }

    /// Whether element `i` stays.
    #[inline(always)]
    pub fn keeps(&self, i: u32) -> bool {
        let (low, high) = (self.seed as u32, (self.seed >> 32) as u32);
        mix(mix(i ^ low) ^ high) >= self.threshold()
    }

    pub(super) fn check(&self, x: usize, y: usize) -> Result<()> {
        if !(0.0..1.0).contains(&self.rate) || u32::try_from(self.len).is_err() {
            return Err(Error::Shape {
                op: "dropout",
                want: "a rate of at least 0 and below 1, and fewer than 2^32 elements".into(),
                got: format!("{self:?}"),
            });
        }
        expect_len("dropout", "x", self.len, x)?;
        expect_len("dropout", "y", self.len, y)
    }
}

/// A permutation of the 32-bit numbers that scatters neighbours (MurmurHash3's last step).
#[inline(always)]
fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

impl Norm {
    fn check<const N: usize>(
        &self,
        op: &'static str,
        weight: usize,
        held: [(&str, usize); N],
    ) -> Result<()> {
        expect_len(op, "the weight", self.width, weight)?;
        check_elements(op, self.rows * self.width, held)
    }
}

impl Rotate {
    /// Checks all but the cache; `qkv` has a name.
    pub(super) fn check<B: Buffer>(
        &self,
        op: &'static str,
        (what, qkv): (&str, usize),
        norms: Option<[&B; 2]>,
        angles: Option<&B>,
    ) -> Result<()> {
        let all = self.heads + 2 * self.kv_heads;
        expect_len(op, what, self.rows * all * self.head_dim, qkv)?;
        for norm in norms.iter().flatten() {
            expect_len(op, "a norm's weight", self.head_dim, norm.len())?;
        }
        match angles {
            Some(angles) => expect_len(op, "the angles", self.rows * self.head_dim, angles.len()),
            None => Ok(()),
        }
    }
}

fn check_ids(ids: &[u32], table: &impl Shaped, out: usize) -> Result<()> {
    let [rows, width] = table.shape();
    expect_len("embed", "the output", ids.len() * width, out)?;
    expect_ids(ids.iter().copied(), rows)
}

/// Rows `[gate, up]` of `x` become rows of `y`.
fn check_gate(
    op: &'static str,
    rows: usize,
    width: usize,
    x: usize,
    (what, y): (&str, usize),
) -> Result<()> {
    expect_len(op, "x", rows * width * 2, x)?;
    expect_len(op, what, rows * width, y)
}

fn check_elements<const N: usize>(
    op: &'static str,
    len: usize,
    held: [(&str, usize); N],
) -> Result<()> {
    held.into_iter()
        .try_for_each(|(what, held)| expect_len(op, what, len, held))
}
