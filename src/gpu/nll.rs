//! Negative log-likelihoods by `kernels/nll.cu`.

use super::abi::{
    self, Nll90Params, NllBwdParams, NllLogitsParams, NllMergeParams, NllParams, NllPart, RowSum,
    ScatterParams, TensorMap,
};
use super::gemm::{Matrix, Tile};
use super::{Boxed, Buf, Gpu, LaunchConfig, Launcher, Operand, Precision, Product, Scratch, size};
use crate::error::Result;
use crate::ops::nll::{NllOp, NllTarget};
use crate::ops::storage::Storage;
use crate::ops::{Checked, expect_ids, expect_len};

/// Bytes of the parts that blocks leave, at most.
const PARTS: usize = 1 << 20;
/// Rows of one launch, so that even one part and a logit per row stay within that.
pub(super) const ROWS: usize = 32_768;

/// Bytes of the block of logits' gradients that lies in memory at once.
const GRADIENTS: usize = 16 << 20;

impl<L: Launcher> NllOp for Gpu<L> {
    fn nll_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Buf<L, f32>,
        head: &Matrix<L>,
        picks: &[NllTarget],
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        for (i, picks) in picks.chunks(ROWS).enumerate() {
            let out = self.at(out) + (i * ROWS * size_of::<f32>()) as u64;
            let mut scratch = self.scratch();
            // SAFETY: picks and lengths were checked.
            unsafe { self.score(&mut scratch, width, x, head, picks, out, 0)? };
        }
        Ok(())
    }

    fn nll_bwd_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Buf<L, f32>,
        head: &Matrix<L>,
        across: &Matrix<L>,
        picks: &[NllTarget],
        out: &mut Buf<L, f32>,
        dx: &mut Buf<L, f32>,
    ) -> Result<()> {
        let op = "nll_bwd";
        let vocab = head.outputs;
        let rows = picks.len().min(ROWS_BWD);
        let tile = Tile::of(self.precision);
        // So many ids at a time that the block stays small, in whole tiles.
        let block = GRADIENTS / (rows.max(1) * self.precision.bytes()) / tile.size * tile.size;
        let block = block.clamp(tile.size, vocab.next_multiple_of(tile.size));
        let block_bytes = rows * block * self.precision.bytes();
        let gradients = self.launcher.alloc(block_bytes, false)?;
        let dlogits = self.launcher.address(&gradients);
        let sums = self.zeros::<f32>(rows * width)?;
        let logarithms = self.launcher.alloc(rows * size_of::<f32>(), false)?;
        let lse = self.launcher.address(&logarithms);
        for (i, picks) in picks.chunks(ROWS_BWD).enumerate() {
            let rows = picks.len();
            let out = self.at(out) + (i * ROWS_BWD * size_of::<f32>()) as u64;
            let (order, row_sums) = by_row(picks);
            let mut scratch = self.scratch();
            // SAFETY: picks and lengths were checked; `lse` has a word for each.
            let (operand, target) =
                unsafe { self.score(&mut scratch, width, x, head, picks, out, lse)? };
            let y = self.at(&sums);
            for first in (0..vocab).step_by(block) {
                let count = block.min(vocab - first);
                let inner = self.precision.padded(count);
                let params = NllBwdParams {
                    x: operand.at,
                    w: self.launcher.address(&head.memory),
                    target,
                    lse,
                    out: dlogits,
                    rows: size(op, rows)?,
                    vocab: size(op, vocab)?,
                    ld: size(op, operand.ld)?,
                    first: size(op, first)?,
                    count: size(op, count)?,
                    out_ld: size(op, inner)?,
                };
                let kernel = match self.precision {
                    Precision::Bf16 => "nll_bwd_bf16",
                    Precision::F32 => "nll_bwd_f32",
                };
                let grid = [rows.div_ceil(tile.size), inner.div_ceil(tile.size), 1];
                // SAFETY: both operands have rows of `ld` elements, targets were checked, and the
                // block has room for `rows` rows of `inner`.
                unsafe {
                    self.launch(
                        kernel,
                        LaunchConfig::new(grid, tile.threads).shared(tile.shared),
                        &params,
                    )?
                };
                let from = (first * self.precision.bytes()) as u64;
                let across = across.operand(self);
                let product = Product {
                    x: Operand {
                        at: dlogits,
                        ld: inner,
                    },
                    w: Operand {
                        at: across.at + from,
                        ld: across.ld,
                    },
                    bias: 0,
                    y,
                    rows,
                    columns: width,
                    inner,
                    add: first > 0,
                    precision: self.precision,
                };
                // SAFETY: rows of `across` are filled up as `inner` is; `sums` has the rows.
                unsafe { self.product(&product)? };
            }
            let tables = [
                bytemuck::cast_slice(&order),
                bytemuck::cast_slice(&row_sums),
            ];
            let [order, table] = scratch.table.fill(&self.launcher, tables)?;
            let params = ScatterParams {
                x: self.at(&sums),
                sums: table,
                order,
                out: self.at(dx),
                width: size(op, width)?,
                unused: 0,
            };
            let grid = [row_sums.len(), width.div_ceil(256), 1];
            // SAFETY: every pick's row was checked against dx, and `order` names rows of `sums`.
            unsafe { self.launch("scatter_add", LaunchConfig::new(grid, 256), &params)? };
        }
        Ok(())
    }
}

/// Parts of each row that all rows' have room for beside a logit each.
fn room(rows: usize) -> usize {
    (PARTS - rows * size_of::<f32>()) / (rows * size_of::<NllPart>())
}

/// Tiles of ids of a range: so many that a device that runs `clusters` clusters at once is done soonest with
/// `pairs` pairs of row tiles, in at most `room` ranges. A round of clusters costs about one tile more than it
/// has, for the first copies and the last logits.
///
/// All pairs have the same ranges, so that clusters that run side by side take the same weights from L2.
fn share(pairs: usize, tiles: usize, clusters: usize, room: usize) -> usize {
    let time = |share: &usize| (pairs * tiles.div_ceil(*share)).div_ceil(clusters) * (share + 1);
    let most_ranges = room.min(2 * clusters).max(1);
    let shares = (tiles.div_ceil(most_ranges).max(1)..=tiles.max(1)).rev();
    shares.min_by_key(time).unwrap_or(1)
}

/// Rows of one pass of the backward.
const ROWS_BWD: usize = 4096;

/// The picks in the order of their rows, and for each row that is named the run of it.
fn by_row(picks: &[NllTarget]) -> (Vec<u32>, Vec<RowSum>) {
    let mut order: Vec<u32> = (0..picks.len() as u32).collect();
    order.sort_by_key(|&i| (picks[i as usize].row, i));
    let mut sums: Vec<RowSum> = Vec::new();
    for (at, &i) in (0..).zip(&order) {
        let to = picks[i as usize].row;
        match sums.last_mut() {
            Some(sum) if sum.to == to => sum.count += 1,
            _ => sums.push(RowSum {
                to,
                first: at,
                count: 1,
                unused: 0,
            }),
        }
    }
    (order, sums)
}

impl<L: Launcher> Gpu<L> {
    /// Writes the nll of up to [`ROWS`] picks to the address `out`, and each row's log-sum-exp to `lse` unless
    /// that is 0. Gives the rows as an operand, and the address of the targets; both stay as long as the
    /// scratch is held.
    ///
    /// # Safety
    ///
    /// `x` has every pick's row, the head every target; both addresses have room.
    #[allow(clippy::too_many_arguments)]
    unsafe fn score(
        &self,
        scratch: &mut Scratch<L>,
        width: usize,
        x: &Buf<L, f32>,
        head: &Matrix<L>,
        picks: &[NllTarget],
        out: u64,
        lse: u64,
    ) -> Result<(Operand, u64)> {
        let (from, targets): (Vec<u32>, Vec<u32>) =
            picks.iter().map(|pick| (pick.row, pick.target)).unzip();
        scratch.tiles.clear();
        let tables = [bytemuck::cast_slice(&from), bytemuck::cast_slice(&targets)];
        let at = scratch.table.fill(&self.launcher, tables)?;
        // SAFETY: the caller's promise.
        let operand = unsafe { self.score_at(scratch, width, x, head, at, picks.len(), out, lse)? };
        Ok((operand, at[1]))
    }

    /// The same for rows and targets whose tables lie on the device; an `index` of 0 means the first rows.
    ///
    /// # Safety
    ///
    /// As of [`Gpu::score`]; up to [`ROWS`] rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn score_at(
        &self,
        scratch: &mut Scratch<L>,
        width: usize,
        x: &Buf<L, f32>,
        head: &Matrix<L>,
        [index, target]: [u64; 2],
        rows: usize,
        out: u64,
        lse: u64,
    ) -> Result<Operand> {
        // SAFETY: the caller's promise.
        let (operand, ld) = unsafe { self.pack(&mut *scratch, self.at(x), index, rows, width)? };
        let operand = Operand { at: operand, ld };
        if let Some(maps) = self.hopper_maps(operand, rows, head) {
            // SAFETY: the caller's promise.
            unsafe { self.score_hopper(scratch, maps, ld, head, target, rows, out, lse)? };
            return Ok(operand);
        }
        let tile = Tile::of(self.precision);
        let tiles = head.outputs.div_ceil(tile.size);
        let row_tiles = rows.div_ceil(tile.size);
        let splits = self.splits(row_tiles, tiles, rows);
        // As many as have something to do.
        let splits = tiles.div_ceil(tiles.div_ceil(splits));
        let [parts, logit] = self.parts(&mut scratch.parts, splits, rows)?;
        let params = NllParams {
            x: operand.at,
            w: self.launcher.address(&head.memory),
            target,
            parts,
            logit,
            rows: size("nll", rows)?,
            vocab: size("nll", head.outputs)?,
            ld: size("nll", ld)?,
            splits: size("nll", splits)?,
        };
        let kernel = match self.precision {
            Precision::Bf16 => "nll_bf16",
            Precision::F32 => "nll_f32",
        };
        let grid = [row_tiles, splits, 1];
        // SAFETY: the caller's promise of the targets; both operands have rows of `ld` elements, and
        // parts and logits were made for these rows and splits.
        unsafe {
            self.launch(
                kernel,
                LaunchConfig::new(grid, tile.threads).shared(tile.shared),
                &params,
            )?
        };
        // SAFETY: the caller's promise of the output.
        unsafe { self.merge([parts, logit, out, lse], rows, splits)? };
        Ok(operand)
    }

    /// Maps of both operands for `nll90`, where the device runs it.
    fn hopper_maps(
        &self,
        operand: Operand,
        rows: usize,
        head: &Matrix<L>,
    ) -> Option<[TensorMap; 2]> {
        if self.precision != Precision::Bf16 || rows == 0 {
            return None;
        }
        // A block takes its tile's rows at once, and ids in two halves, one of each block of the cluster.
        let size = [abi::NLL90_ROWS, abi::NLL90_K];
        let map = |matrix: Operand, rows| {
            let columns = matrix.ld;
            self.launcher.box_map(&Boxed {
                matrix,
                rows,
                columns,
                size,
            })
        };
        let words = [map(operand, rows)?, map(head.operand(self), head.outputs)?];
        Some(words.map(|words| TensorMap { words }))
    }

    /// [`Gpu::score_at`] by `nll90`.
    ///
    /// # Safety
    ///
    /// As of [`Gpu::score_at`]; the maps are of both operands, with rows of `ld`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn score_hopper(
        &self,
        scratch: &mut Scratch<L>,
        [x, w]: [TensorMap; 2],
        ld: usize,
        head: &Matrix<L>,
        target: u64,
        rows: usize,
        out: u64,
        lse: u64,
    ) -> Result<()> {
        let tiles = head.outputs.div_ceil(abi::NLL90_IDS as usize);
        let cluster = abi::NLL90_CLUSTER as usize;
        let row_tiles = rows
            .div_ceil(abi::NLL90_ROWS as usize)
            .next_multiple_of(cluster);
        let clusters = (self.launcher.processors() as usize / cluster).max(1);
        let share = share(row_tiles / cluster, tiles, clusters, room(rows));
        let ranges = tiles.div_ceil(share);
        let [parts, logit] = self.parts(&mut scratch.parts, ranges, rows)?;
        let params = Nll90Params {
            x,
            w,
            target,
            parts,
            logit,
            rows: size("nll", rows)?,
            vocab: size("nll", head.outputs)?,
            ld: size("nll", ld)?,
            share: size("nll", share)?,
            unused: [0; 6],
        };
        let config = LaunchConfig {
            cluster: [abi::NLL90_CLUSTER, 1, 1],
            ..LaunchConfig::new([row_tiles, ranges, 1], abi::NLL90_THREADS)
                .shared(abi::NLL90_SHARED as usize)
        };
        // SAFETY: the caller's promise of the targets and of the maps; parts and logits were made for these
        // rows and ranges.
        unsafe { self.launch("nll90", config, &params)? };
        // SAFETY: the caller's promise of the output.
        unsafe { self.merge([parts, logit, out, lse], rows, ranges) }
    }

    /// `out[row] = -ln softmax(logits[row])[targets[row]]` for logits `[rows, vocab]` that exist
    /// already.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for short buffers, [`Error::Input`] for a target outside the vocabulary.
    pub fn nll_of_logits(
        &self,
        vocab: usize,
        logits: &Buf<L, f32>,
        targets: &[u32],
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let rows = targets.len();
        expect_len("nll", "the logits", rows * vocab, logits.len)?;
        expect_len("nll", "the output", rows, out.len)?;
        expect_ids(targets.iter().copied(), vocab)?;
        for (i, targets) in targets.chunks(ROWS).enumerate() {
            let rows = targets.len();
            let splits = self.splits(rows, vocab.div_ceil(4096), rows);
            let mut scratch = self.scratch();
            scratch.tiles.clear();
            let [target] = scratch
                .table
                .fill(&self.launcher, [bytemuck::cast_slice(targets)])?;
            let [parts, logit] = self.parts(&mut scratch.parts, splits, rows)?;
            let params = NllLogitsParams {
                logits: self.at(logits) + (i * ROWS * vocab * size_of::<f32>()) as u64,
                target,
                parts,
                logit,
                rows: size("nll", rows)?,
                vocab: size("nll", vocab)?,
                ld: size("nll", vocab)?,
                splits: size("nll", splits)?,
            };
            // SAFETY: lengths and targets were checked.
            unsafe {
                self.launch(
                    "nll_logits",
                    LaunchConfig::new([rows, splits, 1], 256).shared(256 * 8),
                    &params,
                )?
            };
            let out = self.at(out) + (i * ROWS * size_of::<f32>()) as u64;
            // SAFETY: the output's length was checked.
            unsafe { self.merge([parts, logit, out, 0], rows, splits)? };
        }
        Ok(())
    }

    /// Shares of the vocabulary that fill the device twice, as far as parts may take memory.
    fn splits(&self, blocks: usize, tiles: usize, rows: usize) -> usize {
        let fill = (2 * self.launcher.processors() as usize / blocks).max(1);
        fill.min(tiles).min(room(rows)).max(1)
    }

    /// Addresses of the parts and of the logits.
    fn parts(&self, slot: &mut super::Slot<L>, splits: usize, rows: usize) -> Result<[u64; 2]> {
        let parts = splits * rows * size_of::<NllPart>();
        let address = slot.reserve(&self.launcher, parts + rows * size_of::<f32>())?;
        Ok([address, address + parts as u64])
    }

    /// # Safety
    ///
    /// Parts, logits and output are as long as `rows` and `splits` say.
    unsafe fn merge(
        &self,
        [parts, logit, out, lse]: [u64; 4],
        rows: usize,
        splits: usize,
    ) -> Result<()> {
        let params = NllMergeParams {
            parts,
            logit,
            out,
            lse,
            rows: size("nll", rows)?,
            splits: size("nll", splits)?,
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.launch(
                "nll_merge",
                LaunchConfig::new([rows.div_ceil(8), 1, 1], 256),
                &params,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{room, share};

    #[test]
    fn ranges_fill_the_device() {
        // An H200 has 66 clusters; SmolLM2 192 tiles, Llama 3 501.
        for (rows, tiles, want) in [
            // One pair: 64 of 66 clusters have 3 tiles each.
            (200, 192, 3),
            // 8 pairs, 8 ranges.
            (2000, 192, 24),
            (2000, 501, 63),
            // 32 pairs, 2 ranges.
            (8192, 501, 251),
            // More clusters than one tile of ids can use.
            (2000, 1, 1),
            // 128 pairs: two rounds of clusters without a split.
            (32_768, 192, 192),
        ] {
            let pairs = usize::div_ceil(rows, 256);
            let share = share(pairs, tiles, 66, room(rows));
            assert_eq!(share, want, "{rows} rows, {tiles} tiles");
        }
        assert_eq!(share(3, 7, 1, 100), 7);
    }

    #[test]
    fn ranges_are_no_more_than_their_parts_have_room_for() {
        for rows in [1, 255, 17_000, 20_000, super::ROWS] {
            let pairs = usize::div_ceil(rows, 256);
            let ranges = usize::div_ceil(192, share(pairs, 192, 66, room(rows)));
            assert!(
                rows * (8 * ranges + 4) <= super::PARTS,
                "{rows} rows, {ranges} ranges"
            );
        }
        // Without that limit there would be more.
        assert!(share(67, 192, 66, usize::MAX) < share(67, 192, 66, room(17_000)));
    }
}
