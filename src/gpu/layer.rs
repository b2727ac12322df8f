//! What stands between the products, by `kernels/layer.cu`.

use super::abi::{
    ActivateBwdParams, ActivateParams, DropoutParams, EmbedParams, NormBwdParams, NormParams,
    RotateBwdParams, RotateParams,
};
use super::gemm::Matrix;
use super::{Buf, Gpu, LaunchConfig, Launcher, Precision, size};
use crate::error::{Error, Result};
use crate::ops::Checked;
use crate::ops::layer::{Dropout, LayerOp, Norm, NormKind, Pairing, Rotate};

const THREADS: u32 = 256;

/// Blocks for a row of `width` elements, of which each thread takes four.
fn shares(width: usize) -> usize {
    width.div_ceil(4 * THREADS as usize)
}

impl<L: Launcher> Gpu<L> {
    /// Embeds `rows` ids that lie on the device.
    ///
    /// # Safety
    ///
    /// There are so many, each below the table's rows, and the output has room.
    pub(super) unsafe fn embed_at(
        &self,
        ids: u64,
        rows: usize,
        table: &Matrix<L>,
        add: bool,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let params = EmbedParams {
            ids,
            table: self.launcher.address(&table.memory),
            out: self.at(out),
            rows: size("embed", rows)?,
            width: size("embed", table.inputs)?,
            ld: size("embed", table.ld)?,
            add: add.into(),
        };
        let kernel = match self.precision {
            Precision::Bf16 => "embed_bf16",
            Precision::F32 => "embed_f32",
        };
        // SAFETY: the caller's promise.
        unsafe { self.launch(kernel, LaunchConfig::new([rows, 1, 1], THREADS), &params) }
    }

    /// [`LayerOp::rotate`] to the `places` in the cache that lie on the device, one for each row, or for
    /// 0 from `shape.at` on.
    ///
    /// # Safety
    ///
    /// The cache has these rows.
    pub(super) unsafe fn rotate_to(
        &self,
        shape: Rotate,
        qkv: &mut Buf<L, f32>,
        norms: Option<[&Buf<L, f32>; 2]>,
        angles: Option<&Buf<L, f32>>,
        [k, v]: [&mut Buf<L, f32>; 2],
        places: u64,
    ) -> Result<()> {
        let Rotate {
            rows,
            heads,
            kv_heads,
            head_dim,
            at,
            eps,
            pairing,
        } = shape;
        let all = heads + 2 * kv_heads;
        if !head_dim.is_multiple_of(2) {
            return Err(Error::Shape {
                op: "rotate",
                want: "heads of even width".into(),
                got: head_dim.to_string(),
            });
        }
        let norms = norms.map_or([0, 0], |norms| norms.map(|norm| self.at(norm)));
        let params = RotateParams {
            qkv: self.at(qkv),
            q_norm: norms[0],
            k_norm: norms[1],
            angles: angles.map_or(0, |angles| self.at(angles)),
            k: self.at(k),
            v: self.at(v),
            places,
            rows: size("rotate", rows)?,
            heads: size("rotate", heads)?,
            kv_heads: size("rotate", kv_heads)?,
            head_dim: size("rotate", head_dim)?,
            at: size("rotate", at)?,
            eps,
            interleaved: u32::from(pairing == Pairing::Interleaved),
            unused: 0,
        };
        let warps = size("rotate", rows * all)? as usize;
        let grid = [warps.div_ceil(THREADS as usize / 32), 1, 1];
        // SAFETY: lengths were checked; the cache is the caller's promise.
        unsafe { self.launch("rotate", LaunchConfig::new(grid, THREADS), &params) }
    }
}

impl<L: Launcher> Gpu<L> {
    /// Rows `[gate, up]` of `x` to rows of `y`, by the kernel of that name.
    fn gate(
        &self,
        op: &'static str,
        rows: usize,
        width: usize,
        x: &Buf<L, f32>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        let mut scratch = self.scratch();
        let params = ActivateParams {
            x: self.at(x),
            y: self.at(y),
            packed: self.leave(&mut scratch, rows, width)?,
            rows: size(op, rows)?,
            width: size(op, width)?,
        };
        let config = LaunchConfig::new([rows, shares(width), 1], THREADS);
        // SAFETY: lengths were checked, and the operand was made for these rows.
        unsafe { self.launch(op, config, &params)? };
        self.left(&mut scratch, y, rows, width);
        Ok(())
    }

    /// `y = f(x)`, element by element.
    fn activate(
        &self,
        kernel: &'static str,
        len: usize,
        x: &Buf<L, f32>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        let mut scratch = self.scratch();
        let params = ActivateParams {
            x: self.at(x),
            y: self.at(y),
            packed: self.leave(&mut scratch, 1, len)?,
            rows: 1,
            width: size(kernel, len)?,
        };
        // One row; the grid's second side has an end, and a thread takes several elements where there are more.
        let grid = [1, shares(len).min(4096), 1];
        // SAFETY: lengths were checked, and the operand was made for them.
        unsafe { self.launch(kernel, LaunchConfig::new(grid, THREADS), &params)? };
        self.left(&mut scratch, y, 1, len);
        Ok(())
    }
}

impl<L: Launcher> LayerOp for Gpu<L> {
    fn embed_checked(
        &self,
        _: Checked,
        ids: &[u32],
        table: &Matrix<L>,
        add: bool,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let mut scratch = self.scratch();
        scratch.tiles.clear();
        let [at] = scratch
            .table
            .fill(&self.launcher, [bytemuck::cast_slice(ids)])?;
        // SAFETY: ids and lengths were checked.
        unsafe { self.embed_at(at, ids.len(), table, add, out) }
    }

    fn norm_checked(
        &self,
        _: Checked,
        shape: Norm,
        x: &Buf<L, f32>,
        weight: &Buf<L, f32>,
        bias: Option<&Buf<L, f32>>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        let Norm { rows, width, .. } = shape;
        let mut scratch = self.scratch();
        let params = NormParams {
            x: self.at(x),
            weight: self.at(weight),
            bias: bias.map_or(0, |bias| self.at(bias)),
            y: self.at(y),
            packed: self.leave(&mut scratch, rows, width)?,
            rows: size("norm", rows)?,
            width: size("norm", width)?,
            layer: u32::from(shape.kind == NormKind::Layer),
            eps: shape.eps,
        };
        // A warp a row, or a block.
        let (kernel, config) = match width {
            0..=1024 => (
                "norm_rows",
                LaunchConfig::new([rows.div_ceil(4), 1, 1], 128),
            ),
            _ => {
                let shared = THREADS as usize / 32 * size_of::<f32>();
                let config = LaunchConfig::new([rows, 1, 1], THREADS).shared(shared);
                ("norm_wide", config)
            }
        };
        // SAFETY: lengths were checked, and the operand was made for these rows.
        unsafe { self.launch(kernel, config, &params)? };
        self.left(&mut scratch, y, rows, width);
        Ok(())
    }

    fn rotate_checked(
        &self,
        _: Checked,
        shape: Rotate,
        qkv: &mut Buf<L, f32>,
        norms: Option<[&Buf<L, f32>; 2]>,
        angles: Option<&Buf<L, f32>>,
        k: &mut Buf<L, f32>,
        v: &mut Buf<L, f32>,
    ) -> Result<()> {
        // SAFETY: the cache has rows from `at` on.
        unsafe { self.rotate_to(shape, qkv, norms, angles, [k, v], 0) }
    }

    fn swiglu_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Buf<L, f32>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        self.gate("swiglu", rows, width, x, y)
    }

    fn gelu_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Buf<L, f32>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        self.activate("gelu", len, x, y)
    }

    fn gelu_erf_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Buf<L, f32>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        self.activate("gelu_erf", len, x, y)
    }

    fn geglu_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Buf<L, f32>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        self.gate("geglu", rows, width, x, y)
    }

    fn norm_bwd_checked(
        &self,
        _: Checked,
        shape: Norm,
        x: &Buf<L, f32>,
        weight: &Buf<L, f32>,
        dy: &Buf<L, f32>,
        dx: &mut Buf<L, f32>,
    ) -> Result<()> {
        let Norm { rows, width, .. } = shape;
        let op = "norm_bwd";
        let params = NormBwdParams {
            x: self.at(x),
            weight: self.at(weight),
            dy: self.at(dy),
            dx: self.at(dx),
            width: size(op, width)?,
            layer: (shape.kind == NormKind::Layer).into(),
            eps: shape.eps,
            unused: 0,
        };
        let shared = THREADS as usize / 32 * size_of::<f32>();
        // SAFETY: lengths were checked.
        unsafe {
            self.launch(
                "norm_rows_bwd",
                LaunchConfig::new([rows, 1, 1], THREADS).shared(shared),
                &params,
            )
        }
    }

    fn rotate_bwd_checked(
        &self,
        _: Checked,
        shape: Rotate,
        qkv: &Buf<L, f32>,
        norms: Option<[&Buf<L, f32>; 2]>,
        angles: Option<&Buf<L, f32>>,
        dk: &Buf<L, f32>,
        dv: &Buf<L, f32>,
        dqkv: &mut Buf<L, f32>,
    ) -> Result<()> {
        let Rotate {
            rows,
            heads,
            kv_heads,
            head_dim,
            at,
            eps,
            pairing,
        } = shape;
        let op = "rotate_bwd";
        let all = heads + 2 * kv_heads;
        let norms = norms.map_or([0, 0], |norms| norms.map(|norm| self.at(norm)));
        let params = RotateBwdParams {
            qkv: self.at(qkv),
            q_norm: norms[0],
            k_norm: norms[1],
            angles: angles.map_or(0, |angles| self.at(angles)),
            dk: self.at(dk),
            dv: self.at(dv),
            dqkv: self.at(dqkv),
            rows: size(op, rows)?,
            heads: size(op, heads)?,
            kv_heads: size(op, kv_heads)?,
            head_dim: size(op, head_dim)?,
            at: size(op, at)?,
            eps,
            interleaved: u32::from(pairing == Pairing::Interleaved),
            unused: 0,
        };
        let warps = size(op, rows * all)? as usize;
        let grid = [warps.div_ceil(THREADS as usize / 32), 1, 1];
        // SAFETY: lengths were checked.
        unsafe { self.launch("rotate_bwd", LaunchConfig::new(grid, THREADS), &params) }
    }

    fn swiglu_bwd_checked(
        &self,
        _: Checked,
        rows: usize,
        width: usize,
        x: &Buf<L, f32>,
        dy: &Buf<L, f32>,
        dx: &mut Buf<L, f32>,
    ) -> Result<()> {
        let op = "swiglu_bwd";
        let params = ActivateBwdParams {
            x: self.at(x),
            dy: self.at(dy),
            dx: self.at(dx),
            rows: size(op, rows)?,
            width: size(op, width)?,
        };
        // SAFETY: lengths were checked.
        unsafe {
            self.launch(
                op,
                LaunchConfig::new([rows, shares(width), 1], THREADS),
                &params,
            )
        }
    }

    fn gelu_bwd_checked(
        &self,
        _: Checked,
        len: usize,
        x: &Buf<L, f32>,
        dy: &Buf<L, f32>,
        dx: &mut Buf<L, f32>,
    ) -> Result<()> {
        let op = "gelu_bwd";
        let params = ActivateBwdParams {
            x: self.at(x),
            dy: self.at(dy),
            dx: self.at(dx),
            rows: 1,
            width: size(op, len)?,
        };
        // SAFETY: lengths were checked.
        unsafe {
            self.launch(
                op,
                LaunchConfig::new([1, shares(len).min(4096), 1], THREADS),
                &params,
            )
        }
    }

    fn dropout_checked(
        &self,
        _: Checked,
        shape: Dropout,
        x: &Buf<L, f32>,
        y: &mut Buf<L, f32>,
    ) -> Result<()> {
        let params = DropoutParams {
            x: self.at(x),
            y: self.at(y),
            len: size("dropout", shape.len)?,
            threshold: shape.threshold(),
            seed_low: shape.seed as u32,
            seed_high: (shape.seed >> 32) as u32,
            scale: 1.0 / (1.0 - shape.rate),
            add: shape.add.into(),
        };
        let grid = [shares(shape.len).min(65_536), 1, 1];
        // SAFETY: lengths were checked.
        unsafe { self.launch("dropout", LaunchConfig::new(grid, THREADS), &params) }
    }
}
