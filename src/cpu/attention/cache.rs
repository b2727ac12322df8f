//! What both directions of attention do with the rows of a cache: scores of its keys, and sums of its
//! rows by weight.

// Tiles are indexed: all their loops are short, of constant length, and unrolled.
#![allow(clippy::needless_range_loop)]

use pulp::Simd;

use crate::cpu::gemm::{Columns, FewColumns, Rows, multiply};

/// Writes four rows, scaled, as neighbouring columns of a matrix of that width; of a matrix that is
/// narrower than four, as many as fit.
#[inline(always)]
pub(super) fn columns_of(rows: [&[f32]; 4], scale: f32, width: usize, out: &mut [f32]) {
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
pub(super) struct Seen {
    pub start: usize,
    pub all_from: usize,
    pub all_to: usize,
    pub end: usize,
}

/// Seen keys that lie one after the other in the cache.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// Cache row of the first.
    pub row: usize,
    /// Its place among the seen keys.
    pub first: usize,
    pub len: usize,
}

/// Those in the prefix, which begins at cache row `from`, and those of the sequence itself.
#[inline(always)]
pub(super) fn segments(prefix: usize, from: usize, own: usize, seen: Seen) -> [Segment; 2] {
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
pub(super) struct CacheHead {
    pub stride: usize,
    pub offset: usize,
    pub d: usize,
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
pub(super) fn scores_of<S: Simd, const N: usize, const M: usize>(
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
pub(super) fn weighted<S: Simd, const N: usize, const M: usize>(
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
