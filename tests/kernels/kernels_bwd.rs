//! The kernels of training, executed by a CPU and, where there is one, by a CUDA device: gradients beside
//! central differences of a naive forward in f64.

use crate::common;

use crate::common::Random;
use crate::common::compare::{assert_close, wide};
use crate::common::device::everywhere;
use half::bf16;
use prefold::gpu::Precision;
use prefold::ops::{
    Attended, Attention, AttentionOp, Dropout, GemmOp, LayerOp, Linear, NllOp, NllTarget, Norm,
    NormKind, Outer, Pairing, Rotate, Span, Storage,
};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn floats(count: usize, scale: f32, random: &mut Random) -> Vec<f32> {
    (0..count).map(|_| random.float() * scale).collect()
}

/// What a product's operand becomes.
fn rounded(precision: Precision, values: &[f32]) -> Vec<f64> {
    let round = |&v: &f32| match precision {
        Precision::F32 => v.into(),
        Precision::Bf16 => bf16::from_f32(v).to_f64(),
    };
    values.iter().map(round).collect()
}

/// The gradient of `loss` at `x` in the coordinates `at`, by central differences.
fn slopes(x: &[f64], at: &[usize], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    let step = 1e-5;
    at.iter()
        .map(|&i| {
            let old = x[i];
            x[i] = old + step;
            let above = loss(&x);
            x[i] = old - step;
            let below = loss(&x);
            x[i] = old;
            (above - below) / (2.0 * step)
        })
        .collect()
}

/// So many coordinates, spread over all; all if there are few.
fn spread(len: usize, count: usize) -> Vec<usize> {
    let step = len.div_ceil(count).max(1);
    (0..len).step_by(step).collect()
}

fn pick(values: &[f32], at: &[usize]) -> Vec<f32> {
    at.iter().map(|&i| values[i]).collect()
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
}

#[test]
fn products_with_transposed_matrices() {
    for precision in PRECISIONS {
        for (rows, inputs, outputs) in [(1, 1, 1), (5, 33, 70), (40, 130, 31)] {
            everywhere(precision, |gpu, at| {
                let what = format!("{rows} x {inputs} x {outputs}, {at}");
                let mut random = Random(3);
                let w = floats(outputs * inputs, 1.0, &mut random);
                let dy = floats(rows * outputs, 1.0, &mut random);
                let matrix = gpu.matrix(outputs, inputs, &w).unwrap();
                let transposed = gpu.transposed(&matrix).unwrap();
                let dy_on = gpu.upload(&dy).unwrap();
                let mut dx = gpu.upload(&vec![f32::NAN; rows * inputs]).unwrap();
                let shape = Linear {
                    rows,
                    inputs: outputs,
                    outputs: inputs,
                    add: false,
                };
                gpu.linear(shape, &dy_on, &transposed, None, &mut dx)
                    .unwrap();
                let (w64, dy64) = (rounded(precision, &w), rounded(precision, &dy));
                let want: Vec<f64> = (0..rows * inputs)
                    .map(|i| {
                        let (row, column) = (i / inputs, i % inputs);
                        let terms = (0..outputs)
                            .map(|n| dy64[row * outputs + n] * w64[n * inputs + column]);
                        terms.sum()
                    })
                    .collect();
                let got = gpu.download(&dx, 0..rows * inputs).unwrap();
                assert_close(&what, &got, &want, 2e-5, 1e-5);

                // Of columns that begin somewhere and leave some over.
                let (a_stride, b_stride) = (outputs + 5, inputs + 2);
                let a = floats(rows * a_stride, 1.0, &mut random);
                let b = floats(rows * b_stride, 1.0, &mut random);
                let shape = Outer {
                    rows,
                    left: Span {
                        stride: a_stride,
                        first: 3,
                        width: outputs,
                    },
                    right: Span {
                        stride: b_stride,
                        first: 1,
                        width: inputs,
                    },
                };
                let mut out = gpu.upload(&vec![f32::NAN; outputs * inputs]).unwrap();
                let (a_on, b_on) = (gpu.upload(&a).unwrap(), gpu.upload(&b).unwrap());
                gpu.outer(shape, &a_on, &b_on, &mut out).unwrap();
                let (a64, b64) = (rounded(precision, &a), rounded(precision, &b));
                let want: Vec<f64> = (0..outputs * inputs)
                    .map(|i| {
                        let (left, right) = (3 + i / inputs, 1 + i % inputs);
                        let terms =
                            (0..rows).map(|r| a64[r * a_stride + left] * b64[r * b_stride + right]);
                        terms.sum()
                    })
                    .collect();
                let got = gpu.download(&out, 0..want.len()).unwrap();
                assert_close(&what, &got, &want, 2e-5, 1e-5);
                let none = Outer { rows: 0, ..shape };
                gpu.outer(none, &a_on, &b_on, &mut out).unwrap();
                let got = gpu.download(&out, 0..want.len()).unwrap();
                assert!(got.iter().all(|&v| v == 0.0), "{what}");
            });
        }
    }
}

/// Rows through a norm in f64.
fn norm64(kind: NormKind, eps: f64, width: usize, x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks_exact(width) {
        let mean = match kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => row.iter().sum::<f64>() / width as f64,
        };
        let square = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (square + eps).sqrt();
        out.extend(
            row.iter()
                .zip(weight)
                .map(|(v, &w)| (v - mean) * scale * f64::from(w)),
        );
    }
    out
}

#[test]
fn norms() {
    for kind in [NormKind::Rms, NormKind::Layer] {
        for width in [1, 33, 257, 576] {
            let rows = 2;
            let mut random = Random(width as u64);
            let [x, dy, old] = [1.0, 1.0, 0.5].map(|s| floats(rows * width, s, &mut random));
            let weight = floats(width, 2.0, &mut random);
            let eps = 1e-3;
            let at = spread(rows * width, 150);
            let loss = |x: &[f64]| dot(&norm64(kind, f64::from(eps), width, x, &weight), &dy);
            let mut want = slopes(&wide(&x), &at, loss);
            for (want, &i) in want.iter_mut().zip(&at) {
                *want += f64::from(old[i]);
            }
            everywhere(Precision::F32, |gpu, place| {
                let shape = Norm {
                    rows,
                    width,
                    eps,
                    kind,
                };
                let [x, weight, dy] = [&x, &weight, &dy].map(|host| gpu.upload(host).unwrap());
                let mut dx = gpu.upload(&old).unwrap();
                gpu.norm_bwd(shape, &x, &weight, &dy, &mut dx).unwrap();
                let got = gpu.download(&dx, 0..rows * width).unwrap();
                let what = format!("{kind:?} of {width}, {place}");
                assert_close(&what, &pick(&got, &at), &want, 2e-5, 1e-4);
            });
        }
    }
}

#[test]
fn rotations() {
    for (head_dim, norms, angles, pairing) in [
        (8, true, true, Pairing::Halves),
        (8, true, true, Pairing::Interleaved),
        (64, false, true, Pairing::Halves),
        (66, true, true, Pairing::Interleaved),
        (130, true, false, Pairing::Halves),
    ] {
        let (rows, heads, kv_heads, from) = (3, 3, 2, 4);
        let all = heads + 2 * kv_heads;
        let mut random = Random(9);
        let qkv = floats(rows * all * head_dim, 1.0, &mut random);
        let weights = [0, 1].map(|_| floats(head_dim, 2.0, &mut random));
        // Not of length 1: the gradient must not rotate by the inverse.
        let table = floats(rows * head_dim, 1.0, &mut random);
        let dqkv = floats(rows * all * head_dim, 1.0, &mut random);
        let eps = 1e-3;
        let loss = |x: &[f64]| {
            let mut sum = 0.0;
            for (index, head) in x.chunks_exact(head_dim).enumerate() {
                let (row, of) = (index / all, index % all);
                let mut head = head.to_vec();
                if of < heads + kv_heads {
                    if norms {
                        let weight = &weights[usize::from(of >= heads)];
                        head = norm64(NormKind::Rms, f64::from(eps), head_dim, &head, weight);
                    }
                    if angles {
                        head = common::oracle::rotate(
                            pairing,
                            &head,
                            &table[row * head_dim..][..head_dim],
                        );
                    }
                }
                sum += dot(&head, &dqkv[index * head_dim..][..head_dim]);
            }
            sum
        };
        let at = spread(qkv.len(), 300);
        let want = slopes(&wide(&qkv), &at, loss);
        everywhere(Precision::F32, |gpu, place| {
            // The gradients of k and v come from the cache's.
            let kv = kv_heads * head_dim;
            let mut cache = [0, 1].map(|_| vec![f32::NAN; (from + rows) * kv]);
            let mut given = dqkv.clone();
            for row in 0..rows {
                for (which, cache) in cache.iter_mut().enumerate() {
                    let place = row * all * head_dim + (heads + which * kv_heads) * head_dim;
                    cache[(from + row) * kv..][..kv].copy_from_slice(&dqkv[place..][..kv]);
                    given[place..][..kv].fill(f32::NAN);
                }
            }
            let [dk, dv] = cache.map(|host| gpu.upload(&host).unwrap());
            let [q_norm, k_norm] = [0, 1].map(|i| gpu.upload(&weights[i]).unwrap());
            let table = gpu.upload(&table).unwrap();
            let qkv = gpu.upload(&qkv).unwrap();
            let mut out = gpu.upload(&given).unwrap();
            let shape = Rotate {
                rows,
                heads,
                kv_heads,
                head_dim,
                at: from,
                eps,
                pairing,
            };
            gpu.rotate_bwd(
                shape,
                &qkv,
                norms.then_some([&q_norm, &k_norm]),
                angles.then_some(&table),
                &dk,
                &dv,
                &mut out,
            )
            .unwrap();
            let got = gpu.download(&out, 0..rows * all * head_dim).unwrap();
            let what = format!("heads of {head_dim}, {pairing:?}, {place}");
            assert_close(&what, &pick(&got, &at), &want, 2e-5, 1e-4);
        });
    }
}

#[test]
fn activations() {
    for (rows, width) in [(1, 1), (3, 33), (2, 1100)] {
        let mut random = Random(2);
        let x = floats(rows * 2 * width, 6.0, &mut random);
        let dy = floats(rows * 2 * width, 1.0, &mut random);
        let step = 1e-5;
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let slope = |f: &dyn Fn(f64) -> f64, x: f64| (f(x + step) - f(x - step)) / (2.0 * step);
        let gelu = |x: f64| {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / 2.0 * (1.0 + z.tanh())
        };
        let of_swiglu: Vec<f64> = (0..x.len())
            .map(|i| {
                let (row, column) = (i / (2 * width), i % (2 * width));
                let gate = f64::from(x[row * 2 * width + column % width]);
                let up = f64::from(x[row * 2 * width + width + column % width]);
                let dy = f64::from(dy[row * width + column % width]);
                dy * if column < width {
                    slope(&silu, gate) * up
                } else {
                    silu(gate)
                }
            })
            .collect();
        let of_gelu: Vec<f64> = x
            .iter()
            .zip(&dy)
            .map(|(&x, &dy)| slope(&gelu, x.into()) * f64::from(dy))
            .collect();
        everywhere(Precision::F32, |gpu, at| {
            let [x_on, dy_on] = [&x, &dy].map(|host| gpu.upload(host).unwrap());
            let mut dx = gpu.upload(&vec![f32::NAN; x.len()]).unwrap();
            gpu.swiglu_bwd(rows, width, &x_on, &dy_on, &mut dx).unwrap();
            let got = gpu.download(&dx, 0..x.len()).unwrap();
            assert_close(&format!("swiglu, {at}"), &got, &of_swiglu, 1e-5, 1e-5);
            gpu.gelu_bwd(x.len(), &x_on, &dy_on, &mut dx).unwrap();
            let got = gpu.download(&dx, 0..x.len()).unwrap();
            assert_close(&format!("gelu, {at}"), &got, &of_gelu, 1e-5, 1e-5);
            for add in [false, true] {
                let shape = Dropout {
                    len: x.len(),
                    rate: 0.3,
                    seed: 0x1234_5678_9abc_def0,
                    add,
                };
                let mut y = gpu.upload(&dy).unwrap();
                gpu.dropout(shape, &x_on, &mut y).unwrap();
                let want: Vec<f64> = (0..x.len())
                    .map(|i| {
                        let value = if shape.keeps(i as u32) {
                            f64::from(x[i]) / 0.7
                        } else {
                            0.0
                        };
                        value + if add { f64::from(dy[i]) } else { 0.0 }
                    })
                    .collect();
                let got = gpu.download(&y, 0..x.len()).unwrap();
                assert_close(&format!("dropout, {at}"), &got, &want, 1e-5, 1e-6);
            }
        });
    }
}

#[test]
fn likelihoods() {
    for precision in PRECISIONS {
        // Several blocks of ids come from many rows only; a row that is picked twice, one that is not.
        for (rows, width, vocab) in [(1, 1, 1), (5, 31, 33), (70, 40, 300)] {
            let mut random = Random(rows as u64);
            let x = floats((rows + 2) * width, 1.0, &mut random);
            let w = floats(vocab * width, 1.0, &mut random);
            let old = floats((rows + 2) * width, 0.5, &mut random);
            let picks: Vec<NllTarget> = (0..rows)
                .map(|i| NllTarget {
                    row: if i == 3 { 0 } else { i as u32 },
                    target: if i == 0 {
                        vocab - 1
                    } else {
                        random.below(vocab)
                    } as u32,
                })
                .collect();
            let (x64, w64) = (rounded(precision, &x), rounded(precision, &w));
            let (mut want, mut nll) = (wide(&old), Vec::new());
            for pick in &picks {
                let row = pick.row as usize * width;
                let state = &x64[row..][..width];
                let logits: Vec<f64> = w64
                    .chunks_exact(width)
                    .map(|w| w.iter().zip(state).map(|(a, b)| a * b).sum())
                    .collect();
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
                nll.push(sum.ln() + max - logits[pick.target as usize]);
                for (id, logit) in logits.iter().enumerate() {
                    let onehot = f64::from(u8::from(id == pick.target as usize));
                    let gradient = (logit - max).exp() / sum - onehot;
                    for (want, w) in want[row..].iter_mut().zip(&w64[id * width..][..width]) {
                        *want += gradient * w;
                    }
                }
            }
            everywhere(precision, |gpu, at| {
                let what = format!("{rows} x {width} x {vocab}, {at}");
                let head = gpu.matrix(vocab, width, &w).unwrap();
                let across = gpu.transposed(&head).unwrap();
                let x = gpu.upload(&x).unwrap();
                let mut dx = gpu.upload(&old).unwrap();
                let mut out = gpu.upload(&vec![f32::NAN; rows]).unwrap();
                gpu.nll_bwd(width, &x, &head, &across, &picks, &mut out, &mut dx)
                    .unwrap();
                let got = gpu.download(&out, 0..rows).unwrap();
                assert_close(&what, &got, &nll, 2e-5, 1e-5);
                let got = gpu.download(&dx, 0..want.len()).unwrap();
                // In bf16 each gradient of a logit, up to 1, is rounded to 8 bits.
                let bound = if precision == Precision::F32 {
                    2e-5
                } else {
                    0.01
                };
                assert_close(&what, &got, &want, bound, 1e-5);
            });
        }
    }
}

/// Attention in f64, and the logarithms.
fn attention64(shape: &Attention<'_>, qkv: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (d, kv_heads) = (shape.head_dim, shape.kv_heads);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    let mut first = 0;
    for (i, &length) in shape.lengths.iter().enumerate() {
        let from = shape.prefixes.get(i).copied().unwrap_or(0);
        for t in 0..length {
            let last = shape.prefix + t;
            let begin = shape.window.map_or(0, |w| (last + 1).saturating_sub(w));
            let rows: Vec<usize> = (begin..=last)
                .map(|p| match p < shape.prefix {
                    true => from + p,
                    false => shape.at + first + p - shape.prefix,
                })
                .collect();
            for head in 0..shape.heads {
                let kv = head / (shape.heads / kv_heads);
                let q = &qkv[((first + t) * (shape.heads + 2 * kv_heads) + head) * d..][..d];
                let at = |row: usize| (row * kv_heads + kv) * d;
                let scores: Vec<f64> = rows
                    .iter()
                    .map(|&row| {
                        let products = q.iter().zip(&k[at(row)..][..d]).map(|(q, k)| q * k);
                        products.sum::<f64>() / (d as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                lse.push(max + sum.ln());
                for c in 0..d {
                    let terms = rows.iter().zip(&scores);
                    let all = terms.map(|(&row, s)| (s - max).exp() * v[at(row) + c]);
                    out.push(all.sum::<f64>() / sum);
                }
            }
        }
        first += length;
    }
    (out, lse)
}

#[test]
fn attention() {
    // heads, key heads, width, prefix, where prefixes begin, the first own row, lengths, window
    type Case = (
        usize,
        usize,
        usize,
        usize,
        &'static [usize],
        usize,
        &'static [usize],
        Option<usize>,
    );
    let cases: [Case; 6] = [
        (1, 1, 2, 0, &[], 0, &[1], None),
        (6, 2, 8, 40, &[], 43, &[5, 0, 37], None),
        // Prefixes that are the same, that overlap, and that one sequence has alone.
        (4, 2, 16, 9, &[0, 0, 5, 20], 30, &[3, 4, 20, 1], None),
        (4, 4, 8, 10, &[], 10, &[40], Some(7)),
        (3, 1, 64, 33, &[], 33, &[12], Some(20)),
        (2, 1, 72, 5, &[2, 8], 14, &[35, 2], None),
    ];
    for (heads, kv_heads, head_dim, prefix, prefixes, from, lengths, window) in cases {
        let shape = Attention {
            heads,
            kv_heads,
            head_dim,
            prefix,
            prefixes,
            at: from,
            lengths,
            window,
            ahead: 0,
        };
        let mut random = Random(4);
        let rows: usize = lengths.iter().sum();
        let stride = (heads + 2 * kv_heads) * head_dim;
        let qkv = floats(rows * stride, 2.0, &mut random);
        let cache = (from + rows) * kv_heads * head_dim;
        let (k, v) = (
            floats(cache, 2.0, &mut random),
            floats(cache, 2.0, &mut random),
        );
        let dout = floats(rows * heads * head_dim, 1.0, &mut random);
        let old = floats(cache, 0.5, &mut random);
        let (q64, k64, v64) = (wide(&qkv), wide(&k), wide(&v));
        let (out64, lse64) = attention64(&shape, &q64, &k64, &v64);
        let own = |i: &usize| i % stride < heads * head_dim;
        let q_at: Vec<usize> = spread(qkv.len(), 240).into_iter().filter(own).collect();
        let kv_at = spread(cache, 120);
        let want_q = slopes(&q64, &q_at, |q| {
            dot(&attention64(&shape, q, &k64, &v64).0, &dout)
        });
        let more = |want: Vec<f64>| -> Vec<f64> {
            want.iter()
                .zip(&kv_at)
                .map(|(w, &i)| w + f64::from(old[i]))
                .collect()
        };
        let want_k = more(slopes(&k64, &kv_at, |k| {
            dot(&attention64(&shape, &q64, k, &v64).0, &dout)
        }));
        let want_v = more(slopes(&v64, &kv_at, |v| {
            dot(&attention64(&shape, &q64, &k64, v).0, &dout)
        }));
        for precision in PRECISIONS {
            everywhere(precision, |gpu, place| {
                let what = format!("{shape:?}, {place}");
                let [qkv_on, k, v, dout] = [&qkv, &k, &v, &dout].map(|h| gpu.upload(h).unwrap());
                let mut out = gpu.upload(&vec![f32::NAN; out64.len()]).unwrap();
                let mut lse = gpu.upload(&vec![f32::NAN; lse64.len()]).unwrap();
                gpu.attention_lse(&shape, &qkv_on, &k, &v, &mut out, &mut lse)
                    .unwrap();
                // The forward's products are in bf16, the backward's are not.
                let bound = if precision == Precision::F32 {
                    2e-5
                } else {
                    0.05
                };
                let got = gpu.download(&out, 0..out64.len()).unwrap();
                assert_close(&what, &got, &out64, bound, 0.0);
                let got = gpu.download(&lse, 0..lse64.len()).unwrap();
                assert_close(&what, &got, &lse64, bound, 0.0);

                let mut dqkv = gpu.upload(&qkv).unwrap();
                let [mut dk, mut dv] = [0, 1].map(|_| gpu.upload(&old).unwrap());
                let attended = Attended {
                    qkv: &qkv_on,
                    k: &k,
                    v: &v,
                    out: &out,
                    lse: &lse,
                };
                gpu.attention_bwd(&shape, attended, &dout, &mut dqkv, &mut dk, &mut dv)
                    .unwrap();
                let bound = if precision == Precision::F32 {
                    1e-4
                } else {
                    0.15
                };
                let got = gpu.download(&dqkv, 0..rows * stride).unwrap();
                assert_close(
                    &format!("dq, {what}"),
                    &pick(&got, &q_at),
                    &want_q,
                    bound,
                    0.0,
                );
                for (i, (got, was)) in got.iter().zip(&qkv).enumerate() {
                    assert!(own(&i) || got == was, "the places of k and v stay, {what}");
                }
                for (name, buf, want) in [("dk", &dk, &want_k), ("dv", &dv, &want_v)] {
                    let got = gpu.download(buf, 0..cache).unwrap();
                    assert_close(
                        &format!("{name}, {what}"),
                        &pick(&got, &kv_at),
                        want,
                        bound,
                        0.0,
                    );
                }
            });
        }
    }
}
