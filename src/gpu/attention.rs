//! Attention by `kernels/attention.cu`.

use super::abi::{AttentionMergeParams, AttentionParams, AttentionTile};
use super::{Buf, Gpu, Launcher, Precision, size, unbuilt};
use crate::error::{Error, Result};
use crate::ops::attention::{Attended, Attention, AttentionOp};
use crate::ops::expect_len;

/// Keys that a split has at least: less is not worth the merge.
const KEYS: usize = 128;
/// Splits, at most.
const SPLITS: usize = 64;

/// A kernel and what its launch needs.
struct Variant {
    kernel: &'static str,
    threads: u32,
    /// Query rows of a tile: positions times heads of a group.
    rows: usize,
    shared: usize,
}

impl Variant {
    fn of(precision: Precision, d: usize) -> Option<Self> {
        let mma = |kernel, width: usize| Variant {
            kernel,
            threads: 128,
            rows: 64,
            shared: 64 * width * (2 * 4 + 2 * 2),
        };
        let fma = |kernel| Variant {
            kernel,
            threads: 256,
            rows: 32,
            shared: 3 * 32 * (d | 1) * 4,
        };
        // Asynchronous copies take 16 bytes: four elements of a head.
        match (precision, d) {
            (Precision::Bf16, 1..=32) if d.is_multiple_of(4) => Some(mma("attention_bf16_32", 32)),
            (Precision::Bf16, 33..=64) if d.is_multiple_of(4) => Some(mma("attention_bf16_64", 64)),
            (Precision::Bf16, 65..=128) if d.is_multiple_of(4) => {
                Some(mma("attention_bf16_128", 128))
            }
            (_, 1..=64) => Some(fma("attention_f32_64")),
            (_, 65..=256) => Some(fma("attention_f32_256")),
            _ => None,
        }
    }
}

impl<L: Launcher> AttentionOp for Gpu<L> {
    fn attention(
        &self,
        shape: &Attention<'_>,
        qkv: &Buf<L, f32>,
        k: &Buf<L, f32>,
        v: &Buf<L, f32>,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let &Attention {
            heads,
            kv_heads,
            head_dim,
            prefix,
            at,
            lengths,
            window,
            prefixes,
        } = shape;
        if !prefixes.is_empty() {
            return unbuilt("attention with a prefix for each sequence");
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || window == Some(0) || prefix > at {
            return Err(Error::Shape {
                op: "attention",
                want: "heads in equal groups, a window, and a prefix before the rows".into(),
                got: format!("{shape:?}"),
            });
        }
        let rows: usize = lengths.iter().sum();
        let kv = (at + rows) * kv_heads * head_dim;
        let width = (heads + 2 * kv_heads) * head_dim;
        expect_len("attention", "qkv", rows * width, qkv.len)?;
        expect_len("attention", "k", kv, k.len)?;
        expect_len("attention", "v", kv, v.len)?;
        expect_len("attention", "the output", rows * heads * head_dim, out.len)?;
        let group = heads / kv_heads;
        let variant = Variant::of(self.precision, head_dim).filter(|v| group <= v.rows);
        let Some(variant) = variant else {
            return Err(Error::Unsupported {
                what: format!(
                    "attention on this device with heads of {head_dim} in groups of {group}"
                ),
                have: "widths up to 256, and groups up to 32".into(),
            });
        };
        if rows == 0 {
            return Ok(());
        }
        size("attention", kv.max(rows * width))?;
        let tiles = tiles(shape, variant.rows / group)?;
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let keys = (prefix + longest).min(window.unwrap_or(usize::MAX));
        let blocks = tiles.len() * kv_heads;
        let splits = (2 * self.launcher.processors() as usize / blocks)
            .min(keys / KEYS)
            .clamp(1, SPLITS);

        let mut scratch = self.scratch();
        let scratch = &mut *scratch;
        let bytes: &[u8] = bytemuck::cast_slice(&tiles);
        if bytemuck::cast_slice::<_, u8>(&scratch.tiles) != bytes {
            let table = [bytes];
            scratch.table.fill(&self.launcher, table)?;
            scratch.tiles = tiles;
        }
        let table = scratch.table.reserve(&self.launcher, 0)?;
        let parts = match splits {
            1 => 0,
            _ => {
                let bytes = splits * rows * heads * (head_dim + 2) * size_of::<f32>();
                scratch.parts.reserve(&self.launcher, bytes)?
            }
        };
        let params = AttentionParams {
            qkv: self.at(qkv),
            k: self.at(k),
            v: self.at(v),
            tiles: table,
            out: self.at(out),
            parts,
            rows: size("attention", rows)?,
            heads: size("attention", heads)?,
            kv_heads: size("attention", kv_heads)?,
            head_dim: size("attention", head_dim)?,
            prefix: size("attention", prefix)?,
            splits: size("attention", splits)?,
            window: match window {
                Some(window) => size("attention", window)?,
                None => 0,
            },
            scale: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
        };
        let grid = [scratch.tiles.len(), kv_heads, splits];
        // SAFETY: lengths were checked, and every tile lies within them.
        unsafe {
            self.launch(
                variant.kernel,
                grid,
                variant.threads,
                variant.shared,
                &params,
            )?
        };
        if splits == 1 {
            return Ok(());
        }
        let params = AttentionMergeParams {
            parts,
            out: self.at(out),
            rows: size("attention", rows)?,
            heads: size("attention", heads)?,
            head_dim: size("attention", head_dim)?,
            splits: size("attention", splits)?,
        };
        let grid = [(rows * heads).div_ceil(8), 1, 1];
        // SAFETY: as above; the parts were made for these splits.
        unsafe { self.launch("attention_merge", grid, 256, 0, &params) }
    }

    // No kernels for training yet.

    fn attention_lse(
        &self,
        _: &Attention<'_>,
        _: &Buf<L, f32>,
        _: &Buf<L, f32>,
        _: &Buf<L, f32>,
        _: &mut Buf<L, f32>,
        _: &mut Buf<L, f32>,
    ) -> Result<()> {
        unbuilt("attention_lse")
    }

    fn attention_bwd(
        &self,
        _: &Attention<'_>,
        _: Attended<'_, Self>,
        _: &Buf<L, f32>,
        _: &mut Buf<L, f32>,
        _: &mut Buf<L, f32>,
        _: &mut Buf<L, f32>,
    ) -> Result<()> {
        unbuilt("attention_bwd")
    }
}

/// Runs of up to `positions` positions of each sequence.
fn tiles(shape: &Attention<'_>, positions: usize) -> Result<Vec<AttentionTile>> {
    let mut tiles = Vec::new();
    let mut row = 0;
    for &length in shape.lengths {
        for first in (0..length).step_by(positions) {
            tiles.push(AttentionTile {
                row: size("attention", row + first)?,
                count: positions.min(length - first) as u32,
                position: size("attention", shape.prefix + first)?,
                own: size("attention", shape.at + row)?,
            });
        }
        row += length;
    }
    Ok(tiles)
}
