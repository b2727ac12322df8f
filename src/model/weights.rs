//! Tensors by their Hugging Face names, whatever file they came from.

use crate::error::Result;

/// Element types that a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// A tensor as it lies in the mapped file.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    pub dtype: DType,
    /// Outermost first, as Hugging Face and numpy write it.
    pub shape: Vec<usize>,
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Dequantises to f32, row-major, on all cores.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        unimplemented!()
    }
}
