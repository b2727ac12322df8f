//! What stands between the products of a decoder layer: embedding, norms, rotary positions with the
//! KV append, activations. All are bound by memory, not by arithmetic.

use pulp::Simd;
use rayon::prelude::*;

use super::cpu::Cpu;
use super::expect_len;
use super::gemm::{GemmOp, Panels};
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
    /// rotated by `angles`, for each row `head_dim / 2` cosines and as many sines, halves of a head
    /// paired as Hugging Face pairs them; then k and v go to rows `at..` of the cache, whose rows
    /// are `[kv_heads, head_dim]`.
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
}

/// Rows that one task works on: enough that the task outweighs its being handed out.
fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
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
        out.par_chunks_exact_mut(width)
            .zip(ids)
            .with_min_len(rows_per_task(width))
            .for_each(|(out, &id)| table.row(id as usize, add, out));
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
        expect_len("swiglu", "x", rows * width * 2, x.len())?;
        expect_len("swiglu", "y", rows * width, y.len())?;
        x[..rows * width * 2]
            .par_chunks_exact(2 * width)
            .zip(y[..rows * width].par_chunks_exact_mut(width))
            .with_min_len(rows_per_task(2 * width))
            .for_each(|(x, y)| swiglu_row(self.arch, &x[..width], &x[width..], y));
        Ok(())
    }

    fn gelu(&self, len: usize, x: &Vec<f32>, y: &mut Vec<f32>) -> Result<()> {
        expect_len("gelu", "x", len, x.len())?;
        expect_len("gelu", "y", len, y.len())?;
        x[..len]
            .par_chunks(4096)
            .zip(y[..len].par_chunks_mut(4096))
            .for_each(|(x, y)| gelu_chunk(self.arch, x, y));
        Ok(())
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
                rotate_heads(cos, sin, q);
                rotate_heads(cos, sin, k);
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

#[inline(always)]
fn rotate_heads(cos: &[f32], sin: &[f32], heads: &mut [f32]) {
    let half = cos.len();
    for head in heads.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (low[i], high[i]);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i] + a * sin[i];
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

/// `x/2 · (1 + tanh(z))` is `x · sigmoid(2z)`; here `z = √(2/π) · (x + 0.044715 x³)`.
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    const TWICE_ROOT: f32 = 1.595_769;
    let cubic = s.mul_add_e_f32s(
        s.splat_f32s(0.044_715 * TWICE_ROOT),
        s.mul_f32s(x, x),
        s.splat_f32s(TWICE_ROOT),
    );
    s.mul_f32s(x, simd::sigmoid(s, s.mul_f32s(x, cubic)))
}
