//! Products by the device's own library, or by `kernels/gemm.cu` where it has none.

use super::abi::{self, GemmParams, PackParams, TransposeParams};
use super::launch::{Kernel, Launch, LaunchConfig, Params};
use super::{Buf, Gpu, Launcher, Operand, Precision, Product, Scratch, size};
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::gemm::{GemmOp, Linear, Outer, Shaped};
use crate::ops::storage::Storage;

/// A constant matrix on the device, in the backend's precision, rows filled up with zeros to 16 bytes.
pub struct Matrix<L: Launcher> {
    pub(super) memory: L::Memory,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) ld: usize,
}

impl<L: Launcher> Shaped for Matrix<L> {
    fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inputs]
    }
}

/// What the kernels that make tiles share.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Rows, and columns.
    pub size: usize,
    /// Bytes of shared memory.
    pub shared: usize,
    /// Of a block.
    pub threads: u32,
}

impl Tile {
    pub(super) fn of(precision: Precision) -> Self {
        let (size, pitch, threads) = match precision {
            Precision::Bf16 => (abi::TILE_BF16, abi::TILE_K_BF16, abi::TILE_THREADS_BF16),
            Precision::F32 => (abi::TILE_F32, abi::TILE_PITCH_F32, abi::TILE_THREADS_F32),
        };
        Tile {
            size: size as usize,
            shared: (abi::TILE_STAGES * 2 * size * pitch) as usize * precision.bytes(),
            threads,
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
        scratch: &mut Scratch<L>,
        x: u64,
        index: u64,
        rows: usize,
        width: usize,
    ) -> Result<(u64, usize)> {
        let ld = self.precision.padded(width);
        let out = scratch.operand(&self.launcher, rows * ld * self.precision.bytes())?;
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
        unsafe { self.launch(kernel, LaunchConfig::new(grid, 256), &params)? };
        Ok((out, ld))
    }
}

impl<L: Launcher> GemmOp for Gpu<L> {
    type Matrix = Matrix<L>;

    fn matrix_checked(
        &self,
        _: Checked,
        outputs: usize,
        inputs: usize,
        values: &[f32],
    ) -> Result<Matrix<L>> {
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

    fn linear_checked(
        &self,
        _: Checked,
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
        if rows == 0 {
            return Ok(());
        }
        let mut scratch = self.scratch();
        let (operand, ld) = if scratch.packed == Some(self.now(x, rows, inputs)) {
            let ld = self.precision.padded(inputs);
            let bytes = rows * ld * self.precision.bytes();
            (scratch.operand.reserve(&self.launcher, bytes)?, ld)
        } else {
            // SAFETY: x has the rows.
            unsafe { self.pack(&mut scratch, self.at(x), 0, rows, inputs)? }
        };
        let product = Product {
            x: Operand { at: operand, ld },
            w: w.operand(self),
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
        unsafe { self.product(&product) }
    }

    fn transposed(&self, w: &Matrix<L>) -> Result<Matrix<L>> {
        let ld = self.precision.padded(w.outputs);
        let bytes = w.inputs * ld * self.precision.bytes();
        let memory = self.launcher.alloc(bytes, false)?;
        let params = TransposeParams {
            x: self.launcher.address(&w.memory),
            out: self.launcher.address(&memory),
            rows: size("transposed", w.outputs)?,
            columns: size("transposed", w.inputs)?,
            ld: size("transposed", ld)?,
            stride: size("transposed", w.ld)?,
        };
        let kernel = match self.precision {
            Precision::Bf16 => "transpose_bf16",
            Precision::F32 => "transpose_f32",
        };
        // SAFETY: the matrix has rows of `stride` elements, and the memory was made for the transposed one.
        unsafe { self.transpose(kernel, &params)? };
        Ok(Matrix {
            memory,
            outputs: w.inputs,
            inputs: w.outputs,
            ld,
        })
    }

    fn outer_checked(
        &self,
        _: Checked,
        shape: Outer,
        a: &Buf<L, f32>,
        b: &Buf<L, f32>,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let Outer { rows, left, right } = shape;
        let len = left.width * right.width;
        if len == 0 {
            return Ok(());
        }
        if rows == 0 {
            return self.clear(out, 0..len);
        }
        let ld = self.precision.padded(rows);
        let row_bytes = ld * self.precision.bytes();
        let mut scratch = self.scratch();
        // The second begins where the device's library takes it.
        let second = (left.width * row_bytes).next_multiple_of(256);
        let at = scratch.operand(&self.launcher, second + right.width * row_bytes)?;
        let kernel = match self.precision {
            Precision::Bf16 => "transpose_to_bf16",
            Precision::F32 => "transpose_f32",
        };
        let operands = [
            (left, self.at(a), at),
            (right, self.at(b), at + second as u64),
        ];
        for (span, from, to) in operands {
            let params = TransposeParams {
                x: from + (span.first * size_of::<f32>()) as u64,
                out: to,
                rows: size("outer", rows)?,
                columns: size("outer", span.width)?,
                ld: size("outer", ld)?,
                stride: size("outer", span.stride)?,
            };
            // SAFETY: the span lies within rows of `stride` elements; the operand was made for it.
            unsafe { self.transpose(kernel, &params)? };
        }
        let [x, w] = operands.map(|(_, _, at)| Operand { at, ld });
        let product = Product {
            x,
            w,
            bias: 0,
            y: self.at(out),
            rows: left.width,
            columns: right.width,
            inner: ld,
            add: false,
            precision: self.precision,
        };
        // SAFETY: the output's length was checked; the operands were just made.
        unsafe { self.product(&product) }
    }
}

impl<L: Launcher> Matrix<L> {
    pub(super) fn operand(&self, gpu: &Gpu<L>) -> Operand {
        Operand {
            at: gpu.launcher.address(&self.memory),
            ld: self.ld,
        }
    }
}

impl Product {
    /// The launch of our kernel that computes it.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for sizes that kernels cannot count.
    pub fn kernel(&self) -> Result<Kernel> {
        let tile = Tile::of(self.precision);
        let grid = [
            self.rows.div_ceil(tile.size),
            self.columns.div_ceil(tile.size),
            1,
        ];
        let params = GemmParams {
            x: self.x.at,
            w: self.w.at,
            bias: self.bias,
            y: self.y,
            rows: size("product", self.rows)?,
            outputs: size("product", self.columns)?,
            inner: size("product", self.inner)?,
            x_ld: size("product", self.x.ld)?,
            w_ld: size("product", self.w.ld)?,
            add: self.add.into(),
        };
        Ok(Kernel {
            name: match self.precision {
                Precision::Bf16 => "gemm_bf16",
                Precision::F32 => "gemm_f32",
            },
            config: LaunchConfig::new(grid, tile.threads).shared(tile.shared),
            params: Params::new(bytemuck::bytes_of(&params)),
        })
    }
}

impl<L: Launcher> Gpu<L> {
    /// A product by the device's library or by ours.
    ///
    /// # Safety
    ///
    /// Addresses point to memory as large as the shapes say; `inner` and both leading dimensions are
    /// multiples of 16 bytes.
    pub(super) unsafe fn product(&self, product: &Product) -> Result<()> {
        if product.rows == 0 || product.columns == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.submit(Launch::Product(*product)) }
    }

    /// # Safety
    ///
    /// The matrices are as large as the parameters say.
    unsafe fn transpose(&self, kernel: &'static str, params: &TransposeParams) -> Result<()> {
        let squares = [params.ld, params.columns].map(|side| side.div_ceil(32) as usize);
        let grid = [squares[0], squares[1], 1];
        // SAFETY: the caller's promise.
        unsafe {
            self.launch(
                kernel,
                LaunchConfig::new(grid, 256).shared(32 * 33 * 4),
                params,
            )
        }
    }
}
