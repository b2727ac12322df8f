//! Token selection: the largest scores of each segment, or those above a percentile.
//!
//! Everything stays on the device: scores in; mask, kept ids and kept rows out. Equal scores are kept
//! in the order of their indices, so that a selection is the same on every backend.

use super::storage::{Buffer, Storage};
use super::{Checked, expect_len};
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
pub struct TopKOutput<S: Storage> {
    /// 1 for kept, 0 for dropped.
    pub mask: S::Buf<u32>,
    /// From each segment's first index on: the ids that it keeps, in order.
    pub ids: S::Buf<u32>,
    /// The same of their indices.
    pub rows: S::Buf<u32>,
    /// How many each segment keeps.
    pub kept: S::Buf<u32>,
}

impl<S: Storage> TopKOutput<S> {
    /// Room for `scores` scores in `segments` segments.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] without memory for it.
    pub fn new(storage: &S, scores: usize, segments: usize) -> Result<Self> {
        Ok(TopKOutput {
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
        out: &mut TopKOutput<Self>,
    ) -> Result<()> {
        check(segments, scores.len(), ids.len(), out)?;
        self.topk_checked(Checked(()), segments, scores, ids, out)
    }

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
        selection: &TopKOutput<Self>,
        segment: usize,
        of: Select,
        to: usize,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let (first, len) = (of.first as usize, of.len as usize);
        expect_len("gather", "x", (first + len) * width, x.len())?;
        expect_len("gather", "the output", (to + len) * width, out.len())?;
        expect_len("gather", "the rows", first + len, selection.rows.len())?;
        expect_len("gather", "the counts", segment + 1, selection.kept.len())?;
        self.gather_checked(Checked(()), width, x, selection, segment, of, to, out)
    }

    /// [`TopKOp::topk`], after its checks.
    fn topk_checked(
        &self,
        _: Checked,
        segments: &[Select],
        scores: &Self::Buf<f32>,
        ids: &Self::Buf<u32>,
        out: &mut TopKOutput<Self>,
    ) -> Result<()>;

    /// [`TopKOp::gather`], after its checks.
    #[allow(clippy::too_many_arguments)]
    fn gather_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Self::Buf<f32>,
        selection: &TopKOutput<Self>,
        segment: usize,
        of: Select,
        to: usize,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;
}

fn check<S: Storage>(
    segments: &[Select],
    scores: usize,
    ids: usize,
    out: &TopKOutput<S>,
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
    expect_len("topk", "the mask", end, out.mask.len())?;
    expect_len("topk", "the kept ids", end, out.ids.len())?;
    expect_len("topk", "the kept rows", end, out.rows.len())?;
    expect_len("topk", "the counts", segments.len(), out.kept.len())
}
