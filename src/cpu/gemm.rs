//! Linear layers: `y = x · wᵀ`.
//!
//! One kernel does all products of the CPU backend. It makes a tile of a few rows by two or three
//! vectors of columns at once, its sums in registers over the whole inner dimension. Weights lie in
//! *panels* as wide as a tile, packed once when a model is loaded; the left operand is read where it
//! lies, one broadcast element per row and step. What becomes of a finished tile is up to the
//! caller, so that a bias, a residual or a softmax costs no second pass over memory.

// Tiles are indexed: all their loops are short, of constant length, and unrolled.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;
use std::sync::Arc;

use pulp::Simd;
use rayon::prelude::*;

use super::device::{Cpu, in_batches};
use super::panels::{LINE, Panels, Values, to_line};
use super::simd::{simd_fn, tiled};
use crate::error::{Error, Result};
use crate::ops::Checked;
use crate::ops::gemm::{GemmOp, Linear, Outer, RowSource};

/// Rows of the left operand that stay in the second-level cache while panels go by.
const BLOCK_BYTES: usize = 1 << 20;
/// Weights that stay there for several blocks.
const GROUP_BYTES: usize = 3 << 18;
/// Upper bound of a block in rows.
const BLOCK_ROWS: usize = 192;

/// How a product is cut into tasks: blocks of rows times groups of panels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    pub block_rows: usize,
    pub group_panels: usize,
}

impl Split {
    pub(super) fn new(cpu: &Cpu, rows: usize, inputs: usize, panels: usize) -> Self {
        let fit = (BLOCK_BYTES / (4 * inputs.max(1))).clamp(4 * cpu.tile.rows, BLOCK_ROWS);
        let blocks = rows.div_ceil(fit).max(1);
        // Equal blocks of whole tiles.
        let block_rows = rows.div_ceil(blocks).next_multiple_of(cpu.tile.rows);
        // Several tasks per thread, so that one held up does not hold up all.
        let groups = (4 * rayon::current_num_threads()).div_ceil(blocks);
        Split {
            block_rows,
            group_panels: panels
                .div_ceil(groups)
                .min(Self::cached(cpu, inputs))
                .max(1),
        }
    }

    /// One that does not depend on the number of threads: for results that combine what groups of panels
    /// gave, whose last bit depends on where the groups begin.
    pub(super) fn reproducible(cpu: &Cpu, rows: usize, inputs: usize, panels: usize) -> Self {
        // Enough for the cores of a large machine, and for a short text on it.
        const GROUPS: usize = 64;
        let cached = Self::cached(cpu, inputs);
        Split {
            group_panels: panels.div_ceil(GROUPS).min(cached).max(1),
            ..Self::new(cpu, rows, inputs, panels)
        }
    }

    /// Panels of a group that wait in the cache for the blocks to come.
    fn cached(cpu: &Cpu, inputs: usize) -> usize {
        GROUP_BYTES / (4 * inputs.max(1) * cpu.tile.columns)
    }
}

impl GemmOp for Cpu {
    type Matrix = Panels;

    fn matrix_checked(
        &self,
        _: Checked,
        outputs: usize,
        inputs: usize,
        values: &[f32],
    ) -> Result<Panels> {
        Panels::of_values(self.tile.columns, outputs, inputs, values)
    }

    fn matrix_of(&self, source: Arc<dyn RowSource>) -> Result<Panels> {
        Ok(Panels::of_source(self.tile.columns, source))
    }

    fn linear_checked(
        &self,
        _: Checked,
        shape: Linear,
        x: &Vec<f32>,
        w: &Panels,
        bias: Option<&Vec<f32>>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        self.expect_own("linear", w)?;
        let Linear {
            rows,
            inputs,
            outputs,
            add,
        } = shape;
        let bias = bias.map_or(&[][..], |bias| &bias[..outputs]);
        self.linear_part(&x[..rows * inputs], w, 0..inputs, bias, add, y)
    }

    fn transposed(&self, w: &Panels) -> Result<Panels> {
        w.transposed()
    }

    fn outer_checked(
        &self,
        _: Checked,
        shape: Outer,
        a: &Vec<f32>,
        b: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let Outer { rows, left, right } = shape;
        let len = left.width * right.width;
        let out = &mut out[..len];
        if rows == 0 || len == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let width = self.tile.columns;
        let panels = right.width.div_ceil(width);
        let mut scratch = self.scratch(panels * rows * width + LINE);
        let start = to_line(&scratch.data);
        let packed = &mut scratch.data[start..][..panels * rows * width];
        packed
            .par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(p, panel)| {
                let first = right.first + p * width;
                let count = width.min(right.first + right.width - first);
                let from = b.chunks_exact(right.stride);
                for (to, row) in panel.chunks_exact_mut(width).zip(from) {
                    to[..count].copy_from_slice(&row[first..first + count]);
                    to[count..].fill(0.0);
                }
            });
        let tiles = left.width.div_ceil(self.tile.rows);
        let share = tiles.div_ceil(4 * rayon::current_num_threads()) * self.tile.rows;
        out.par_chunks_mut(share * right.width)
            .enumerate()
            .for_each(|(i, out)| {
                let task = OuterTask {
                    a: &a[left.first + i * share..],
                    stride: left.stride,
                    packed,
                    columns: right.width,
                    out,
                };
                outer_task(self.arch, task);
            });
        Ok(())
    }

    fn estimate_checked(
        &self,
        checked: Checked,
        shape: Linear,
        x: &Vec<f32>,
        w: &Panels,
        bias: Option<&Vec<f32>>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        self.expect_own("linear", w)?;
        let values = bias.map_or(&[][..], |bias| bias);
        if shape.rows == 0 || self.linear_codes(shape, x, w, values, y)? {
            return Ok(());
        }
        self.linear_checked(checked, shape, x, w, bias, y)
    }
}

impl Cpu {
    /// `y = x · w[.., steps]ᵀ + bias`, or `y` more by that: a linear layer or, where `steps` are not all
    /// columns of `w`, a part of its sum. `x` has rows of as many elements as there are steps, `bias`
    /// is empty for none. The caller has checked the lengths.
    pub(super) fn linear_part(
        &self,
        x: &[f32],
        w: &Panels,
        steps: std::ops::Range<usize>,
        bias: &[f32],
        add: bool,
        y: &mut [f32],
    ) -> Result<()> {
        let (inputs, outputs) = (steps.len(), w.outputs);
        let rows = x.len() / inputs;
        if rows == 0 {
            return Ok(());
        }
        let values = w.values()?;
        let split = Split::new(self, rows, inputs, w.count());
        let group_columns = split.group_panels * w.width;
        let blocks = rows.div_ceil(split.block_rows);
        let mut tasks: Vec<LinearTask> = Vec::new();
        for group in 0..outputs.div_ceil(group_columns) {
            for block in x.chunks(split.block_rows * inputs) {
                tasks.push(LinearTask {
                    x: block,
                    w: values,
                    first: steps.start,
                    steps: inputs,
                    bias,
                    column: group * group_columns,
                    add,
                    y: Vec::with_capacity(split.block_rows),
                });
            }
        }
        for (row, y) in y[..rows * outputs].chunks_exact_mut(outputs).enumerate() {
            for (group, y) in y.chunks_mut(group_columns).enumerate() {
                tasks[group * blocks + row / split.block_rows].y.push(y);
            }
        }
        in_batches(tasks, 2 * rows * inputs * outputs, |tasks| {
            tasks
                .into_par_iter()
                .for_each(|task| linear_task(self.arch, task));
        })
    }
}

/// The part of a product over rows that one thread does.
struct OuterTask<'a> {
    /// From the first column of the part on.
    a: &'a [f32],
    stride: usize,
    /// The second matrix in panels.
    packed: &'a [f32],
    /// Width of the result.
    columns: usize,
    /// Rows of the result.
    out: &'a mut [f32],
}

simd_fn! {
    fn outer_task<'a, S>(s, task: OuterTask<'a>) {
        tiled!(S, outer_tiles(s, task))
    }
}

#[inline(always)]
fn outer_tiles<S: Simd, const N: usize, const M: usize>(s: S, task: OuterTask<'_>) {
    let OuterTask {
        a,
        stride,
        packed,
        columns,
        out,
    } = task;
    let width = N * S::F32_LANES;
    let rows = out.len() / columns;
    let steps = packed.len() / columns.div_ceil(width) / width;
    let mut start = 0;
    while start < columns {
        let end = columns.min(start + width);
        let panel = &packed[start * steps..][..steps * width];
        let panel = S::as_simd_f32s(panel).0.as_chunks::<N>().0;
        let mut top = 0;
        while top < rows {
            let count = M.min(rows - top);
            let data = &a[top..];
            let mut sums = [[s.splat_f32s(0.0); N]; M];
            if count == M {
                multiply(s, Columns { data, stride }, panel, &mut sums);
            } else {
                let left = FewColumns {
                    data,
                    stride,
                    count,
                };
                multiply(s, left, panel, &mut sums);
            }
            for i in 0..M {
                if i < count {
                    let out = &mut out[(top + i) * columns..][start..end];
                    store::<S, N>(s, out, &sums[i]);
                }
            }
            top += M;
        }
        start = end;
    }
}

impl Cpu {
    /// The error for a matrix that a CPU with wider or narrower vectors has laid out.
    pub(super) fn expect_own(&self, op: &'static str, w: &Panels) -> Result<()> {
        if w.width == self.tile.columns {
            return Ok(());
        }
        Err(Error::Shape {
            op,
            want: format!("a matrix in panels of {}", self.tile.columns),
            got: format!("panels of {}", w.width),
        })
    }
}

/// The part of a linear layer that one thread does: some rows by some columns.
struct LinearTask<'a> {
    x: &'a [f32],
    w: Values<'a>,
    /// Columns of `w`: the first and how many, which are a row's of `x`.
    first: usize,
    steps: usize,
    /// Empty for none.
    bias: &'a [f32],
    /// The first column.
    column: usize,
    add: bool,
    /// Row by row, the columns from `column` on.
    y: Vec<&'a mut [f32]>,
}

simd_fn! {
    fn linear_task<'a, S>(s, task: LinearTask<'a>) {
        tiled!(S, linear_tiles(s, task))
    }
}

#[inline(always)]
fn linear_tiles<S: Simd, const N: usize, const M: usize>(s: S, task: LinearTask<'_>) {
    let LinearTask {
        x,
        w,
        first,
        steps,
        bias,
        column,
        add,
        mut y,
    } = task;
    let width = N * S::F32_LANES;
    let columns = y.first().map_or(0, |row| row.len());
    let mut start = 0;
    while start < columns {
        let end = columns.min(start + width);
        let panel = &panel::<S, N>(w, (column + start) / width)[first..first + steps];
        let mut initial = [s.splat_f32s(0.0); N];
        if !bias.is_empty() {
            initial = load::<S, N>(s, &bias[column + start..column + end]);
        }
        let mut top = 0;
        while top < y.len() {
            let block = Block {
                x,
                steps,
                top,
                columns: start..end,
                add,
            };
            // A last tile that is mostly empty would compute what is not read: a single row, as when
            // text is generated, must go as fast as its weights can be read.
            match y.len() - top {
                1 => tile::<S, N, 1>(s, block, panel, initial, &mut y),
                2 => tile::<S, N, 2>(s, block, panel, initial, &mut y),
                3 | 4 => tile::<S, N, 4>(s, block, panel, initial, &mut y),
                _ => tile::<S, N, M>(s, block, panel, initial, &mut y),
            }
            top += M;
        }
        start = end;
    }
}

/// Where a tile stands.
struct Block<'a> {
    x: &'a [f32],
    steps: usize,
    /// Its first row.
    top: usize,
    /// Its columns in the rows of the output.
    columns: Range<usize>,
    add: bool,
}

/// One tile of up to `M` rows, from `initial`.
#[inline(always)]
fn tile<S: Simd, const N: usize, const M: usize>(
    s: S,
    block: Block<'_>,
    panel: &[[S::f32s; N]],
    initial: [S::f32s; N],
    y: &mut [&mut [f32]],
) {
    let rows = Rows::<M>::new(block.x, block.steps, block.top, y.len());
    let mut sums = [initial; M];
    multiply(s, rows, panel, &mut sums);
    for (sums, y) in sums.iter_mut().zip(&mut y[block.top..]) {
        let out = &mut y[block.columns.clone()];
        if block.add {
            let old = load::<S, N>(s, out);
            for j in 0..N {
                sums[j] = s.add_f32s(old[j], sums[j]);
            }
        }
        store::<S, N>(s, out, sums);
    }
}

/// The left operand of a tile: `M` numbers at each step of the inner dimension.
pub(super) trait Left<const M: usize>: Copy {
    /// The numbers of a step, or where they lie.
    type Step: Step;

    /// Itself for `steps` steps, so that the length need not be checked at each.
    fn cut(self, steps: usize) -> Self;

    fn at(&self, k: usize) -> Self::Step;
}

/// Numbers of one step.
pub(super) trait Step: Copy {
    fn get(&self, i: usize) -> f32;
}

impl<const M: usize> Step for [f32; M] {
    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        self[i]
    }
}

/// Where they lie in memory, they are read one by one: a copy would go through the stack.
impl<const M: usize> Step for &[f32; M] {
    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        self[i]
    }
}

/// `M` rows of a row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, const M: usize>([&'a [f32]; M]);

impl<'a, const M: usize> Rows<'a, M> {
    /// Rows `top..top + M` of `x`; from `end` on the last one again.
    #[inline(always)]
    pub(super) fn new(x: &'a [f32], stride: usize, top: usize, end: usize) -> Self {
        let mut rows = [&x[..0]; M];
        for i in 0..M {
            let row = if top + i < end { top + i } else { end - 1 };
            rows[i] = &x[row * stride..];
        }
        Rows(rows)
    }

    /// Rows of any place in a matrix.
    #[inline(always)]
    pub(super) fn of(rows: [&'a [f32]; M]) -> Self {
        Rows(rows)
    }
}

impl<const M: usize> Left<M> for Rows<'_, M> {
    type Step = [f32; M];

    #[inline(always)]
    fn cut(mut self, steps: usize) -> Self {
        for row in &mut self.0 {
            *row = &row[..steps];
        }
        self
    }

    #[inline(always)]
    fn at(&self, k: usize) -> [f32; M] {
        let mut values = [0.0; M];
        for i in 0..M {
            values[i] = self.0[i][k];
        }
        values
    }
}

/// `M` neighbouring columns of a row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a, const M: usize> Left<M> for Columns<'a> {
    type Step = &'a [f32; M];

    #[inline(always)]
    fn cut(self, _: usize) -> Self {
        self
    }

    #[inline(always)]
    fn at(&self, k: usize) -> &'a [f32; M] {
        match self.data[k * self.stride..].first_chunk() {
            Some(columns) => columns,
            // The caller's matrix is as wide.
            None => &[0.0; M],
        }
    }
}

/// Fewer neighbouring columns than a tile has rows, followed by zeros.
#[derive(Clone, Copy)]
pub(super) struct FewColumns<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub count: usize,
}

impl<const M: usize> Left<M> for FewColumns<'_> {
    type Step = [f32; M];

    #[inline(always)]
    fn cut(self, _: usize) -> Self {
        self
    }

    #[inline(always)]
    fn at(&self, k: usize) -> [f32; M] {
        let mut values = [0.0; M];
        for (i, value) in values.iter_mut().enumerate().take(self.count) {
            *value = self.data[k * self.stride + i];
        }
        values
    }
}

/// The kernel: adds to `sums` the product of `left` and `panel`, whose length is the inner dimension.
#[inline(always)]
pub(super) fn multiply<S: Simd, const N: usize, const M: usize>(
    s: S,
    left: impl Left<M>,
    panel: &[[S::f32s; N]],
    sums: &mut [[S::f32s; N]; M],
) {
    let left = left.cut(panel.len());
    let mut local = *sums;
    for (k, w) in panel.iter().enumerate() {
        let w = *w;
        let x = left.at(k);
        for i in 0..M {
            let x = s.splat_f32s(x.get(i));
            for j in 0..N {
                local[i][j] = s.mul_add_e_f32s(x, w[j], local[i][j]);
            }
        }
    }
    *sums = local;
}

/// Panel number `p` of `w`, step by step.
#[inline(always)]
pub(super) fn panel<S: Simd, const N: usize>(w: Values<'_>, p: usize) -> &[[S::f32s; N]] {
    let (vectors, _) = S::as_simd_f32s(w.panel(p));
    vectors.as_chunks::<N>().0
}

/// Up to `N` vectors of a row; what is missing is zero.
#[inline(always)]
pub(super) fn load<S: Simd, const N: usize>(s: S, row: &[f32]) -> [S::f32s; N] {
    let mut out = [s.splat_f32s(0.0); N];
    let (vectors, tail) = S::as_simd_f32s(row);
    if vectors.len() == N {
        out.copy_from_slice(vectors);
    } else {
        for (j, &v) in vectors.iter().enumerate() {
            out[j] = v;
        }
        out[vectors.len()] = s.partial_load_f32s(tail);
    }
    out
}

/// The reverse of [`load`].
#[inline(always)]
pub(super) fn store<S: Simd, const N: usize>(s: S, row: &mut [f32], values: &[S::f32s; N]) {
    let (vectors, tail) = S::as_mut_simd_f32s(row);
    if vectors.len() == N {
        vectors.copy_from_slice(values);
    } else {
        let whole = vectors.len();
        for (j, v) in vectors.iter_mut().enumerate() {
            *v = values[j];
        }
        s.partial_store_f32s(tail, values[whole]);
    }
}
