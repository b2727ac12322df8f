//! Selection by `kernels/topk.cu`.

use super::abi::{GatherParams, Segment, TopkParams};
use super::{Buf, Gpu, LaunchConfig, Launcher, size};
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::topk::{Keep, Select, TopKOp, TopKOutput};

/// Bytes of shared memory of the kernels that select: counters of four passes, warps' sums.
pub(super) const SHARED: usize = (4 * 256 + 2 * 32) * 4;

/// Threads of a block that selects from `n` keys, of which each has up to eight in registers; a larger block's
/// barriers cost more.
pub(super) fn threads(n: usize) -> u32 {
    n.div_ceil(8).next_multiple_of(32).clamp(64, 1024) as u32
}

impl<L: Launcher> TopKOp for Gpu<L> {
    fn topk_checked(
        &self,
        _: Checked,
        segments: &[Select],
        scores: &Buf<L, f32>,
        ids: &Buf<L, u32>,
        out: &mut TopKOutput<Self>,
    ) -> Result<()> {
        let longest = segments.iter().map(|s| s.len as usize).max().unwrap_or(0);
        let segments: Vec<Segment> = segments
            .iter()
            .map(|segment| Segment {
                first: segment.first,
                len: segment.len,
                count: match segment.keep {
                    Keep::Count(count) | Keep::Beyond(count) => count,
                    Keep::Above(_) => 0,
                },
                quantile: match segment.keep {
                    Keep::Count(_) => -1.0,
                    Keep::Beyond(_) => -2.0,
                    Keep::Above(quantile) => quantile,
                },
            })
            .collect();
        let mut scratch = self.scratch();
        scratch.tiles.clear();
        let table = [bytemuck::cast_slice(&segments)];
        let [at] = scratch.table.fill(&self.launcher, table)?;
        let params = TopkParams {
            scores: self.at(scores),
            ids: self.at(ids),
            segments: at,
            mask: self.at(&out.mask),
            kept_ids: self.at(&out.ids),
            kept_rows: self.at(&out.rows),
            kept: self.at(&out.kept),
        };
        let grid = [segments.len(), 1, 1];
        let config = LaunchConfig::new(grid, threads(longest)).shared(SHARED);
        // SAFETY: every segment lies within all buffers.
        unsafe { self.launch("topk", config, &params) }
    }

    fn gather_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Buf<L, f32>,
        selection: &TopKOutput<Self>,
        segment: usize,
        of: Select,
        to: usize,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let (first, len) = (of.first as usize, of.len as usize);
        let params = GatherParams {
            x: self.at(x),
            rows: self.at(&selection.rows) + (first * size_of::<u32>()) as u64,
            count: self.at(&selection.kept) + (segment * size_of::<u32>()) as u64,
            out: self.at(out),
            width: size("gather", width)?,
            to: size("gather", to)?,
        };
        let blocks = len.min(4 * self.launcher.processors() as usize);
        // SAFETY: a segment keeps at most `len` rows, all of them its own; lengths were checked.
        unsafe { self.launch("gather", LaunchConfig::new([blocks, 1, 1], 256), &params) }
    }
}
