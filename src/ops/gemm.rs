//! Linear layers: `y = x · wᵀ`.

use std::fmt::Debug;
use std::sync::Arc;

use rayon::prelude::*;

use super::storage::{Buffer, Storage};
use super::{Checked, expect_len};
use crate::error::{Error, Result};

/// The rows of a constant matrix, wherever they lie and in whatever type.
pub trait RowSource: Debug + Send + Sync {
    /// Height and width, neither of them zero.
    fn shape(&self) -> [usize; 2];

    /// Writes row `row`, as many elements as the matrix is wide.
    fn read(&self, row: usize, out: &mut [f32]);
}

/// A constant matrix that a device has laid out.
pub trait Shaped: Send + Sync {
    /// Outputs and inputs: height and width.
    fn shape(&self) -> [usize; 2];
}

/// Shape of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Width of `x`.
    pub inputs: usize,
    /// Width of `y`.
    pub outputs: usize,
    /// Adds to what `y` holds instead of overwriting it: a residual connection.
    pub add: bool,
}

/// Neighbouring columns of a row-major matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Width of the matrix.
    pub stride: usize,
    /// The first column.
    pub first: usize,
    /// Number of columns.
    pub width: usize,
}

impl Span {
    /// All columns of a matrix of that width.
    pub fn all(width: usize) -> Self {
        Span {
            stride: width,
            first: 0,
            width,
        }
    }

    /// Elements that `rows` rows of the matrix have, or an error where the columns do not lie in it.
    fn check(self, op: &'static str, rows: usize) -> Result<usize> {
        match self.first.checked_add(self.width) {
            Some(end) if end <= self.stride => Ok(rows * self.stride),
            _ => Err(Error::Shape {
                op,
                want: format!("columns of a matrix of width {}", self.stride),
                got: format!("{} from {} on", self.width, self.first),
            }),
        }
    }
}

/// Shape of a product of two matrices of activations over their rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// Rows of both.
    pub rows: usize,
    /// Columns of the first: rows of the result.
    pub left: Span,
    /// Columns of the second: columns of the result.
    pub right: Span,
}

/// Products of activations with weights.
pub trait GemmOp: Storage {
    /// A constant matrix `[outputs, inputs]`, laid out as this device multiplies by it fastest.
    type Matrix: Shaped;

    /// Lays out `values`, `[outputs, inputs]` row-major.
    fn matrix(&self, outputs: usize, inputs: usize, values: &[f32]) -> Result<Self::Matrix> {
        if outputs.checked_mul(inputs) != Some(values.len()) || values.is_empty() {
            return Err(Error::Shape {
                op: "matrix",
                want: format!("{outputs} x {inputs} elements, and at least one"),
                got: values.len().to_string(),
            });
        }
        self.matrix_checked(Checked(()), outputs, inputs, values)
    }

    /// The same for rows that lie elsewhere. They may be read at any time from now on, and as often as
    /// this device likes: what is not needed is never laid out.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a matrix without elements; [`Error::Device`] without memory for it.
    fn matrix_of(&self, source: Arc<dyn RowSource>) -> Result<Self::Matrix> {
        let [outputs, inputs] = source.shape();
        let mut values = vec![0.0; outputs * inputs];
        values
            .par_chunks_mut(inputs.max(1))
            .enumerate()
            .for_each(|(row, out)| source.read(row, out));
        self.matrix(outputs, inputs, &values)
    }

    /// `y[rows, outputs] = x[rows, inputs] · wᵀ + bias[outputs]`.
    fn linear(
        &self,
        shape: Linear,
        x: &Self::Buf<f32>,
        w: &Self::Matrix,
        bias: Option<&Self::Buf<f32>>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()> {
        shape.check(w, x.len(), bias.map(Buffer::len), y.len())?;
        self.linear_checked(Checked(()), shape, x, w, bias, y)
    }

    /// The matrix transposed, `[inputs, outputs]`: with it [`GemmOp::linear`] makes the gradient of a
    /// linear layer's input, `dx = dy · w`, at the speed of the forward.
    fn transposed(&self, w: &Self::Matrix) -> Result<Self::Matrix>;

    /// `out[i, j] = Σ_r a[r, left + i] · b[r, right + j]`, row-major `[left.width, right.width]`: the
    /// gradient of a linear layer's weight from `a = dy` and `b = x`.
    fn outer(
        &self,
        shape: Outer,
        a: &Self::Buf<f32>,
        b: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let Outer { rows, left, right } = shape;
        expect_len("outer", "a", left.check("outer", rows)?, a.len())?;
        expect_len("outer", "b", right.check("outer", rows)?, b.len())?;
        let len = left.width * right.width;
        expect_len("outer", "the output", len, out.len())?;
        self.outer_checked(Checked(()), shape, a, b, out)
    }

    /// [`GemmOp::linear`] to within about a percent, where the device does that much faster; where it
    /// does not, the product itself.
    fn estimate(
        &self,
        shape: Linear,
        x: &Self::Buf<f32>,
        w: &Self::Matrix,
        bias: Option<&Self::Buf<f32>>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()> {
        shape.check(w, x.len(), bias.map(Buffer::len), y.len())?;
        self.estimate_checked(Checked(()), shape, x, w, bias, y)
    }

    /// [`GemmOp::matrix`], after its checks.
    fn matrix_checked(
        &self,
        _: Checked,
        outputs: usize,
        inputs: usize,
        values: &[f32],
    ) -> Result<Self::Matrix>;

    /// [`GemmOp::linear`], after its checks.
    fn linear_checked(
        &self,
        _: Checked,
        shape: Linear,
        x: &Self::Buf<f32>,
        w: &Self::Matrix,
        bias: Option<&Self::Buf<f32>>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`GemmOp::outer`], after its checks.
    fn outer_checked(
        &self,
        _: Checked,
        shape: Outer,
        a: &Self::Buf<f32>,
        b: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`GemmOp::estimate`], after its checks.
    fn estimate_checked(
        &self,
        checked: Checked,
        shape: Linear,
        x: &Self::Buf<f32>,
        w: &Self::Matrix,
        bias: Option<&Self::Buf<f32>>,
        y: &mut Self::Buf<f32>,
    ) -> Result<()> {
        self.linear_checked(checked, shape, x, w, bias, y)
    }
}

impl Linear {
    fn check(&self, w: &impl Shaped, x: usize, bias: Option<usize>, y: usize) -> Result<()> {
        let &Linear {
            rows,
            inputs,
            outputs,
            ..
        } = self;
        expect_matrix("linear", w, [outputs, inputs])?;
        expect_len("linear", "x", rows * inputs, x)?;
        expect_len("linear", "y", rows * outputs, y)?;
        match bias {
            Some(bias) => expect_len("linear", "the bias", outputs, bias),
            None => Ok(()),
        }
    }
}

/// The error for a matrix of another shape.
pub(super) fn expect_matrix(op: &'static str, w: &impl Shaped, want: [usize; 2]) -> Result<()> {
    let got = w.shape();
    if got == want {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        want: format!("a matrix {want:?}"),
        got: format!("{got:?}"),
    })
}
