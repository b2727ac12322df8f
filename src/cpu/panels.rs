//! Constant matrices as the CPU multiplies by them: laid out when they are first needed.

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::gemm_int::codes::Codes;
use super::pages::Pages;
use crate::error::Result;
use crate::ops::gemm::{RowSource, Shaped};

/// A matrix in panels of `width` rows of the matrix, which are columns of the product: element
/// `(n, k)` lies at `[n / width][k][n % width]`. The last panel is filled up with zeros.
#[derive(Debug)]
pub struct Panels {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) width: usize,
    /// Where the rows come from; `None` where they were laid out at once.
    source: Option<Arc<dyn RowSource>>,
    values: OnceLock<Pages<f32>>,
    /// The same in fewer bits, for estimates.
    pub(super) codes: Codes,
}

/// All panels of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    all: &'a [f32],
    panel: usize,
}

impl<'a> Values<'a> {
    /// Those of panel `p`, `[inputs, width]`.
    pub fn panel(self, p: usize) -> &'a [f32] {
        &self.all[p * self.panel..][..self.panel]
    }
}

impl Shaped for Panels {
    fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inputs]
    }
}

impl Panels {
    /// Lays out `values`, `[outputs, inputs]`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) without memory.
    pub(super) fn of_values(
        width: usize,
        outputs: usize,
        inputs: usize,
        values: &[f32],
    ) -> Result<Self> {
        let mut panels = Panels::empty(width, [outputs, inputs]);
        let len = width * inputs;
        let mut laid_out = Pages::zeros(panels.count() * len)?;
        laid_out
            .get_mut()
            .par_chunks_exact_mut(len)
            .zip(values.par_chunks(len))
            .for_each(|(panel, rows)| lay_out(panel, rows, width, inputs));
        panels.values = OnceLock::from(laid_out);
        Ok(panels)
    }

    /// Reads `source` when the rows are needed.
    pub(super) fn of_source(width: usize, source: Arc<dyn RowSource>) -> Self {
        Panels {
            source: Some(source.clone()),
            ..Panels::empty(width, source.shape())
        }
    }

    fn empty(width: usize, [outputs, inputs]: [usize; 2]) -> Self {
        Panels {
            outputs,
            inputs,
            width,
            source: None,
            values: OnceLock::new(),
            codes: Codes::default(),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.outputs.div_ceil(self.width)
    }

    /// The panels, laid out now if they were not yet.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) without memory.
    pub(super) fn values(&self) -> Result<Values<'_>> {
        let panel = self.width * self.inputs;
        if self.values.get().is_none() {
            let mut pages = Pages::zeros(self.count() * panel)?;
            pages
                .get_mut()
                .par_chunks_exact_mut(panel)
                .enumerate()
                .for_each_init(Vec::new, |rows, (p, panel)| {
                    self.read_panel(p, rows);
                    lay_out(panel, rows, self.width, self.inputs);
                });
            // Made before the cell is locked: a thread of the pool that waits in here may take up other
            // work, and that may want the same panels.
            self.values.get_or_init(|| pages);
        }
        let all = self.values.get().map_or(&[][..], Pages::get);
        Ok(Values { all, panel })
    }

    /// The rows of panel `p`, row-major; fewer in the last.
    pub(super) fn read_panel(&self, p: usize, rows: &mut Vec<f32>) {
        let first = p * self.width;
        let count = self.width.min(self.outputs - first);
        rows.resize(count * self.inputs, 0.0);
        for (i, row) in rows.chunks_exact_mut(self.inputs).enumerate() {
            self.row(first + i, row);
        }
    }

    /// Row `n` of the matrix.
    pub(super) fn row(&self, n: usize, out: &mut [f32]) {
        match (self.values.get(), &self.source) {
            (None, Some(source)) => source.read(n, out),
            (Some(values), _) => {
                for (out, &v) in out
                    .iter_mut()
                    .zip(column(values, n, self.width, self.inputs))
                {
                    *out = v;
                }
            }
            // There is one or the other.
            (None, None) => out.fill(0.0),
        }
    }

    /// Adds row `n` of the matrix, which is laid out already.
    pub(super) fn add_row(&self, n: usize, out: &mut [f32]) {
        if let Some(values) = self.values.get() {
            for (out, &v) in out
                .iter_mut()
                .zip(column(values, n, self.width, self.inputs))
            {
                *out += v;
            }
        }
    }

    /// The matrix transposed.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) without memory.
    pub(super) fn transposed(&self) -> Result<Panels> {
        let width = self.width;
        let all = self.values()?.all;
        let across = Panels::empty(width, [self.inputs, self.outputs]);
        let mut pages = Pages::zeros(across.count() * width * self.outputs)?;
        pages
            .get_mut()
            .par_chunks_mut(width * self.outputs)
            .enumerate()
            .for_each(|(q, to)| {
                // Square by square: what is read and written together stays in the cache.
                let first = q * width;
                let count = width.min(self.inputs - first);
                let squares = to.chunks_mut(width * width);
                for (square, from) in squares.zip(all.chunks_exact(width * self.inputs)) {
                    let from = &from[first * width..(first + count) * width];
                    for (k, from) in from.chunks_exact(width).enumerate() {
                        for (to, &v) in square.chunks_exact_mut(width).zip(from) {
                            to[k] = v;
                        }
                    }
                }
            });
        Ok(Panels {
            values: OnceLock::from(pages),
            ..across
        })
    }
}

/// Row `n` of a matrix in panels, which is a column of one of them.
fn column(
    values: &Pages<f32>,
    n: usize,
    width: usize,
    inputs: usize,
) -> impl Iterator<Item = &f32> {
    let start = n / width * width * inputs + n % width;
    values.get()[start..].iter().step_by(width)
}

/// Transposes up to `width` rows into a panel. A few columns at a time: what they become stays in the cache.
fn lay_out(panel: &mut [f32], rows: &[f32], width: usize, inputs: usize) {
    const COLUMNS: usize = 16;
    for (part, panel) in panel.chunks_mut(COLUMNS * width).enumerate() {
        for (i, row) in rows.chunks_exact(inputs).enumerate() {
            let row = &row[part * COLUMNS..];
            for (to, &v) in panel.chunks_exact_mut(width).zip(row) {
                to[i] = v;
            }
        }
    }
}

/// Floats of a cache line.
pub(super) const LINE: usize = 16;

/// The index, below [`LINE`], at which a cache line begins in `data`.
pub(super) fn to_line(data: &[f32]) -> usize {
    (data.as_ptr() as usize / size_of::<f32>()).wrapping_neg() % LINE
}
