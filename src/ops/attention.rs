//! Attention over a KV cache, causal or not, for any number of sequences at once.
//!
//! A task takes a few positions of one sequence and all heads. The queries of one key head, with all
//! heads of its group, form the columns of a panel; keys are the rows that the kernel reads where they
//! lie. So scores come out as `[keys][queries]`: the softmax runs down a vector's lanes without ever
//! crossing them, and the weights already form the panel that the second product, with V, needs.
//! Memory per thread is keys times the width of a panel.

// Tiles are indexed: all their loops are short, of constant length, and unrolled.
#![allow(clippy::needless_range_loop)]

mod backward;

use pulp::Simd;
use rayon::prelude::*;

use super::cpu::Cpu;
use super::expect_len;
use super::gemm::{Columns, FewColumns, GemmOp, Rows, multiply};
use super::panels::{LINE, to_line};
use super::simd::{self, simd_fn, tiled};
use super::storage::Storage;
use crate::error::{Error, Result};

use backward::{BackwardTask, KeyGradients, backward_task};

/// Shape of attention over sequences that share a prefix and do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Every sequence sees so many of the cache's rows before its own.
    pub prefix: usize,
    /// The cache row at which each sequence's prefix begins; empty where all share the rows
    /// `0..prefix`.
    pub prefixes: &'a [usize],
    /// The cache row of the first query row; the others follow.
    pub at: usize,
    /// Rows of each sequence, one after the other.
    pub lengths: &'a [usize],
    /// Keys further back than this are not seen.
    pub window: Option<usize>,
    /// Keys after its own position that a query sees, where its sequence has them: 0 in a decoder
    /// (causal), `usize::MAX` in an encoder.
    pub ahead: usize,
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

    /// [`AttentionOp::attention`] that keeps what the backward needs: `lse[row, head]`, the natural
    /// logarithm of the sum of the exponentials of the row's scores.
    fn attention_lse(
        &self,
        shape: &Attention<'_>,
        qkv: &Self::Buf<f32>,
        k: &Self::Buf<f32>,
        v: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
        lse: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// The gradients of attention's operands from `dout`, that of its output. Those of q overwrite
    /// the place of q in `dqkv` (rows of `[heads + 2 · kv_heads, head_dim]`; the places of k and v
    /// stay as they are); those of k and v are added to `dk` and `dv`, row for row: rows of prefixes that sequences share gather from all of them.
    fn attention_bwd(
        &self,
        shape: &Attention<'_>,
        attended: Attended<'_, Self>,
        dout: &Self::Buf<f32>,
        dqkv: &mut Self::Buf<f32>,
        dk: &mut Self::Buf<f32>,
        dv: &mut Self::Buf<f32>,
    ) -> Result<()>;
}

/// What [`AttentionOp::attention_lse`] was given, and what it gave.
pub struct Attended<'a, S: Storage> {
    /// Rotated: q is read.
    pub qkv: &'a S::Buf<f32>,
    /// The cache.
    pub k: &'a S::Buf<f32>,
    /// The cache.
    pub v: &'a S::Buf<f32>,
    /// `[rows, heads, head_dim]`.
    pub out: &'a S::Buf<f32>,
    /// `[rows, heads]`.
    pub lse: &'a S::Buf<f32>,
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
        self.forward(shape, qkv, [k, v], out, None)
    }

    fn attention_lse(
        &self,
        shape: &Attention<'_>,
        qkv: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        out: &mut Vec<f32>,
        lse: &mut Vec<f32>,
    ) -> Result<()> {
        self.forward(shape, qkv, [k, v], out, Some(lse))
    }

    fn attention_bwd(
        &self,
        shape: &Attention<'_>,
        attended: Attended<'_, Self>,
        dout: &Vec<f32>,
        dqkv: &mut Vec<f32>,
        dk: &mut Vec<f32>,
        dv: &mut Vec<f32>,
    ) -> Result<()> {
        let Attended {
            qkv,
            k,
            v,
            out,
            lse,
        } = attended;
        let (heads, kv_heads, d) = (shape.heads, shape.kv_heads, shape.head_dim);
        let op = "attention_bwd";
        shape.check_causal(op)?;
        let rows = shape.check(op, qkv.len(), k.len().min(v.len()), out.len())?;
        expect_len(op, "dout", rows * heads * d, dout.len())?;
        expect_len(op, "lse", rows * heads, lse.len())?;
        let stride = (heads + 2 * kv_heads) * d;
        expect_len(op, "dqkv", rows * stride, dqkv.len())?;
        let cache = (shape.at + rows) * kv_heads * d;
        expect_len(op, "dk", cache, dk.len())?;
        expect_len(op, "dv", cache, dv.len())?;

        // A task has one key head of one sequence, and gradients of its keys and values of its own.
        let group = heads / kv_heads;
        let mut tasks = Vec::with_capacity(shape.lengths.len() * kv_heads);
        let mut row = 0;
        for (i, &length) in shape.lengths.iter().enumerate() {
            if length == 0 {
                continue;
            }
            tasks.extend((0..kv_heads).map(|kv| BackwardTask {
                group,
                kv,
                count: length,
                row,
                from: shape.prefixes.get(i).copied().unwrap_or(0),
                dq: Vec::with_capacity(length),
            }));
            row += length;
        }
        let mut rest = dqkv[..rows * stride].chunks_exact_mut(stride);
        for tasks in tasks.chunks_exact_mut(kv_heads) {
            for row in rest.by_ref().take(tasks[0].count) {
                let dq = row[..heads * d].chunks_exact_mut(group * d);
                for (task, dq) in tasks.iter_mut().zip(dq) {
                    task.dq.push(dq);
                }
            }
        }
        let done: Vec<KeyGradients> = tasks
            .into_par_iter()
            .map_init(
                || self.scratch(0),
                |scratch, task| {
                    let mut gradients = KeyGradients::new(shape, &task, self.tile.columns);
                    let operands: [&[f32]; 6] = [qkv, k, v, out, lse, dout];
                    let scratch = &mut scratch.data;
                    backward_task(self.arch, shape, operands, task, &mut gradients, scratch);
                    gradients
                },
            )
            .collect();
        for gradients in done {
            gradients.add_to(shape, self.tile.columns, [dk, dv]);
        }
        Ok(())
    }
}

impl Attention<'_> {
    /// Gradients are made of causal attention alone: encoders are not trained here.
    pub(crate) fn check_causal(&self, op: &'static str) -> Result<()> {
        match self.ahead {
            0 => Ok(()),
            ahead => Err(Error::Shape {
                op,
                want: "causal attention".into(),
                got: format!("queries that see {ahead} keys ahead"),
            }),
        }
    }

    /// Checks the lengths of qkv, of the cache and of the output; gives the number of rows.
    pub(crate) fn check(
        &self,
        op: &'static str,
        qkv: usize,
        cache: usize,
        out: usize,
    ) -> Result<usize> {
        let (heads, kv_heads, d) = (self.heads, self.kv_heads, self.head_dim);
        let wrong = kv_heads == 0
            || !heads.is_multiple_of(kv_heads)
            || self.window == Some(0)
            || !(self.prefixes.is_empty() || self.prefixes.len() == self.lengths.len());
        let begin = self.prefixes.iter().max().copied().unwrap_or(0);
        if wrong
            || begin
                .checked_add(self.prefix)
                .is_none_or(|end| end > self.at)
        {
            return Err(Error::Shape {
                op,
                want: "heads in equal groups, a window, and prefixes before the rows".into(),
                got: format!("{self:?}"),
            });
        }
        let rows: usize = self.lengths.iter().sum();
        expect_len(op, "qkv", rows * (heads + 2 * kv_heads) * d, qkv)?;
        expect_len(op, "k and of v", (self.at + rows) * kv_heads * d, cache)?;
        expect_len(op, "the output", rows * heads * d, out)?;
        Ok(rows)
    }
}

impl Cpu {
    fn forward(
        &self,
        shape: &Attention<'_>,
        qkv: &[f32],
        [k, v]: [&[f32]; 2],
        out: &mut [f32],
        lse: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        let rows = shape.check("attention", qkv.len(), k.len().min(v.len()), out.len())?;
        let (heads, d) = (shape.heads, shape.head_dim);
        let mut lse = match lse {
            Some(lse) => {
                expect_len("attention", "lse", rows * heads, lse.len())?;
                &mut lse[..rows * heads]
            }
            None => &mut [],
        };
        // So many positions that the queries of a group fill whole panels.
        let group = heads / shape.kv_heads;
        let positions = self.tile.columns / gcd(self.tile.columns, group);
        let mut tasks = Vec::with_capacity(rows / positions + shape.lengths.len());
        let mut rest = &mut out[..rows * heads * d];
        let mut row = 0;
        for (i, &length) in shape.lengths.iter().enumerate() {
            let mut first = 0;
            while first < length {
                let count = positions.min(length - first);
                let (out, others) = rest.split_at_mut(count * heads * d);
                rest = others;
                let (of_task, others) = lse.split_at_mut(lse.len().min(count * heads));
                lse = others;
                tasks.push(Task {
                    group,
                    count,
                    row: row + first,
                    position: shape.prefix + first,
                    end: shape.prefix + length,
                    from: shape.prefixes.get(i).copied().unwrap_or(0),
                    own: shape.at + row,
                    out,
                    lse: of_task,
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
    /// Keys of the sequence, its prefix among them.
    end: usize,
    /// The cache row of the first key of the sequence's prefix.
    from: usize,
    /// That of its first own key, which has position `prefix`.
    own: usize,
    out: &'a mut [f32],
    /// `[count, heads]`, or empty.
    lse: &'a mut [f32],
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

/// Those in the prefix, which begins at cache row `from`, and those of the sequence itself.
#[inline(always)]
fn segments(prefix: usize, from: usize, own: usize, seen: Seen) -> [Segment; 2] {
    let in_prefix = if own == from + prefix {
        // They follow each other: one segment.
        0
    } else {
        prefix.saturating_sub(seen.start)
    };
    [
        Segment {
            row: from + seen.start,
            first: 0,
            len: in_prefix,
        },
        Segment {
            row: own + seen.start + in_prefix - prefix,
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
        // An empty segment may begin after the end.
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

/// `out[column][query] = Σ rows[key][column] · weights[key][query]` over the keys of both segments.
#[inline(always)]
fn weighted<S: Simd, const N: usize, const M: usize>(
    s: S,
    rows: &[f32],
    cache: CacheHead,
    segments: [Segment; 2],
    weights: &[[S::f32s; N]],
    out: &mut [[S::f32s; N]],
) {
    // So few keys at a time that their rows stay in the first-level cache from tile to tile.
    const KEYS: usize = 64;
    let out = &mut out[..cache.d];
    for out in &mut *out {
        *out = [s.splat_f32s(0.0); N];
    }
    for segment in segments {
        let mut done = 0;
        while done < segment.len {
            let count = KEYS.min(segment.len - done);
            let row = segment.row + done;
            let weights = &weights[segment.first + done..][..count];
            let mut column = 0;
            while column < cache.d {
                // The last tile may overlap the one before.
                let width = M.min(cache.d);
                let start = column.min(cache.d - width);
                let mut sums = [[s.splat_f32s(0.0); N]; M];
                for i in 0..M {
                    if i < width {
                        sums[i] = out[start + i];
                    }
                }
                let (data, stride) = (cache.at(rows, row, start), cache.stride);
                if width == M {
                    multiply(s, Columns { data, stride }, weights, &mut sums);
                } else {
                    let left = FewColumns {
                        data,
                        stride,
                        count: width,
                    };
                    multiply(s, left, weights, &mut sums);
                }
                for i in 0..M {
                    if i < width && start + i >= column {
                        out[start + i] = sums[i];
                    }
                }
                column += M;
            }
            done += count;
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
