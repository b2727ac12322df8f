//! Estimates of products: weights and activations in 8 bits, sums of their products in integers.
//!
//! A block is 32 steps of the inner dimension. A weight is `step · code + offset` with a code of 8
//! bits, step and offset by block and column; an activation is `scale · code` with a signed code,
//! scale by block and row. One instruction of AVX-512 VNNI then does 64 multiplications, four times
//! as many as one in f32. The error is that of the activations' rounding, about half a percent of a
//! product: enough to compare texts by their likelihood, too much to agree with another program in
//! the fourth digit. Nothing here is used unless an estimate was asked for.

use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};
use pulp::Simd;
use rayon::prelude::*;

use super::cpu::{Cpu, Tile};
use super::gemm::{Linear, Panels, Split};

/// Steps of the inner dimension that share a scale.
const BLOCK: usize = 32;
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
    /// Sum of the block, as its codes have it.
    sum: f32,
}

/// Floats that [`Activations`] take.
const FLOATS: usize = size_of::<Activations>() / size_of::<f32>();

/// A block of a panel: 32 rows of 48 columns.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block {
    /// Four steps of 16 columns each.
    codes: [[[[u8; 4]; 16]; VECTORS]; BLOCK / 4],
    steps: [[f32; 16]; VECTORS],
    offsets: [[f32; 16]; VECTORS],
}

/// Panels in 8 bits, made when they are first asked for.
#[derive(Debug, Default)]
pub(super) struct Codes(OnceLock<Vec<Block>>);

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
    pub(super) fn operands<'a>(
        &self,
        x: &[f32],
        w: &'a Panels,
        scratch: &'a mut Vec<f32>,
    ) -> Option<Operands<'a>> {
        let vnni = self.vnni.filter(|_| w.width == COLUMNS)?;
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
        Some(Operands {
            vnni,
            weights: w.codes.0.get_or_init(|| encode_panels(w)),
            x: codes,
            blocks,
        })
    }

    /// [`super::GemmOp::estimate`]; the operands are checked already. False where it cannot be done.
    pub(super) fn linear_codes(
        &self,
        shape: Linear,
        x: &[f32],
        w: &Panels,
        bias: &[f32],
        y: &mut [f32],
    ) -> bool {
        let mut scratch = self.scratch(0);
        let x = &x[..shape.rows * shape.inputs];
        let Some(operands) = self.operands(x, w, &mut scratch.data) else {
            return false;
        };
        let split = Split::new(self, shape.rows, shape.inputs, w.count());
        let group_columns = split.group_panels * COLUMNS;
        let blocks = shape.rows.div_ceil(split.block_rows);
        let groups = shape.outputs.div_ceil(group_columns);
        let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
        tasks.resize_with(groups * blocks, || Vec::with_capacity(split.block_rows));
        let rows = y[..shape.rows * shape.outputs].chunks_exact_mut(shape.outputs);
        for (row, y) in rows.enumerate() {
            for (group, y) in y.chunks_mut(group_columns).enumerate() {
                tasks[group * blocks + row / split.block_rows].push(y);
            }
        }
        tasks.into_par_iter().enumerate().for_each(|(i, mut y)| {
            let (first, top) = (
                i / blocks * split.group_panels,
                i % blocks * split.block_rows,
            );
            let columns = y.first().map_or(0, |row| row.len());
            for (p, start) in (0..columns).step_by(COLUMNS).enumerate() {
                let end = columns.min(start + COLUMNS);
                let bias = match bias {
                    [] => &[],
                    bias => &bias[first * COLUMNS + start..first * COLUMNS + end],
                };
                for (t, y) in y.chunks_mut(ROWS).enumerate() {
                    let rows = std::array::from_fn(|i| top + t * ROWS + i.min(y.len() - 1));
                    let mut sums = [[0.0; COLUMNS]; ROWS];
                    operands.tile(first + p, rows, &mut sums);
                    for (y, sums) in y.iter_mut().zip(&mut sums) {
                        finish(&mut y[start..end], bias, shape.add, sums);
                    }
                }
            }
        });
        true
    }
}

/// Writes a row of a finished tile.
fn finish(y: &mut [f32], bias: &[f32], add: bool, sums: &mut [f32; COLUMNS]) {
    for (sum, bias) in sums.iter_mut().zip(bias) {
        *sum += bias;
    }
    if add {
        for (y, sum) in y.iter_mut().zip(sums) {
            *y += *sum;
        }
    } else {
        y.copy_from_slice(&sums[..y.len()]);
    }
}

impl Operands<'_> {
    /// [`Operands::tile`] for vectors and tiles of the machine's own size: the same, since there are no
    /// operands for others.
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
            self.tile(p, *rows, tile);
        }
    }

    /// Products of eight rows with panel `p`.
    #[inline(always)]
    pub(super) fn tile(&self, p: usize, rows: [usize; ROWS], out: &mut [[f32; COLUMNS]; ROWS]) {
        let panel = &self.weights[p * self.blocks..][..self.blocks];
        let rows = rows.map(|row| &self.x[row * self.blocks..][..self.blocks]);
        self.vnni.tile(panel, rows, out);
    }
}

fn encode_panels(w: &Panels) -> Vec<Block> {
    (0..w.count() * w.inputs.div_ceil(BLOCK))
        .into_par_iter()
        .map(|i| {
            let (p, b) = (i / w.inputs.div_ceil(BLOCK), i % w.inputs.div_ceil(BLOCK));
            let rows = BLOCK.min(w.inputs - b * BLOCK);
            encode_block(&w.panel_values(p)[b * BLOCK * COLUMNS..][..rows * COLUMNS])
        })
        .collect()
}

/// `values`: up to 32 rows of 48 columns.
fn encode_block(values: &[f32]) -> Block {
    let mut block = Block {
        codes: [[[[0; 4]; 16]; VECTORS]; BLOCK / 4],
        steps: [[0.0; 16]; VECTORS],
        offsets: [[0.0; 16]; VECTORS],
    };
    for column in 0..COLUMNS {
        let (vector, lane) = (column / 16, column % 16);
        let mut own = [0.0; BLOCK];
        let rows = values.len() / COLUMNS;
        for (k, own) in own[..rows].iter_mut().enumerate() {
            *own = values[k * COLUMNS + column];
        }
        let grid = Grid::fit(&own[..rows]);
        for (k, &v) in own[..rows].iter().enumerate() {
            block.codes[k / 4][vector][lane][k % 4] = grid.code(v);
        }
        block.steps[vector][lane] = grid.step;
        block.offsets[vector][lane] = grid.offset;
    }
    block
}

/// Evenly spaced values: `step · code + offset`.
#[derive(Debug, Clone, Copy)]
struct Grid {
    step: f32,
    offset: f32,
}

impl Grid {
    fn code(self, v: f32) -> u8 {
        ((v - self.offset) / self.step).round_ties_even() as u8
    }

    /// The best of a few grids. Those of ggml's types are among them, since it makes the extreme
    /// values of a block the ends of its range: from lowest to highest in 15 steps (Q4_1) or 31
    /// (Q5_1), or to the largest either way in 8 (Q4_0), 16 (Q5_0) or 127 (Q8_0).
    fn fit(values: &[f32]) -> Self {
        let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| {
            (low.min(v), high.max(v))
        });
        let largest = high.max(-low);
        let mut best = Grid {
            step: 1.0,
            offset: low,
        };
        if !(high - low > f32::MIN_POSITIVE) {
            return best;
        }
        let mut least = f32::INFINITY;
        let grids = [
            ((high - low) / 255.0, 0.0),
            ((high - low) / 248.0, 0.0),
            (largest / 127.0, 128.0),
            (largest / 120.0, 128.0),
            (largest / 112.0, 128.0),
        ];
        for (step, zero) in grids {
            let grid = Grid {
                step,
                offset: if zero == 0.0 { low } else { -zero * step },
            };
            let error: f32 = values
                .iter()
                .map(|&v| (grid.step * f32::from(grid.code(v)) + grid.offset - v).powi(2))
                .sum();
            if error < least {
                (best, least) = (grid, error);
            }
        }
        best
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Vnni;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Activations, BLOCK, Block, COLUMNS, ROWS, VECTORS};

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
            unsafe { tile(panel, rows, out) }
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    fn encode(x: &[f32], out: &mut [Activations]) {
        for (x, out) in x.chunks(BLOCK).zip(out) {
            let mut values = [0.0; BLOCK];
            values[..x.len()].copy_from_slice(x);
            let [low, high]: [__m512; 2] = bytemuck::must_cast(values);
            let largest = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
            let largest = _mm512_reduce_max_ps(largest);
            let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let scales = _mm512_set1_ps(scale);
            let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, scales));
            let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, scales));
            let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
            let codes = [_mm512_cvtsepi32_epi8(low), _mm512_cvtsepi32_epi8(high)];
            let scale = largest / 127.0;
            *out = Activations {
                codes: bytemuck::must_cast(codes),
                scale,
                sum: scale * sum as f32,
            };
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    fn tile(panel: &[Block], rows: [&[Activations]; ROWS], out: &mut [[f32; COLUMNS]; ROWS]) {
        let mut totals = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let rows = rows.map(|row| &row[..panel.len()]);
        for (b, block) in panel.iter().enumerate() {
            let mut sums = [[_mm512_setzero_si512(); VECTORS]; ROWS];
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
            let steps: [__m512; VECTORS] = bytemuck::must_cast(block.steps);
            let offsets: [__m512; VECTORS] = bytemuck::must_cast(block.offsets);
            for i in 0..ROWS {
                let scale = _mm512_set1_ps(rows[i][b].scale);
                let sum = _mm512_set1_ps(rows[i][b].sum);
                for j in 0..VECTORS {
                    let total = _mm512_fmadd_ps(offsets[j], sum, totals[i][j]);
                    let step = _mm512_mul_ps(steps[j], scale);
                    totals[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][j]), step, total);
                }
            }
        }
        *out = bytemuck::must_cast(totals);
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use other::Vnni;

#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::{Activations, Block, COLUMNS, ROWS};

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

        pub fn tile(self, _: &[Block], _: [&[Activations]; ROWS], _: &mut [[f32; COLUMNS]; ROWS]) {
            match self {}
        }
    }
}
