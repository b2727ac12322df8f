//! What a case's results should be: by the oracle in f64, gradients by differences of it.

use prefold::ops::NormKind;

use super::{BEFORE, Case, EPS, Heads, Host, Op, parts};
use crate::oracle;

/// Elements of an output, and what they should be.
pub struct Want {
    pub output: usize,
    pub at: Vec<usize>,
    pub values: Vec<f64>,
}

/// So many places, spread over all; all if there are few.
fn spread(len: usize, count: usize) -> Vec<usize> {
    (0..len).step_by(len.div_ceil(count).max(1)).collect()
}

impl Case {
    /// What is right, by the oracle: of a gradient some elements, of all else everything.
    pub fn want(&self, host: &Host) -> Vec<Want> {
        let all = |output: usize, values: Vec<f64>| Want {
            output,
            at: (0..values.len()).collect(),
            values,
        };
        match self.op {
            Op::TopK { segments } => vec![all(0, self.mask(&host.inputs[0], segments))],
            Op::Rotate { heads, .. } => {
                let qkv = self.forward(host, &host.outputs[0]);
                let rows = qkv.chunks_exact(heads.all());
                let kv = |from: usize| -> Want {
                    let values = rows.clone().flat_map(|row| &row[from..from + heads.kv()]);
                    let values: Vec<f64> = values.copied().collect();
                    let first = BEFORE * heads.kv();
                    Want {
                        output: 1 + usize::from(from > heads.out()),
                        at: (first..first + values.len()).collect(),
                        values,
                    }
                };
                let [k, v] = [kv(heads.out()), kv(heads.out() + heads.kv())];
                let q = rows.clone().enumerate().flat_map(|(row, values)| {
                    let q = values[..heads.out()].iter().enumerate();
                    q.map(move |(i, &value)| (row * heads.all() + i, value))
                });
                let (at, values): (Vec<usize>, Vec<f64>) = q.unzip();
                vec![
                    Want {
                        output: 0,
                        at,
                        values,
                    },
                    k,
                    v,
                ]
            }
            Op::NllBwd { width, vocab } => {
                let forward = Op::Nll { width, vocab };
                let dy = vec![1.0; self.rows];
                vec![
                    all(
                        0,
                        Case {
                            op: forward,
                            ..*self
                        }
                        .forward(host, &host.inputs[0]),
                    ),
                    self.slopes(forward, host, 0, &dy, 1, &host.outputs[1]),
                ]
            }
            Op::NormBwd { width, kind } => {
                let forward = Op::Norm { width, kind };
                let mut with = host.clone();
                with.inputs[2] = vec![0.0; width];
                vec![self.slopes(forward, &with, 0, &host.inputs[2], 0, &host.outputs[0])]
            }
            Op::SwigluBwd { width } => {
                let forward = Op::Swiglu { width };
                vec![self.slopes(forward, host, 0, &host.inputs[1], 0, &[])]
            }
            Op::GeluBwd { width } => {
                let forward = Op::Gelu { width };
                vec![self.slopes(forward, host, 0, &host.inputs[1], 0, &[])]
            }
            Op::RotateBwd {
                heads,
                pairing,
                normed,
            } => {
                let forward = Op::Rotate {
                    heads,
                    pairing,
                    normed,
                };
                // The gradient of the output: that of q from its place, those of k and v from the cache.
                let mut dy = host.outputs[0].clone();
                for (row, dy) in dy.chunks_exact_mut(heads.all()).enumerate() {
                    let (kv, at) = (heads.kv(), (BEFORE + row) * heads.kv());
                    let cached = dy[heads.out()..].chunks_exact_mut(kv);
                    for (to, from) in cached.zip([&host.inputs[4], &host.inputs[5]]) {
                        to.copy_from_slice(&from[at..at + kv]);
                    }
                }
                vec![self.slopes(forward, host, 3, &dy, 0, &[])]
            }
            Op::AttentionBwd {
                heads,
                prefix,
                window,
            } => {
                let forward = Op::Attention {
                    heads,
                    prefix,
                    window,
                    ahead: 0,
                };
                let dout = &host.inputs[3];
                let mut all = vec![self.slopes(forward, host, 0, dout, 0, &[])];
                // The places of k and v in qkv stay.
                let own = |&i: &usize| i % heads.all() < heads.out();
                let kept: Vec<usize> = (0..all[0].at.len())
                    .filter(|&j| own(&all[0].at[j]))
                    .collect();
                all[0] = Want {
                    output: 0,
                    at: kept.iter().map(|&j| all[0].at[j]).collect(),
                    values: kept.iter().map(|&j| all[0].values[j]).collect(),
                };
                for which in [1, 2] {
                    all.push(self.slopes(forward, host, which, dout, which, &host.outputs[which]));
                }
                all
            }
            Op::LoraBwd { width, heads, rank } => self.lora_slopes(host, width, heads, rank),
            _ => vec![all(0, self.forward(host, &[]))],
        }
    }

    /// Some elements of the gradient of `Σ dy · forward` with respect to one input, by central
    /// differences, added to what was there.
    fn slopes(
        &self,
        forward: Op,
        host: &Host,
        input: usize,
        dy: &[f32],
        output: usize,
        before: &[f32],
    ) -> Want {
        const STEP: f32 = 1.0 / 1024.0;
        let case = Case {
            op: forward,
            ..*self
        };
        let at = spread(host.inputs[input].len(), 60);
        let mut moved = host.clone();
        let mut loss = |i: usize, value: f32| -> f64 {
            let old = std::mem::replace(&mut moved.inputs[input][i], value);
            let out = match forward {
                Op::Rotate { .. } => case.forward(&moved, &moved.inputs[input]),
                _ => case.forward(&moved, &[]),
            };
            moved.inputs[input][i] = old;
            out.iter().zip(dy).map(|(y, &dy)| y * f64::from(dy)).sum()
        };
        let slope = |i: usize| {
            let x = host.inputs[input][i];
            let (high, low) = (x + STEP, x - STEP);
            let slope = (loss(i, high) - loss(i, low)) / (f64::from(high) - f64::from(low));
            slope + before.get(i).map_or(0.0, |&old| f64::from(old))
        };
        let values = at.iter().copied().map(slope).collect();
        Want { output, at, values }
    }

    /// The forward in f64; `given` is what a rotation rotates.
    fn forward(&self, host: &Host, given: &[f32]) -> Vec<f64> {
        let x = host.inputs.first().map_or(&[][..], |x| x);
        match self.op {
            Op::Linear { inputs, add, .. } => {
                let bias = add.then_some(&host.inputs[1][..]);
                let mut y = oracle::linear(x, &host.matrices[0].2, bias, inputs);
                if add {
                    let old = host.outputs[0].iter().map(|&old| f64::from(old));
                    y.iter_mut().zip(old).for_each(|(y, old)| *y += old);
                }
                y
            }
            Op::Nll { width, vocab } => {
                let picks = self.picks(vocab).into_iter();
                let rows = picks.zip(x.chunks_exact(width));
                let head = &host.matrices[0].2;
                rows.map(|(pick, x)| oracle::nll(x, head, pick.target as usize))
                    .collect()
            }
            Op::Norm { width, kind } => {
                let bias = (kind == NormKind::Layer).then_some(&host.inputs[2][..]);
                x.chunks_exact(width)
                    .flat_map(|x| oracle::norm(kind, EPS, x, &host.inputs[1], bias))
                    .collect()
            }
            Op::Rotate {
                heads,
                pairing,
                normed,
            } => {
                let mut out = Vec::with_capacity(given.len());
                let rows = given.chunks_exact(heads.all());
                for (row, angles) in rows.zip(x.chunks_exact(heads.dim)) {
                    for (i, head) in row.chunks_exact(heads.dim).enumerate() {
                        let mut head64: Vec<f64> = head.iter().map(|&v| v.into()).collect();
                        if i < heads.queries + heads.keys {
                            let weight = &host.inputs[1 + usize::from(i >= heads.queries)];
                            if normed {
                                head64 = oracle::norm(NormKind::Rms, EPS, head, weight, None);
                            }
                            head64 = oracle::rotate(pairing, &head64, angles);
                        }
                        out.extend(head64);
                    }
                }
                out
            }
            Op::Swiglu { width } => gated(x, width, oracle::swiglu),
            Op::Geglu { width } => gated(x, width, oracle::geglu),
            Op::Gelu { .. } => x.iter().map(|&x| oracle::gelu(x)).collect(),
            Op::GeluErf { .. } => x.iter().map(|&x| oracle::gelu_erf(x)).collect(),
            Op::Attention { .. } => match self.attention(&[self.rows]) {
                Some(shape) => oracle::attention(&shape, x, &host.inputs[1], &host.inputs[2]),
                None => Vec::new(),
            },
            Op::Lora { rank, .. } => {
                let ranks = 3 * rank;
                let low = oracle::linear(x, &host.matrices[0].2, None, host.matrices[0].1);
                let b = &host.matrices[1].2;
                let old = host.outputs[0].iter();
                let mut y: Vec<f64> = old.map(|&old| old.into()).collect();
                let columns = host.matrices[1].0;
                for (y, low) in y.chunks_exact_mut(columns).zip(low.chunks_exact(ranks)) {
                    for (y, b) in y.iter_mut().zip(b.chunks_exact(ranks)) {
                        *y += b
                            .iter()
                            .zip(low)
                            .map(|(&b, low)| f64::from(b) * low)
                            .sum::<f64>();
                    }
                }
                y
            }
            // Gradients are differences of their forward.
            _ => Vec::new(),
        }
    }

    /// Of the loss `Σ dy · lora`, which is linear in each operand: differences would be exact, and slow.
    fn lora_slopes(&self, host: &Host, width: usize, heads: Heads, rank: usize) -> Vec<Want> {
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
        let (x, dy) = (wide(&host.inputs[0]), wide(&host.inputs[1]));
        let (a, b) = (wide(&host.matrices[0].2), wide(&host.matrices[1].2));
        let (ranks, outputs) = (3 * rank, heads.all());
        let sum = |count: usize, of: &dyn Fn(usize) -> f64| (0..count).map(of).sum::<f64>();
        // dy · b and x · aᵀ, [rows, ranks].
        let dlow =
            |row: usize, r: usize| sum(outputs, &|o| dy[row * outputs + o] * b[o * ranks + r]);
        let low = |row: usize, r: usize| sum(width, &|i| x[row * width + i] * a[r * width + i]);
        let at = spread(self.rows * width, 60);
        let value = |&i: &usize| {
            let (row, column) = (i / width, i % width);
            f64::from(host.outputs[0][i]) + sum(ranks, &|r| dlow(row, r) * a[r * width + column])
        };
        let mut all = vec![Want {
            output: 0,
            values: at.iter().map(value).collect(),
            at,
        }];
        for (p, part) in parts(heads, rank).iter().enumerate() {
            let at = spread(rank * width, 60);
            let value = |&i: &usize| {
                let (r, column) = (part.rank + i / width, i % width);
                sum(self.rows, &|row| dlow(row, r) * x[row * width + column])
            };
            all.push(Want {
                output: 1 + 2 * p,
                values: at.iter().map(value).collect(),
                at,
            });
            let at = spread(part.outputs * rank, 60);
            let value = |&i: &usize| {
                let (column, r) = (part.output + i / rank, part.rank + i % rank);
                sum(self.rows, &|row| dy[row * outputs + column] * low(row, r))
            };
            all.push(Want {
                output: 2 + 2 * p,
                values: at.iter().map(value).collect(),
                at,
            });
        }
        all
    }

    /// Of equals the first stay.
    fn mask(&self, scores: &[f32], segments: usize) -> Vec<f64> {
        let mut mask = Vec::with_capacity(scores.len());
        for scores in scores.chunks_exact(scores.len() / segments) {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]).then(i.cmp(&j)));
            let mut kept = vec![0.0; scores.len()];
            for &i in &order[..scores.len() / 2] {
                kept[i] = 1.0;
            }
            mask.extend(kept);
        }
        mask
    }
}

fn gated(x: &[f32], width: usize, f: impl Fn(f32, f32) -> f64) -> Vec<f64> {
    x.chunks_exact(2 * width)
        .flat_map(|row| {
            (0..width)
                .map(|i| f(row[i], row[width + i]))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// How far outputs are from what they should be, in multiples of what is allowed: up to 1 is right. What
/// is not a number is infinitely far.
pub fn distance(got: &[Vec<f32>], want: &[Want], [atol, rtol]: [f64; 2]) -> f64 {
    let mut worst = 0.0f64;
    for want in want {
        for (&at, &value) in want.at.iter().zip(&want.values) {
            let off = (f64::from(got[want.output][at]) - value).abs();
            let allowed = atol + rtol * value.abs();
            let far = if off == 0.0 { 0.0 } else { off / allowed };
            worst = if far.is_nan() {
                f64::INFINITY
            } else {
                worst.max(far)
            };
        }
    }
    worst
}
