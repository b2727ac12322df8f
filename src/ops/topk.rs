//! Token selection: the largest scores of each segment, or those above a percentile.
//!
//! Everything stays on the device: scores in; mask, kept ids and kept rows out. Equal scores are kept
//! in the order of their indices, so that a selection is the same on every backend.

use std::cmp::Ordering;

use super::cpu::Cpu;
use super::expect_len;
use super::storage::Storage;
use crate::error::{Error, Result};

/// What is kept of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// So many: those with the highest scores; of equals those with the lowest index.
    Count(u32),
    /// Those above the quantile, 0 to 1, between order statistics as numpy's `percentile` draws a
    /// line.
    Above(f32),
    /// Those larger than the score of this rank, 0 being the largest; of a rank that is not there, than
    /// the smallest.
    Beyond(u32),
}

/// Consecutive scores among which is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Select {
    /// Index of the first score.
    pub first: u32,
    /// Number of scores.
    pub len: u32,
    /// Which stay.
    pub keep: Keep,
}

/// What a selection writes, as long as the scores each; `kept` has one number per segment.
pub struct Selection<S: Storage> {
    /// 1 for kept, 0 for dropped.
    pub mask: S::Buf<u32>,
    /// From each segment's first index on: the ids that it keeps, in order.
    pub ids: S::Buf<u32>,
    /// The same of their indices.
    pub rows: S::Buf<u32>,
    /// How many each segment keeps.
    pub kept: S::Buf<u32>,
}

impl<S: Storage> Selection<S> {
    /// Room for `scores` scores in `segments` segments.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub fn new(storage: &S, scores: usize, segments: usize) -> Result<Self> {
        Ok(Selection {
            mask: storage.zeros(scores)?,
            ids: storage.zeros(scores)?,
            rows: storage.zeros(scores)?,
            kept: storage.zeros(segments)?,
        })
    }
}

/// Selection.
pub trait TopKOp: Storage {
    /// Selects in every segment at once; segments must not overlap. NaN is less than all others, and
    /// −0 equals 0.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a segment outside the scores or buffers that are too short,
    /// [`Error::Input`] for a quantile outside 0 to 1.
    fn topk(
        &self,
        segments: &[Select],
        scores: &Self::Buf<f32>,
        ids: &Self::Buf<u32>,
        out: &mut Selection<Self>,
    ) -> Result<()>;

    /// Moves together the rows that `segment` of a selection keeps: `out[to + i] = x[rows[i]]`, rows
    /// of `width` elements. `first` is the segment's first index.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `out` cannot take as many rows as the segment has scores.
    #[allow(clippy::too_many_arguments)]
    fn gather(
        &self,
        width: usize,
        x: &Self::Buf<f32>,
        selection: &Selection<Self>,
        segment: usize,
        of: Select,
        to: usize,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;
}

/// The checks that every backend makes.
pub(crate) fn check(
    segments: &[Select],
    scores: usize,
    ids: usize,
    [mask, out_ids, rows, kept]: [usize; 4],
) -> Result<()> {
    let mut end = 0;
    for segment in segments {
        if let Keep::Above(quantile) = segment.keep
            && !(0.0..=1.0).contains(&quantile)
        {
            return Err(Error::input(
                format!("quantile {quantile}"),
                "it must be from 0 to 1",
            ));
        }
        end = end.max(segment.first as usize + segment.len as usize);
    }
    expect_len("topk", "the scores", end, scores)?;
    expect_len("topk", "the ids", end, ids)?;
    expect_len("topk", "the mask", end, mask)?;
    expect_len("topk", "the kept ids", end, out_ids)?;
    expect_len("topk", "the kept rows", end, rows)?;
    expect_len("topk", "the counts", segments.len(), kept)
}

/// −0 as 0, NaN below all.
fn compare(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b)
        .unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

impl TopKOp for Cpu {
    fn topk(
        &self,
        segments: &[Select],
        scores: &Vec<f32>,
        ids: &Vec<u32>,
        out: &mut Selection<Self>,
    ) -> Result<()> {
        check(
            segments,
            scores.len(),
            ids.len(),
            [
                out.mask.len(),
                out.ids.len(),
                out.rows.len(),
                out.kept.len(),
            ],
        )?;
        for (segment, kept) in segments.iter().zip(&mut out.kept) {
            let first = segment.first as usize;
            let scores = &scores[first..][..segment.len as usize];
            let mask = &mut out.mask[first..][..scores.len()];
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| compare(scores[b], scores[a]));
            mask.fill(0);
            match segment.keep {
                Keep::Count(count) => {
                    for &i in order.iter().take(count as usize) {
                        mask[i] = 1;
                    }
                }
                Keep::Above(quantile) if !scores.is_empty() => {
                    let last = scores.len() - 1;
                    let at = f64::from(quantile) * last as f64;
                    let lower = (at as usize).min(last);
                    let statistic = |rank: usize| f64::from(scores[order[last - rank]]);
                    let (a, b) = (statistic(lower), statistic((lower + 1).min(last)));
                    let limit = (a + (b - a) * (at - lower as f64)) as f32;
                    for (mask, &score) in mask.iter_mut().zip(scores) {
                        *mask = u32::from(compare(score, limit).is_gt());
                    }
                }
                Keep::Beyond(rank) if !scores.is_empty() => {
                    let limit = scores[order[(rank as usize).min(order.len() - 1)]];
                    for (mask, &score) in mask.iter_mut().zip(scores) {
                        *mask = u32::from(compare(score, limit).is_gt());
                    }
                }
                Keep::Above(_) | Keep::Beyond(_) => {}
            }
            *kept = 0;
            for (i, &keep) in mask.iter().enumerate() {
                if keep == 1 {
                    out.ids[first + *kept as usize] = ids[first + i];
                    out.rows[first + *kept as usize] = (first + i) as u32;
                    *kept += 1;
                }
            }
        }
        Ok(())
    }

    fn gather(
        &self,
        width: usize,
        x: &Vec<f32>,
        selection: &Selection<Self>,
        segment: usize,
        of: Select,
        to: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (first, len) = (of.first as usize, of.len as usize);
        expect_len("gather", "x", (first + len) * width, x.len())?;
        expect_len("gather", "the output", (to + len) * width, out.len())?;
        expect_len("gather", "the rows", first + len, selection.rows.len())?;
        expect_len("gather", "the counts", segment + 1, selection.kept.len())?;
        let kept = (selection.kept[segment] as usize).min(len);
        let to = out[to * width..].chunks_exact_mut(width.max(1));
        for (to, &row) in to.zip(&selection.rows[first..][..kept]) {
            to.copy_from_slice(&x[row as usize * width..][..width]);
        }
        Ok(())
    }
}
