//! Every op the naive way in f64: slow, and simple enough to be read as its definition.

use prefold::ops::{Attention, NormKind, Pairing};

/// `x[rows, inputs] · w[outputs, inputs]ᵀ + bias`.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks(inputs) {
        for (n, w) in w.chunks(inputs).enumerate() {
            out.push(dot(x, w) + bias.map_or(0.0, |bias| bias[n].into()));
        }
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

/// RMSNorm or LayerNorm of one row.
pub fn norm(kind: NormKind, eps: f32, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
    };
    let square: f64 = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
    let root = (square / n + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .enumerate()
        .map(|(i, (&x, &w))| {
            (f64::from(x) - mean) / root * f64::from(w) + bias.map_or(0.0, |b| b[i].into())
        })
        .collect()
}

/// Rotates one head; `angles` are cosines, then sines.
pub fn rotate(pairing: Pairing, head: &[f64], angles: &[f32]) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![f64::NAN; head.len()];
    for i in 0..half {
        let (cos, sin): (f64, f64) = (angles[i].into(), angles[half + i].into());
        let (a, b) = match pairing {
            Pairing::Halves => (i, i + half),
            Pairing::Interleaved => (2 * i, 2 * i + 1),
        };
        out[a] = head[a] * cos - head[b] * sin;
        out[b] = head[b] * cos + head[a] * sin;
    }
    out
}

/// `silu(gate) · up`.
pub fn swiglu(gate: f32, up: f32) -> f64 {
    f64::from(gate) / (1.0 + (-f64::from(gate)).exp()) * f64::from(up)
}

/// `gelu(gate) · up`, by the error function.
pub fn geglu(gate: f32, up: f32) -> f64 {
    gelu_erf(gate) * f64::from(up)
}

/// GPT-2's GELU.
pub fn gelu(x: f32) -> f64 {
    let x = f64::from(x);
    let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + z.tanh())
}

pub fn gelu_erf(x: f32) -> f64 {
    let x = f64::from(x);
    0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The complement of the error function: by its series near 0, by its continued fraction elsewhere.
fn erfc(x: f64) -> f64 {
    let root = std::f64::consts::PI.sqrt();
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x > 2.0 {
        let mut tail = x;
        for i in (1..200).rev() {
            tail = x + f64::from(i) / 2.0 / tail;
        }
        return (-x * x).exp() / root / tail;
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    1.0 - 2.0 / root * sum
}

/// Attention of every row over the prefix and over its own sequence, up to itself or as far ahead as it sees.
pub fn attention(shape: &Attention<'_>, qkv: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let (heads, kv_heads, d) = (shape.heads, shape.kv_heads, shape.head_dim);
    let mut out = Vec::new();
    let mut first = 0;
    for (sequence, &length) in shape.lengths.iter().enumerate() {
        let from = shape.prefixes.get(sequence).copied().unwrap_or(0);
        for i in 0..length {
            let mut rows: Vec<usize> = (from..from + shape.prefix).collect();
            let seen = shape.window.unwrap_or(usize::MAX);
            let last = i.saturating_add(shape.ahead).min(length - 1);
            rows.extend((0..=last).map(|j| shape.at + first + j));
            let rows = &rows[(shape.prefix + i + 1).saturating_sub(seen)..];
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let at = |row: usize| (row * kv_heads + kv) * d;
                let row = (first + i) * (heads + 2 * kv_heads) + head;
                let q = &qkv[row * d..][..d];
                let scores: Vec<f64> = rows
                    .iter()
                    .map(|&row| dot(q, &k[at(row)..][..d]) / (d as f64).sqrt())
                    .collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..d {
                    let value = |(w, &row): (&f64, &usize)| w * f64::from(v[at(row) + c]);
                    out.push(weights.iter().zip(rows).map(value).sum::<f64>() / sum);
                }
            }
        }
        first += length;
    }
    out
}

/// `-ln softmax(x · headᵀ)[target]` of one row.
pub fn nll(x: &[f32], head: &[f32], target: usize) -> f64 {
    let logits: Vec<f64> = head.chunks(x.len()).map(|w| dot(x, w)).collect();
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    sum.ln() + max - logits[target]
}
