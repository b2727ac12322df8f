//! Negative log-likelihoods on a CPU.
//!
//! Logits never lie in memory. Each tile of them that the kernel makes goes at once into a running
//! maximum and a running sum of exponentials per row and lane, so that memory grows with the number
//! of rows and not with rows times vocabulary.

// Tiles are indexed: all their loops are short, of constant length, and unrolled.
#![allow(clippy::needless_range_loop)]

use pulp::Simd;
use rayon::prelude::*;

use super::device::{Cpu, in_batches};
use super::gemm::{Rows, Split, multiply, panel};
use super::gemm_int::dot::Operands;
use super::panels::{Panels, Values};
use super::simd::{self, simd_fn, tiled};
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::nll::{NllOp, NllTarget};

/// What a task finds out about one row from its share of the vocabulary.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    max: f32,
    /// Sum of `exp(logit - max)`.
    sum: f64,
    /// The target's logit, if it is in the share.
    target: f32,
}

impl NllOp for Cpu {
    fn nll_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Vec<f32>,
        head: &Panels,
        picks: &[NllTarget],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.nlls(width, x, head, picks, false, out)
    }

    fn estimate_nll_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Vec<f32>,
        head: &Panels,
        picks: &[NllTarget],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.nlls(width, x, head, picks, true, out)
    }

    fn nll_bwd_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Vec<f32>,
        head: &Panels,
        across: &Panels,
        picks: &[NllTarget],
        out: &mut Vec<f32>,
        dx: &mut Vec<f32>,
    ) -> Result<()> {
        self.expect_own("nll_bwd", head)?;
        self.expect_own("nll_bwd", across)?;
        let vocab = head.outputs;
        let block = (LOGIT_BYTES / (4 * vocab)).max(4 * self.tile.rows);
        let rows = block.min(picks.len());
        let mut logits = self.scratch(rows * vocab);
        let mut states = self.scratch(rows * width);
        let mut part = self.scratch(rows * STEPS.min(vocab));
        for (picks, out) in picks.chunks(block).zip(out.chunks_mut(block)) {
            let logits = &mut logits.data[..picks.len() * vocab];
            let states = &mut states.data[..picks.len() * width];
            for (state, pick) in states.chunks_exact_mut(width).zip(picks) {
                state.copy_from_slice(&x[pick.row as usize * width..][..width]);
            }
            self.linear_part(states, head, 0..width, &[], false, logits)?;
            logits
                .par_chunks_exact_mut(vocab)
                .zip(picks)
                .zip(out)
                .for_each(|((logits, pick), out)| {
                    nll_gradient(self.arch, logits, pick.target as usize, out);
                });
            // Panels of the whole vocabulary would leave the cache before the next rows need them.
            for first in (0..vocab).step_by(STEPS) {
                let steps = first..vocab.min(first + STEPS);
                let part = &mut part.data[..picks.len() * steps.len()];
                part.par_chunks_exact_mut(steps.len())
                    .zip(logits.par_chunks_exact(vocab))
                    .for_each(|(to, from)| to.copy_from_slice(&from[steps.clone()]));
                self.linear_part(part, across, steps, &[], first > 0, states)?;
            }
            for (gradient, pick) in states.chunks_exact(width).zip(picks) {
                let dx = &mut dx[pick.row as usize * width..][..width];
                for (dx, gradient) in dx.iter_mut().zip(gradient) {
                    *dx += gradient;
                }
            }
        }
        Ok(())
    }
}

impl Cpu {
    fn nlls(
        &self,
        width: usize,
        x: &[f32],
        head: &Panels,
        picks: &[NllTarget],
        estimate: bool,
        out: &mut [f32],
    ) -> Result<()> {
        self.expect_own("nll", head)?;
        if picks.is_empty() {
            return Ok(());
        }
        let rows = picks.iter().map(|pick| pick.row as usize + 1).max();
        let x = &x[..rows.unwrap_or(0) * width];
        let mut scratch = self.scratch(0);
        let codes = match estimate {
            true => self.operands(x, head, &mut scratch.data)?,
            false => None,
        };
        let factors = match codes {
            Some(codes) => Factors::Codes(codes),
            None => Factors::Values(head.values()?),
        };
        let split = Split::reproducible(self, picks.len(), width, head.count());
        let groups = head.count().div_ceil(split.group_panels);
        let blocks = picks.len().div_ceil(split.block_rows);
        let mut parts = vec![Part::default(); groups * picks.len()];
        let mut tasks = Vec::with_capacity(groups * blocks);
        for (group, parts) in parts.chunks_exact_mut(picks.len()).enumerate() {
            let picks = picks.chunks(split.block_rows);
            for (picks, parts) in picks.zip(parts.chunks_mut(split.block_rows)) {
                tasks.push(NllTask {
                    x,
                    head,
                    factors,
                    picks,
                    first: group * split.group_panels,
                    last: head.count().min((group + 1) * split.group_panels),
                    parts,
                });
            }
        }
        let flop = 2 * picks.len() * width * head.outputs;
        in_batches(tasks, flop, |tasks| {
            tasks.into_par_iter().for_each_init(
                || self.scratch(0),
                |scratch, task| nll_task(self.arch, task, &mut scratch.data),
            );
        })?;
        for (i, (pick, out)) in picks.iter().zip(out).enumerate() {
            let shares = parts[i..].iter().step_by(picks.len());
            let max = shares.clone().fold(f32::MIN, |max, part| max.max(part.max));
            let sum: f64 = shares
                .map(|part| part.sum * f64::from(part.max - max).exp())
                .sum();
            let owner = pick.target as usize / head.width / split.group_panels;
            let target = parts[owner * picks.len() + i].target;
            *out = (sum.ln() + f64::from(max - target)) as f32;
        }
        Ok(())
    }
}

/// Logits that are in memory at once.
const LOGIT_BYTES: usize = 48 << 20;
/// Tokens whose share of the gradient is added in one go: a panel of so many steps stays in the cache.
const STEPS: usize = 1024;

simd_fn! {
    /// Turns a row of logits into softmax less one at the target, and gives its nll.
    fn nll_gradient<'a, S>(s, logits: &'a mut [f32], target: usize, out: &'a mut f32) {
        let of_target = logits[target];
        let (vectors, tail) = S::as_mut_simd_f32s(&mut *logits);
        let mut maxima = s.splat_f32s(f32::MIN);
        for &v in &*vectors {
            maxima = s.max_f32s(maxima, v);
        }
        let mut max = s.reduce_max_f32s(maxima);
        for &mut v in &mut *tail {
            max = max.max(v);
        }
        let shift = s.splat_f32s(max);
        let mut sums = [s.splat_f32s(0.0); 4];
        let (fours, rest) = vectors.as_chunks_mut::<4>();
        for four in fours {
            for i in 0..4 {
                four[i] = simd::exp(s, s.sub_f32s(four[i], shift));
                sums[i] = s.add_f32s(sums[i], four[i]);
            }
        }
        for v in rest {
            *v = simd::exp(s, s.sub_f32s(*v, shift));
            sums[0] = s.add_f32s(sums[0], *v);
        }
        let mut sum = 0.0;
        for v in &mut *tail {
            *v = (*v - max).exp();
            sum += f64::from(*v);
        }
        let lanes: &[f32] = bytemuck::cast_slice(&sums);
        for &lane in lanes {
            sum += f64::from(lane);
        }
        *out = (sum.ln() + f64::from(max - of_target)) as f32;
        let scale = (1.0 / sum) as f32;
        for v in &mut *logits {
            *v *= scale;
        }
        logits[target] -= 1.0;
    }
}

/// What logits are made of.
#[derive(Clone, Copy)]
enum Factors<'a> {
    /// The head; the rows lie in the task's `x`.
    Values(Values<'a>),
    /// Head and rows in fewer bits, for an estimate.
    Codes(Operands<'a>),
}

/// The part of the work that one thread does: some rows by some panels.
struct NllTask<'a> {
    x: &'a [f32],
    head: &'a Panels,
    factors: Factors<'a>,
    picks: &'a [NllTarget],
    /// Panels `first..last`.
    first: usize,
    last: usize,
    /// One for each pick.
    parts: &'a mut [Part],
}

simd_fn! {
    fn nll_task<'a, S>(s, task: NllTask<'a>, scratch: &'a mut Vec<f32>) {
        tiled!(S, nll_tiles(s, task, scratch))
    }
}

#[inline(always)]
fn nll_tiles<S: Simd, const N: usize, const M: usize>(
    s: S,
    task: NllTask<'_>,
    scratch: &mut Vec<f32>,
) {
    let NllTask {
        x,
        head,
        factors,
        picks,
        first,
        last,
        parts,
    } = task;
    // Per row a vector of running maxima and one of running sums.
    scratch.resize(picks.len() * 2 * S::F32_LANES, 0.0);
    let states = S::as_mut_simd_f32s(scratch).0.as_chunks_mut::<2>().0;
    for state in &mut *states {
        *state = [s.splat_f32s(f32::MIN), s.splat_f32s(0.0)];
    }
    for p in first..last {
        let columns = p * head.width..head.outputs.min((p + 1) * head.width);
        let mut top = 0;
        while top < picks.len() {
            let mut numbers = [0; M];
            for i in 0..M {
                numbers[i] = picks[(top + i).min(picks.len() - 1)].row as usize;
            }
            let mut logits = [[s.splat_f32s(0.0); N]; M];
            match factors {
                Factors::Codes(codes) => codes.tile_of::<S, N, M>(p, numbers, &mut logits),
                Factors::Values(head_values) => {
                    let panel = panel::<S, N>(head_values, p);
                    let mut rows = [&x[..0]; M];
                    for i in 0..M {
                        rows[i] = &x[numbers[i] * head.inputs..];
                    }
                    multiply(s, Rows::of(rows), panel, &mut logits);
                }
            }
            for i in 0..M {
                if top + i >= picks.len() {
                    break;
                }
                let target = picks[top + i].target as usize;
                if columns.contains(&target) {
                    let values: &[f32] = bytemuck::cast_slice(&logits[i]);
                    parts[top + i].target = values[target - columns.start];
                }
                if columns.len() < head.width {
                    let values: &mut [f32] = bytemuck::cast_slice_mut(&mut logits[i]);
                    for missing in &mut values[columns.len()..] {
                        *missing = f32::MIN;
                    }
                }
                let [old, sum] = states[top + i];
                let mut max = old;
                for j in 0..N {
                    max = s.max_f32s(max, logits[i][j]);
                }
                let mut sum = s.mul_f32s(sum, simd::exp(s, s.sub_f32s(old, max)));
                for j in 0..N {
                    sum = s.add_f32s(sum, simd::exp(s, s.sub_f32s(logits[i][j], max)));
                }
                states[top + i] = [max, sum];
            }
            top += M;
        }
    }
    for (part, state) in parts.iter_mut().zip(states) {
        let maxima: &[f32] = bytemuck::cast_slice(&state[..1]);
        let sums: &[f32] = bytemuck::cast_slice(&state[1..]);
        part.max = s.reduce_max_f32s(state[0]);
        part.sum = 0.0;
        for (&max, &sum) in maxima.iter().zip(sums) {
            part.sum += f64::from(sum) * f64::from(max - part.max).exp();
        }
    }
}
