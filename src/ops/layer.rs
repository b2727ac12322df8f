//! What stands between the products of a decoder layer: embedding, norms, rotary positions with the
//! KV append, activations. All are bound by memory, not by arithmetic.

use pulp::Simd;
use rayon::prelude::*;

use super::cpu::Cpu;
use super::expect_len;
use super::gemm::GemmOp;
use super::panels::Panels;
use super::simd::{self, simd_fn};
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

/// Which elements of a head are turned together by its `i`-th angle.
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
    /// What the angles turn.
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
    ) -> Result<()>;

    /// `y = norm(x) · weight + bias`, row by row.
    fn norm(
        &self,
        shape: Norm,
        x: &Self::Buf<f32>,
        weight: &Self::Buf<f32>,
        bias: Option<&Self::Buf<f32>>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

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
    ) -> Result<()>;

    /// `y[r] = silu(gate) · up` for rows `[gate[width], up[width]]` of `x`.
    fn swiglu(
        &self,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// `y = gelu(x)`, GPT-2's approximation by a hyperbolic tangent.
    fn gelu(&self, len: usize, x: &Self::Buf<f32>, y: &mut Self::Buf<f32>) -> Result<()>;

    /// `y = gelu(x) = x/2 · (1 + erf(x / √2))`, as BERT and its kin have it.
    fn gelu_erf(&self, len: usize, x: &Self::Buf<f32>, y: &mut Self::Buf<f32>) -> Result<()>;

    /// `y[r] = gelu(gate) · up` for rows `[gate[width], up[width]]` of `x`, by the GELU of
    /// [`LayerOp::gelu_erf`] (ModernBERT).
    fn geglu(
        &self,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// Adds to `dx` the gradient of the input of [`LayerOp::norm`], whose output has the gradient
    /// `dy`. (The bias does not matter.)
    fn norm_bwd(
        &self,
        shape: Norm,
        x: &Self::Buf<f32>,
        weight: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()>;

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
    ) -> Result<()>;

    /// The gradient of [`LayerOp::swiglu`]'s input `x`: `dx` of `[rows, 2 · width]` from `dy` of
    /// `[rows, width]`.
    fn swiglu_bwd(
        &self,
        rows: usize,
        width: usize,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// The gradient of [`LayerOp::gelu`]'s input `x`.
    fn gelu_bwd(
        &self,
        len: usize,
        x: &Self::Buf<f32>,
        dy: &Self::Buf<f32>,
        dx: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// `y = x / (1 - rate)` where [`Dropout::keeps`] and 0 elsewhere, or with `add` `y` more by that.
    /// It is its own backward.
    fn dropout(&self, shape: Dropout, x: &Self::Buf<f32>, y: &mut Self::Buf<f32>) -> Result<()>;
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

    /// Errors of every backend.
    pub(crate) fn check(&self, x: usize, y: usize) -> Result<()> {
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

/// Rows that one task works on: enough that the task outweighs its being handed out.
fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// `f(gate, up, y)` of each row of `y`, rows of `x` being `[gate, up]`.
fn gate(
    op: &'static str,
    rows: usize,
    width: usize,
    x: &[f32],
    y: &mut [f32],
    f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) -> Result<()> {
    expect_len(op, "x", rows * width * 2, x.len())?;
    expect_len(op, "y", rows * width, y.len())?;
    x[..rows * width * 2]
        .par_chunks_exact(2 * width)
        .zip(y[..rows * width].par_chunks_exact_mut(width))
        .with_min_len(rows_per_task(2 * width))
        .for_each(|(x, y)| f(&x[..width], &x[width..], y));
    Ok(())
}

/// `y = f(x)`, element by element.
fn activate(
    op: &'static str,
    len: usize,
    x: &[f32],
    y: &mut [f32],
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Result<()> {
    const CHUNK: usize = 4096;
    expect_len(op, "x", len, x.len())?;
    expect_len(op, "y", len, y.len())?;
    x[..len]
        .par_chunks(CHUNK)
        .zip(y[..len].par_chunks_mut(CHUNK))
        .for_each(|(x, y)| f(x, y));
    Ok(())
}

impl LayerOp for Cpu {
    fn embed(&self, ids: &[u32], table: &Panels, add: bool, out: &mut Vec<f32>) -> Result<()> {
        let width = table.inputs;
        expect_len("embed", "the output", ids.len() * width, out.len())?;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= table.outputs) {
            return Err(Error::input(
                format!("token id {id}"),
                format!("the model has {} ids", table.outputs),
            ));
        }
        let rows = out.par_chunks_exact_mut(width).zip(ids);
        let rows = rows.with_min_len(rows_per_task(width));
        if add {
            table.values()?;
            rows.for_each(|(out, &id)| table.add_row(id as usize, out));
        } else {
            rows.for_each(|(out, &id)| table.row(id as usize, out));
        }
        Ok(())
    }

    fn norm(
        &self,
        shape: Norm,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        bias: Option<&Vec<f32>>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        let Norm { rows, width, .. } = shape;
        expect_len("norm", "x", rows * width, x.len())?;
        expect_len("norm", "y", rows * width, y.len())?;
        expect_len("norm", "the weight", width, weight.len())?;
        if let Some(bias) = bias {
            expect_len("norm", "the bias", width, bias.len())?;
        }
        let chunk = rows_per_task(width) * width;
        let bias = bias.map(|bias| &bias[..width]);
        x[..rows * width]
            .par_chunks(chunk)
            .zip(y[..rows * width].par_chunks_mut(chunk))
            .for_each(|(x, y)| norm_rows(self.arch, shape, x, &weight[..width], bias, y));
        Ok(())
    }

    fn rotate(
        &self,
        shape: Rotate,
        qkv: &mut Vec<f32>,
        norms: Option<[&Vec<f32>; 2]>,
        angles: Option<&Vec<f32>>,
        k: &mut Vec<f32>,
        v: &mut Vec<f32>,
    ) -> Result<()> {
        let Rotate {
            rows,
            heads,
            kv_heads,
            head_dim,
            at,
            ..
        } = shape;
        let stride = (heads + 2 * kv_heads) * head_dim;
        let kv = kv_heads * head_dim;
        expect_len("rotate", "qkv", rows * stride, qkv.len())?;
        expect_len("rotate", "k", (at + rows) * kv, k.len())?;
        expect_len("rotate", "v", (at + rows) * kv, v.len())?;
        for norm in norms.iter().flatten() {
            expect_len("rotate", "a norm's weight", head_dim, norm.len())?;
        }
        if let Some(angles) = angles {
            expect_len("rotate", "the angles", rows * head_dim, angles.len())?;
        }
        let tables = HeadTables {
            norms: norms.map(|[q, k]| [&q[..head_dim], &k[..head_dim]]),
            eps: shape.eps,
        };
        let chunk = rows_per_task(stride);
        let angles = angles.map(|angles| &angles[..rows * head_dim]);
        qkv[..rows * stride]
            .par_chunks_mut(chunk * stride)
            .zip(k[at * kv..][..rows * kv].par_chunks_mut(chunk * kv))
            .zip(v[at * kv..][..rows * kv].par_chunks_mut(chunk * kv))
            .enumerate()
            .for_each(|(i, ((qkv, k), v))| {
                let rows = qkv.len() / stride;
                let angles = angles.map(|a| &a[i * chunk * head_dim..][..rows * head_dim]);
                rotate_rows(self.arch, shape, tables, angles, qkv, [k, v]);
            });
        Ok(())
    }

    fn swiglu(&self, rows: usize, width: usize, x: &Vec<f32>, y: &mut Vec<f32>) -> Result<()> {
        gate("swiglu", rows, width, x, y, |gate, up, y| {
            swiglu_row(self.arch, gate, up, y);
        })
    }

    fn gelu(&self, len: usize, x: &Vec<f32>, y: &mut Vec<f32>) -> Result<()> {
        activate("gelu", len, x, y, |x, y| gelu_chunk(self.arch, x, y))
    }

    fn gelu_erf(&self, len: usize, x: &Vec<f32>, y: &mut Vec<f32>) -> Result<()> {
        activate("gelu_erf", len, x, y, |x, y| {
            gelu_erf_chunk(self.arch, x, y)
        })
    }

    fn geglu(&self, rows: usize, width: usize, x: &Vec<f32>, y: &mut Vec<f32>) -> Result<()> {
        gate("geglu", rows, width, x, y, |gate, up, y| {
            geglu_row(self.arch, gate, up, y);
        })
    }

    fn norm_bwd(
        &self,
        shape: Norm,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
    ) -> Result<()> {
        let Norm { rows, width, .. } = shape;
        expect_len("norm_bwd", "x", rows * width, x.len())?;
        expect_len("norm_bwd", "dy", rows * width, dy.len())?;
        expect_len("norm_bwd", "dx", rows * width, dx.len())?;
        expect_len("norm_bwd", "the weight", width, weight.len())?;
        let chunk = rows_per_task(width) * width;
        x[..rows * width]
            .par_chunks(chunk)
            .zip(dy[..rows * width].par_chunks(chunk))
            .zip(dx[..rows * width].par_chunks_mut(chunk))
            .for_each(|((x, dy), dx)| {
                norm_rows_bwd(self.arch, shape, x, &weight[..width], dy, dx);
            });
        Ok(())
    }

    fn rotate_bwd(
        &self,
        shape: Rotate,
        qkv: &Vec<f32>,
        norms: Option<[&Vec<f32>; 2]>,
        angles: Option<&Vec<f32>>,
        dk: &Vec<f32>,
        dv: &Vec<f32>,
        dqkv: &mut Vec<f32>,
    ) -> Result<()> {
        let Rotate {
            rows,
            heads,
            kv_heads,
            head_dim,
            at,
            ..
        } = shape;
        let stride = (heads + 2 * kv_heads) * head_dim;
        let kv = kv_heads * head_dim;
        let op = "rotate_bwd";
        expect_len(op, "dqkv", rows * stride, dqkv.len())?;
        expect_len(op, "dk", (at + rows) * kv, dk.len())?;
        expect_len(op, "dv", (at + rows) * kv, dv.len())?;
        for norm in norms.iter().flatten() {
            expect_len(op, "a norm's weight", head_dim, norm.len())?;
            expect_len(op, "qkv", rows * stride, qkv.len())?;
        }
        if let Some(angles) = angles {
            expect_len(op, "the angles", rows * head_dim, angles.len())?;
        }
        let tables = HeadTables {
            norms: norms.map(|[q, k]| [&q[..head_dim], &k[..head_dim]]),
            eps: shape.eps,
        };
        let chunk = rows_per_task(stride);
        dqkv[..rows * stride]
            .par_chunks_mut(chunk * stride)
            .enumerate()
            .for_each(|(i, dqkv)| {
                let (first, rows) = (i * chunk, dqkv.len() / stride);
                let angles = angles.map(|a| &a[first * head_dim..][..rows * head_dim]);
                let qkv = match norms {
                    Some(_) => &qkv[first * stride..][..rows * stride],
                    None => &[],
                };
                let cache = [dk, dv].map(|d| &d[(at + first) * kv..][..rows * kv]);
                rotate_rows_bwd(self.arch, shape, tables, angles, qkv, cache, dqkv);
            });
        Ok(())
    }

    fn swiglu_bwd(
        &self,
        rows: usize,
        width: usize,
        x: &Vec<f32>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
    ) -> Result<()> {
        expect_len("swiglu_bwd", "x", rows * width * 2, x.len())?;
        expect_len("swiglu_bwd", "dy", rows * width, dy.len())?;
        expect_len("swiglu_bwd", "dx", rows * width * 2, dx.len())?;
        x[..rows * width * 2]
            .par_chunks_exact(2 * width)
            .zip(dy[..rows * width].par_chunks_exact(width))
            .zip(dx[..rows * width * 2].par_chunks_exact_mut(2 * width))
            .with_min_len(rows_per_task(2 * width))
            .for_each(|((x, dy), dx)| {
                let (gate, up) = x.split_at(width);
                let (dgate, dup) = dx.split_at_mut(width);
                swiglu_row_bwd(self.arch, gate, up, dy, dgate, dup);
            });
        Ok(())
    }

    fn gelu_bwd(&self, len: usize, x: &Vec<f32>, dy: &Vec<f32>, dx: &mut Vec<f32>) -> Result<()> {
        expect_len("gelu_bwd", "x", len, x.len())?;
        expect_len("gelu_bwd", "dy", len, dy.len())?;
        expect_len("gelu_bwd", "dx", len, dx.len())?;
        x[..len]
            .par_chunks(4096)
            .zip(dy[..len].par_chunks(4096))
            .zip(dx[..len].par_chunks_mut(4096))
            .for_each(|((x, dy), dx)| gelu_chunk_bwd(self.arch, x, dy, dx));
        Ok(())
    }

    fn dropout(&self, shape: Dropout, x: &Vec<f32>, y: &mut Vec<f32>) -> Result<()> {
        const CHUNK: usize = 16_384;
        shape.check(x.len(), y.len())?;
        x[..shape.len]
            .par_chunks(CHUNK)
            .zip(y[..shape.len].par_chunks_mut(CHUNK))
            .enumerate()
            .for_each(|(i, (x, y))| dropout_chunk(self.arch, shape, (i * CHUNK) as u32, x, y));
        Ok(())
    }
}

simd_fn! {
    fn norm_rows_bwd<'a, S>(
        s,
        shape: Norm,
        x: &'a [f32],
        weight: &'a [f32],
        dy: &'a [f32],
        dx: &'a mut [f32],
    ) {
        let width = shape.width;
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let g = normed(s, shape.kind, shape.eps, x, weight, dy);
            for (((dx, &x), &w), &dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
                *dx += (dy * w - g.mean) * g.scale - (x - g.shift) * g.pull;
            }
        }
    }
}

/// What the gradient of a norm's row is made of: `(dy · w - mean) · scale - (x - shift) · pull`.
struct Normed {
    mean: f32,
    scale: f32,
    shift: f32,
    pull: f32,
}

#[inline(always)]
fn normed<S: Simd>(
    s: S,
    kind: NormKind,
    eps: f32,
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
) -> Normed {
    let width = x.len() as f32;
    let (shift, mean) = match kind {
        NormKind::Rms => (0.0, 0.0),
        NormKind::Layer => (
            simd::sum(s, x, 0.0, false) / width,
            simd::dot(s, weight, dy, None) / width,
        ),
    };
    let scale = 1.0 / (simd::sum(s, x, shift, true) / width + eps).sqrt();
    let along = simd::dot(s, weight, dy, Some((x, shift)));
    Normed {
        mean,
        scale,
        shift,
        pull: scale * scale * scale * along / width,
    }
}

simd_fn! {
    fn rotate_rows_bwd<'a, S>(
        s,
        shape: Rotate,
        tables: HeadTables<'a>,
        angles: Option<&'a [f32]>,
        qkv: &'a [f32],
        cache: [&'a [f32]; 2],
        dqkv: &'a mut [f32],
    ) {
        let [dk, dv] = cache;
        let d = shape.head_dim;
        let (q_end, kv) = (shape.heads * d, shape.kv_heads * d);
        let stride = q_end + 2 * kv;
        for (row, dqkv) in dqkv.chunks_exact_mut(stride).enumerate() {
            dqkv[q_end..q_end + kv].copy_from_slice(&dk[row * kv..][..kv]);
            dqkv[q_end + kv..].copy_from_slice(&dv[row * kv..][..kv]);
            let rotated = &mut dqkv[..q_end + kv];
            if let Some(angles) = angles {
                let (cos, sin) = angles[row * d..][..d].split_at(d / 2);
                rotate_heads::<true>(shape.pairing, cos, sin, rotated);
            }
            if let Some([q_norm, k_norm]) = tables.norms {
                let (q, k) = qkv[row * stride..][..q_end + kv].split_at(q_end);
                let (dq, dk) = rotated.split_at_mut(q_end);
                norm_heads_bwd(s, tables.eps, q_norm, q, dq);
                norm_heads_bwd(s, tables.eps, k_norm, k, dk);
            }
        }
    }
}

#[inline(always)]
fn norm_heads_bwd<S: Simd>(s: S, eps: f32, weight: &[f32], heads: &[f32], dheads: &mut [f32]) {
    let d = weight.len();
    for (x, dy) in heads.chunks_exact(d).zip(dheads.chunks_exact_mut(d)) {
        let g = normed(s, NormKind::Rms, eps, x, weight, dy);
        for ((dy, &x), &w) in dy.iter_mut().zip(x).zip(weight) {
            *dy = *dy * w * g.scale - x * g.pull;
        }
    }
}

simd_fn! {
    fn swiglu_row_bwd<'a, S>(
        s,
        gate: &'a [f32],
        up: &'a [f32],
        dy: &'a [f32],
        dgate: &'a mut [f32],
        dup: &'a mut [f32],
    ) {
        let (gates, gate_tail) = S::as_simd_f32s(gate);
        let (ups, up_tail) = S::as_simd_f32s(up);
        let (dys, dy_tail) = S::as_simd_f32s(dy);
        let (dgates, dgate_tail) = S::as_mut_simd_f32s(dgate);
        let (dups, dup_tail) = S::as_mut_simd_f32s(dup);
        for i in 0..gates.len() {
            [dgates[i], dups[i]] = swiglu_bwd(s, gates[i], ups[i], dys[i]);
        }
        let [dgate, dup] = swiglu_bwd(
            s,
            s.partial_load_f32s(gate_tail),
            s.partial_load_f32s(up_tail),
            s.partial_load_f32s(dy_tail),
        );
        s.partial_store_f32s(dgate_tail, dgate);
        s.partial_store_f32s(dup_tail, dup);
    }
}

/// With `σ` the sigmoid of the gate: `dgate = dy · up · σ · (1 + gate · (1 - σ))`, `dup = dy · gate · σ`.
#[inline(always)]
fn swiglu_bwd<S: Simd>(s: S, gate: S::f32s, up: S::f32s, dy: S::f32s) -> [S::f32s; 2] {
    let one = s.splat_f32s(1.0);
    let sigmoid = simd::sigmoid(s, gate);
    let slope = s.mul_add_e_f32s(gate, s.sub_f32s(one, sigmoid), one);
    let common = s.mul_f32s(dy, sigmoid);
    [
        s.mul_f32s(s.mul_f32s(common, up), slope),
        s.mul_f32s(common, gate),
    ]
}

simd_fn! {
    fn gelu_chunk_bwd<'a, S>(s, x: &'a [f32], dy: &'a [f32], dx: &'a mut [f32]) {
        let (xs, x_tail) = S::as_simd_f32s(x);
        let (dys, dy_tail) = S::as_simd_f32s(dy);
        let (dxs, dx_tail) = S::as_mut_simd_f32s(dx);
        for i in 0..xs.len() {
            dxs[i] = s.mul_f32s(dys[i], gelu_slope(s, xs[i]));
        }
        let slope = gelu_slope(s, s.partial_load_f32s(x_tail));
        let tail = s.mul_f32s(s.partial_load_f32s(dy_tail), slope);
        s.partial_store_f32s(dx_tail, tail);
    }
}

/// Of `x · σ(w)` with `w = 2 √(2/π) · (x + 0.044715 x³)`: `σ + x · σ · (1 - σ) · w'`.
#[inline(always)]
fn gelu_slope<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let (one, square) = (s.splat_f32s(1.0), s.mul_f32s(x, x));
    let root = s.splat_f32s(TWICE_ROOT);
    let cubic = s.mul_add_e_f32s(s.splat_f32s(0.044_715 * TWICE_ROOT), square, root);
    let slope = s.mul_add_e_f32s(s.splat_f32s(3.0 * 0.044_715 * TWICE_ROOT), square, root);
    let sigmoid = simd::sigmoid(s, s.mul_f32s(x, cubic));
    let rest = s.mul_f32s(s.mul_f32s(x, s.sub_f32s(one, sigmoid)), slope);
    s.mul_f32s(sigmoid, s.add_f32s(one, rest))
}

simd_fn! {
    fn dropout_chunk<'a, S>(_s, shape: Dropout, first: u32, x: &'a [f32], y: &'a mut [f32]) {
        let scale = 1.0 / (1.0 - shape.rate);
        for (i, (y, &x)) in (first..).zip(y.iter_mut().zip(x)) {
            let value = if shape.keeps(i) { x * scale } else { 0.0 };
            *y = if shape.add { *y + value } else { value };
        }
    }
}

simd_fn! {
    fn norm_rows<'a, S>(
        s,
        shape: Norm,
        x: &'a [f32],
        weight: &'a [f32],
        bias: Option<&'a [f32]>,
        y: &'a mut [f32],
    ) {
        let rows = x.chunks_exact(shape.width).zip(y.chunks_exact_mut(shape.width));
        for (x, y) in rows {
            norm_row(s, shape.kind, shape.eps, x, y);
            for (y, &w) in y.iter_mut().zip(weight) {
                *y *= w;
            }
            if let Some(bias) = bias {
                for (y, &b) in y.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        }
    }
}

#[inline(always)]
fn norm_row<S: Simd>(s: S, kind: NormKind, eps: f32, x: &[f32], y: &mut [f32]) {
    let width = x.len() as f32;
    let shift = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => simd::sum(s, x, 0.0, false) / width,
    };
    let scale = 1.0 / (simd::sum(s, x, shift, true) / width + eps).sqrt();
    for (y, &x) in y.iter_mut().zip(x) {
        *y = (x - shift) * scale;
    }
}

/// What is the same for all rows.
#[derive(Clone, Copy)]
struct HeadTables<'a> {
    norms: Option<[&'a [f32]; 2]>,
    eps: f32,
}

simd_fn! {
    fn rotate_rows<'a, S>(
        s,
        shape: Rotate,
        tables: HeadTables<'a>,
        angles: Option<&'a [f32]>,
        qkv: &'a mut [f32],
        cache: [&'a mut [f32]; 2],
    ) {
        let [k_out, v_out] = cache;
        let d = shape.head_dim;
        let (q_end, kv) = (shape.heads * d, shape.kv_heads * d);
        for (row, qkv) in qkv.chunks_exact_mut(q_end + 2 * kv).enumerate() {
            let (q, rest) = qkv.split_at_mut(q_end);
            let (k, v) = rest.split_at_mut(kv);
            if let Some([q_norm, k_norm]) = tables.norms {
                norm_heads(s, tables.eps, q_norm, q);
                norm_heads(s, tables.eps, k_norm, k);
            }
            if let Some(angles) = angles {
                let (cos, sin) = angles[row * d..][..d].split_at(d / 2);
                rotate_heads::<false>(shape.pairing, cos, sin, q);
                rotate_heads::<false>(shape.pairing, cos, sin, k);
            }
            k_out[row * kv..][..kv].copy_from_slice(k);
            v_out[row * kv..][..kv].copy_from_slice(v);
        }
    }
}

#[inline(always)]
fn norm_heads<S: Simd>(s: S, eps: f32, weight: &[f32], heads: &mut [f32]) {
    for head in heads.chunks_exact_mut(weight.len()) {
        let scale = 1.0 / (simd::sum(s, head, 0.0, true) / weight.len() as f32 + eps).sqrt();
        for (x, &w) in head.iter_mut().zip(weight) {
            *x = *x * scale * w;
        }
    }
}

/// Turns pairs by the angles, or back.
#[inline(always)]
fn rotate_heads<const BACK: bool>(pairing: Pairing, cos: &[f32], sin: &[f32], heads: &mut [f32]) {
    let half = cos.len();
    let turned = |a: f32, b: f32, cos: f32, sin: f32| match BACK {
        false => [a * cos - b * sin, b * cos + a * sin],
        true => [a * cos + b * sin, b * cos - a * sin],
    };
    for head in heads.chunks_exact_mut(2 * half) {
        match pairing {
            Pairing::Halves => {
                let (low, high) = head.split_at_mut(half);
                for i in 0..half {
                    [low[i], high[i]] = turned(low[i], high[i], cos[i], sin[i]);
                }
            }
            Pairing::Interleaved => {
                let pairs = head.as_chunks_mut::<2>().0;
                for (pair, (&cos, &sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                    *pair = turned(pair[0], pair[1], cos, sin);
                }
            }
        }
    }
}

simd_fn! {
    fn swiglu_row<'a, S>(s, gate: &'a [f32], up: &'a [f32], y: &'a mut [f32]) {
        let (gates, gate_tail) = S::as_simd_f32s(gate);
        let (ups, up_tail) = S::as_simd_f32s(up);
        let (ys, y_tail) = S::as_mut_simd_f32s(y);
        for ((&g, &u), y) in gates.iter().zip(ups).zip(ys) {
            *y = swiglu(s, g, u);
        }
        let tail = swiglu(s, s.partial_load_f32s(gate_tail), s.partial_load_f32s(up_tail));
        s.partial_store_f32s(y_tail, tail);
    }
}

simd_fn! {
    fn geglu_row<'a, S>(s, gate: &'a [f32], up: &'a [f32], y: &'a mut [f32]) {
        let (gates, gate_tail) = S::as_simd_f32s(gate);
        let (ups, up_tail) = S::as_simd_f32s(up);
        let (ys, y_tail) = S::as_mut_simd_f32s(y);
        for ((&g, &u), y) in gates.iter().zip(ups).zip(ys) {
            *y = s.mul_f32s(gelu_erf(s, g), u);
        }
        let gelu = gelu_erf(s, s.partial_load_f32s(gate_tail));
        let tail = s.mul_f32s(gelu, s.partial_load_f32s(up_tail));
        s.partial_store_f32s(y_tail, tail);
    }
}

#[inline(always)]
fn swiglu<S: Simd>(s: S, gate: S::f32s, up: S::f32s) -> S::f32s {
    s.mul_f32s(s.mul_f32s(gate, simd::sigmoid(s, gate)), up)
}

simd_fn! {
    fn gelu_chunk<'a, S>(s, x: &'a [f32], y: &'a mut [f32]) {
        let (xs, x_tail) = S::as_simd_f32s(x);
        let (ys, y_tail) = S::as_mut_simd_f32s(y);
        for (&x, y) in xs.iter().zip(ys) {
            *y = gelu(s, x);
        }
        let tail = gelu(s, s.partial_load_f32s(x_tail));
        s.partial_store_f32s(y_tail, tail);
    }
}

/// `2 √(2/π)`.
const TWICE_ROOT: f32 = 1.595_769;

/// `x/2 · (1 + tanh(z))` is `x · sigmoid(2z)`; here `z = √(2/π) · (x + 0.044715 x³)`.
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let cubic = s.mul_add_e_f32s(
        s.splat_f32s(0.044_715 * TWICE_ROOT),
        s.mul_f32s(x, x),
        s.splat_f32s(TWICE_ROOT),
    );
    s.mul_f32s(x, simd::sigmoid(s, s.mul_f32s(x, cubic)))
}

simd_fn! {
    fn gelu_erf_chunk<'a, S>(s, x: &'a [f32], y: &'a mut [f32]) {
        let (xs, x_tail) = S::as_simd_f32s(x);
        let (ys, y_tail) = S::as_mut_simd_f32s(y);
        for (&x, y) in xs.iter().zip(ys) {
            *y = gelu_erf(s, x);
        }
        let tail = gelu_erf(s, s.partial_load_f32s(x_tail));
        s.partial_store_f32s(y_tail, tail);
    }
}

/// `x/2 · (1 + erf(x / √2))`. The complement of the error function is a polynomial times an exponential
/// (Abramowitz and Stegun, 7.1.26, to 1.5e-7); taken from the side on which it is small, so that the far
/// negative tail keeps its relative precision.
#[inline(always)]
fn gelu_erf<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let z = s.mul_f32s(s.abs_f32s(x), s.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
    let one = s.splat_f32s(1.0);
    let t = s.div_f32s(one, s.mul_add_e_f32s(s.splat_f32s(0.327_591_1), z, one));
    let mut polynomial = s.splat_f32s(1.061_405_429);
    for coefficient in [-1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592] {
        polynomial = s.mul_add_e_f32s(polynomial, t, s.splat_f32s(coefficient));
    }
    let gauss = simd::exp(s, s.neg_f32s(s.mul_f32s(z, z)));
    let complement = s.mul_f32s(s.mul_f32s(polynomial, t), gauss);
    let small = s.mul_f32s(s.mul_f32s(s.splat_f32s(0.5), x), complement);
    let positive = s.less_than_or_equal_f32s(s.splat_f32s(0.0), x);
    s.select_f32s(positive, s.sub_f32s(x, small), small)
}
