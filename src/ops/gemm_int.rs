//! Estimates of products: weights and activations in 8 bits, sums of their products in integers.
//!
//! A block is 64 steps of the inner dimension. Weights and activations are `scale · code` with a signed
//! code, scale by block and column or row. One instruction of AVX-512 VNNI does 64 multiplications of
//! codes, four times as many as one in f32, if one factor is unsigned: so a weight's code lies 128
//! higher in memory, and a sum begins at what that adds to it. The error is that of rounding, about one
//! percent of a product: enough to compare texts by their likelihood, too much to agree with another
//! program in the fourth digit. Nothing here is used unless an estimate was asked for.

use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};
use pulp::Simd;
use rayon::prelude::*;

use super::cpu::{Cpu, Tile};
use super::gemm::{Linear, Split};
use super::pages::Pages;
use super::panels::Panels;
use crate::error::Result;

/// Steps of the inner dimension that share a scale.
const BLOCK: usize = 64;
/// Rows and columns of a tile: those of the f32 kernel with as wide vectors.
pub(super) const ROWS: usize = 8;
const VECTORS: usize = 3;
pub(super) const COLUMNS: usize = VECTORS * 16;
pub(super) const TILE: Tile = Tile {
    rows: ROWS,
    columns: COLUMNS,
};

/// A block of one row of activations.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Activations {
    codes: [[i8; 4]; BLOCK / 4],
    scale: f32,
    /// What a sum of products with these codes begins at: it takes out what lies too high in the weights'.
    start: i32,
}

/// Floats that [`Activations`] take.
const FLOATS: usize = size_of::<Activations>() / size_of::<f32>();

/// A block of a panel: 64 rows of 48 columns.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Block {
    /// Four steps of 16 columns each, 128 too high.
    codes: [[[[u8; 4]; 16]; VECTORS]; BLOCK / 4],
    scales: [[f32; 16]; VECTORS],
}

/// Panels in 8 bits, made when they are first asked for.
#[derive(Debug, Default)]
pub(super) struct Codes(OnceLock<Pages<Block>>);

/// What a tile of products is made from.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    vnni: Vnni,
    weights: &'a [Block],
    x: &'a [Activations],
    /// Blocks of a row.
    blocks: usize,
}

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
        let Some(vnni) = self.vnni.filter(|_| w.width == COLUMNS) else {
            return Ok(None);
        };
        let blocks = w.inputs.div_ceil(BLOCK);
        let floats = x.len() / w.inputs * blocks * FLOATS;
        if scratch.len() < floats {
            scratch.resize(floats, 0.0);
        }
        let codes: &mut [Activations] = bytemuck::cast_slice_mut(&mut scratch[..floats]);
        codes
            .par_chunks_exact_mut(blocks)
            .zip(x.par_chunks_exact(w.inputs))
            .with_min_len((16_384 / w.inputs).max(1))
            .for_each(|(codes, x)| vnni.encode(x, codes));
        if w.codes.0.get().is_none() {
            // Made before the cell is locked: a thread of the pool that waits in here may take up other
            // work, and that may want the same codes.
            let made = encode_panels(vnni, w)?;
            w.codes.0.get_or_init(|| made);
        }
        Ok(Some(Operands {
            vnni,
            weights: w.codes.0.get().map_or(&[][..], Pages::get),
            x: codes,
            blocks,
        }))
    }

    /// [`super::GemmOp::estimate`]; the operands are checked already. False where it cannot be done.
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
        let group_columns = split.group_panels * COLUMNS;
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
        tasks
            .into_par_iter()
            .for_each(|task| operands.vnni.linear(task));
        Ok(true)
    }
}

/// The part of a linear layer that one thread does: some rows by some panels.
pub(super) struct Task<'a> {
    operands: Operands<'a>,
    /// The first panel.
    panel: usize,
    /// The first row.
    row: usize,
    /// Of all columns; empty for none.
    bias: &'a [f32],
    add: bool,
    /// Row by row, the columns of the panels.
    y: Vec<&'a mut [f32]>,
}

impl Operands<'_> {
    /// Writes the products of some rows with panel `p`, for vectors and tiles of the machine's own
    /// size: there are no operands for others.
    #[inline(always)]
    pub(super) fn tile_of<S: Simd, const N: usize, const M: usize>(
        &self,
        p: usize,
        rows: [usize; M],
        out: &mut [[S::f32s; N]; M],
    ) {
        let values: &mut [f32] = bytemuck::cast_slice_mut(out.as_flattened_mut());
        let tile = values.as_chunks_mut::<COLUMNS>().0;
        if let (Ok(rows), Ok(tile)) = (<&[usize; ROWS]>::try_from(&rows[..]), tile.try_into()) {
            let (panel, rows) = self.tile(p, rows);
            self.vnni.tile(panel, rows, tile);
        }
    }

    /// Panel `p`, and eight rows.
    #[inline(always)]
    fn tile(&self, p: usize, rows: &[usize; ROWS]) -> (&[Block], [&[Activations]; ROWS]) {
        let mut x = [&self.x[..0]; ROWS];
        for i in 0..ROWS {
            x[i] = &self.x[rows[i] * self.blocks..][..self.blocks];
        }
        (&self.weights[p * self.blocks..][..self.blocks], x)
    }
}

fn encode_panels(vnni: Vnni, w: &Panels) -> Result<Pages<Block>> {
    let blocks = w.inputs.div_ceil(BLOCK);
    let mut pages: Pages<Block> = Pages::zeros(w.count() * blocks)?;
    pages
        .get_mut()
        .par_chunks_exact_mut(blocks)
        .enumerate()
        .for_each_init(Vec::new, |rows, (p, panel)| {
            w.read_panel(p, rows);
            for (column, row) in rows.chunks_exact(w.inputs).enumerate() {
                vnni.encode_column(row, column, panel);
            }
        });
    Ok(pages)
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Vnni;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Activations, BLOCK, Block, COLUMNS, ROWS, Task, VECTORS};

    /// Proof that the machine has AVX-512 with its integer dot products.
    #[derive(Debug, Clone, Copy)]
    pub(in crate::ops) struct Vnni(());

    impl Vnni {
        pub fn detect() -> Option<Self> {
            let there = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("fma");
            there.then_some(Vnni(()))
        }

        /// Codes of a row; what is missing in the last block is zero.
        #[allow(unsafe_code)]
        pub fn encode(self, x: &[f32], out: &mut [Activations]) {
            // SAFETY: a `Vnni` exists only where the features that the function needs were found.
            unsafe { encode(x, out) }
        }

        /// Codes of a row of weights, which is a column of a panel; what is missing in the last block is
        /// zero.
        #[allow(unsafe_code)]
        pub fn encode_column(self, row: &[f32], column: usize, panel: &mut [Block]) {
            // SAFETY: as above.
            unsafe { encode_column(row, column, panel) }
        }

        /// A linear layer's task.
        #[allow(unsafe_code)]
        pub fn linear(self, task: Task<'_>) {
            // SAFETY: as above.
            unsafe { linear(task) }
        }

        /// Writes the products of eight rows with a panel.
        #[allow(unsafe_code)]
        #[inline(always)]
        pub fn tile(
            self,
            panel: &[Block],
            rows: [&[Activations]; ROWS],
            out: &mut [[f32; COLUMNS]; ROWS],
        ) {
            // SAFETY: as above.
            unsafe { *out = bytemuck::must_cast(tile(panel, rows, [0.0; COLUMNS])) }
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    fn encode(x: &[f32], out: &mut [Activations]) {
        for (x, out) in x.chunks(BLOCK).zip(out) {
            let (codes, scale) = encode_block(x);
            let mut sum = _mm512_setzero_si512();
            for &codes in &codes {
                sum = _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(codes));
            }
            *out = Activations {
                codes: bytemuck::must_cast(codes),
                scale,
                start: -128 * _mm512_reduce_add_epi32(sum),
            };
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    fn encode_column(row: &[f32], column: usize, panel: &mut [Block]) {
        let (vector, lane) = (column / 16, column % 16);
        for (x, block) in row.chunks(BLOCK).zip(panel) {
            let (codes, scale) = encode_block(x);
            let codes: [[u8; 4]; BLOCK / 4] = bytemuck::must_cast(codes);
            for (to, codes) in block.codes.iter_mut().zip(codes) {
                // 128 more, modulo 256.
                let codes = u32::from_ne_bytes(codes) ^ 0x8080_8080;
                to[vector][lane] = codes.to_ne_bytes();
            }
            block.scales[vector][lane] = scale;
        }
    }

    /// Codes of up to a block of values, zero for those that are missing, and their scale.
    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    #[inline]
    fn encode_block(x: &[f32]) -> ([__m128i; 4], f32) {
        // Of a whole block the length is known to the compiler.
        let values: [f32; BLOCK] = match x.first_chunk() {
            Some(values) => *values,
            None => {
                let mut values = [0.0; BLOCK];
                values[..x.len()].copy_from_slice(x);
                values
            }
        };
        let values: [__m512; 4] = bytemuck::must_cast(values);
        let mut largest = _mm512_setzero_ps();
        let mut unordered = 0;
        for v in values {
            largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
            unordered |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        }
        let largest = match unordered {
            0 => _mm512_reduce_max_ps(largest),
            // A maximum would pass over it.
            _ => f32::NAN,
        };
        let scale = largest / 127.0;
        // Values so small have no inverse, and round to nothing.
        let inverse = if scale > f32::MIN_POSITIVE {
            1.0 / scale
        } else {
            0.0
        };
        let inverses = _mm512_set1_ps(inverse);
        let mut codes = [_mm_setzero_si128(); 4];
        for i in 0..4 {
            let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverses));
            codes[i] = _mm512_cvtsepi32_epi8(rounded);
        }
        (codes, scale)
    }

    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    fn linear(task: Task<'_>) {
        let Task {
            operands,
            panel,
            row,
            bias,
            add,
            mut y,
        } = task;
        let columns = y.first().map_or(0, |row| row.len());
        let (mut p, mut start) = (panel, 0);
        while start < columns {
            let end = columns.min(start + COLUMNS);
            let mut first = [0.0; COLUMNS];
            if !bias.is_empty() {
                let bias = &bias[p * COLUMNS..][..end - start];
                first[..bias.len()].copy_from_slice(bias);
            }
            let mut top = 0;
            while top < y.len() {
                let mut numbers = [row + top; ROWS];
                for i in 0..ROWS {
                    numbers[i] += i.min(y.len() - 1 - top);
                }
                let (weights, x) = operands.tile(p, &numbers);
                let sums: [[f32; COLUMNS]; ROWS] = bytemuck::must_cast(tile(weights, x, first));
                for i in 0..ROWS.min(y.len() - top) {
                    let out = &mut y[top + i][start..end];
                    // Of a whole row the length is known to the compiler.
                    match <&mut [f32; COLUMNS]>::try_from(&mut *out) {
                        Ok(out) if add => *out = added(*out, sums[i]),
                        Ok(out) => *out = sums[i],
                        Err(_) if add => {
                            for (out, sum) in out.iter_mut().zip(&sums[i]) {
                                *out += sum;
                            }
                        }
                        Err(_) => out.copy_from_slice(&sums[i][..end - start]),
                    }
                }
                top += ROWS;
            }
            start = end;
            p += 1;
        }
    }

    /// `y + sums`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn added(y: [f32; COLUMNS], sums: [f32; COLUMNS]) -> [f32; COLUMNS] {
        let y: [__m512; VECTORS] = bytemuck::must_cast(y);
        let mut sums: [__m512; VECTORS] = bytemuck::must_cast(sums);
        for j in 0..VECTORS {
            sums[j] = _mm512_add_ps(y[j], sums[j]);
        }
        bytemuck::must_cast(sums)
    }

    /// `first` and the products of eight rows with a panel.
    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    #[inline(never)]
    fn tile(
        panel: &[Block],
        rows: [&[Activations]; ROWS],
        first: [f32; COLUMNS],
    ) -> [[__m512; VECTORS]; ROWS] {
        let first: [__m512; VECTORS] = bytemuck::must_cast(first);
        let mut totals = [first; ROWS];
        for (b, block) in panel.iter().enumerate() {
            let mut sums = [[_mm512_setzero_si512(); VECTORS]; ROWS];
            for i in 0..ROWS {
                sums[i] = [_mm512_set1_epi32(rows[i][b].start); VECTORS];
            }
            for k in 0..BLOCK / 4 {
                let w: [__m512i; VECTORS] = bytemuck::must_cast(block.codes[k]);
                for i in 0..ROWS {
                    let x = _mm512_set1_epi32(i32::from_ne_bytes(bytemuck::must_cast(
                        rows[i][b].codes[k],
                    )));
                    for j in 0..VECTORS {
                        sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], w[j], x);
                    }
                }
            }
            let scales: [__m512; VECTORS] = bytemuck::must_cast(block.scales);
            for i in 0..ROWS {
                let scale = _mm512_set1_ps(rows[i][b].scale);
                for j in 0..VECTORS {
                    let sum = _mm512_cvtepi32_ps(sums[i][j]);
                    let scale = _mm512_mul_ps(scales[j], scale);
                    totals[i][j] = _mm512_fmadd_ps(sum, scale, totals[i][j]);
                }
            }
        }
        totals
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use other::Vnni;

#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::{Activations, Block, COLUMNS, ROWS, Task};

    /// There is none.
    #[derive(Debug, Clone, Copy)]
    pub(in crate::ops) enum Vnni {}

    impl Vnni {
        pub fn detect() -> Option<Self> {
            None
        }

        pub fn encode(self, _: &[f32], _: &mut [Activations]) {
            match self {}
        }

        pub fn encode_column(self, _: &[f32], _: usize, _: &mut [Block]) {
            match self {}
        }

        pub fn linear(self, _: Task<'_>) {
            match self {}
        }

        pub fn tile(self, _: &[Block], _: [&[Activations]; ROWS], _: &mut [[f32; COLUMNS]; ROWS]) {
            match self {}
        }
    }
}
