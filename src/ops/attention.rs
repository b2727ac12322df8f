//! Causal attention over a KV cache, for any number of sequences at once.
//!
//! A task takes a few positions of one sequence and all heads. The queries of one key head, with all
//! heads of its group, form the columns of a panel; keys are the rows that the kernel reads where they
//! lie. So scores come out as `[keys][queries]`: the softmax runs down a vector's lanes without ever
//! crossing them, and the weights already form the panel that the second product, with V, needs.
//! Memory per thread is keys times the width of a panel.

use pulp::Simd;
use rayon::prelude::*;

use super::cpu::Cpu;
use super::expect_len;
use super::gemm::{Columns, GemmOp, LINE, Rows, multiply, tiled, to_line};
use super::simd::{self, simd_fn};
use crate::error::{Error, Result};

/// Shape of attention over sequences that share a prefix and do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Every sequence sees the cache's rows `0..prefix` before its own.
    pub prefix: usize,
    /// The cache row of the first query row; the others follow.
    pub at: usize,
    /// Rows of each sequence, one after the other.
    pub lengths: &'a [usize],
    /// Keys further back than this are not seen.
    pub window: Option<usize>,
}

/// Attention.
pub trait AttentionOp: GemmOp {
    /// `out[row, head] = softmax(q · kᵀ / √head_dim) · v`, rows of `out` being `[heads, head_dim]`.
    /// `qkv`, `k` and `v` are as [`super::LayerOp::rotate`] leaves them.
    fn attention(
        &self,
        shape: &Attention<'_>,
        qkv: &Self::Buf<f32>,
        k: &Self::Buf<f32>,
        v: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;
}

impl AttentionOp for Cpu {
    fn attention(
        &self,
        shape: &Attention<'_>,
        qkv: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let &Attention {
            heads,
            kv_heads,
            head_dim,
            prefix,
            at,
            lengths,
            window,
        } = shape;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || window == Some(0) || prefix > at {
            return Err(Error::Shape {
                op: "attention",
                want: "heads in equal groups, a window, and a prefix before the rows".into(),
                got: format!("{shape:?}"),
            });
        }
        let rows: usize = lengths.iter().sum();
        expect_len(
            "attention",
            "qkv",
            rows * (heads + 2 * kv_heads) * head_dim,
            qkv.len(),
        )?;
        expect_len("attention", "k", (at + rows) * kv_heads * head_dim, k.len())?;
        expect_len("attention", "v", (at + rows) * kv_heads * head_dim, v.len())?;
        expect_len(
            "attention",
            "the output",
            rows * heads * head_dim,
            out.len(),
        )?;

        // So many positions that the queries of a group fill whole panels.
        let group = heads / kv_heads;
        let positions = self.tile.columns / gcd(self.tile.columns, group);
        let mut tasks = Vec::with_capacity(rows / positions + lengths.len());
        let mut rest = &mut out[..rows * heads * head_dim];
        let mut row = 0;
        for &length in lengths {
            let mut first = 0;
            while first < length {
                let count = positions.min(length - first);
                let (out, others) = rest.split_at_mut(count * heads * head_dim);
                rest = others;
                tasks.push(Task {
                    group,
                    count,
                    row: row + first,
                    position: prefix + first,
                    own: at + row,
                    out,
                });
                first += count;
            }
            row += length;
        }
        tasks.into_par_iter().for_each_init(
            || self.scratch(0),
            |scratch, task| attention_task(self.arch, shape, [qkv, k, v], task, &mut scratch.data),
        );
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A few positions of one sequence, all heads.
struct Task<'a> {
    /// Query heads per key head.
    group: usize,
    /// Number of positions.
    count: usize,
    /// Row of the first in `qkv`.
    row: usize,
    /// Its position: the number of keys that it sees before itself.
    position: usize,
    /// The cache row of the sequence's first own key; it has position `prefix`.
    own: usize,
    out: &'a mut [f32],
}

simd_fn! {
    fn attention_task<'a, S>(
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
    let keys = task.position + task.count;
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
                        let last = task.position + t;
                        let from = match shape.window {
                            Some(window) => (last + 1).saturating_sub(window),
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
            let segments = segments(shape.prefix, task.own, seen);
            let scores = &mut scores[..seen.end - seen.start];
            let queries_panel = S::as_simd_f32s(panel).0.as_chunks::<N>().0;
            for segment in segments {
                scores_of::<S, N, M>(s, k, cache, segment, queries_panel, scores);
            }
            let bounds = S::as_simd_f32s(limits).0.as_chunks::<N>().0;
            let scales = softmax(s, seen, bounds[0], bounds[1], scores);
            let outputs = S::as_mut_simd_f32s(result).0.as_chunks_mut::<N>().0;
            let mut column = 0;
            while column < d {
                // The last tile may overlap the one before.
                let count = M.min(d);
                let start = column.min(d - count);
                let mut sums = [[s.splat_f32s(0.0); N]; M];
                for segment in segments {
                    if segment.len == 0 {
                        continue;
                    }
                    let left = Columns {
                        data: cache.at(v, segment.row, start),
                        stride: cache.stride,
                        count,
                    };
                    multiply(s, left, &scores[segment.first..][..segment.len], &mut sums);
                }
                for i in 0..M {
                    if i < count {
                        for j in 0..N {
                            outputs[start + i][j] = s.mul_f32s(sums[i][j], scales[j]);
                        }
                    }
                }
                column += M;
            }
            for lane in 0..used {
                let query = first + lane;
                let (t, head) = (query / task.group, kv * task.group + query % task.group);
                let out = &mut task.out[(t * shape.heads + head) * d..][..d];
                for (out, row) in out.iter_mut().zip(result.chunks_exact(width)) {
                    *out = row[lane];
                }
            }
            first += width;
        }
    }
}

/// Writes four rows, scaled, as neighbouring columns of a matrix of that width; of a matrix that is
/// narrower than four, as many as fit.
#[inline(always)]
fn columns_of(rows: [&[f32]; 4], scale: f32, width: usize, out: &mut [f32]) {
    let blocks = rows[0].len() / 4;
    let fours = [
        &rows[0].as_chunks::<4>().0[..blocks],
        &rows[1].as_chunks::<4>().0[..blocks],
        &rows[2].as_chunks::<4>().0[..blocks],
        &rows[3].as_chunks::<4>().0[..blocks],
    ];
    let mut done = 0;
    if width.is_multiple_of(4) {
        for block in 0..blocks {
            let [a, b, c, d] = [
                fours[0][block],
                fours[1][block],
                fours[2][block],
                fours[3][block],
            ];
            for k in 0..4 {
                let at = (4 * block + k) * width;
                if let Some(out) = out[at..].first_chunk_mut::<4>() {
                    *out = [a[k] * scale, b[k] * scale, c[k] * scale, d[k] * scale];
                }
            }
        }
        done = 4 * blocks;
    }
    for k in done..rows[0].len() {
        for (i, row) in rows.iter().enumerate().take(width) {
            out[k * width + i] = row[k] * scale;
        }
    }
}

/// The keys, by position, that the lanes of a panel see: some lane each in `start..end`, every lane
/// each in `all_from..all_to`.
#[derive(Clone, Copy)]
struct Seen {
    start: usize,
    all_from: usize,
    all_to: usize,
    end: usize,
}

/// Seen keys that lie one after the other in the cache.
#[derive(Clone, Copy)]
struct Segment {
    /// Cache row of the first.
    row: usize,
    /// Its place among the seen keys.
    first: usize,
    len: usize,
}

/// Those in the shared prefix and those of the sequence itself.
#[inline(always)]
fn segments(prefix: usize, own: usize, seen: Seen) -> [Segment; 2] {
    let (in_prefix, skipped) = if own == prefix {
        // They follow each other: one segment.
        (0, 0)
    } else {
        (
            prefix.saturating_sub(seen.start),
            seen.start.saturating_sub(prefix),
        )
    };
    let own = if own == prefix {
        seen.start
    } else {
        own + skipped
    };
    [
        Segment {
            row: seen.start,
            first: 0,
            len: in_prefix,
        },
        Segment {
            row: own,
            first: in_prefix,
            len: seen.end - seen.start - in_prefix,
        },
    ]
}

/// Where one head lies in K or V.
#[derive(Clone, Copy)]
struct CacheHead {
    stride: usize,
    offset: usize,
    d: usize,
}

impl CacheHead {
    /// From one element of a row on.
    #[inline(always)]
    fn at(self, cache: &[f32], row: usize, column: usize) -> &[f32] {
        // An empty segment may begin behind the end.
        let start = row * self.stride + self.offset + column;
        if start < cache.len() {
            &cache[start..]
        } else {
            &[]
        }
    }
}

/// `scores[key][query] = k[key] · q[query]`.
#[inline(always)]
fn scores_of<S: Simd, const N: usize, const M: usize>(
    s: S,
    k: &[f32],
    cache: CacheHead,
    segment: Segment,
    queries: &[[S::f32s; N]],
    scores: &mut [[S::f32s; N]],
) {
    let scores = &mut scores[segment.first..][..segment.len];
    let mut top = 0;
    while top < scores.len() {
        let mut rows = [&k[..0]; M];
        for i in 0..M {
            let key = if top + i < scores.len() {
                top + i
            } else {
                scores.len() - 1
            };
            rows[i] = &cache.at(k, segment.row + key, 0)[..cache.d];
        }
        let mut sums = [[s.splat_f32s(0.0); N]; M];
        multiply(s, Rows::of(rows), queries, &mut sums);
        for i in 0..M {
            if top + i < scores.len() {
                scores[top + i] = sums[i];
            }
        }
        top += M;
    }
}

/// Turns scores into `exp(score - maximum)`, lane by lane, and gives the reciprocals of their sums.
/// A lane sees the keys `from..=to`.
#[inline(always)]
fn softmax<S: Simd, const N: usize>(
    s: S,
    seen: Seen,
    from: [S::f32s; N],
    to: [S::f32s; N],
    scores: &mut [[S::f32s; N]],
) -> [S::f32s; N] {
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
    for j in 0..N {
        sum[j] = s.div_f32s(s.splat_f32s(1.0), sum[j]);
    }
    sum
}
