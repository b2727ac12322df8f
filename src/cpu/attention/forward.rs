//! The forward of attention.
//!
//! A task takes a few positions of one sequence and all heads. The queries of one key head, with all
//! heads of its group, form the columns of a panel; keys are the rows that the kernel reads where they
//! lie. So scores come out as `[keys][queries]`: the softmax runs down a vector's lanes without ever
//! crossing them, and the weights already form the panel that the second product, with V, needs.
//! Memory per thread is keys times the width of a panel.

// Tiles are indexed: all their loops are short, of constant length, and unrolled.
#![allow(clippy::needless_range_loop)]

use pulp::Simd;

use super::cache::{CacheHead, Seen, columns_of, scores_of, segments, weighted};
use crate::cpu::panels::{LINE, to_line};
use crate::cpu::simd::{self, simd_fn, tiled};
use crate::ops::attention::Attention;

/// A few positions of one sequence, all heads.
pub(super) struct Task<'a> {
    /// Query heads per key head.
    pub group: usize,
    /// Number of positions.
    pub count: usize,
    /// Row of the first in `qkv`.
    pub row: usize,
    /// Its position: the number of keys that it sees before itself.
    pub position: usize,
    /// Keys of the sequence, its prefix among them.
    pub end: usize,
    /// The cache row of the first key of the sequence's prefix.
    pub from: usize,
    /// That of its first own key, which has position `prefix`.
    pub own: usize,
    pub out: &'a mut [f32],
    /// `[count, heads]`, or empty.
    pub lse: &'a mut [f32],
}

simd_fn! {
    pub(super) fn attention_task<'a, S>(
        s,
        shape: &'a Attention<'a>,
        operands: [&'a [f32]; 3],
        task: Task<'a>,
        scratch: &'a mut Vec<f32>,
    ) {
        tiled!(S, attention_tiles(s, shape, operands, task, scratch))
    }
}

#[inline(always)]
fn attention_tiles<S: Simd, const N: usize, const M: usize>(
    s: S,
    shape: &Attention<'_>,
    [qkv, k, v]: [&[f32]; 3],
    task: Task<'_>,
    scratch: &mut Vec<f32>,
) {
    let d = shape.head_dim;
    let width = N * S::F32_LANES;
    let queries = task.count * task.group;
    let keys = (task.position + task.count)
        .saturating_add(shape.ahead)
        .min(task.end);
    // Scores, then queries, outputs, and first and last visible key of each lane.
    let need = (keys + 2 * d + 2) * width;
    if scratch.len() < need + LINE {
        scratch.resize(need + LINE, 0.0);
    }
    let start = to_line(scratch);
    let (panel, rest) = scratch[start..start + need].split_at_mut(d * width);
    let (result, rest) = rest.split_at_mut(d * width);
    let (limits, scores) = rest.split_at_mut(2 * width);
    let scores = S::as_mut_simd_f32s(scores).0.as_chunks_mut::<N>().0;
    let scale = 1.0 / (d as f32).sqrt();

    for kv in 0..shape.kv_heads {
        let cache = CacheHead {
            stride: shape.kv_heads * d,
            offset: kv * d,
            d,
        };
        let mut first = 0;
        while first < queries {
            let used = width.min(queries - first);
            // Queries as columns, a few at once; unused lanes repeat the last.
            let mut lane = 0;
            while lane < width {
                let mut rows = [&qkv[..0]; 4];
                for (i, row) in rows.iter_mut().enumerate() {
                    let query = first + (lane + i).min(used - 1);
                    let (t, head) = (query / task.group, kv * task.group + query % task.group);
                    let start = (task.row + t) * (shape.heads + 2 * shape.kv_heads) + head;
                    *row = &qkv[start * d..][..d];
                    if lane + i < width {
                        let own = task.position + t;
                        let last = own.saturating_add(shape.ahead).min(task.end - 1);
                        let from = match shape.window {
                            Some(window) => (own + 1).saturating_sub(window),
                            None => 0,
                        };
                        limits[lane + i] = from as f32;
                        limits[width + lane + i] = last as f32;
                    }
                }
                columns_of(rows, scale, width, &mut panel[lane..]);
                lane += 4;
            }
            let seen = Seen {
                start: limits[0] as usize,
                all_from: limits[width - 1] as usize,
                all_to: limits[width] as usize + 1,
                end: limits[2 * width - 1] as usize + 1,
            };
            let segments = segments(shape.prefix, task.from, task.own, seen);
            let scores = &mut scores[..seen.end - seen.start];
            let queries_panel = S::as_simd_f32s(panel).0.as_chunks::<N>().0;
            for segment in segments {
                scores_of::<S, N, M>(s, k, cache, segment, queries_panel, scores);
            }
            let bounds = S::as_simd_f32s(limits).0.as_chunks::<N>().0;
            let (maxima, sums) = softmax(s, seen, bounds[0], bounds[1], scores);
            let outputs = S::as_mut_simd_f32s(result).0.as_chunks_mut::<N>().0;
            weighted::<S, N, M>(s, v, cache, segments, scores, outputs);
            for output in &mut *outputs {
                for j in 0..N {
                    output[j] = s.div_f32s(output[j], sums[j]);
                }
            }
            let (maxima, sums): (&[f32], &[f32]) =
                (bytemuck::cast_slice(&maxima), bytemuck::cast_slice(&sums));
            for lane in 0..used {
                let query = first + lane;
                let (t, head) = (query / task.group, kv * task.group + query % task.group);
                let out = &mut task.out[(t * shape.heads + head) * d..][..d];
                for (out, row) in out.iter_mut().zip(result.chunks_exact(width)) {
                    *out = row[lane];
                }
                if !task.lse.is_empty() {
                    task.lse[t * shape.heads + head] = maxima[lane] + sums[lane].ln();
                }
            }
            first += width;
        }
    }
}

/// Turns scores into `exp(score - maximum)`, lane by lane, and gives the maxima and the sums.
/// A lane sees the keys `from..=to`.
#[inline(always)]
fn softmax<S: Simd, const N: usize>(
    s: S,
    seen: Seen,
    from: [S::f32s; N],
    to: [S::f32s; N],
    scores: &mut [[S::f32s; N]],
) -> ([S::f32s; N], [S::f32s; N]) {
    let mut max = [s.splat_f32s(f32::MIN); N];
    for (i, score) in scores.iter_mut().enumerate() {
        let key = seen.start + i;
        if key < seen.all_from || key >= seen.all_to {
            let key = s.splat_f32s(key as f32);
            for j in 0..N {
                let hidden = s.splat_f32s(f32::MIN);
                let upper = s.select_f32s(s.less_than_or_equal_f32s(key, to[j]), score[j], hidden);
                score[j] = s.select_f32s(s.less_than_or_equal_f32s(from[j], key), upper, hidden);
            }
        }
        for j in 0..N {
            max[j] = s.max_f32s(max[j], score[j]);
        }
    }
    let mut sum = [s.splat_f32s(0.0); N];
    for score in scores {
        for j in 0..N {
            score[j] = simd::exp(s, s.sub_f32s(score[j], max[j]));
            sum[j] = s.add_f32s(sum[j], score[j]);
        }
    }
    (max, sum)
}
