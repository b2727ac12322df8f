//! Products by the device's own library, or by `kernels/gemm.cu` where it has none.

use super::abi::{self, GemmParams, PackParams};
use super::{Buf, Gpu, Launcher, Operand, Precision, Product, Slot, size, unbuilt};
use crate::error::{Error, Result};
use crate::ops::expect_len;
use crate::ops::gemm::{GemmOp, Linear, Outer};

/// A constant matrix on the device, in the backend's precision, rows filled up with zeros to 16 bytes.
pub struct Matrix<L: Launcher> {
    pub(super) memory: L::Memory,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) ld: usize,
}

/// What the kernels that make tiles share.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Rows, and columns.
    pub size: usize,
    /// Bytes of shared memory.
    pub shared: usize,
}

impl Tile {
    pub(super) fn of(precision: Precision) -> Self {
        let (size, pitch) = match precision {
            Precision::Bf16 => (abi::TILE_BF16, abi::TILE_K_BF16),
            Precision::F32 => (abi::TILE_F32, abi::TILE_PITCH_F32),
        };
        Tile {
            size: size as usize,
            shared: (abi::TILE_STAGES * 2 * size * pitch) as usize * precision.bytes(),
        }
    }
}

impl<L: Launcher> Gpu<L> {
    /// Packs `rows` rows of x, or those named by the `index` on the device, as the left operand of a
    /// product; gives its address and the elements of a row.
    ///
    /// # Safety
    ///
    /// `x` has the rows, `index` as many entries.
    pub(super) unsafe fn pack(
        &self,
        operand: &mut Slot<L>,
        x: u64,
        index: u64,
        rows: usize,
        width: usize,
    ) -> Result<(u64, usize)> {
        let ld = self.precision.padded(width);
        let out = operand.reserve(&self.launcher, rows * ld * self.precision.bytes())?;
        let params = PackParams {
            x,
            index,
            out,
            rows: size("pack", rows)?,
            width: size("pack", width)?,
            ld: size("pack", ld)?,
            stride: size("pack", width)?,
        };
        let kernel = match self.precision {
            Precision::Bf16 => "pack_bf16",
            Precision::F32 => "pack_f32",
        };
        let grid = [rows, ld.div_ceil(1024), 1];
        // SAFETY: the operand was made for it; the rest is the caller's promise.
        unsafe { self.launch(kernel, grid, 256, 0, &params)? };
        Ok((out, ld))
    }
}

impl<L: Launcher> GemmOp for Gpu<L> {
    type Matrix = Matrix<L>;

    fn matrix(&self, outputs: usize, inputs: usize, values: &[f32]) -> Result<Matrix<L>> {
        if outputs.checked_mul(inputs) != Some(values.len()) || values.is_empty() {
            return Err(Error::Shape {
                op: "matrix",
                want: format!("{outputs} x {inputs} elements, and at least one"),
                got: values.len().to_string(),
            });
        }
        let ld = self.precision.padded(inputs);
        let row_bytes = ld * self.precision.bytes();
        let mut bytes = vec![0; outputs * row_bytes];
        for (to, row) in bytes
            .chunks_exact_mut(row_bytes)
            .zip(values.chunks_exact(inputs))
        {
            match self.precision {
                Precision::Bf16 => {
                    for (to, &v) in to.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                        *to = half::bf16::from_f32(v).to_le_bytes();
                    }
                }
                Precision::F32 => {
                    to[..inputs * 4].copy_from_slice(bytemuck::cast_slice(row));
                }
            }
        }
        let mut memory = self.launcher.alloc(bytes.len(), false)?;
        self.launcher.write(&mut memory, 0, &bytes)?;
        Ok(Matrix {
            memory,
            outputs,
            inputs,
            ld,
        })
    }

    fn linear(
        &self,
        shape: Linear,
        x: &Buf<L, f32>,
        w: &Matrix<L>,
        bias: Option<&Buf<L, f32>>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        let Linear {
            rows,
            inputs,
            outputs,
            add,
        } = shape;
        if (w.outputs, w.inputs) != (outputs, inputs) {
            return Err(Error::Shape {
                op: "linear",
                want: format!("a matrix [{outputs}, {inputs}]"),
                got: format!("[{}, {}]", w.outputs, w.inputs),
            });
        }
        expect_len("linear", "x", rows * inputs, x.len)?;
        expect_len("linear", "y", rows * outputs, y.len)?;
        if let Some(bias) = bias {
            expect_len("linear", "the bias", outputs, bias.len)?;
        }
        if rows == 0 {
            return Ok(());
        }
        let mut scratch = self.scratch();
        // SAFETY: x has the rows.
        let (operand, ld) =
            unsafe { self.pack(&mut scratch.operand, self.at(x), 0, rows, inputs)? };
        let by = |at| Operand {
            at,
            ld,
            turned: false,
        };
        let product = Product {
            x: by(operand),
            w: by(self.launcher.address(&w.memory)),
            bias: bias.map_or(0, |bias| self.at(bias)),
            y: self.at(y),
            rows,
            columns: outputs,
            // Both are filled up with zeros.
            inner: ld,
            add,
            precision: self.precision,
        };
        // SAFETY: the lengths were checked, and both operands have rows of `ld` elements.
        if let Some(done) = unsafe { self.launcher.product(&product) } {
            return done;
        }
        let params = GemmParams {
            x: operand,
            w: self.launcher.address(&w.memory),
            bias: bias.map_or(0, |bias| self.at(bias)),
            y: self.at(y),
            rows: size("linear", rows)?,
            outputs: size("linear", outputs)?,
            ld: size("linear", ld)?,
            add: add.into(),
        };
        let tile = Tile::of(self.precision);
        let grid = [rows.div_ceil(tile.size), outputs.div_ceil(tile.size), 1];
        let kernel = match self.precision {
            Precision::Bf16 => "gemm_bf16",
            Precision::F32 => "gemm_f32",
        };
        // SAFETY: the lengths were checked, and both operands have rows of `ld` elements.
        unsafe { self.launch(kernel, grid, abi::TILE_THREADS, tile.shared, &params) }
    }

    // No kernels for training yet.

    fn transposed(&self, _: &Matrix<L>) -> Result<Matrix<L>> {
        unbuilt("transposed")
    }

    fn outer(&self, _: Outer, _: &Buf<L, f32>, _: &Buf<L, f32>, _: &mut Buf<L, f32>) -> Result<()> {
        unbuilt("outer")
    }
}
