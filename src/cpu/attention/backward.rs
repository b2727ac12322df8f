//! The backward of attention.
//!
//! A task takes one key head of one sequence. Panels of queries are the columns, as in the forward;
//! weights are made again from the row's log-sum-exp. Gradients of keys and values grow in memory of the
//! task's own, and are added up when all tasks are done.

use pulp::Simd;

use super::cache::{CacheHead, Seen, columns_of, scores_of, segments, weighted};
use crate::cpu::gemm::{Rows, load, multiply, store};
use crate::cpu::panels::{LINE, to_line};
use crate::cpu::simd::{self, simd_fn, tiled};
use crate::ops::attention::Attention;

/// The backward of one key head of one sequence.
pub(super) struct BackwardTask<'a> {
    /// Query heads per key head.
    pub group: usize,
    /// The key head.
    pub kv: usize,
    /// Rows of the sequence.
    pub count: usize,
    /// The first.
    pub row: usize,
    /// The cache row of the first key of its prefix.
    pub from: usize,
    /// Row by row, `[group, head_dim]`.
    pub dq: Vec<&'a mut [f32]>,
}

/// Gradients of the keys and values that one task saw.
pub(super) struct KeyGradients {
    kv: usize,
    /// Keys by position.
    keys: usize,
    from: usize,
    own: usize,
    /// Panels as wide as a tile, `[panel][key][column]`: of keys, then of values.
    data: Vec<f32>,
}

impl KeyGradients {
    pub(super) fn new(shape: &Attention<'_>, task: &BackwardTask<'_>, width: usize) -> Self {
        let keys = shape.prefix + task.count;
        let len = 2 * keys * shape.head_dim.next_multiple_of(width);
        KeyGradients {
            kv: task.kv,
            keys,
            from: task.from,
            own: shape.at + task.row,
            data: vec![0.0; len],
        }
    }

    pub(super) fn add_to(&self, shape: &Attention<'_>, width: usize, to: [&mut Vec<f32>; 2]) {
        let (d, stride) = (shape.head_dim, shape.kv_heads * shape.head_dim);
        let halves = self.data.chunks_exact(self.data.len() / 2);
        for (to, from) in to.into_iter().zip(halves) {
            for (p, panel) in from.chunks_exact(self.keys * width).enumerate() {
                let columns = p * width..d.min((p + 1) * width);
                for (key, from) in panel.chunks_exact(width).enumerate() {
                    let row = match key.checked_sub(shape.prefix) {
                        None => self.from + key,
                        Some(own) => self.own + own,
                    };
                    let to = &mut to[row * stride + self.kv * d..][columns.clone()];
                    for (to, from) in to.iter_mut().zip(from) {
                        *to += from;
                    }
                }
            }
        }
    }
}

simd_fn! {
    pub(super) fn backward_task<'a, S>(
        s,
        shape: &'a Attention<'a>,
        operands: [&'a [f32]; 6],
        task: BackwardTask<'a>,
        gradients: &'a mut KeyGradients,
        scratch: &'a mut Vec<f32>,
    ) {
        tiled!(S, backward_tiles(s, shape, operands, task, gradients, scratch))
    }
}

/// With `p` the weights of a query, `dp = dout · vᵀ` and `ds = p · (dp - dout · out)`:
/// `dq = ds · k / √d`, `dk = dsᵀ · q / √d`, `dv = pᵀ · dout`.
#[inline(always)]
fn backward_tiles<S: Simd, const N: usize, const M: usize>(
    s: S,
    shape: &Attention<'_>,
    [qkv, k, v, out, lse, dout]: [&[f32]; 6],
    mut task: BackwardTask<'_>,
    gradients: &mut KeyGradients,
    scratch: &mut Vec<f32>,
) {
    let d = shape.head_dim;
    let width = N * S::F32_LANES;
    let padded = d.next_multiple_of(width);
    let queries = task.count * task.group;
    let keys = gradients.keys;
    let own = gradients.own;
    let scale = 1.0 / (d as f32).sqrt();
    let cache = CacheHead {
        stride: shape.kv_heads * d,
        offset: task.kv * d,
        d,
    };
    let need = (2 * d + 2 * padded + d + 4 + 2 * keys) * width;
    if scratch.len() < need + LINE {
        scratch.resize(need + LINE, 0.0);
    }
    let start = to_line(scratch);
    // q and dout as columns, [d][width], and as rows, [panel of d][width][column].
    let (q_columns, rest) = scratch[start..start + need].split_at_mut(d * width);
    let (o_columns, rest) = rest.split_at_mut(d * width);
    let (q_rows, rest) = rest.split_at_mut(padded * width);
    let (o_rows, rest) = rest.split_at_mut(padded * width);
    let (result, rest) = rest.split_at_mut(d * width);
    // First and last visible key, lse, and dout · out of each lane.
    let (lanes, rest) = rest.split_at_mut(4 * width);
    let (weights, slopes) = rest.split_at_mut(keys * width);
    let (dk, dv) = gradients.data.split_at_mut(keys * padded);

    let mut first = 0;
    while first < queries {
        let used = width.min(queries - first);
        q_rows.fill(0.0);
        o_rows.fill(0.0);
        let mut lane = 0;
        while lane < width {
            let (mut q, mut o) = ([&qkv[..0]; 4], [&qkv[..0]; 4]);
            for i in 0..4 {
                let query = first + (lane + i).min(used - 1);
                let t = query / task.group;
                let (row, head) = (task.row + t, task.kv * task.group + query % task.group);
                let at = row * shape.heads + head;
                q[i] = &qkv[(row * (shape.heads + 2 * shape.kv_heads) + head) * d..][..d];
                o[i] = &dout[at * d..][..d];
                if lane + i >= width {
                    continue;
                }
                let last = shape.prefix + t;
                let from = match shape.window {
                    Some(window) => (last + 1).saturating_sub(window),
                    None => 0,
                };
                lanes[lane + i] = from as f32;
                lanes[width + lane + i] = last as f32;
                lanes[2 * width + lane + i] = lse[at];
                lanes[3 * width + lane + i] = simd::dot(s, o[i], &out[at * d..][..d], None);
                if lane + i >= used {
                    // Sees nothing.
                    lanes[width + lane + i] = -1.0;
                    continue;
                }
                for c in 0..d {
                    let place = (c / width * width + lane + i) * width + c % width;
                    q_rows[place] = q[i][c] * scale;
                    o_rows[place] = o[i][c];
                }
            }
            columns_of(q, scale, width, &mut q_columns[lane..]);
            columns_of(o, 1.0, width, &mut o_columns[lane..]);
            lane += 4;
        }
        let end = lanes[width + used - 1] as usize + 1;
        let seen = Seen {
            start: lanes[0] as usize,
            // Where lanes are idle every key is masked for them.
            all_from: if used == width {
                lanes[width - 1] as usize
            } else {
                end
            },
            all_to: lanes[width] as usize + 1,
            end,
        };
        let segments = segments(shape.prefix, task.from, own, seen);
        let count = seen.end - seen.start;
        let weights = S::as_mut_simd_f32s(&mut weights[..count * width]).0;
        let weights = weights.as_chunks_mut::<N>().0;
        let slopes = S::as_mut_simd_f32s(&mut slopes[..count * width]).0;
        let slopes = slopes.as_chunks_mut::<N>().0;
        let q_panel = S::as_simd_f32s(q_columns).0.as_chunks::<N>().0;
        let o_panel = S::as_simd_f32s(o_columns).0.as_chunks::<N>().0;
        for segment in segments {
            scores_of::<S, N, M>(s, k, cache, segment, q_panel, weights);
            scores_of::<S, N, M>(s, v, cache, segment, o_panel, slopes);
        }
        let bounds = S::as_simd_f32s(lanes).0.as_chunks::<N>().0;
        slopes_of(
            s,
            seen,
            [bounds[0], bounds[1], bounds[2], bounds[3]],
            weights,
            slopes,
        );

        let results = S::as_mut_simd_f32s(&mut *result).0.as_chunks_mut::<N>().0;
        weighted::<S, N, M>(s, k, cache, segments, slopes, results);
        for lane in 0..used {
            let query = first + lane;
            let dq = &mut task.dq[query / task.group][query % task.group * d..][..d];
            for (dq, row) in dq.iter_mut().zip(result.chunks_exact(width)) {
                *dq = row[lane] * scale;
            }
        }
        add_product::<S, N, M>(s, slopes, q_rows, seen.start, keys, dk);
        add_product::<S, N, M>(s, weights, o_rows, seen.start, keys, dv);
        first += width;
    }
}

/// From scores the weights, and from `dp` the gradients of the scores; `lanes` are the first and last
/// visible key, the logarithm of the sum of exponentials, and `dout · out`.
#[inline(always)]
fn slopes_of<S: Simd, const N: usize>(
    s: S,
    seen: Seen,
    [from, to, lse, along]: [[S::f32s; N]; 4],
    weights: &mut [[S::f32s; N]],
    slopes: &mut [[S::f32s; N]],
) {
    for (i, (weight, slope)) in weights.iter_mut().zip(slopes).enumerate() {
        let key = seen.start + i;
        for j in 0..N {
            weight[j] = simd::exp(s, s.sub_f32s(weight[j], lse[j]));
        }
        if key < seen.all_from || key >= seen.all_to {
            let key = s.splat_f32s(key as f32);
            let hidden = s.splat_f32s(0.0);
            for j in 0..N {
                let upper = s.select_f32s(s.less_than_or_equal_f32s(key, to[j]), weight[j], hidden);
                weight[j] = s.select_f32s(s.less_than_or_equal_f32s(from[j], key), upper, hidden);
            }
        }
        for j in 0..N {
            slope[j] = s.mul_f32s(weight[j], s.sub_f32s(slope[j], along[j]));
        }
    }
}

/// `out[key, c] += Σ_lane left[key, lane] · rows[lane, c]`, in panels: see [`KeyGradients::data`].
#[inline(always)]
fn add_product<S: Simd, const N: usize, const M: usize>(
    s: S,
    left: &[[S::f32s; N]],
    rows: &[f32],
    first: usize,
    keys: usize,
    out: &mut [f32],
) {
    let width = N * S::F32_LANES;
    let left: &[f32] = bytemuck::cast_slice(left.as_flattened());
    let count = left.len() / width;
    for (rows, out) in rows
        .chunks_exact(width * width)
        .zip(out.chunks_exact_mut(keys * width))
    {
        let panel = S::as_simd_f32s(rows).0.as_chunks::<N>().0;
        let out = &mut out[first * width..][..count * width];
        let mut top = 0;
        while top < count {
            let mut sums = [[s.splat_f32s(0.0); N]; M];
            multiply(s, Rows::<M>::new(left, width, top, count), panel, &mut sums);
            for i in 0..M {
                if top + i < count {
                    let out = &mut out[(top + i) * width..][..width];
                    let old = load::<S, N>(s, out);
                    for j in 0..N {
                        sums[i][j] = s.add_f32s(old[j], sums[i][j]);
                    }
                    store::<S, N>(s, out, &sums[i]);
                }
            }
            top += M;
        }
    }
}
