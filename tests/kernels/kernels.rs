//! Every kernel, executed by a CPU, against a naive oracle in f64: threads in several orders,
//! asynchronous copies early and late, and guards around every buffer. Where there is a CUDA device, the
//! same cases by it too.

use crate::common;

use crate::common::Random;
use crate::common::compare::{assert_close, wide};
use crate::common::device::{Device, everywhere};
use crate::common::emu::{SCHEDULES, Schedule, launcher};
use crate::common::oracle;
use half::bf16;
use prefold::Error;
use prefold::cpu::Cpu;
use prefold::gpu::{Gpu, Launcher, Precision};
use prefold::ops::{
    Attention, AttentionOp, GemmOp, Keep, LayerOp, Linear, NllOp, NllTarget, Norm, NormKind,
    Pairing, Rotate, Select, Storage, TopKOp, TopKOutput,
};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn floats(count: usize, scale: f32, random: &mut Random) -> Vec<f32> {
    (0..count).map(|_| random.float() * scale).collect()
}

/// What a product's operand becomes.
fn rounded(precision: Precision, values: &[f32]) -> Vec<f64> {
    values
        .iter()
        .map(|&v| match precision {
            Precision::F32 => v.into(),
            Precision::Bf16 => bf16::from_f32(v).to_f64(),
        })
        .collect()
}

fn product(x: &[f64], w: &[f64], inputs: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(inputs) {
        for w in w.chunks_exact(inputs) {
            out.push(x.iter().zip(w).map(|(x, w)| x * w).sum());
        }
    }
    out
}

/// `-ln softmax(logits)[target]`.
fn nll(logits: &[f64], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    sum.ln() + max - logits[target]
}

/// One schedule, for what is large.
fn once(precision: Precision, schedule: Schedule, test: impl Fn(&Gpu<Device>, &str)) {
    if let Some(emu) = launcher("library.cu", schedule) {
        let gpu = Gpu::new(Device::Emu(emu), precision);
        test(&gpu, &format!("{precision:?}, {schedule:?}"));
    }
}

#[test]
fn products() {
    for precision in PRECISIONS {
        // From one step of the pipeline to several rounds of all its stages; whole and ragged tiles.
        for (rows, inputs, outputs) in [
            (1, 1, 1),
            (3, 8, 5),
            (31, 33, 129),
            (65, 64, 64),
            (130, 257, 70),
        ] {
            everywhere(precision, |gpu, at| {
                let what = format!("{rows} x {inputs} x {outputs}, {at}");
                let mut random = Random(7);
                let x = floats(rows * inputs, 1.0, &mut random);
                let w = floats(outputs * inputs, 1.0, &mut random);
                let bias = floats(outputs, 1.0, &mut random);
                let old = floats(rows * outputs, 1.0, &mut random);
                let plain = product(&rounded(precision, &x), &rounded(precision, &w), inputs);
                let x = gpu.upload(&x).unwrap();
                let w = gpu.matrix(outputs, inputs, &w).unwrap();
                let b = gpu.upload(&bias).unwrap();
                for (add, bias_on) in [(false, false), (true, true)] {
                    let mut y = gpu.upload(&old).unwrap();
                    let shape = Linear {
                        rows,
                        inputs,
                        outputs,
                        add,
                    };
                    gpu.linear(shape, &x, &w, bias_on.then_some(&b), &mut y)
                        .unwrap();
                    let want: Vec<f64> = plain
                        .iter()
                        .enumerate()
                        .map(|(i, &v)| {
                            let bias = f64::from(bias[i % outputs]);
                            v + if bias_on { bias } else { 0.0 }
                                + if add { old[i].into() } else { 0.0 }
                        })
                        .collect();
                    let got = gpu.download(&y, 0..rows * outputs).unwrap();
                    assert_close(&what, &got, &want, 2e-5, 1e-5);
                }
            });
        }
    }
}

#[test]
fn likelihoods() {
    for precision in PRECISIONS {
        for (rows, width, vocab) in [(1, 1, 1), (5, 31, 33), (33, 32, 257), (129, 48, 700)] {
            everywhere(precision, |gpu, at| {
                let what = format!("{rows} x {width} x {vocab}, {at}");
                check_nll(gpu, precision, rows, width, vocab, &what);
            });
        }
    }
}

#[test]
fn likelihoods_over_real_vocabularies() {
    once(Precision::Bf16, SCHEDULES[2], |gpu, at| {
        check_nll(gpu, Precision::Bf16, 3, 64, 49_152, at);
        check_nll(gpu, Precision::Bf16, 2, 16, 128_256, at);
    });
    once(Precision::F32, SCHEDULES[1], |gpu, at| {
        check_nll(gpu, Precision::F32, 2, 16, 49_152, at);
    });
}

fn check_nll<L: Launcher>(
    gpu: &Gpu<L>,
    precision: Precision,
    rows: usize,
    width: usize,
    vocab: usize,
    what: &str,
) {
    let mut random = Random(rows as u64);
    // Rows that are picked in another order, some of them twice.
    let x = floats((rows + 2) * width, 2.0, &mut random);
    let w = floats(vocab * width, 2.0, &mut random);
    let picks: Vec<NllTarget> = (0..rows)
        .map(|i| NllTarget {
            row: random.below(rows + 2) as u32,
            target: match i {
                0 => vocab as u32 - 1,
                _ => random.below(vocab) as u32,
            },
        })
        .collect();
    let (wide_x, wide_w) = (rounded(precision, &x), rounded(precision, &w));
    let want: Vec<f64> = picks
        .iter()
        .map(|pick| {
            let x = &wide_x[pick.row as usize * width..][..width];
            nll(&product(x, &wide_w, width), pick.target as usize)
        })
        .collect();
    let x = gpu.upload(&x).unwrap();
    let head = gpu.matrix(vocab, width, &w).unwrap();
    let mut out = gpu.upload(&vec![f32::NAN; rows]).unwrap();
    gpu.nll(width, &x, &head, &picks, &mut out).unwrap();
    let got = gpu.download(&out, 0..rows).unwrap();
    assert_close(what, &got, &want, 2e-5, 1e-5);
}

#[test]
fn likelihoods_of_given_logits() {
    everywhere(Precision::F32, |gpu, at| {
        let mut random = Random(3);
        let (rows, vocab) = (7, 9000);
        let mut logits = floats(rows * vocab, 20.0, &mut random);
        // A row of equals, one with -inf here and there, and one where nothing else is.
        logits[vocab..2 * vocab].fill(3.5);
        for l in logits[2 * vocab..3 * vocab].iter_mut().step_by(3) {
            *l = f32::NEG_INFINITY;
        }
        logits[3 * vocab..4 * vocab].fill(f32::NEG_INFINITY);
        logits[3 * vocab + 5] = -2.0;
        let targets = [0, 8999, 4, 5, 17, 4500, 1];
        let want: Vec<f64> = logits
            .chunks_exact(vocab)
            .zip(targets)
            .map(|(row, target)| nll(&wide(row), target as usize))
            .collect();
        let logits = gpu.upload(&logits).unwrap();
        let mut out = gpu.upload(&[f32::NAN; 7]).unwrap();
        gpu.nll_of_logits(vocab, &logits, &targets, &mut out)
            .unwrap();
        let got = gpu.download(&out, 0..rows).unwrap();
        assert_close(at, &got, &want, 1e-5, 1e-6);

        // Nothing but -inf: no distribution. A target that cannot be: infinite.
        let logits = gpu.upload(&[f32::NEG_INFINITY; 4]).unwrap();
        gpu.nll_of_logits(2, &logits, &[0, 1], &mut out).unwrap();
        assert!(gpu.download(&out, 0..2).unwrap().iter().all(|v| v.is_nan()));
        let logits = gpu.upload(&[1.0, f32::NEG_INFINITY]).unwrap();
        gpu.nll_of_logits(2, &logits, &[1], &mut out).unwrap();
        assert_eq!(gpu.download(&out, 0..1).unwrap(), [f32::INFINITY]);
    });
}

/// Scores with many ties.
fn scores(count: usize, random: &mut Random) -> Vec<f32> {
    (0..count)
        .map(|_| match random.below(12) {
            0 => 0.0,
            1 => -0.0,
            2 => f32::NAN,
            3 => f32::INFINITY,
            4 => f32::NEG_INFINITY,
            5 => 1e-40,
            6..=8 => random.below(3) as f32 - 1.0,
            _ => random.float() * 10.0,
        })
        .collect()
}

/// By sorting everything.
fn selected(scores: &[f32], keep: Keep) -> Vec<bool> {
    match keep {
        Keep::Count(count) => {
            // Below NaN there is nothing, not even -inf; 0 and -0 are one.
            let rank = |i: &usize| match scores[*i] {
                v if v.is_nan() => (0, 0.0),
                v => (1, v + 0.0),
            };
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap().then(a.cmp(b)));
            let mut keep = vec![false; scores.len()];
            for &i in order.iter().take(count as usize) {
                keep[i] = true;
            }
            keep
        }
        Keep::Beyond(rank) => {
            // NaN is below all others, and nothing is larger than a NaN that is not itself one.
            let number = |v: f32| {
                if v.is_nan() {
                    f32::NEG_INFINITY
                } else {
                    v + 0.0
                }
            };
            let mut sorted: Vec<(bool, f32)> =
                scores.iter().map(|&v| (!v.is_nan(), number(v))).collect();
            sorted.sort_by(|a, b| b.partial_cmp(a).unwrap());
            let limit = sorted.get((rank as usize).min(sorted.len().max(1) - 1));
            let limit = limit.copied().unwrap_or((false, 0.0));
            scores
                .iter()
                .map(|&v| (!v.is_nan(), number(v)) > limit)
                .collect()
        }
        Keep::Above(quantile) => {
            let mut sorted: Vec<f64> = wide(scores);
            sorted.sort_by(f64::total_cmp);
            let at = f64::from(quantile) * (sorted.len().max(1) - 1) as f64;
            let lower = at as usize;
            let limit = match sorted.len() {
                0 => 0.0,
                n => {
                    let (a, b) = (sorted[lower], sorted[(lower + 1).min(n - 1)]);
                    (a + (b - a) * (at - lower as f64)) as f32
                }
            };
            scores.iter().map(|&v| v > limit).collect()
        }
    }
}

fn check_topk<B: TopKOp>(backend: &B, segments: &[Select], scores: &[f32], what: &str) {
    let n = scores.len();
    let ids: Vec<u32> = (0..n as u32).map(|i| i * 7 + 3).collect();
    let scores_on = backend.upload(scores).unwrap();
    let ids_on = backend.upload(&ids).unwrap();
    let mut out = TopKOutput::new(backend, n, segments.len()).unwrap();
    for buf in [&mut out.mask, &mut out.ids, &mut out.rows] {
        backend.write(&vec![99; n], buf).unwrap();
    }
    backend
        .topk(segments, &scores_on, &ids_on, &mut out)
        .unwrap();
    let [mask, got_ids, rows] =
        [&out.mask, &out.ids, &out.rows].map(|buf| backend.download(buf, 0..n).unwrap());
    let kept = backend.download(&out.kept, 0..segments.len()).unwrap();
    let width = 3;
    let x: Vec<f32> = (0..n * width).map(|i| i as f32).collect();
    let x_on = backend.upload(&x).unwrap();
    for (i, segment) in segments.iter().enumerate() {
        let first = segment.first as usize;
        let range = first..first + segment.len as usize;
        let want = selected(&scores[range.clone()], segment.keep);
        let want_rows: Vec<usize> = range
            .clone()
            .zip(&want)
            .filter(|w| *w.1)
            .map(|w| w.0)
            .collect();
        let got: Vec<bool> = mask[range].iter().map(|&m| m == 1).collect();
        assert_eq!(got, want, "{what}: mask of {segment:?}");
        assert_eq!(kept[i] as usize, want_rows.len(), "{what}: {segment:?}");
        let mut moved = backend.zeros((segment.len as usize + 1) * width).unwrap();
        backend
            .gather(width, &x_on, &out, i, *segment, 1, &mut moved)
            .unwrap();
        let moved = backend
            .download(&moved, width..(want_rows.len() + 1) * width)
            .unwrap();
        for (j, &row) in want_rows.iter().enumerate() {
            assert_eq!(rows[first + j] as usize, row, "{what}: rows of {segment:?}");
            assert_eq!(got_ids[first + j], ids[row], "{what}: ids of {segment:?}");
            assert_eq!(
                moved[j * width..][..width],
                x[row * width..][..width],
                "{what}: moved"
            );
        }
    }
}

#[test]
fn selections() {
    let mut random = Random(11);
    let mut segments = Vec::new();
    let mut all = Vec::new();
    // With gaps between them; longer than a warp's share, longer than what registers hold.
    for len in [0, 1, 2, 31, 32, 33, 257, 1500, 12_000] {
        for keep in [
            Keep::Count(0),
            Keep::Count(1),
            Keep::Count(len as u32 / 2),
            Keep::Count(len as u32 + 3),
            Keep::Beyond(0),
            Keep::Beyond(len as u32 / 2),
            Keep::Beyond(len as u32 + 3),
        ] {
            all.push(f32::NAN);
            segments.push(Select {
                first: all.len() as u32,
                len: len as u32,
                keep,
            });
            all.extend(scores(len, &mut random));
        }
        for quantile in [0.0, 0.5, 0.73, 1.0] {
            segments.push(Select {
                first: all.len() as u32,
                len: len as u32,
                keep: Keep::Above(quantile),
            });
            all.extend((0..len).map(|_| (random.float() * 20.0).round()));
        }
    }
    check_topk(&Cpu::new(), &segments, &all, "cpu");
    everywhere(Precision::F32, |gpu, at| {
        check_topk(gpu, &segments, &all, at)
    });
    let equals = [Select {
        first: 0,
        len: 300,
        keep: Keep::Count(100),
    }];
    everywhere(Precision::F32, |gpu, at| {
        check_topk(gpu, &equals, &[1.0; 300], at);
        let bad = Select {
            keep: Keep::Above(1.5),
            ..equals[0]
        };
        let scores = gpu.upload(&[0.0; 300]).unwrap();
        let ids = gpu.upload(&[0; 300]).unwrap();
        let mut out = TopKOutput::new(gpu, 300, 1).unwrap();
        let error = gpu.topk(&[bad], &scores, &ids, &mut out).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        let long = Select {
            len: 301,
            ..equals[0]
        };
        let error = gpu.topk(&[long], &scores, &ids, &mut out).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    });
}

#[test]
fn embeddings_and_norms() {
    for precision in PRECISIONS {
        // By fours and one by one; a warp's registers hold 640 columns, a block's 5120 or a quarter of that.
        for width in [1, 31, 32, 257, 576, 1000, 1001, 1028, 1301, 5200] {
            everywhere(precision, |gpu, at| {
                let what = format!("width {width}, {at}");
                let mut random = Random(5);
                let table = floats(9 * width, 1.0, &mut random);
                let matrix = gpu.matrix(9, width, &table).unwrap();
                let ids = [8, 0, 3, 3];
                let mut x = gpu.upload(&vec![f32::NAN; 4 * width]).unwrap();
                gpu.embed(&ids, &matrix, false, &mut x).unwrap();
                gpu.embed(&[1, 1, 1, 2], &matrix, true, &mut x).unwrap();
                let wide_table = rounded(precision, &table);
                let want: Vec<f64> = (0..4 * width)
                    .map(|i| {
                        let (row, column) = (i / width, i % width);
                        wide_table[ids[row] as usize * width + column]
                            + wide_table[[1, 1, 1, 2][row] * width + column]
                    })
                    .collect();
                let got = gpu.download(&x, 0..4 * width).unwrap();
                assert_close(&what, &got, &want, 1e-6, 0.0);

                let weight = floats(width, 2.0, &mut random);
                let bias = floats(width, 2.0, &mut random);
                for (kind, with_bias) in [(NormKind::Rms, false), (NormKind::Layer, true)] {
                    let shape = Norm {
                        rows: 4,
                        width,
                        eps: 1e-3,
                        kind,
                    };
                    let w = gpu.upload(&weight).unwrap();
                    let b = gpu.upload(&bias).unwrap();
                    let mut y = gpu.upload(&vec![f32::NAN; 4 * width]).unwrap();
                    gpu.norm(shape, &x, &w, with_bias.then_some(&b), &mut y)
                        .unwrap();
                    let n = width as f64;
                    let mut want = Vec::new();
                    for row in wide(&got).chunks_exact(width) {
                        let mean = match kind {
                            NormKind::Rms => 0.0,
                            NormKind::Layer => row.iter().sum::<f64>() / n,
                        };
                        let square = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                        let scale = 1.0 / (square + 1e-3).sqrt();
                        for (i, v) in row.iter().enumerate() {
                            let bias = if with_bias { bias[i].into() } else { 0.0 };
                            want.push((v - mean) * scale * f64::from(weight[i]) + bias);
                        }
                    }
                    let y = gpu.download(&y, 0..4 * width).unwrap();
                    assert_close(&what, &y, &want, 1e-5, 1e-5);
                }
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
        everywhere(Precision::F32, |gpu, at| {
            let (rows, heads, kv_heads, from) = (5, 3, 2, 4);
            let mut random = Random(9);
            let all = heads + 2 * kv_heads;
            let qkv = floats(rows * all * head_dim, 1.0, &mut random);
            let weights = [0, 1].map(|_| floats(head_dim, 2.0, &mut random));
            let table = floats(rows * head_dim, 1.0, &mut random);
            let kv = kv_heads * head_dim;
            let cache = floats((from + rows + 1) * kv, 1.0, &mut random);
            let mut want_qkv = wide(&qkv);
            let [mut want_k, mut want_v] = [wide(&cache), wide(&cache)];
            for row in 0..rows {
                for head in 0..all {
                    let x = &mut want_qkv[(row * all + head) * head_dim..][..head_dim];
                    if head < heads + kv_heads {
                        let weight = &weights[usize::from(head >= heads)];
                        if norms {
                            let square = x.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
                            for (v, &w) in x.iter_mut().zip(weight) {
                                *v *= f64::from(w) / (square + 1e-4).sqrt();
                            }
                        }
                        if angles {
                            let table = &table[row * head_dim..][..head_dim];
                            x.copy_from_slice(&common::oracle::rotate(pairing, x, table));
                        }
                    }
                    if head >= heads {
                        let (to, head) = match head - heads {
                            head if head < kv_heads => (&mut want_k, head),
                            head => (&mut want_v, head - kv_heads),
                        };
                        to[(from + row) * kv + head * head_dim..][..head_dim].copy_from_slice(x);
                    }
                }
            }
            let [mut k, mut v] = [0, 1].map(|_| gpu.upload(&cache).unwrap());
            let mut qkv = gpu.upload(&qkv).unwrap();
            let [q_norm, k_norm] = weights.map(|w| gpu.upload(&w).unwrap());
            let table = gpu.upload(&table).unwrap();
            let shape = Rotate {
                rows,
                heads,
                kv_heads,
                head_dim,
                at: from,
                eps: 1e-4,
                pairing,
            };
            gpu.rotate(
                shape,
                &mut qkv,
                norms.then_some([&q_norm, &k_norm]),
                angles.then_some(&table),
                &mut k,
                &mut v,
            )
            .unwrap();
            for (buf, want) in [(&qkv, &want_qkv), (&k, &want_k), (&v, &want_v)] {
                let got = gpu.download(buf, 0..want.len()).unwrap();
                assert_close(at, &got, want, 1e-5, 1e-5);
            }
        });
    }
}

#[test]
fn activations() {
    everywhere(Precision::F32, |gpu, at| {
        for (rows, width) in [(1, 1), (3, 33), (3, 36), (2, 2051), (2, 4100)] {
            let mut random = Random(2);
            let x = floats(rows * 2 * width, 8.0, &mut random);
            let on = gpu.upload(&x).unwrap();
            let mut y = gpu.upload(&vec![f32::NAN; rows * width]).unwrap();
            gpu.swiglu(rows, width, &on, &mut y).unwrap();
            let want: Vec<f64> = wide(&x)
                .chunks_exact(2 * width)
                .flat_map(|row| {
                    let (gate, up) = row.split_at(width);
                    let pairs = gate.iter().zip(up);
                    let values: Vec<f64> = pairs.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                    values
                })
                .collect();
            let got = gpu.download(&y, 0..rows * width).unwrap();
            assert_close(at, &got, &want, 1e-5, 1e-5);

            gpu.geglu(rows, width, &on, &mut y).unwrap();
            let want: Vec<f64> = x
                .chunks_exact(2 * width)
                .flat_map(|row| (0..width).map(|i| oracle::geglu(row[i], row[width + i])))
                .collect();
            let got = gpu.download(&y, 0..rows * width).unwrap();
            assert_close(at, &got, &want, 1e-5, 1e-5);

            gpu.gelu(rows * width, &on, &mut y).unwrap();
            let want: Vec<f64> = wide(&x[..rows * width])
                .iter()
                .map(|v| {
                    let z = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
                    v / 2.0 * (1.0 + z.tanh())
                })
                .collect();
            let got = gpu.download(&y, 0..rows * width).unwrap();
            assert_close(at, &got, &want, 1e-5, 1e-5);

            gpu.gelu_erf(rows * width, &on, &mut y).unwrap();
            let x = &x[..rows * width];
            let want: Vec<f64> = x.iter().map(|&x| oracle::gelu_erf(x)).collect();
            let got = gpu.download(&y, 0..rows * width).unwrap();
            assert_close(at, &got, &want, 1e-5, 1e-5);
        }
    });
}

#[test]
fn attention() {
    // heads, key heads, width, prefix, gap before the rows, lengths, window, keys ahead
    type Case = (
        usize,
        usize,
        usize,
        usize,
        usize,
        &'static [usize],
        Option<usize>,
        usize,
    );
    let cases: [Case; 12] = [
        (1, 1, 2, 0, 0, &[1], None, 0),
        (6, 2, 8, 0, 0, &[33], None, 0),
        (6, 2, 16, 70, 0, &[5, 1, 40], None, 0),
        (3, 1, 64, 300, 7, &[31, 0, 2], None, 0),
        (4, 4, 64, 10, 0, &[130], Some(20), 0),
        (9, 3, 64, 257, 0, &[9], Some(100), 0),
        (8, 2, 128, 140, 3, &[17, 20], None, 0),
        (2, 1, 30, 64, 0, &[64], None, 0),
        (2, 1, 160, 5, 0, &[10], None, 0),
        // As encoders see them: all of a sequence, and some on either side.
        (12, 12, 32, 0, 0, &[70, 1, 33], None, usize::MAX),
        (4, 4, 64, 0, 0, &[150], Some(20), 19),
        (6, 2, 16, 40, 2, &[9, 50], None, 5),
    ];
    for precision in PRECISIONS {
        for (heads, kv_heads, head_dim, prefix, gap, lengths, window, ahead) in cases {
            everywhere(precision, |gpu, at| {
                let shape = Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    prefix,
                    prefixes: &[],
                    at: prefix + gap,
                    lengths,
                    window,
                    ahead,
                };
                let mut random = Random(4);
                let rows: usize = lengths.iter().sum();
                let qkv = floats(rows * (heads + 2 * kv_heads) * head_dim, 2.0, &mut random);
                let mut cache = || {
                    let mut cache =
                        floats((shape.at + rows) * kv_heads * head_dim, 2.0, &mut random);
                    // What lies between prefix and rows belongs to neither.
                    let stride = kv_heads * head_dim;
                    cache[prefix * stride..shape.at * stride].fill(f32::NAN);
                    cache
                };
                let (k, v) = (cache(), cache());
                let want = oracle::attention(&shape, &qkv, &k, &v);
                let [qkv, k, v] = [qkv, k, v].map(|host| gpu.upload(&host).unwrap());
                let mut out = gpu.upload(&vec![f32::NAN; want.len()]).unwrap();
                gpu.attention(&shape, &qkv, &k, &v, &mut out).unwrap();
                let got = gpu.download(&out, 0..want.len()).unwrap();
                // bf16 has 8 bits; values are up to 2, and a score's error grows with its size.
                let bound = match precision {
                    Precision::F32 => 1e-5,
                    Precision::Bf16 => 0.05,
                };
                assert_close(&format!("{shape:?}, {at}"), &got, &want, bound, 0.0);
            });
        }
    }
}

#[test]
fn operands_are_checked() {
    once(Precision::Bf16, SCHEDULES[0], |gpu, _| {
        let mut x = gpu.zeros::<f32>(8).unwrap();
        let w = gpu.matrix(4, 4, &[0.0; 16]).unwrap();
        let picks = |row, target| [NllTarget { row, target }];
        let mut out = gpu.zeros::<f32>(1).unwrap();
        let error = gpu.nll(4, &x, &w, &picks(2, 0), &mut out).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        let error = gpu.nll(4, &x, &w, &picks(0, 4), &mut out).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        let error = gpu.embed(&[4], &w, false, &mut x).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        let shape = Linear {
            rows: 3,
            inputs: 4,
            outputs: 4,
            add: false,
        };
        let mut y = gpu.zeros::<f32>(12).unwrap();
        let error = gpu.linear(shape, &x, &w, None, &mut y).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        let shape = Attention {
            heads: 4,
            kv_heads: 4,
            head_dim: 512,
            prefix: 0,
            prefixes: &[],
            at: 0,
            lengths: &[],
            window: None,
            ahead: 0,
        };
        let error = gpu.attention(&shape, &x, &x, &x, &mut y).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(gpu.download(&x, 4..9).is_err());
    });
}

/// What `--device auto` asks first: everything right passes, and an op that does nothing does not.
#[test]
fn a_device_that_computes_wrongly_is_found_out() {
    for precision in PRECISIONS {
        everywhere(precision, |gpu, at| {
            if let Err(error) = gpu.self_check() {
                panic!("{at}: {error}");
            }
        });
    }
    for (kernel, op) in [
        ("gemm_f32", "linear"),
        ("nll_merge", "nll"),
        ("norm_rows", "norm"),
        ("attention_f32_64", "attention"),
        ("lora_f32", "lora"),
        ("topk", "topk"),
        ("prune", "prune"),
    ] {
        let Some(emu) = launcher("library.cu", SCHEDULES[0]) else {
            return;
        };
        let gpu = Gpu::new(Device::Without(emu, kernel), Precision::F32);
        let error = gpu.self_check().unwrap_err().to_string();
        assert!(
            error.contains(&format!("its {op} differs")),
            "{kernel}: {error}"
        );
    }
}

#[test]
fn a_missing_device_is_said_in_one_line() {
    use prefold::gpu::Cuda;
    let error = match Cuda::open(4321) {
        Ok(_) => panic!("opened a device that is not there"),
        Err(error) => error,
    };
    assert!(matches!(error, Error::Device { .. }));
    let line = error.to_string();
    assert!(
        line.starts_with("device cuda:4321: ") && !line.contains('\n'),
        "{line}"
    );
}
