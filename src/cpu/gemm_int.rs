//! Estimates of matrix products: weights and activations in 8 bits, their dot products in integers.
//!
//! A block is 64 steps of the inner dimension. Weights and activations are `scale · code` with codes in
//! -127..=127, one scale per block and column or row. The codes are the same on every machine, and the
//! integer sums are exact, so that two machines differ by the rounding of their f32 arithmetic only.
//!
//! AVX2 multiplies unsigned by signed bytes and adds two products into a saturating 16-bit lane. So an
//! activation's code lies 128 higher in memory, a sum begins at what that adds to it, and the scale of a
//! weight block is chosen so that four products that meet in a lane (those of steps `h`, `h + 16`,
//! `h + 32` and `h + 48`) never exceed 16 bits: the weights' codes of either sign add up to at most 128,
//! and `255 · 128 < 2¹⁵`. Weights drawn from a normal distribution keep about 7.3 bits by that. At worst,
//! where weights of a block are all of one size, they keep 6, and such weights are coded exactly.
//!
//! The error is that of rounding, about one percent of a product: enough to compare texts by their
//! likelihood, too much to agree with another program in the fourth digit. Nothing here is used unless
//! an estimate was asked for.

pub(super) mod codes;
pub(super) mod dot;

use rayon::prelude::*;

use super::device::{Cpu, in_batches};
use super::gemm::Split;
use super::pages::Pages;
use super::panels::Panels;
use super::simd::simd_fn;
use crate::error::Result;
use crate::ops::gemm::Linear;

use codes::{Activations, BLOCK, CODES, SCALES, STARTS, WORDS};
use dot::{Dot, Operands, Task, with_kernel};

/// 16-bit lanes in which products of a block meet, four each.
const LANES: usize = BLOCK / 4;
/// What an activation's code lies higher in memory.
const OFFSET: i16 = 128;
/// Bound of the sum of the codes of either sign that meet in a 16-bit lane.
const LANE_SUM: f32 = 128.0;

impl Cpu {
    /// `x`, rows of `w.inputs`, and `w` as codes; `None` where the machine or the matrix has none.
    /// `scratch` will hold the codes of `x`.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Device`] without memory for the codes of `w`.
    pub(super) fn operands<'a>(
        &self,
        x: &[f32],
        w: &'a Panels,
        scratch: &'a mut Vec<f32>,
    ) -> Result<Option<Operands<'a>>> {
        let Some(kernel) = self.kernel.filter(|_| w.width == self.tile.columns) else {
            return Ok(None);
        };
        let blocks = w.inputs.div_ceil(BLOCK);
        let floats = x.len() / w.inputs * blocks * WORDS;
        if scratch.len() < floats {
            scratch.resize(floats, 0.0);
        }
        let codes: &mut [Activations] = bytemuck::cast_slice_mut(&mut scratch[..floats]);
        codes
            .par_chunks_exact_mut(blocks)
            .zip(x.par_chunks_exact(w.inputs))
            .with_min_len((16_384 / w.inputs).max(1))
            .for_each(|(codes, x)| encode(self.arch, x, codes));
        if w.codes.0.get().is_none() {
            // Made before the cell is locked: a thread of the pool that waits in here may take up other
            // work, and that may want the same codes.
            let made = self.encode_panels(w)?;
            w.codes.0.get_or_init(|| made);
        }
        Ok(Some(Operands {
            kernel,
            weights: w.codes.0.get().map_or(&[][..], Pages::get),
            x: codes,
            blocks,
        }))
    }

    fn encode_panels(&self, w: &Panels) -> Result<Pages<u32>> {
        let words = w.inputs.div_ceil(BLOCK) * (CODES + 2) * w.width;
        let mut pages: Pages<u32> = Pages::zeros(w.count() * words)?;
        pages
            .get_mut()
            .par_chunks_exact_mut(words)
            .enumerate()
            .for_each_init(Vec::new, |rows, (p, panel)| {
                w.read_panel(p, rows);
                encode_panel(self.arch, rows, w.inputs, w.width, panel);
            });
        Ok(pages)
    }

    /// [`crate::ops::GemmOp::estimate`]; the operands are checked already. False where it cannot be done.
    pub(super) fn linear_codes(
        &self,
        shape: Linear,
        x: &[f32],
        w: &Panels,
        bias: &[f32],
        y: &mut [f32],
    ) -> Result<bool> {
        let mut scratch = self.scratch(0);
        let x = &x[..shape.rows * shape.inputs];
        let Some(operands) = self.operands(x, w, &mut scratch.data)? else {
            return Ok(false);
        };
        let split = Split::new(self, shape.rows, shape.inputs, w.count());
        let group_columns = split.group_panels * w.width;
        let blocks = shape.rows.div_ceil(split.block_rows);
        let groups = shape.outputs.div_ceil(group_columns);
        let mut tasks = Vec::with_capacity(groups * blocks);
        for i in 0..groups * blocks {
            tasks.push(Task {
                operands,
                panel: i / blocks * split.group_panels,
                row: i % blocks * split.block_rows,
                bias,
                add: shape.add,
                y: Vec::with_capacity(split.block_rows),
            });
        }
        let rows = y[..shape.rows * shape.outputs].chunks_exact_mut(shape.outputs);
        for (row, y) in rows.enumerate() {
            for (group, y) in y.chunks_mut(group_columns).enumerate() {
                tasks[group * blocks + row / split.block_rows].y.push(y);
            }
        }
        let flop = 2 * shape.rows * shape.inputs * shape.outputs;
        in_batches(tasks, flop, |tasks| {
            tasks
                .into_par_iter()
                .for_each(|task| with_kernel!(operands.kernel, dot => dot.linear(task)));
        })?;
        Ok(true)
    }
}

simd_fn! {
    /// Codes of a row; those that are missing in the last block are zero.
    fn encode<'a, S>(_s, x: &'a [f32], out: &'a mut [Activations]) {
        for (x, out) in x.chunks(BLOCK).zip(out) {
            let x = whole_block(x);
            let scale = largest(&x) / 127.0;
            let codes = codes_of(&x, scale);
            *out = Activations { codes: words_of(&codes, OFFSET), scale };
        }
    }
}

simd_fn! {
    /// Codes of the rows of a matrix, which are columns of a panel of that width; those that are
    /// missing in the last block are zero.
    fn encode_panel<'a, S>(
        _s,
        rows: &'a [f32],
        inputs: usize,
        width: usize,
        panel: &'a mut [u32],
    ) {
        for (column, row) in rows.chunks_exact(inputs).enumerate() {
            let blocks = panel.chunks_exact_mut((CODES + 2) * width);
            for (x, block) in row.chunks(BLOCK).zip(blocks) {
                let (codes, scale) = weight_codes(&whole_block(x));
                let words = words_of(&codes, 0);
                for (word, row) in words.iter().zip(block.chunks_exact_mut(width)) {
                    row[column] = *word;
                }
                // At most 64 · 127.
                let mut sum = 0i16;
                for code in codes {
                    sum = sum.wrapping_add(code);
                }
                block[SCALES * width + column] = scale.to_bits();
                block[STARTS * width + column] = (-i32::from(OFFSET) * i32::from(sum)) as u32;
            }
        }
    }
}

/// Codes of a block of weights and their scale, such that what meets in a 16-bit lane fits it.
#[inline(always)]
fn weight_codes(x: &[f32; BLOCK]) -> ([i16; BLOCK], f32) {
    let (mut sizes, mut sums) = ([0.0f32; LANES], [0.0f32; LANES]);
    for part in x.as_chunks::<LANES>().0 {
        for h in 0..LANES {
            sizes[h] += part[h].abs();
            sums[h] += part[h];
        }
    }
    // Half of it is the larger of the sums of either sign.
    let mut max = 0.0f32;
    for h in 0..LANES {
        max = max.max(sizes[h] + sums[h].abs());
    }
    let largest = largest(x);
    if !largest.is_finite() {
        // A maximum would pass over what is not a number. The codes do not matter.
        return ([0; BLOCK], largest);
    }
    let scale = (largest / 127.0).max(max / (2.0 * LANE_SUM));
    let codes = codes_of(x, scale);
    if lanes_fit(&codes) {
        return (codes, scale);
    }
    // Four roundings add two at most.
    let scale = scale.max(max / (2.0 * LANE_SUM - 4.0));
    (codes_of(x, scale), scale)
}

/// Whether the codes of either sign that meet in a lane add up to no more than [`LANE_SUM`].
#[inline(always)]
fn lanes_fit(codes: &[i16; BLOCK]) -> bool {
    let (mut sizes, mut sums) = ([0i16; LANES], [0i16; LANES]);
    for part in codes.as_chunks::<LANES>().0 {
        for h in 0..LANES {
            sizes[h] = sizes[h].wrapping_add(part[h].wrapping_abs());
            sums[h] = sums[h].wrapping_add(part[h]);
        }
    }
    let mut max = 0;
    for h in 0..LANES {
        max = max.max(sizes[h].wrapping_add(sums[h].wrapping_abs()));
    }
    max <= 2 * LANE_SUM as i16
}

/// Up to a block of values, followed by zeros.
#[inline(always)]
fn whole_block(x: &[f32]) -> [f32; BLOCK] {
    match x.first_chunk() {
        Some(values) => *values,
        None => {
            let mut values = [0.0; BLOCK];
            values[..x.len()].copy_from_slice(x);
            values
        }
    }
}

/// The largest absolute value, infinity above all numbers, and above it what is not a number.
#[inline(always)]
fn largest(x: &[f32; BLOCK]) -> f32 {
    let mut largest = [0u32; LANES];
    for part in x.as_chunks::<LANES>().0 {
        for h in 0..LANES {
            largest[h] = largest[h].max(part[h].to_bits() & 0x7fff_ffff);
        }
    }
    let mut all = 0;
    for bits in largest {
        all = all.max(bits);
    }
    f32::from_bits(all)
}

/// `x / scale`, rounded to the nearest, ties to even.
#[inline(always)]
fn codes_of(x: &[f32; BLOCK], scale: f32) -> [i16; BLOCK] {
    // Adding it rounds to an integer and leaves that integer in the lowest 16 bits.
    const ROUND: f32 = 12_582_912.0;
    // Values so small have no inverse, and round to nothing.
    let inverse = if scale > f32::MIN_POSITIVE {
        1.0 / scale
    } else {
        0.0
    };
    let mut codes = [0; BLOCK];
    for i in 0..BLOCK {
        codes[i] = (x[i] * inverse + ROUND).to_bits() as i16;
    }
    codes
}

/// Codes in bytes, `offset` higher each, in the order of [`Activations::codes`].
#[inline(always)]
fn words_of(codes: &[i16; BLOCK], offset: i16) -> [u32; CODES] {
    let mut pairs = [[0u16; LANES]; 2];
    for half in 0..2 {
        let codes = &codes[half * 2 * LANES..];
        for h in 0..LANES {
            let low = codes[h].wrapping_add(offset) as u16 & 0xff;
            let high = codes[LANES + h].wrapping_add(offset) as u16;
            pairs[half][h] = low | high << 8;
        }
    }
    bytemuck::must_cast(pairs)
}
