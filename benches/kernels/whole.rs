//! Every row of a large case, by another way on the same device. A few rows are compared with the CPU beside it,
//! which shows what both ways would do wrong.

use prefold::Result;
use prefold::gpu::{Gpu, Launcher};
use prefold::ops::{Attention, AttentionOp, GemmOp, Linear, Pick, Storage};

use super::cases::worst;

/// Bytes of logits at once.
const LOGITS: usize = 512 << 20;
/// Positions at a time: no multiple of a tile's.
const POSITIONS: usize = 97;

/// The greatest difference of `got` from nll by logits that exist: a product, by the device's library where there
/// is one, and their log-softmax.
pub fn nll<L: Launcher>(
    gpu: &Gpu<L>,
    [width, vocab]: [usize; 2],
    x: &[f32],
    head: &<Gpu<L> as GemmOp>::Matrix,
    picks: &[Pick],
    got: &[f32],
) -> Result<f64> {
    let mut want = Vec::with_capacity(picks.len());
    for picks in picks.chunks((LOGITS / (4 * vocab)).max(1)) {
        let rows = picks.len();
        let from = picks[0].row as usize * width;
        let x = gpu.upload(&x[from..][..rows * width])?;
        let mut logits = gpu.zeros(rows * vocab)?;
        let shape = Linear {
            rows,
            inputs: width,
            outputs: vocab,
            add: false,
        };
        gpu.linear(shape, &x, head, None, &mut logits)?;
        let targets: Vec<u32> = picks.iter().map(|pick| pick.target).collect();
        let mut out = gpu.zeros(rows)?;
        gpu.nll_of_logits(vocab, &logits, &targets, &mut out)?;
        want.extend(gpu.download(&out, 0..rows)?);
    }
    Ok(worst(got, &want))
}

/// The same of attention, its rows a few at a time behind a longer prefix: other tiles, and other splits.
pub fn attention<L: Launcher>(
    gpu: &Gpu<L>,
    shape: &Attention<'_>,
    qkv: &[f32],
    [k, v]: [&<Gpu<L> as Storage>::Buf<f32>; 2],
    got: &[f32],
) -> Result<f64> {
    let rows = shape.lengths[0];
    let width = qkv.len() / rows;
    let out_width = shape.heads * shape.head_dim;
    let mut want = Vec::with_capacity(got.len());
    for first in (0..rows).step_by(POSITIONS) {
        let lengths = [POSITIONS.min(rows - first)];
        let part = Attention {
            prefix: shape.prefix + first,
            at: shape.prefix + first,
            lengths: &lengths,
            ..*shape
        };
        let queries = gpu.upload(&qkv[first * width..][..lengths[0] * width])?;
        let mut out = gpu.zeros(lengths[0] * out_width)?;
        gpu.attention(&part, &queries, k, v, &mut out)?;
        want.extend(gpu.download(&out, 0..lengths[0] * out_width)?);
    }
    Ok(worst(got, &want))
}
