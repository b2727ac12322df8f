//! Low-rank updates by `kernels/lora.cu`.

use super::abi::{self, LoraBwdParams, LoraGradient, LoraParams, LoraSpan};
use super::gemm::Matrix;
use super::{Buf, Gpu, LaunchConfig, Launcher, Operand, Precision, size};
use crate::error::Result;
use crate::ops::layer::Dropout;
use crate::ops::lora::{LoraFactors, LoraOp, LoraPart, LoraUpdate};
use crate::ops::{Checked, Storage};

/// What the kernel's shared memory is made of, in the backend's precision.
#[derive(Clone, Copy)]
struct Tile {
    /// Ranks of a piece of what lies between the products.
    step: usize,
    /// Bytes of such a piece.
    low: usize,
    /// Bytes of the stages.
    stages: usize,
    /// Elements in 16 bytes.
    aligned: usize,
    /// Ranks of a launch whose spans go to the same columns, so that no device lacks the memory.
    ranks: usize,
}

impl Tile {
    fn of(precision: Precision) -> Self {
        let rows = abi::LORA_ROWS as usize;
        let (step, x_pitch, pitch, ranks) = match precision {
            Precision::Bf16 => (
                abi::LORA_STEP_BF16,
                abi::LORA_X_PITCH_BF16,
                abi::LORA_PITCH_BF16,
                320,
            ),
            Precision::F32 => (
                abi::LORA_STEP_F32,
                abi::LORA_X_PITCH_F32,
                abi::LORA_PITCH_F32,
                192,
            ),
        };
        let (pitch, bytes) = (pitch as usize, precision.bytes());
        let stage = rows * x_pitch as usize * 4 + abi::LORA_TILE as usize * pitch * bytes;
        Tile {
            step: step as usize,
            low: rows * pitch * bytes,
            stages: abi::LORA_STAGES as usize * stage,
            aligned: 16 / bytes,
            ranks,
        }
    }

    /// Ranks from a multiple of 16 bytes on, to the last of the spans.
    fn ranks_of(self, spans: &[LoraSpan]) -> usize {
        let first = spans.first().map_or(0, |span| span.rank as usize);
        let end = spans
            .last()
            .map_or(0, |span| (span.rank + span.ranks) as usize);
        end - first / self.aligned * self.aligned
    }

    /// Bytes of shared memory for spans that go through one block.
    fn shared(self, spans: &[LoraSpan]) -> usize {
        self.stages + self.ranks_of(spans).div_ceil(self.step) * self.low
    }
}

/// An operand in f32 whose rows begin at multiples of 16 bytes.
struct Aligned<M> {
    at: u64,
    ld: usize,
    /// Of its own, where it had to be made.
    _memory: Option<M>,
}

/// Pieces of a part that a launch can take: at most so many ranks.
fn pieces(part: &LoraPart) -> impl Iterator<Item = LoraPart> {
    let (part, max) = (*part, abi::LORA_TILE as usize);
    (0..part.ranks).step_by(max).map(move |first| LoraPart {
        rank: part.rank + first,
        ranks: max.min(part.ranks - first),
        ..part
    })
}

impl<L: Launcher> LoraOp for Gpu<L> {
    fn lora_checked(
        &self,
        _: Checked,
        shape: &LoraUpdate<'_>,
        x: &Buf<L, f32>,
        a: &Matrix<L>,
        b: &Matrix<L>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        let op = "lora";
        if shape.rows == 0 {
            return Ok(());
        }
        let x = self.aligned(op, x, shape.rows, shape.inputs)?;
        // Pieces of one part go to the same columns: one launch after the other.
        let pieces: Vec<Vec<LoraPart>> = shape
            .parts
            .iter()
            .map(|part| pieces(part).collect())
            .collect();
        let launches = pieces.iter().map(Vec::len).max().unwrap_or(0);
        for launch in 0..launches {
            let now: Vec<LoraPart> = pieces
                .iter()
                .filter_map(|of| of.get(launch).copied())
                .collect();
            for parts in now.chunks(abi::LORA_SPANS as usize) {
                let spans = parts
                    .iter()
                    .map(|part| span(op, [0, shape.inputs], part, None));
                let update = Update {
                    x: &x,
                    a: a.operand(self),
                    b: Some((b.operand(self), self.at(y), shape.outputs)),
                    low: None,
                    spans: spans.collect::<Result<_>>()?,
                    to_first_span: false,
                    drops: 1,
                };
                // SAFETY: lengths were checked.
                unsafe { self.update(op, shape, update)? };
            }
        }
        Ok(())
    }

    fn lora_bwd_checked(
        &self,
        _: Checked,
        shape: &LoraUpdate<'_>,
        factors: &LoraFactors<'_, Matrix<L>>,
        x: &Buf<L, f32>,
        dy: &Buf<L, f32>,
        dx: Option<&mut Buf<L, f32>>,
        gradients: &mut [Option<[&mut Buf<L, f32>; 2]>],
    ) -> Result<()> {
        let op = "lora_bwd";
        let &LoraUpdate {
            rows,
            inputs,
            outputs,
            parts,
            ..
        } = shape;
        if rows == 0 {
            for (part, gradients) in parts.iter().zip(gradients) {
                if let Some([da, db]) = gradients {
                    self.clear(da, 0..part.ranks * inputs)?;
                    self.clear(db, 0..part.ranks * part.outputs)?;
                }
            }
            return Ok(());
        }
        let x = self.aligned(op, x, rows, inputs)?;
        let dy = self.aligned(op, dy, rows, outputs)?;
        let dx = dx.map(|dx| self.at(dx));

        let tile = Tile::of(self.precision);
        let widest = parts.iter().flat_map(pieces).map(|piece| piece.ranks).max();
        // What lies between the products, of all spans of a launch: forward, then backward.
        let low_ld = widest.unwrap_or(0).next_multiple_of(4);
        let of_span = rows * low_ld * size_of::<f32>();
        let between = self
            .launcher
            .alloc(2 * abi::LORA_SPANS as usize * of_span, false)?;
        let low = self.launcher.address(&between);
        let dlow = low + (abi::LORA_SPANS as usize * of_span) as u64;

        let all: Vec<(usize, LoraPart)> = (0..)
            .zip(parts)
            .flat_map(|(i, part)| pieces(part).map(move |piece| (i, piece)))
            .collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            // As many as one launch takes.
            let mut spans = Vec::new();
            for (_, piece) in rest.iter().take(abi::LORA_SPANS as usize) {
                let from = [piece.output, piece.outputs];
                spans.push(span(op, from, piece, Some(inputs))?);
                if spans.len() > 1 && tile.ranks_of(&spans) > tile.ranks {
                    spans.pop();
                    break;
                }
            }
            let (now, later) = rest.split_at(spans.len());
            rest = later;
            let forward = now
                .iter()
                .map(|(_, piece)| span(op, [0, inputs], piece, None));
            let forward = Update {
                x: &x,
                a: factors.a.operand(self),
                b: None,
                low: Some((low, low_ld)),
                spans: forward.collect::<Result<_>>()?,
                to_first_span: false,
                drops: 1,
            };
            let backward = Update {
                x: &dy,
                a: factors.b_across.operand(self),
                b: dx.map(|dx| (factors.a_across.operand(self), dx, inputs)),
                low: Some((dlow, low_ld)),
                spans,
                to_first_span: dx.is_some(),
                drops: 2,
            };
            // SAFETY: lengths were checked, and `between` was made for so many spans.
            unsafe {
                self.update(op, shape, forward)?;
                self.update(op, shape, backward)?;
            }

            let mut jobs = Vec::new();
            for (s, (i, piece)) in now.iter().enumerate() {
                let Some(Some([da, db])) = gradients.get(*i) else {
                    continue;
                };
                let first = piece.rank - parts[*i].rank;
                let word = size_of::<f32>();
                jobs.push(LoraGradient {
                    narrow: dlow + (s * of_span) as u64,
                    wide: x.at,
                    out: self.at(da) + (first * inputs * word) as u64,
                    ranks: size(op, piece.ranks)?,
                    wide_ld: size(op, x.ld)?,
                    out_ld: size(op, inputs)?,
                    first: 0,
                    count: size(op, inputs)?,
                    across: 0,
                    drops: shape.dropout.is_some().into(),
                    unused: 0,
                });
                jobs.push(LoraGradient {
                    narrow: low + (s * of_span) as u64,
                    wide: dy.at,
                    out: self.at(db) + (first * word) as u64,
                    ranks: size(op, piece.ranks)?,
                    wide_ld: size(op, dy.ld)?,
                    out_ld: size(op, parts[*i].ranks)?,
                    first: size(op, piece.output)?,
                    count: size(op, piece.outputs)?,
                    across: 1,
                    drops: 0,
                    unused: 0,
                });
            }
            // SAFETY: lengths were checked; `between` was filled just before.
            unsafe { self.gradients(op, shape, &jobs, low_ld)? };
        }
        Ok(())
    }
}

/// One launch of `lora_*`.
struct Update<'a, M> {
    x: &'a Aligned<M>,
    a: Operand,
    /// The second factor, where its product goes, and the width of that; none: it ends with `low`.
    b: Option<(Operand, u64, usize)>,
    /// Where what lies between the products goes, and its width.
    low: Option<(u64, usize)>,
    spans: Vec<LoraSpan>,
    to_first_span: bool,
    drops: u32,
}

/// The span of a piece that adds up the columns `from` of x, to its own outputs or to all of `whole`.
fn span(
    op: &'static str,
    [from, width]: [usize; 2],
    piece: &LoraPart,
    whole: Option<usize>,
) -> Result<LoraSpan> {
    let (first, count) = match whole {
        Some(width) => (0, width),
        None => (piece.output, piece.outputs),
    };
    Ok(LoraSpan {
        from: size(op, from)?,
        width: size(op, width)?,
        rank: size(op, piece.rank)?,
        ranks: size(op, piece.ranks)?,
        first: size(op, first)?,
        count: size(op, count)?,
    })
}

impl<L: Launcher> Gpu<L> {
    /// Rows that the kernel can copy: as they are, or filled up.
    fn aligned(
        &self,
        op: &'static str,
        x: &Buf<L, f32>,
        rows: usize,
        width: usize,
    ) -> Result<Aligned<L::Memory>> {
        if width.is_multiple_of(4) {
            return Ok(Aligned {
                at: self.at(x),
                ld: width,
                _memory: None,
            });
        }
        let ld = width.next_multiple_of(4);
        let memory = self.launcher.alloc(rows * ld * size_of::<f32>(), false)?;
        let params = abi::PackParams {
            x: self.at(x),
            index: 0,
            out: self.launcher.address(&memory),
            rows: size(op, rows)?,
            width: size(op, width)?,
            ld: size(op, ld)?,
            stride: size(op, width)?,
        };
        let grid = [rows, ld.div_ceil(1024), 1];
        // SAFETY: x has the rows; the memory was made for them.
        unsafe { self.launch("pack_f32", LaunchConfig::new(grid, 256), &params)? };
        Ok(Aligned {
            at: params.out,
            ld,
            _memory: Some(memory),
        })
    }

    /// # Safety
    ///
    /// All addresses have what the shape and the spans say.
    unsafe fn update(
        &self,
        op: &'static str,
        shape: &LoraUpdate<'_>,
        update: Update<'_, L::Memory>,
    ) -> Result<()> {
        let max = abi::LORA_TILE as usize;
        let row_tiles = shape.rows.div_ceil(abi::LORA_ROWS as usize);
        let tile = Tile::of(self.precision);
        let spans = &update.spans;
        let columns: usize = match update.to_first_span {
            true => spans[0].count as usize,
            false => spans.iter().map(|span| span.count as usize).sum(),
        };
        // As many runs as fill the device once: each makes the first product anew.
        let shares = (self.launcher.processors() as usize / row_tiles).max(1);
        let run = columns.div_ceil(shares).next_multiple_of(max);
        let (units, run) = match (&update.b, update.to_first_span) {
            (None, _) => (spans.len(), 0),
            (Some(_), true) => (columns.div_ceil(run), run),
            (Some(_), false) => {
                let runs = spans.iter().map(|span| (span.count as usize).div_ceil(run));
                (runs.sum(), run)
            }
        };
        let shared = match (&update.b, update.to_first_span) {
            (None, _) => tile.stages,
            (Some(_), true) => tile.shared(spans),
            (Some(_), false) => {
                let each = spans
                    .iter()
                    .map(|span| tile.shared(std::slice::from_ref(span)));
                each.max().unwrap_or(0)
            }
        };
        let none = Operand { at: 0, ld: 0 };
        let (b, y, y_ld) = update.b.unwrap_or((none, 0, 0));
        let (low, low_ld) = update.low.unwrap_or((0, 0));
        let drops = Drops::of(shape.drops());
        let kept = match update.drops {
            1 => drops.scale,
            _ => 1.0,
        };
        let mut all = [LoraSpan::default(); abi::LORA_SPANS as usize];
        all[..spans.len()].copy_from_slice(spans);
        let params = LoraParams {
            x: update.x.at,
            a: update.a.at,
            b: b.at,
            y,
            low,
            spans: all,
            rows: size(op, shape.rows)?,
            x_ld: size(op, update.x.ld)?,
            a_ld: size(op, update.a.ld)?,
            b_ld: size(op, b.ld)?,
            y_ld: size(op, y_ld)?,
            low_ld: size(op, low_ld)?,
            count: size(op, spans.len())?,
            run: size(op, run)?,
            to_first_span: update.to_first_span.into(),
            drops: if drops.any { update.drops } else { 0 },
            width: size(op, shape.inputs)?,
            threshold: drops.threshold,
            seed_low: drops.seed as u32,
            seed_high: (drops.seed >> 32) as u32,
            scale: drops.scale,
            kept,
        };
        let kernel = match self.precision {
            Precision::Bf16 => "lora_bf16",
            Precision::F32 => "lora_f32",
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.launch(
                kernel,
                LaunchConfig::new([row_tiles, units, 1], abi::LORA_THREADS).shared(shared),
                &params,
            )
        }
    }

    /// # Safety
    ///
    /// All addresses have what the shape and the jobs say.
    unsafe fn gradients(
        &self,
        op: &'static str,
        shape: &LoraUpdate<'_>,
        jobs: &[LoraGradient],
        low_ld: usize,
    ) -> Result<()> {
        let Some(widest) = jobs.iter().map(|job| job.first % 4 + job.count).max() else {
            return Ok(());
        };
        let drops = Drops::of(shape.drops());
        let mut gradients = [LoraGradient::default(); 2 * abi::LORA_SPANS as usize];
        gradients[..jobs.len()].copy_from_slice(jobs);
        let params = LoraBwdParams {
            gradients,
            rows: size(op, shape.rows)?,
            narrow_ld: size(op, low_ld)?,
            width: size(op, shape.inputs)?,
            threshold: drops.threshold,
            seed_low: drops.seed as u32,
            seed_high: (drops.seed >> 32) as u32,
            scale: drops.scale,
            unused: 0,
        };
        let kernel = match self.precision {
            Precision::Bf16 => "lora_bwd_bf16",
            Precision::F32 => "lora_bwd_f32",
        };
        let row = (abi::LORA_NARROW_PITCH + abi::LORA_WIDE_PITCH) as usize * size_of::<f32>();
        let shared = (abi::LORA_STAGES * abi::LORA_ROWS) as usize * row;
        let grid = [widest.div_ceil(abi::LORA_WIDE) as usize, jobs.len(), 1];
        // SAFETY: the caller's promise.
        unsafe {
            self.launch(
                kernel,
                LaunchConfig::new(grid, abi::LORA_THREADS).shared(shared),
                &params,
            )
        }
    }
}

/// Dropout as kernels take it.
struct Drops {
    any: bool,
    threshold: u32,
    seed: u64,
    scale: f32,
}

impl Drops {
    fn of(shape: Option<Dropout>) -> Self {
        Drops {
            any: shape.is_some(),
            threshold: shape.map_or(0, |shape| shape.threshold()),
            seed: shape.map_or(0, |shape| shape.seed),
            scale: shape.map_or(1.0, |shape| 1.0 / (1.0 - shape.rate)),
        }
    }
}
