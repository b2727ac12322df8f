//! Every op of the CPU, on each instruction set, against a naive one in f64.

use crate::common::Random;
use crate::common::compare::{assert_close, wide};
use crate::common::oracle;
use prefold::Error;
use prefold::cpu::Cpu;
use prefold::ops::{
    Attention, AttentionOp, GemmOp, LayerOp, Linear, NllOp, NllTarget, Norm, NormKind, Pairing,
    Rotate, Storage,
};

/// Around the sizes of tiles and blocks.
const ROWS: [usize; 7] = [1, 7, 31, 32, 33, 200, 257];
/// What outputs hold before, and what must still stand after them.
const POISON: f32 = f32::NAN;
const CANARY: f32 = 12345.0;
const CANARIES: usize = 7;

fn floats(random: &mut Random, len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|_| random.float() * scale).collect()
}

/// A poisoned output with canaries after it.
fn output(len: usize) -> Vec<f32> {
    let mut out = vec![POISON; len];
    out.resize(len + CANARIES, CANARY);
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
fn assert_shape(result: prefold::Result<()>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

#[test]
fn linear() {
    let mut random = Random(1);
    for cpu in Cpu::each_instruction_set() {
        for rows in ROWS {
            for (inputs, outputs) in [(1, 1), (5, 31), (33, 48), (64, 49), (576, 100), (1536, 33)] {
                let x = floats(&mut random, rows * inputs, 1.0);
                let w = floats(&mut random, outputs * inputs, 1.0);
                let bias = floats(&mut random, outputs, 1.0);
                let matrix = cpu.matrix(outputs, inputs, &w).unwrap();
                let shape = Linear {
                    rows,
                    inputs,
                    outputs,
                    add: false,
                };
                // Sums of products below 1: rounding grows with the root of their number.
                let atol = 2e-6 * (inputs as f64).sqrt();
                let mut y = output(rows * outputs);
                cpu.linear(shape, &x, &matrix, None, &mut y).unwrap();
                let want = oracle::linear(&x, &w, None, inputs);
                assert_close("linear", &checked(y), &want, atol, 1e-6);

                let mut y = floats(&mut random, rows * outputs, 1.0);
                let mut want = oracle::linear(&x, &w, Some(&bias), inputs);
                for (want, &y) in want.iter_mut().zip(&y) {
                    *want += f64::from(y);
                }
                y.resize(y.len() + CANARIES, CANARY);
                let shape = Linear { add: true, ..shape };
                cpu.linear(shape, &x, &matrix, Some(&bias), &mut y).unwrap();
                assert_close("linear, added", &checked(y), &want, atol, 1e-6);
            }
        }
    }
}

#[test]
fn linear_checks_its_operands() {
    let cpu = Cpu::new();
    let matrix = cpu.matrix(3, 4, &[1.0; 12]).unwrap();
    let shape = Linear {
        rows: 2,
        inputs: 4,
        outputs: 3,
        add: false,
    };
    let (x, mut y) = (vec![0.0; 8], vec![0.0; 6]);
    cpu.linear(shape, &x, &matrix, None, &mut y).unwrap();
    let none = Linear { rows: 0, ..shape };
    cpu.linear(none, &vec![], &matrix, None, &mut vec![])
        .unwrap();
    assert_shape(cpu.linear(shape, &x[..7].to_vec(), &matrix, None, &mut y));
    assert_shape(cpu.linear(shape, &x, &matrix, None, &mut y[..5].to_vec()));
    assert_shape(cpu.linear(shape, &x, &matrix, Some(&vec![0.0; 2]), &mut y));
    let other = Linear { inputs: 3, ..shape };
    assert_shape(cpu.linear(other, &x, &matrix, None, &mut y));
    assert_shape(cpu.matrix(3, 4, &[1.0; 11]).map(drop));
    assert_shape(cpu.matrix(usize::MAX, 2, &[1.0; 11]).map(drop));
    assert_shape(cpu.matrix(0, 4, &[]).map(drop));
}

#[test]
fn embed() {
    let mut random = Random(2);
    for cpu in Cpu::each_instruction_set() {
        let (vocab, width) = (101, 37);
        let table = floats(&mut random, vocab * width, 1.0);
        let matrix = cpu.matrix(vocab, width, &table).unwrap();
        let ids: Vec<u32> = (0..257).map(|_| random.below(vocab) as u32).collect();
        let mut want: Vec<f32> = Vec::new();
        for &id in &ids {
            want.extend(&table[id as usize * width..][..width]);
        }
        let mut out = output(want.len());
        cpu.embed(&ids, &matrix, false, &mut out).unwrap();
        assert_eq!(out[..want.len()], want);
        cpu.embed(&ids, &matrix, true, &mut out).unwrap();
        let twice: Vec<f32> = want.iter().map(|v| v + v).collect();
        assert_eq!(checked(out), twice);

        let mut out = vec![0.0; width];
        let error = cpu.embed(&[101], &matrix, false, &mut out).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        assert_shape(cpu.embed(&[1, 2], &matrix, false, &mut out));
    }
}

#[test]
fn norms() {
    let mut random = Random(3);
    for cpu in Cpu::each_instruction_set() {
        for width in [1, 31, 48, 257, 576, 1023] {
            for kind in [NormKind::Rms, NormKind::Layer] {
                // Far from zero, where the mean matters.
                let mut x = floats(&mut random, 33 * width, 2.0);
                x.iter_mut().for_each(|x| *x += 3.0);
                let weight = floats(&mut random, width, 1.0);
                let bias = floats(&mut random, width, 1.0);
                let shape = Norm {
                    rows: 33,
                    width,
                    eps: 1e-5,
                    kind,
                };
                for bias in [None, Some(&bias)] {
                    let mut want = Vec::new();
                    for x in x.chunks(width) {
                        let bias = bias.map(|bias| &bias[..]);
                        want.extend(oracle::norm(kind, 1e-5, x, &weight, bias));
                    }
                    let mut y = output(x.len());
                    cpu.norm(shape, &x, &weight, bias, &mut y).unwrap();
                    assert_close("norm", &checked(y), &want, 1e-5, 1e-5);
                }
                let short = weight[1..].to_vec();
                let mut y = vec![0.0; x.len()];
                assert_shape(cpu.norm(shape, &x, &short, None, &mut y));
                assert_shape(cpu.norm(shape, &x, &weight, Some(&short), &mut y));
                assert_shape(cpu.norm(shape, &x[1..].to_vec(), &weight, None, &mut y));
                y.pop();
                assert_shape(cpu.norm(shape, &x, &weight, None, &mut y));
            }
        }
    }
}

#[test]
fn activations() {
    let mut random = Random(4);
    for cpu in Cpu::each_instruction_set() {
        for (rows, width) in [(1, 1), (3, 31), (33, 48), (257, 1536)] {
            for scale in [1.0, 10.0, 200.0] {
                let x = floats(&mut random, rows * 2 * width, scale);
                let want: Vec<f64> = x
                    .chunks(2 * width)
                    .flat_map(|row| (0..width).map(|i| oracle::swiglu(row[i], row[width + i])))
                    .collect();
                let mut y = output(rows * width);
                cpu.swiglu(rows, width, &x, &mut y).unwrap();
                assert_close("swiglu", &checked(y), &want, 1e-6, 1e-6);

                let want: Vec<f64> = x
                    .chunks(2 * width)
                    .flat_map(|row| (0..width).map(|i| oracle::geglu(row[i], row[width + i])))
                    .collect();
                let mut y = output(rows * width);
                cpu.geglu(rows, width, &x, &mut y).unwrap();
                // The bound of the error function's polynomial, times the other factor.
                assert_close(
                    "geglu",
                    &checked(y),
                    &want,
                    1e-6 * f64::from(scale).max(1.0),
                    1e-5,
                );

                let want: Vec<f64> = x.iter().map(|&x| oracle::gelu(x)).collect();
                let mut y = output(x.len());
                cpu.gelu(x.len(), &x, &mut y).unwrap();
                assert_close("gelu", &checked(y), &want, 1e-6, 1e-5);

                let want: Vec<f64> = x.iter().map(|&x| oracle::gelu_erf(x)).collect();
                let mut y = output(x.len());
                cpu.gelu_erf(x.len(), &x, &mut y).unwrap();
                assert_close("gelu_erf", &checked(y), &want, 1e-6, 1e-5);
            }
        }
        assert_shape(cpu.swiglu(2, 3, &vec![0.0; 11], &mut vec![0.0; 6]));
        assert_shape(cpu.swiglu(2, 3, &vec![0.0; 12], &mut vec![0.0; 5]));
        assert_shape(cpu.geglu(2, 3, &vec![0.0; 11], &mut vec![0.0; 6]));
        assert_shape(cpu.geglu(2, 3, &vec![0.0; 12], &mut vec![0.0; 5]));
        assert_shape(cpu.gelu(2, &vec![0.0; 1], &mut vec![0.0; 2]));
        assert_shape(cpu.gelu(2, &vec![0.0; 2], &mut vec![0.0; 1]));
        assert_shape(cpu.gelu_erf(2, &vec![0.0; 1], &mut vec![0.0; 2]));
        assert_shape(cpu.gelu_erf(2, &vec![0.0; 2], &mut vec![0.0; 1]));
    }
}

#[test]
fn rotate() {
    let mut random = Random(5);
    for cpu in Cpu::each_instruction_set() {
        for (heads, kv_heads, head_dim) in [(1, 1, 2), (6, 2, 8), (9, 3, 64), (4, 4, 80)] {
            let (rows, at, eps) = (33, 5, 1e-6);
            let stride = (heads + 2 * kv_heads) * head_dim;
            let kv = kv_heads * head_dim;
            let before = floats(&mut random, rows * stride, 1.0);
            let angles = floats(&mut random, rows * head_dim, 1.0);
            let weights = [0, 1].map(|_| floats(&mut random, head_dim, 1.0));
            let shape = Rotate {
                rows,
                heads,
                kv_heads,
                head_dim,
                at,
                eps,
                pairing: Pairing::Halves,
            };
            for (normed, rotated, pairing) in [
                (false, true, Pairing::Halves),
                (true, true, Pairing::Halves),
                (false, false, Pairing::Halves),
                (false, true, Pairing::Interleaved),
                (true, true, Pairing::Interleaved),
            ] {
                let shape = Rotate { pairing, ..shape };
                let mut qkv = before.clone();
                let [mut k, mut v] = [0, 1].map(|_| output((at + rows) * kv));
                let norms = normed.then_some([&weights[0], &weights[1]]);
                let angles_of = rotated.then_some(&angles);
                cpu.rotate(shape, &mut qkv, norms, angles_of, &mut k, &mut v)
                    .unwrap();
                let (k, v) = (checked(k), checked(v));
                assert!(k[..at * kv].iter().all(|k| k.is_nan()));
                assert!(v[..at * kv].iter().all(|v| v.is_nan()));
                for row in 0..rows {
                    let old = &before[row * stride..][..stride];
                    for head in 0..heads + kv_heads {
                        let weight = &weights[usize::from(head >= heads)];
                        let mut want = wide(&old[head * head_dim..][..head_dim]);
                        if normed {
                            let x = &old[head * head_dim..][..head_dim];
                            want = oracle::norm(NormKind::Rms, eps, x, weight, None);
                        }
                        if rotated {
                            want = oracle::rotate(
                                pairing,
                                &want,
                                &angles[row * head_dim..][..head_dim],
                            );
                        }
                        let got = if head < heads {
                            &qkv[row * stride + head * head_dim..][..head_dim]
                        } else {
                            &k[(at + row) * kv + (head - heads) * head_dim..][..head_dim]
                        };
                        assert_close("rotate", got, &want, 2e-6, 2e-6);
                    }
                    assert_eq!(v[(at + row) * kv..][..kv], old[stride - kv..]);
                }
            }
            let mut short = vec![0.0; (at + rows) * kv - 1];
            let mut full = vec![0.0; (at + rows) * kv];
            let mut qkv = before.clone();
            assert_shape(cpu.rotate(shape, &mut qkv, None, None, &mut short, &mut full));
            assert_shape(cpu.rotate(shape, &mut qkv, None, None, &mut full.clone(), &mut short));
            qkv.pop();
            assert_shape(cpu.rotate(shape, &mut qkv, None, None, &mut full.clone(), &mut full));
        }
    }
}

#[test]
fn attention() {
    let mut random = Random(6);
    let shapes = [
        (1, 1, 2),
        (2, 2, 4),
        (6, 2, 8),
        (14, 2, 16),
        (9, 3, 64),
        (2, 1, 80),
        (50, 1, 8),
    ];
    let batches: [(usize, usize, &[usize]); 8] = [
        (0, 0, &[1]),
        (0, 0, &[33]),
        (0, 0, &[0, 5, 1, 49, 0, 17]),
        (7, 7, &[1]),
        (31, 31, &[32]),
        (20, 20, &[3, 40, 0, 9]),
        // A gap between the prefix and the rows.
        (10, 15, &[20, 2]),
        (257, 257, &[2, 1]),
    ];
    for cpu in Cpu::each_instruction_set() {
        for (heads, kv_heads, head_dim) in shapes {
            for (prefix, at, lengths) in batches {
                let rows: usize = lengths.iter().sum();
                let qkv = floats(&mut random, rows * (heads + 2 * kv_heads) * head_dim, 3.0);
                // What lies in the gap must not be read as a number.
                let mut k = floats(&mut random, (at + rows) * kv_heads * head_dim, 3.0);
                let mut v = floats(&mut random, (at + rows) * kv_heads * head_dim, 1.0);
                let gap = prefix * kv_heads * head_dim..at * kv_heads * head_dim;
                k[gap.clone()].fill(POISON);
                v[gap].fill(POISON);
                for (window, ahead) in [
                    (None, 0),
                    (Some(1), 0),
                    (Some(3), 0),
                    (Some(30), 0),
                    (Some(1000), 0),
                    (None, usize::MAX),
                    (None, 2),
                    (Some(4), 3),
                    (Some(1), 40),
                ] {
                    let shape = Attention {
                        heads,
                        kv_heads,
                        head_dim,
                        prefix,
                        prefixes: &[],
                        at,
                        lengths,
                        window,
                        ahead,
                    };
                    let mut out = output(rows * heads * head_dim);
                    cpu.attention(&shape, &qkv, &k, &v, &mut out).unwrap();
                    let want = oracle::attention(&shape, &qkv, &k, &v);
                    let what = format!("attention {shape:?}");
                    assert_close(&what, &checked(out), &want, 1e-5, 1e-5);
                }
            }
        }
    }
}

#[test]
fn attention_takes_large_and_equal_scores() {
    for cpu in Cpu::each_instruction_set() {
        let shape = Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            prefix: 0,
            prefixes: &[],
            at: 0,
            lengths: &[3],
            window: None,
            ahead: 0,
        };
        let v = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        for (scale, want) in [
            (0.0, [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]),
            (1e4, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ] {
            // Each key a larger score than the one before, or all the same.
            let qkv = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0].repeat(3);
            let k = vec![-scale, 0.0, 0.0, 0.0, scale, 0.0];
            let mut out = output(6);
            cpu.attention(&shape, &qkv, &k, &v, &mut out).unwrap();
            assert_close("attention", &checked(out), &want, 1e-6, 0.0);
        }
    }
}

#[test]
fn attention_checks_its_operands() {
    let cpu = Cpu::new();
    let shape = Attention {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        prefix: 3,
        prefixes: &[],
        at: 3,
        lengths: &[2],
        window: None,
        ahead: 0,
    };
    let (qkv, k, mut out) = (vec![0.0; 128], vec![0.0; 80], vec![0.0; 64]);
    let short = |of: &Vec<f32>| of[1..].to_vec();
    cpu.attention(&shape, &qkv, &k, &k, &mut out).unwrap();
    assert_shape(cpu.attention(&shape, &short(&qkv), &k, &k, &mut out));
    assert_shape(cpu.attention(&shape, &qkv, &short(&k), &k, &mut out));
    assert_shape(cpu.attention(&shape, &qkv, &k, &short(&k), &mut out));
    assert_shape(cpu.attention(&shape, &qkv, &k, &k, &mut short(&out)));
    for wrong in [
        Attention {
            kv_heads: 3,
            ..shape
        },
        Attention {
            kv_heads: 0,
            ..shape
        },
        Attention { prefix: 4, ..shape },
        Attention {
            window: Some(0),
            ..shape
        },
    ] {
        assert_shape(cpu.attention(&wrong, &qkv, &k, &k, &mut out));
    }
}

#[test]
fn nll() {
    let mut random = Random(7);
    for cpu in Cpu::each_instruction_set() {
        for (vocab, width, rows) in [(1, 3, 1), (31, 8, 33), (384, 48, 257), (1000, 33, 7)] {
            for scale in [0.0, 1.0, 30.0] {
                let x = floats(&mut random, rows * width, scale);
                let head = floats(&mut random, vocab * width, 1.0);
                let matrix = cpu.matrix(vocab, width, &head).unwrap();
                // Rows in any order, some twice, some not at all.
                let picks: Vec<NllTarget> = (0..rows)
                    .map(|_| NllTarget {
                        row: random.below(rows) as u32,
                        target: random.below(vocab) as u32,
                    })
                    .collect();
                let mut out = output(rows);
                cpu.nll(width, &x, &matrix, &picks, &mut out).unwrap();
                let want: Vec<f64> = picks
                    .iter()
                    .map(|p| {
                        oracle::nll(
                            &x[p.row as usize * width..][..width],
                            &head,
                            p.target as usize,
                        )
                    })
                    .collect();
                assert_close("nll", &checked(out), &want, 1e-5, 2e-6);
            }
        }
    }
}

#[test]
fn nll_over_real_vocabularies() {
    let mut random = Random(8);
    for (vocab, width) in [(49152, 64), (128256, 32)] {
        let head = floats(&mut random, vocab * width, 1.0);
        for cpu in Cpu::each_instruction_set() {
            let matrix = cpu.matrix(vocab, width, &head).unwrap();
            let x = floats(&mut random, 9 * width, 1.0);
            let targets = [0, 47, 48, vocab / 2, vocab - 1];
            let picks: Vec<NllTarget> = targets
                .iter()
                .enumerate()
                .map(|(i, &target)| NllTarget {
                    row: 2 * i as u32,
                    target: target as u32,
                })
                .collect();
            let mut out = output(picks.len());
            cpu.nll(width, &x, &matrix, &picks, &mut out).unwrap();
            let want: Vec<f64> = picks
                .iter()
                .map(|p| {
                    oracle::nll(
                        &x[p.row as usize * width..][..width],
                        &head,
                        p.target as usize,
                    )
                })
                .collect();
            let worst = assert_close("nll", &checked(out), &want, 5e-6, 0.0);
            eprintln!("{vocab} ids, {}: {worst:.1e}", cpu.describe());
        }
    }
}

#[test]
fn nll_checks_its_operands() {
    let cpu = Cpu::new();
    let matrix = cpu.matrix(5, 4, &[1.0; 20]).unwrap();
    let x = vec![0.0; 8];
    let mut out = vec![0.0; 2];
    let pick = |row, target| NllTarget { row, target };
    cpu.nll(4, &x, &matrix, &[], &mut out).unwrap();
    cpu.nll(4, &x, &matrix, &[pick(1, 4)], &mut out).unwrap();
    assert_close("nll", &out[..1], &[5f64.ln()], 1e-6, 0.0);
    assert_shape(cpu.nll(4, &x, &matrix, &[pick(2, 4)], &mut out));
    assert_shape(cpu.nll(3, &x, &matrix, &[pick(0, 4)], &mut out));
    assert_shape(cpu.nll(4, &x, &matrix, &[pick(0, 0); 3], &mut out));
    let error = cpu
        .nll(4, &x, &matrix, &[pick(0, 5)], &mut out)
        .unwrap_err();
    assert!(matches!(error, Error::Input { .. }), "{error}");
}

#[test]
fn storage() {
    let cpu = Cpu::new();
    let mut buf = cpu.upload(&[1u32, 2, 3, 4, 5]).unwrap();
    cpu.copy_within(&mut buf, 1..5, 0).unwrap();
    assert_eq!(cpu.download(&buf, 0..5).unwrap(), [2, 3, 4, 5, 5]);
    cpu.resize(&mut buf, 7).unwrap();
    cpu.write(&[9], &mut buf).unwrap();
    assert_eq!(cpu.download(&buf, 0..7).unwrap(), [9, 3, 4, 5, 5, 0, 0]);
    assert_eq!(cpu.zeros::<f32>(3).unwrap(), [0.0; 3]);
    assert_shape(cpu.download(&buf, 6..8).map(drop));
    assert_shape(cpu.write(&[0; 8], &mut buf));
    assert_shape(cpu.copy_within(&mut buf, 2..7, 3));
}
