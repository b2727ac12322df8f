//! Every backward of the CPU, on each instruction set, against finite differences of the naive forward
//! in f64.

use crate::common::compare::assert_close;
use crate::common::{Random, oracle};
use prefold::cpu::Cpu;
use prefold::ops::{
    Attended, Attention, AttentionOp, Dropout, GemmOp, LayerOp, Linear, NllOp, NllTarget, Norm,
    NormKind, Outer, Pairing, Rotate, Span, Storage,
};
use prefold::{Error, Result};

const CANARY: f32 = 12345.0;
const CANARIES: usize = 7;

pub fn floats(random: &mut Random, len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|_| random.float() * scale).collect()
}

/// A poisoned output with canaries after it.
fn output(len: usize) -> Vec<f32> {
    canaried(&vec![f32::NAN; len])
}

fn canaried(values: &[f32]) -> Vec<f32> {
    let mut out = values.to_vec();
    out.resize(values.len() + CANARIES, CANARY);
    out
}

/// The output without its canaries.
#[track_caller]
fn checked(mut out: Vec<f32>) -> Vec<f32> {
    let rest = out.split_off(out.len() - CANARIES);
    assert!(rest.iter().all(|&v| v == CANARY), "wrote beyond the output");
    out
}

#[track_caller]
fn assert_shape(result: Result<()>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

/// The gradient of `f` at `x` by central differences.
fn differences(x: &[f32], f: impl Fn(&[f32]) -> f64) -> Vec<f64> {
    let mut moved = x.to_vec();
    let mut out = Vec::new();
    for i in 0..x.len() {
        let (high, low) = (x[i] + 1e-3, x[i] - 1e-3);
        moved[i] = high;
        let above = f(&moved);
        moved[i] = low;
        let below = f(&moved);
        moved[i] = x[i];
        out.push((above - below) / (f64::from(high) - f64::from(low)));
    }
    out
}

/// `Σ a · b`.
pub fn dot(a: &[f64], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
}

pub fn add(to: &mut [f64], more: &[f32]) {
    for (to, &more) in to.iter_mut().zip(more) {
        *to += f64::from(more);
    }
}

#[test]
fn transposed_and_outer() {
    let mut random = Random(1);
    for cpu in Cpu::each_instruction_set() {
        for rows in [1, 7, 33, 200] {
            for (inputs, outputs) in [(1, 1), (5, 31), (48, 97), (100, 49), (130, 256)] {
                // dx of a linear layer.
                let w = floats(&mut random, outputs * inputs, 1.0);
                let dy = floats(&mut random, rows * outputs, 1.0);
                let across = cpu
                    .transposed(&cpu.matrix(outputs, inputs, &w).unwrap())
                    .unwrap();
                let transposed: Vec<f32> = (0..inputs * outputs)
                    .map(|i| w[i % outputs * inputs + i / outputs])
                    .collect();
                let shape = Linear {
                    rows,
                    inputs: outputs,
                    outputs: inputs,
                    add: false,
                };
                let mut dx = output(rows * inputs);
                cpu.linear(shape, &dy, &across, None, &mut dx).unwrap();
                let want = oracle::linear(&dy, &transposed, None, outputs);
                let atol = 2e-6 * (outputs as f64).sqrt();
                assert_close("dx", &checked(dx), &want, atol, 1e-6);

                // Its dw, from columns of wider matrices.
                let (a, b) = (outputs + 3, inputs + 5);
                let left = floats(&mut random, rows * a, 1.0);
                let right = floats(&mut random, rows * b, 1.0);
                let shape = Outer {
                    rows,
                    left: Span {
                        stride: a,
                        first: 2,
                        width: outputs,
                    },
                    right: Span {
                        stride: b,
                        first: 5,
                        width: inputs,
                    },
                };
                let mut want = vec![0.0; outputs * inputs];
                for (a, b) in left.chunks(a).zip(right.chunks(b)) {
                    for (i, want) in want.iter_mut().enumerate() {
                        *want += f64::from(a[2 + i / inputs]) * f64::from(b[5 + i % inputs]);
                    }
                }
                let mut out = output(want.len());
                cpu.outer(shape, &left, &right, &mut out).unwrap();
                let atol = 2e-6 * (rows as f64).sqrt();
                assert_close("outer", &checked(out), &want, atol, 1e-6);
            }
        }
    }
    let cpu = Cpu::new();
    let shape = Outer {
        rows: 2,
        left: Span::all(3),
        right: Span::all(4),
    };
    let (a, b, mut out) = (vec![1.0; 6], vec![1.0; 8], vec![0.0; 12]);
    cpu.outer(shape, &a, &b, &mut out).unwrap();
    assert_eq!(out, [2.0; 12]);
    cpu.outer(Outer { rows: 0, ..shape }, &a, &b, &mut out)
        .unwrap();
    assert_eq!(out, [0.0; 12]);
    assert_shape(cpu.outer(shape, &a[..5].to_vec(), &b, &mut out));
    assert_shape(cpu.outer(shape, &a, &b[..7].to_vec(), &mut out));
    assert_shape(cpu.outer(shape, &a, &b, &mut out[..11].to_vec()));
    let outside = Span {
        stride: 3,
        first: 2,
        width: 2,
    };
    assert_shape(cpu.outer(
        Outer {
            left: outside,
            ..shape
        },
        &a,
        &b,
        &mut out,
    ));
}

#[test]
fn norms() {
    let mut random = Random(2);
    for cpu in Cpu::each_instruction_set() {
        for width in [1, 2, 31, 48, 257] {
            for kind in [NormKind::Rms, NormKind::Layer] {
                let rows = if width > 48 { 2 } else { 5 };
                let shape = Norm {
                    rows,
                    width,
                    eps: 1e-2,
                    kind,
                };
                let x = floats(&mut random, rows * width, 2.0);
                let weight = floats(&mut random, width, 1.0);
                let dy = floats(&mut random, rows * width, 1.0);
                let before = floats(&mut random, rows * width, 1.0);
                let mut want = differences(&x, |x| {
                    let rows = x.chunks(width).zip(dy.chunks(width));
                    rows.map(|(x, dy)| dot(&oracle::norm(kind, 1e-2, x, &weight, None), dy))
                        .sum()
                });
                add(&mut want, &before);
                let mut dx = canaried(&before);
                cpu.norm_bwd(shape, &x, &weight, &dy, &mut dx).unwrap();
                // A width of 1 has slopes of 1 / √eps.
                let what = format!("{kind:?}, {width}");
                assert_close(&what, &checked(dx), &want, 1e-4, 1e-5);
            }
        }
    }
    let cpu = Cpu::new();
    let shape = Norm {
        rows: 2,
        width: 3,
        eps: 1e-5,
        kind: NormKind::Rms,
    };
    let (x, w, mut dx) = (vec![1.0; 6], vec![1.0; 3], vec![0.0; 6]);
    cpu.norm_bwd(shape, &x, &w, &x, &mut dx).unwrap();
    assert_shape(cpu.norm_bwd(shape, &w, &w, &x, &mut dx));
    assert_shape(cpu.norm_bwd(shape, &x, &w[..2].to_vec(), &x, &mut dx));
    assert_shape(cpu.norm_bwd(shape, &x, &w, &w, &mut dx));
    assert_shape(cpu.norm_bwd(shape, &x, &w, &x, &mut vec![0.0; 5]));
}

#[test]
fn activations() {
    let mut random = Random(3);
    for cpu in Cpu::each_instruction_set() {
        for width in [1, 31, 48, 257] {
            let rows = 3;
            let x = floats(&mut random, rows * 2 * width, 8.0);
            let dy = floats(&mut random, rows * width, 1.0);
            let want = differences(&x, |x| {
                let mut y = Vec::new();
                for row in x.chunks(2 * width) {
                    y.extend((0..width).map(|i| oracle::swiglu(row[i], row[width + i])));
                }
                dot(&y, &dy)
            });
            let mut dx = output(x.len());
            cpu.swiglu_bwd(rows, width, &x, &dy, &mut dx).unwrap();
            assert_close("swiglu", &checked(dx), &want, 1e-5, 1e-5);

            let (x, dy) = (&x[..width].to_vec(), &dy[..width].to_vec());
            let slope = |x: f32| {
                let at = |x: f64| oracle::gelu(x as f32);
                let (high, low) = (f64::from(x + 1e-3), f64::from(x - 1e-3));
                (at(high) - at(low)) / (high - low)
            };
            let want: Vec<f64> = x
                .iter()
                .zip(dy)
                .map(|(&x, &dy)| slope(x) * f64::from(dy))
                .collect();
            let mut dx = output(width);
            cpu.gelu_bwd(width, x, dy, &mut dx).unwrap();
            assert_close("gelu", &checked(dx), &want, 1e-5, 1e-5);
        }
        let (long, short, mut dx) = (vec![1.0; 8], vec![1.0; 3], vec![0.0; 8]);
        assert_shape(cpu.swiglu_bwd(2, 2, &long, &short, &mut dx));
        assert_shape(cpu.swiglu_bwd(2, 2, &short, &long, &mut dx));
        assert_shape(cpu.swiglu_bwd(2, 2, &long, &long, &mut short.clone()));
        assert_shape(cpu.gelu_bwd(4, &short, &long, &mut dx));
        assert_shape(cpu.gelu_bwd(4, &long, &short, &mut dx));
        assert_shape(cpu.gelu_bwd(4, &long, &long, &mut short.clone()));
    }
}

#[test]
fn rotate() {
    let mut random = Random(4);
    let (heads, kv_heads, d) = (4, 2, 6);
    let (all, width) = (heads + 2 * kv_heads, kv_heads * d);
    for cpu in Cpu::each_instruction_set() {
        for (rows, at) in [(1, 0), (5, 2)] {
            for (with_norms, pairing) in [
                (false, Pairing::Halves),
                (true, Pairing::Halves),
                (false, Pairing::Interleaved),
                (true, Pairing::Interleaved),
            ] {
                let shape = Rotate {
                    rows,
                    heads,
                    kv_heads,
                    head_dim: d,
                    at,
                    eps: 1e-2,
                    pairing,
                };
                let qkv = floats(&mut random, rows * all * d, 2.0);
                let norms = [floats(&mut random, d, 1.0), floats(&mut random, d, 1.0)];
                let angles: Vec<f32> = (0..rows)
                    .flat_map(|row| {
                        let angle = move |i: usize| row as f32 + i as f32 * 0.3;
                        let cosines = (0..d / 2).map(move |i| angle(i).cos());
                        cosines.chain((0..d / 2).map(move |i| angle(i).sin()))
                    })
                    .collect();
                let grads = floats(&mut random, rows * all * d, 1.0);
                // The loss weighs q, k and v, wherever they end up, by `grads`.
                let want = differences(&qkv, |qkv| {
                    let mut out = Vec::new();
                    for (i, head) in qkv.chunks(d).enumerate() {
                        let (row, place) = (i / all, i % all);
                        let wide: Vec<f64> = head.iter().map(|&v| v.into()).collect();
                        let side = usize::from(place >= heads);
                        out.extend(match (place < heads + kv_heads, with_norms) {
                            (false, _) => wide,
                            (true, false) => {
                                oracle::rotate(pairing, &wide, &angles[row * d..][..d])
                            }
                            (true, true) => {
                                let normed =
                                    oracle::norm(NormKind::Rms, 1e-2, head, &norms[side], None);
                                oracle::rotate(pairing, &normed, &angles[row * d..][..d])
                            }
                        });
                    }
                    dot(&out, &grads)
                });
                let (mut dk, mut dv) = (vec![f32::NAN; at * width], vec![f32::NAN; at * width]);
                let mut dqkv = output(rows * all * d);
                for (row, grads) in grads.chunks(all * d).enumerate() {
                    let (q, rest) = grads.split_at(heads * d);
                    dqkv[row * all * d..][..heads * d].copy_from_slice(q);
                    dk.extend(&rest[..width]);
                    dv.extend(&rest[width..]);
                }
                let norms = with_norms.then_some([&norms[0], &norms[1]]);
                cpu.rotate_bwd(shape, &qkv, norms, Some(&angles), &dk, &dv, &mut dqkv)
                    .unwrap();
                assert_close("rotate", &checked(dqkv), &want, 2e-5, 1e-5);
            }
        }
    }
    let cpu = Cpu::new();
    let shape = Rotate {
        rows: 1,
        heads,
        kv_heads,
        head_dim: d,
        at: 1,
        eps: 0.0,
        pairing: Pairing::Halves,
    };
    let (qkv, cache, norm) = (vec![1.0; all * d], vec![1.0; 2 * width], vec![1.0; d]);
    let mut dqkv = qkv.clone();
    let (short, norms) = (vec![1.0; d - 1], Some([&norm, &norm]));
    cpu.rotate_bwd(shape, &qkv, norms, Some(&norm), &cache, &cache, &mut dqkv)
        .unwrap();
    assert_shape(cpu.rotate_bwd(shape, &short, norms, None, &cache, &cache, &mut dqkv));
    assert_shape(cpu.rotate_bwd(shape, &qkv, None, Some(&short), &cache, &cache, &mut dqkv));
    assert_shape(cpu.rotate_bwd(shape, &qkv, None, None, &short, &cache, &mut dqkv));
    assert_shape(cpu.rotate_bwd(shape, &qkv, None, None, &cache, &short, &mut dqkv));
    assert_shape(cpu.rotate_bwd(shape, &qkv, None, None, &cache, &cache, &mut short.clone()));
}

#[test]
fn dropout() {
    let mut random = Random(5);
    let len = 40_001;
    let x = floats(&mut random, len, 1.0);
    for cpu in Cpu::each_instruction_set() {
        for rate in [0.0, 0.05, 0.5] {
            let shape = Dropout {
                len,
                rate,
                seed: 7,
                add: false,
            };
            let mut y = output(len);
            cpu.dropout(shape, &x, &mut y).unwrap();
            let y = checked(y);
            let scale = 1.0 / (1.0 - rate);
            for (i, (&y, &x)) in y.iter().zip(&x).enumerate() {
                assert_eq!(
                    y,
                    if shape.keeps(i as u32) {
                        x * scale
                    } else {
                        0.0
                    }
                );
            }
            let share = (0..len).filter(|&i| !shape.keeps(i as u32)).count() as f32 / len as f32;
            assert!((share - rate).abs() < 0.01, "{share} of {rate}");
            // Another seed drops others: of two independent masks both drop rate² of all.
            for seed in [8, 7 << 32] {
                let other = Dropout { seed, ..shape };
                let both = |&i: &u32| !shape.keeps(i) && !other.keeps(i);
                let both = (0..len as u32).filter(both).count() as f32 / len as f32;
                assert!((both - rate * rate).abs() < 0.01, "{both} of {rate}²");
            }
            let mut twice = y.clone();
            cpu.dropout(Dropout { add: true, ..shape }, &x, &mut twice)
                .unwrap();
            assert!(twice.iter().zip(&y).all(|(twice, y)| *twice == y + y));
        }
        let wrong = Dropout {
            len: 4,
            rate: 1.0,
            seed: 0,
            add: false,
        };
        assert_shape(cpu.dropout(wrong, &x, &mut vec![0.0; 4]));
        let shape = Dropout { rate: 0.5, ..wrong };
        assert_shape(cpu.dropout(shape, &vec![0.0; 3], &mut vec![0.0; 4]));
        assert_shape(cpu.dropout(shape, &x, &mut vec![0.0; 3]));
    }
}

/// Rows of sequences after prefixes: shared, of their own, or none.
fn attentions() -> Vec<Attention<'static>> {
    let plain = Attention {
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        prefix: 0,
        prefixes: &[],
        at: 0,
        lengths: &[5],
        window: None,
        ahead: 0,
    };
    vec![
        plain,
        Attention {
            heads: 1,
            head_dim: 6,
            lengths: &[1, 3, 0, 2],
            ..plain
        },
        Attention {
            heads: 6,
            kv_heads: 3,
            head_dim: 2,
            prefix: 2,
            at: 2,
            lengths: &[4],
            ..plain
        },
        // Two sequences after the same prefix.
        Attention {
            prefix: 3,
            at: 4,
            lengths: &[2, 3],
            ..plain
        },
        // Each after its own, not in order.
        Attention {
            prefix: 2,
            prefixes: &[2, 0],
            at: 4,
            lengths: &[3, 2],
            ..plain
        },
        Attention {
            prefix: 2,
            prefixes: &[2, 0],
            at: 5,
            lengths: &[3, 4],
            window: Some(3),
            ..plain
        },
        // More queries than a panel is wide.
        Attention {
            heads: 5,
            head_dim: 3,
            lengths: &[23],
            ..plain
        },
    ]
}

#[test]
fn attention() {
    let mut random = Random(6);
    for cpu in Cpu::each_instruction_set() {
        for shape in attentions() {
            let (heads, kv_heads, d) = (shape.heads, shape.kv_heads, shape.head_dim);
            let rows: usize = shape.lengths.iter().sum();
            let width = (heads + 2 * kv_heads) * d;
            let qkv = floats(&mut random, rows * width, 1.5);
            let k = floats(&mut random, (shape.at + rows) * kv_heads * d, 1.5);
            let v = floats(&mut random, k.len(), 1.5);
            let dout = floats(&mut random, rows * heads * d, 1.0);
            let what = format!("{shape:?}");

            let mut out = output(rows * heads * d);
            let mut lse = output(rows * heads);
            cpu.attention_lse(&shape, &qkv, &k, &v, &mut out, &mut lse)
                .unwrap();
            let (out, lse) = (checked(out), checked(lse));
            let want = oracle::attention(&shape, &qkv, &k, &v);
            assert_close(&what, &out, &want, 2e-6, 2e-6);
            let mut plain = output(out.len());
            cpu.attention(&shape, &qkv, &k, &v, &mut plain).unwrap();
            assert_eq!(checked(plain), out);

            let loss = |qkv: &[f32], k: &[f32], v: &[f32]| {
                dot(&oracle::attention(&shape, qkv, k, v), &dout)
            };
            let attended = Attended::<Cpu> {
                qkv: &qkv,
                k: &k,
                v: &v,
                out: &out,
                lse: &lse,
            };
            let before = [
                floats(&mut random, k.len(), 1.0),
                floats(&mut random, k.len(), 1.0),
            ];
            let [mut dk, mut dv] = before.clone().map(|before| canaried(&before));
            let mut dqkv = canaried(&vec![7.0; qkv.len()]);
            cpu.attention_bwd(&shape, attended, &dout, &mut dqkv, &mut dk, &mut dv)
                .unwrap();
            let mut want = differences(&qkv, |qkv| loss(qkv, &k, &v));
            // The places of k and v are left alone.
            for row in want.chunks_mut(width) {
                row[heads * d..].fill(7.0);
            }
            assert_close(&what, &checked(dqkv), &want, 1e-5, 1e-5);
            let mut want = differences(&k, |k| loss(&qkv, k, &v));
            add(&mut want, &before[0]);
            assert_close(&what, &checked(dk), &want, 1e-5, 1e-5);
            let mut want = differences(&v, |v| loss(&qkv, &k, v));
            add(&mut want, &before[1]);
            assert_close(&what, &checked(dv), &want, 1e-5, 1e-5);
        }
    }
}

#[test]
fn attention_checks_its_operands() {
    let cpu = Cpu::new();
    let shape = attentions()[4];
    let (qkv, k, out, lse) = (vec![1.0; 80], vec![1.0; 36], vec![1.0; 40], vec![1.0; 10]);
    let run = |shape: Attention<'_>, sizes: [usize; 9]| {
        let cut = |from: &Vec<f32>, len: usize| from[..len].to_vec();
        let [q, k1, v, o, l, d, dq, dk, dv] = sizes;
        let (q, k1, v) = (cut(&qkv, q), cut(&k, k1), cut(&k, v));
        let (o, l) = (cut(&out, o), cut(&lse, l));
        let attended = Attended::<Cpu> {
            qkv: &q,
            k: &k1,
            v: &v,
            out: &o,
            lse: &l,
        };
        let (mut dq, mut dk, mut dv) = (cut(&qkv, dq), cut(&k, dk), cut(&k, dv));
        cpu.attention_bwd(&shape, attended, &cut(&out, d), &mut dq, &mut dk, &mut dv)
    };
    let enough = [80, 36, 36, 40, 10, 40, 80, 36, 36];
    run(shape, enough).unwrap();
    for i in 0..enough.len() {
        let mut short = enough;
        short[i] -= 1;
        assert_shape(run(shape, short));
    }
    // A prefix for one of two sequences, and one that ends after the first row.
    assert_shape(run(
        Attention {
            prefixes: &[0],
            ..shape
        },
        enough,
    ));
    assert_shape(run(
        Attention {
            prefixes: &[0, 3],
            ..shape
        },
        enough,
    ));
    assert_shape(run(
        Attention {
            prefixes: &[0, usize::MAX],
            ..shape
        },
        enough,
    ));
    let mut short = vec![0.0; 9];
    let mut room = out.clone();
    assert_shape(cpu.attention_lse(&shape, &qkv, &k, &k, &mut room, &mut short));
}

#[test]
fn nll() {
    let mut random = Random(7);
    for cpu in Cpu::each_instruction_set() {
        for (vocab, width) in [(1, 3), (31, 8), (257, 5), (2500, 3)] {
            let x = floats(&mut random, 4 * width, 2.0);
            let values = floats(&mut random, vocab * width, 2.0);
            let head = cpu.matrix(vocab, width, &values).unwrap();
            let across = cpu.transposed(&head).unwrap();
            // One row not at all, one twice, out of order.
            let picks: Vec<NllTarget> = [3, 0, 2, 0]
                .map(|row| NllTarget {
                    row,
                    target: random.below(vocab) as u32,
                })
                .to_vec();
            let before = floats(&mut random, x.len(), 1.0);
            let mut dx = canaried(&before);
            let mut out = output(picks.len());
            cpu.nll_bwd(width, &x, &head, &across, &picks, &mut out, &mut dx)
                .unwrap();
            let of = |x: &[f32]| -> Vec<f64> {
                let row = |pick: &NllTarget| &x[pick.row as usize * width..][..width];
                let each = picks.iter();
                each.map(|pick| oracle::nll(row(pick), &values, pick.target as usize))
                    .collect()
            };
            assert_close("nll", &checked(out), &of(&x), 1e-5, 1e-6);
            let mut want = differences(&x, |x| of(x).iter().sum());
            add(&mut want, &before);
            assert_close("dx", &checked(dx), &want, 2e-5, 1e-5);
        }
    }
}

#[test]
fn nll_goes_through_blocks_of_rows() {
    // As many logits as do not fit into one block.
    let mut random = Random(8);
    let cpu = Cpu::new();
    let (vocab, width, rows) = (128_256, 2, 130);
    let values = floats(&mut random, vocab * width, 4.0);
    let x = floats(&mut random, rows * width, 2.0);
    let head = cpu.matrix(vocab, width, &values).unwrap();
    let across = cpu.transposed(&head).unwrap();
    let picks: Vec<NllTarget> = (0..rows as u32)
        .map(|row| NllTarget {
            row,
            target: random.below(vocab) as u32,
        })
        .collect();
    let (mut out, mut dx) = (output(rows), canaried(&vec![0.0; x.len()]));
    cpu.nll_bwd(width, &x, &head, &across, &picks, &mut out, &mut dx)
        .unwrap();
    let mut want = Vec::new();
    for (x, pick) in x.chunks(width).zip(&picks) {
        let nll = oracle::nll(x, &values, pick.target as usize);
        let mut gradient = vec![0.0; width];
        for (id, row) in values.chunks(width).enumerate() {
            let logit: f64 = x
                .iter()
                .zip(row)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum();
            let of_target: f64 = x
                .iter()
                .zip(&values[pick.target as usize * width..])
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum();
            let p = (logit - of_target - nll).exp();
            let p = p - f64::from(u8::from(id == pick.target as usize));
            for (gradient, &w) in gradient.iter_mut().zip(row) {
                *gradient += p * f64::from(w);
            }
        }
        want.extend(gradient);
    }
    checked(out);
    assert_close("dx", &checked(dx), &want, 2e-5, 1e-5);
}

#[test]
fn nll_checks_its_operands() {
    let cpu = Cpu::new();
    let head = cpu.matrix(5, 3, &[1.0; 15]).unwrap();
    let across = cpu.transposed(&head).unwrap();
    let (x, mut out, mut dx) = (vec![1.0; 6], vec![0.0; 1], vec![0.0; 6]);
    let pick = [NllTarget { row: 1, target: 4 }];
    cpu.nll_bwd(3, &x, &head, &across, &pick, &mut out, &mut dx)
        .unwrap();
    assert_shape(cpu.nll_bwd(2, &x, &head, &across, &pick, &mut out, &mut dx));
    assert_shape(cpu.nll_bwd(3, &x, &head, &head, &pick, &mut out, &mut dx));
    assert_shape(cpu.nll_bwd(
        3,
        &x[..5].to_vec(),
        &head,
        &across,
        &pick,
        &mut out,
        &mut dx,
    ));
    assert_shape(cpu.nll_bwd(3, &x, &head, &across, &pick, &mut vec![], &mut dx));
    assert_shape(cpu.nll_bwd(3, &x, &head, &across, &pick, &mut out, &mut vec![0.0; 5]));
    let outside = [NllTarget { row: 0, target: 5 }];
    let error = cpu
        .nll_bwd(3, &x, &head, &across, &outside, &mut out, &mut dx)
        .unwrap_err();
    assert!(matches!(error, Error::Input { .. }), "{error}");
}

#[test]
fn buffers_are_copied_and_cleared() {
    let cpu = Cpu::new();
    let from = cpu.upload(&[1.0f32, 2.0, 3.0]).unwrap();
    let mut to = cpu.upload(&[9.0f32; 4]).unwrap();
    cpu.copy(&from, 1..3, &mut to, 2).unwrap();
    cpu.clear(&mut to, 0..1).unwrap();
    assert_eq!(to, [0.0, 9.0, 2.0, 3.0]);
    assert_shape(cpu.copy(&from, 1..4, &mut to, 0));
    assert_shape(cpu.copy(&from, 1..3, &mut to, 3));
    assert_shape(cpu.clear(&mut to, 2..5));
}
