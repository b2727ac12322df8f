//! What lies between the matmuls, on a CPU.

use pulp::Simd;
use rayon::prelude::*;

use super::device::Cpu;
use super::panels::Panels;
use super::simd::{self, simd_fn};
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::layer::{Dropout, LayerOp, Norm, NormKind, Pairing, Rotate};

/// Rows that one task works on: enough that the task outweighs its being handed out.
fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// `f(gate, up, y)` of each row of `y`, rows of `x` being `[gate, up]`.
fn gate(
    rows: usize,
    width: usize,
    x: &[f32],
    y: &mut [f32],
    f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) {
    x[..rows * width * 2]
        .par_chunks_exact(2 * width)
        .zip(y[..rows * width].par_chunks_exact_mut(width))
        .with_min_len(rows_per_task(2 * width))
        .for_each(|(x, y)| f(&x[..width], &x[width..], y));
}

/// `y = f(x)`, element by element.
fn activate(len: usize, x: &[f32], y: &mut [f32], f: impl Fn(&[f32], &mut [f32]) + Sync) {
    const CHUNK: usize = 4096;
    x[..len]
        .par_chunks(CHUNK)
        .zip(y[..len].par_chunks_mut(CHUNK))
        .for_each(|(x, y)| f(x, y));
}

impl LayerOp for Cpu {
    fn embed_checked(
        &self,
        _: Checked,
        ids: &[u32],
        table: &Panels,
        add: bool,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let width = table.inputs;
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

    fn norm_checked(
        &self,
        _: Checked,
        shape: Norm,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        bias: Option<&Vec<f32>>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        let Norm { rows, width, .. } = shape;
        let chunk = rows_per_task(width) * width;
        let bias = bias.map(|bias| &bias[..width]);
        x[..rows * width]
            .par_chunks(chunk)
            .zip(y[..rows * width].par_chunks_mut(chunk))
            .for_each(|(x, y)| norm_rows(self.arch, shape, x, &weight[..width], bias, y));
        Ok(())
    }

    fn rotate_checked(
        &self,
        _: Checked,
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

    fn swiglu_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Vec<f32>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        gate(rows, width, x, y, |gate, up, y| {
            swiglu_row(self.arch, gate, up, y);
        });
        Ok(())
    }

    fn gelu_checked(&self, _: Checked, len: usize, x: &Vec<f32>, y: &mut Vec<f32>) -> Result<()> {
        activate(len, x, y, |x, y| gelu_chunk(self.arch, x, y));
        Ok(())
    }

    fn gelu_erf_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Vec<f32>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        activate(len, x, y, |x, y| gelu_erf_chunk(self.arch, x, y));
        Ok(())
    }

    fn geglu_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Vec<f32>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        gate(rows, width, x, y, |gate, up, y| {
            geglu_row(self.arch, gate, up, y);
        });
        Ok(())
    }

    fn norm_bwd_checked(
        &self,
        _: Checked,
        shape: Norm,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
    ) -> Result<()> {
        let Norm { rows, width, .. } = shape;
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

    fn rotate_bwd_checked(
        &self,
        _: Checked,
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

    fn swiglu_bwd_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Vec<f32>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
    ) -> Result<()> {
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

    fn gelu_bwd_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Vec<f32>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
    ) -> Result<()> {
        x[..len]
            .par_chunks(4096)
            .zip(dy[..len].par_chunks(4096))
            .zip(dx[..len].par_chunks_mut(4096))
            .for_each(|((x, dy), dx)| gelu_chunk_bwd(self.arch, x, dy, dx));
        Ok(())
    }

    fn dropout_checked(
        &self,
        _: Checked,
        shape: Dropout,
        x: &Vec<f32>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        const CHUNK: usize = 16_384;
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

/// Rotates pairs by the angles, or back.
#[inline(always)]
fn rotate_heads<const BACK: bool>(pairing: Pairing, cos: &[f32], sin: &[f32], heads: &mut [f32]) {
    let half = cos.len();
    let rotated = |a: f32, b: f32, cos: f32, sin: f32| match BACK {
        false => [a * cos - b * sin, b * cos + a * sin],
        true => [a * cos + b * sin, b * cos - a * sin],
    };
    for head in heads.chunks_exact_mut(2 * half) {
        match pairing {
            Pairing::Halves => {
                let (low, high) = head.split_at_mut(half);
                for i in 0..half {
                    [low[i], high[i]] = rotated(low[i], high[i], cos[i], sin[i]);
                }
            }
            Pairing::Interleaved => {
                let pairs = head.as_chunks_mut::<2>().0;
                for (pair, (&cos, &sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                    *pair = rotated(pair[0], pair[1], cos, sin);
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
