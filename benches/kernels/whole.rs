//! Every row of a large case, by another way on the same device. A few rows are compared with the CPU beside it,
//! which shows what both ways would do wrong.

use prefold::Result;
use prefold::gpu::{Gpu, Launcher};
use prefold::ops::{Attention, AttentionOp, Buffer, GemmOp, Linear, NllTarget, Storage};

/// Bytes of logits at once.
const LOGITS: usize = 512 << 20;
/// Positions at a time: no multiple of a tile's.
const POSITIONS: usize = 97;

/// Nll by logits that exist: a product, by the device's library where there is one, and their log-softmax. Targets
/// are of rows in a row.
pub fn nll<L: Launcher>(
    gpu: &Gpu<L>,
    [width, vocab]: [usize; 2],
    x: &<Gpu<L> as Storage>::Buf<f32>,
    head: &<Gpu<L> as GemmOp>::Matrix,
    targets: &[NllTarget],
) -> Result<Vec<f32>> {
    let mut want = Vec::with_capacity(targets.len());
    for targets in targets.chunks((LOGITS / (4 * vocab)).max(1)) {
        let rows = targets.len();
        let from = targets[0].row as usize * width;
        let x = gpu.upload(&gpu.download(x, from..from + rows * width)?)?;
        let mut logits = gpu.zeros(rows * vocab)?;
        let shape = Linear {
            rows,
            inputs: width,
            outputs: vocab,
            add: false,
        };
        gpu.linear(shape, &x, head, None, &mut logits)?;
        let ids: Vec<u32> = targets.iter().map(|target| target.target).collect();
        let mut out = gpu.zeros(rows)?;
        gpu.nll_of_logits(vocab, &logits, &ids, &mut out)?;
        want.extend(gpu.download(&out, 0..rows)?);
    }
    Ok(want)
}

/// Attention, its rows a few at a time after a longer prefix: other tiles, and other splits.
pub fn attention<L: Launcher>(
    gpu: &Gpu<L>,
    shape: &Attention<'_>,
    qkv: &<Gpu<L> as Storage>::Buf<f32>,
    [k, v]: [&<Gpu<L> as Storage>::Buf<f32>; 2],
) -> Result<Vec<f32>> {
    let rows = shape.lengths[0];
    let width = qkv.len() / rows;
    let out_width = shape.heads * shape.head_dim;
    let mut want = Vec::with_capacity(rows * out_width);
    for first in (0..rows).step_by(POSITIONS) {
        let lengths = [POSITIONS.min(rows - first)];
        let part = Attention {
            prefix: shape.prefix + first,
            at: shape.prefix + first,
            lengths: &lengths,
            ..*shape
        };
        let queries = gpu.download(qkv, first * width..(first + lengths[0]) * width)?;
        let queries = gpu.upload(&queries)?;
        let mut out = gpu.zeros(lengths[0] * out_width)?;
        gpu.attention(&part, &queries, k, v, &mut out)?;
        want.extend(gpu.download(&out, 0..lengths[0] * out_width)?);
    }
    Ok(want)
}
