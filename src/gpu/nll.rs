//! Negative log-likelihoods by `kernels/nll.cu`.

use super::abi::{self, NllLogitsParams, NllMergeParams, NllParams, NllPart};
use super::gemm::{Matrix, Tile};
use super::{Buf, Gpu, Launcher, Precision, size, unbuilt};
use crate::error::{Error, Result};
use crate::ops::expect_len;
use crate::ops::nll::{NllOp, Pick};

/// Bytes of the parts that blocks leave, at most.
const PARTS: usize = 1 << 20;
/// Rows of one launch, so that even one part and a logit per row stay within that.
const ROWS: usize = 32_768;

impl<L: Launcher> NllOp for Gpu<L> {
    fn nll(
        &self,
        width: usize,
        x: &Buf<L, f32>,
        head: &Matrix<L>,
        picks: &[Pick],
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        if head.inputs != width {
            return Err(Error::Shape {
                op: "nll",
                want: format!("a head of width {width}"),
                got: head.inputs.to_string(),
            });
        }
        expect_len("nll", "the output", picks.len(), out.len)?;
        for pick in picks {
            expect_len("nll", "x", (pick.row as usize + 1) * width, x.len)?;
            check_target(pick.target, head.outputs)?;
        }
        let tile = Tile::of(self.precision);
        let tiles = head.outputs.div_ceil(tile.size);
        for (i, picks) in picks.chunks(ROWS).enumerate() {
            let rows = picks.len();
            let row_tiles = rows.div_ceil(tile.size);
            let splits = self.splits(row_tiles, tiles, rows);
            // As many as have something to do.
            let splits = tiles.div_ceil(tiles.div_ceil(splits));
            let (from, targets): (Vec<u32>, Vec<u32>) =
                picks.iter().map(|pick| (pick.row, pick.target)).unzip();
            let mut scratch = self.scratch();
            scratch.tiles.clear();
            let tables = [bytemuck::cast_slice(&from), bytemuck::cast_slice(&targets)];
            let [index, target] = scratch.table.fill(&self.launcher, tables)?;
            // SAFETY: every pick's row was checked.
            let (operand, ld) =
                unsafe { self.pack(&mut scratch.operand, self.at(x), index, rows, width)? };
            let [parts, logit] = self.parts(&mut scratch.parts, splits, rows)?;
            let params = NllParams {
                x: operand,
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
            // SAFETY: targets were checked; both operands have rows of `ld` elements, and parts and
            // logits were made for these rows and splits.
            unsafe { self.launch(kernel, grid, abi::TILE_THREADS, tile.shared, &params)? };
            let out = self.at(out) + (i * ROWS * size_of::<f32>()) as u64;
            // SAFETY: the output's length was checked.
            unsafe { self.merge([parts, logit, out], rows, splits)? };
        }
        Ok(())
    }

    // No kernel for training yet.
    fn nll_bwd(
        &self,
        _: usize,
        _: &Buf<L, f32>,
        _: &Matrix<L>,
        _: &Matrix<L>,
        _: &[Pick],
        _: &mut Buf<L, f32>,
        _: &mut Buf<L, f32>,
    ) -> Result<()> {
        unbuilt("nll_bwd")
    }
}

fn check_target(target: u32, vocab: usize) -> Result<()> {
    if (target as usize) < vocab {
        return Ok(());
    }
    Err(Error::input(
        format!("token id {target}"),
        format!("the model has {vocab} ids"),
    ))
}

impl<L: Launcher> Gpu<L> {
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
        for &target in targets {
            check_target(target, vocab)?;
        }
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
            unsafe { self.launch("nll_logits", [rows, splits, 1], 256, 256 * 8, &params)? };
            let out = self.at(out) + (i * ROWS * size_of::<f32>()) as u64;
            // SAFETY: the output's length was checked.
            unsafe { self.merge([parts, logit, out], rows, splits)? };
        }
        Ok(())
    }

    /// Shares of the vocabulary that fill the device twice, as far as parts may take memory.
    fn splits(&self, blocks: usize, tiles: usize, rows: usize) -> usize {
        let fill = (2 * self.launcher.processors() as usize / blocks).max(1);
        let room = (PARTS - rows * size_of::<f32>()) / (rows * size_of::<NllPart>());
        fill.min(tiles).min(room).max(1)
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
        [parts, logit, out]: [u64; 3],
        rows: usize,
        splits: usize,
    ) -> Result<()> {
        let params = NllMergeParams {
            parts,
            logit,
            out,
            rows: size("nll", rows)?,
            splits: size("nll", splits)?,
        };
        // SAFETY: the caller's promise.
        unsafe { self.launch("nll_merge", [rows.div_ceil(256), 1, 1], 256, 0, &params) }
    }
}
