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
        let weights = match w.codes.0.get() {
            Some(weights) => weights,
            None => {
                // Made before the cell is locked: a thread of the pool that waits in here may take up
                // other work, and that may want the same codes.
                let made = encode_panels(vnni, w);
                w.codes.0.get_or_init(|| made)
            }
        };
        Some(Operands {
            vnni,
            weights,
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
        true
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

fn encode_panels(vnni: Vnni, w: &Panels) -> Vec<Block> {
    let blocks = w.inputs.div_ceil(BLOCK);
    (0..w.count() * blocks)
        .into_par_iter()
        .with_min_len(16)
        .map(|i| {
            let first = i % blocks * BLOCK;
            let rows = BLOCK.min(w.inputs - first);
            let panel = w.panel_values(i / blocks).as_chunks::<COLUMNS>().0;
            let mut values = [[0.0; COLUMNS]; BLOCK];
            values[..rows].copy_from_slice(&panel[first..][..rows]);
            // Repeated values widen no range, and meet activations that are zero.
            values[rows..].fill(panel[first]);
            vnni.encode_weights(&values)
        })
        .collect()
}

/// The grids of which the best is taken for a column: how many steps there are from its lowest value to
/// its highest, or from 0 to its largest either way. Those of ggml's types are among them, since it
/// makes the extreme values of a block the ends of its range: from lowest to highest in 15 steps
/// (Q4_1) or 31 (Q5_1), or to the largest in 8 (Q4_0), 16 (Q5_0) or 127 (Q8_0).
const GRIDS: [(Ends, f32); 5] = [
    (Ends::Both, 255.0),
    (Ends::Both, 248.0),
    (Ends::Largest, 127.0),
    (Ends::Largest, 120.0),
    (Ends::Largest, 112.0),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Both,
    Largest,
}

/// Steps, offsets and codes for the columns of `values`.
#[inline(always)]
fn encode_block(values: &[[f32; COLUMNS]; BLOCK]) -> Block {
    let (mut low, mut high) = (values[0], values[0]);
    for row in values {
        for c in 0..COLUMNS {
            low[c] = low[c].min(row[c]);
            high[c] = high[c].max(row[c]);
        }
    }
    let mut best = [[0.0; COLUMNS]; 2];
    let mut least = [f32::INFINITY; COLUMNS];
    for (ends, count) in GRIDS {
        let (mut step, mut inverse) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        let mut offset = low;
        for c in 0..COLUMNS {
            let largest = high[c].max(-low[c]);
            let range = match ends {
                Ends::Both => high[c] - low[c],
                Ends::Largest => largest,
            };
            step[c] = range / count;
            inverse[c] = if range > f32::MIN_POSITIVE {
                count / range
            } else {
                0.0
            };
            if ends == Ends::Largest {
                offset[c] = -128.0 * step[c];
            }
        }
        let mut error = [0.0; COLUMNS];
        for row in values {
            for c in 0..COLUMNS {
                let code = ((row[c] - offset[c]) * inverse[c]).round_ties_even();
                let off = step[c].mul_add(code, offset[c]) - row[c];
                error[c] = off.mul_add(off, error[c]);
            }
        }
        for c in 0..COLUMNS {
            if error[c] < least[c] {
                least[c] = error[c];
                best[0][c] = step[c];
                best[1][c] = offset[c];
            }
        }
    }
    let [step, offset] = best;
    let mut block = Block {
        codes: [[[[0; 4]; 16]; VECTORS]; BLOCK / 4],
        steps: bytemuck::must_cast(step),
        offsets: bytemuck::must_cast(offset),
    };
    for (k, row) in values.iter().enumerate() {
        for c in 0..COLUMNS {
            let code = ((row[c] - offset[c]) / step[c]).round_ties_even();
            // Not a number where all values are equal: 0.
            block.codes[k / 4][c / 16][c % 16][k % 4] = code as u8;
        }
    }
    block
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Vnni;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Activations, BLOCK, Block, COLUMNS, ROWS, Task, VECTORS, encode_block};

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

        /// Codes of a block of weights.
        #[allow(unsafe_code)]
        pub fn encode_weights(self, values: &[[f32; COLUMNS]; BLOCK]) -> Block {
            // SAFETY: as above.
            unsafe { encode_weights(values) }
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
            unsafe { *out = bytemuck::must_cast(tile(panel, rows)) }
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    fn encode(x: &[f32], out: &mut [Activations]) {
        for (x, out) in x.chunks(BLOCK).zip(out) {
            let mut values = [0.0; BLOCK];
            values[..x.len()].copy_from_slice(x);
            let [low, high]: [__m512; 2] = bytemuck::must_cast(values);
            let largest = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
            let largest = match _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(low, high) {
                0 => _mm512_reduce_max_ps(largest),
                // A maximum would pass over it.
                _ => f32::NAN,
            };
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
    fn encode_weights(values: &[[f32; COLUMNS]; BLOCK]) -> Block {
        encode_block(values)
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
            let first: [__m512; VECTORS] = bytemuck::must_cast(first);
            let mut top = 0;
            while top < y.len() {
                let mut numbers = [row + top; ROWS];
                for i in 0..ROWS {
                    numbers[i] += i.min(y.len() - 1 - top);
                }
                let (weights, x) = operands.tile(p, &numbers);
                let totals = tile(weights, x);
                for i in 0..ROWS.min(y.len() - top) {
                    let out = &mut y[top + i][start..end];
                    let mut sums = totals[i];
                    for j in 0..VECTORS {
                        sums[j] = _mm512_add_ps(sums[j], first[j]);
                    }
                    let sums: [f32; COLUMNS] = bytemuck::must_cast(sums);
                    // Of a whole row the length is known to the compiler.
                    match <&mut [f32; COLUMNS]>::try_from(&mut *out) {
                        Ok(out) => store(out, &sums, add),
                        Err(_) => store(out, &sums[..end - start], add),
                    }
                }
                top += ROWS;
            }
            start = end;
            p += 1;
        }
    }

    #[inline(always)]
    fn store(y: &mut [f32], sums: &[f32], add: bool) {
        if add {
            for (y, sum) in y.iter_mut().zip(sums) {
                *y += sum;
            }
        } else {
            y.copy_from_slice(sums);
        }
    }

    /// The products of eight rows with a panel.
    #[target_feature(enable = "avx512f,avx512vnni,fma")]
    #[inline]
    fn tile(panel: &[Block], rows: [&[Activations]; ROWS]) -> [[__m512; VECTORS]; ROWS] {
        let mut totals = [[_mm512_setzero_ps(); VECTORS]; ROWS];
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
        totals
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use other::Vnni;

#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::{Activations, BLOCK, Block, COLUMNS, ROWS, Task};

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

        pub fn encode_weights(self, _: &[[f32; COLUMNS]; BLOCK]) -> Block {
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
