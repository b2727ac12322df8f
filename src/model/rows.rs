//! Matrices of a model's files as the rows of what is multiplied by.

use std::sync::Arc;

use super::quant::{self, DType};
use super::raw::RawTensor;
use crate::ops::RowSource;

/// The rows of one matrix: where they lie in a file, each a whole number of blocks.
#[derive(Debug)]
pub(crate) struct FileRows {
    pub tensor: RawTensor,
    pub dtype: DType,
    /// Height and width.
    pub shape: [usize; 2],
    /// Of so many heads each is stored as `[head_dim / 2, 2]` rows, and read as `[2, head_dim / 2]`.
    pub interleaved: Option<usize>,
}

impl RowSource for FileRows {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        let bytes = self.tensor.bytes();
        let row_bytes = bytes.len() / self.shape[0];
        let row = self
            .interleaved
            .map_or(row, |heads| stored_row(row, self.shape[0] / heads));
        let bytes = bytes.get(row * row_bytes..(row + 1) * row_bytes);
        // Type, shape and length were found to agree when the file was opened.
        let read = quant::dequantize_rows(self.dtype, bytes.unwrap_or(&[]), out);
        debug_assert!(read.is_ok(), "{read:?}");
    }
}

/// Where row `row` of heads so high stands, if each is stored as `[head_dim / 2, 2]` and read as
/// `[2, head_dim / 2]`.
pub(crate) fn stored_row(row: usize, head_dim: usize) -> usize {
    let (within, half) = (row % head_dim, head_dim / 2);
    row - within + within % half * 2 + within / half
}

/// A matrix in memory.
#[derive(Debug)]
pub(crate) struct HeldRows {
    pub values: Vec<f32>,
    /// Height and width.
    pub shape: [usize; 2],
}

impl RowSource for HeldRows {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        let width = self.shape[1];
        out.copy_from_slice(&self.values[row * width..][..width]);
    }
}

/// Matrices of one width, one above the other.
#[derive(Debug)]
pub(crate) struct Stacked(pub Vec<Arc<dyn RowSource>>);

impl RowSource for Stacked {
    fn shape(&self) -> [usize; 2] {
        let height = self.0.iter().map(|part| part.shape()[0]).sum();
        [height, self.0.first().map_or(0, |part| part.shape()[1])]
    }

    fn read(&self, mut row: usize, out: &mut [f32]) {
        for part in &self.0 {
            let height = part.shape()[0];
            if row < height {
                return part.read(row, out);
            }
            row -= height;
        }
    }
}
