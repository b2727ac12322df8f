//! Tensors as they lie in files.

use std::ops::Range;
use std::sync::Arc;

use super::quant::DType;
use crate::mapped::Mapped;

/// A tensor as its file describes it: its extent is checked, its use is not.
#[derive(Debug, Clone)]
pub(crate) struct RawTensor {
    pub file: Arc<Mapped>,
    /// Where in the file.
    pub range: Range<usize>,
    /// Or the name of an element type that is not read here.
    pub dtype: Result<DType, String>,
    /// Outermost first.
    pub shape: Vec<usize>,
}

impl RawTensor {
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes().get(self.range.clone()).unwrap_or(&[])
    }
}
