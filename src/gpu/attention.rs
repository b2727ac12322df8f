//! Attention by `kernels/attention.cu`.

use super::abi::{
    AttentionBwdParams, AttentionDeltaParams, AttentionMergeParams, AttentionParams, AttentionTile,
    KeyTile, Visit,
};
use super::{Buf, Gpu, LaunchConfig, Launcher, Precision, Scratch, size};
use crate::error::{Error, Result};
use crate::ops::Checked;
use crate::ops::attention::{Attended, Attention, AttentionOp};

/// Keys that a split has at least: less is not worth the merge.
const KEYS: usize = 128;
/// Keys that the forward takes at a time, of which whole numbers go to a split.
const KEY_TILE: usize = 64;
/// Keys that a query sees after itself, at most: more than any text has, and sums of two fit an `int`.
const FARTHEST: usize = 1 << 30;
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

/// Tiles on the device.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Their address.
    pub at: u64,
    pub count: usize,
    /// Rows of all.
    pub rows: usize,
    /// Keys of the longest, at most.
    pub keys: usize,
}

/// Rows of the cache that a block of the backward has.
const KEY_ROWS: usize = 32;
/// Query rows of a tile of the backward.
const QUERY_ROWS: usize = 32;

impl Variant {
    fn of(precision: Precision, d: usize) -> Option<Self> {
        let mma = |kernel, width: usize| Variant {
            kernel,
            threads: 128,
            // Of wider heads a warp's registers hold half as many.
            rows: if width > 64 { 64 } else { 128 },
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
    fn attention_checked(
        &self,
        _: Checked,
        shape: &Attention<'_>,
        qkv: &Buf<L, f32>,
        [k, v]: [&Buf<L, f32>; 2],
        out: &mut Buf<L, f32>,
        lse: Option<&mut Buf<L, f32>>,
    ) -> Result<()> {
        let &Attention {
            heads,
            kv_heads,
            head_dim,
            prefix,
            at,
            lengths,
            ..
        } = shape;
        let rows = shape.rows();
        let lse = lse.map_or(0, |lse| self.at(lse));
        let positions = self.attention_tile(heads, kv_heads, head_dim)?;
        if rows == 0 {
            return Ok(());
        }
        let width = (heads + 2 * kv_heads) * head_dim;
        size(
            "attention",
            ((at + rows) * kv_heads * head_dim).max(rows * width),
        )?;
        let tiles = tiles(shape, positions)?;
        let keys = prefix + lengths.iter().max().copied().unwrap_or(0);

        let mut scratch = self.scratch();
        let scratch = &mut *scratch;
        let bytes: &[u8] = bytemuck::cast_slice(&tiles);
        if bytemuck::cast_slice::<_, u8>(&scratch.tiles) != bytes {
            // None, should memory for them be missing.
            scratch.tiles.clear();
            let table = [bytes];
            scratch.table.fill(&self.launcher, table)?;
            scratch.tiles = tiles;
        }
        let tiles = Tiles {
            at: scratch.table.reserve(&self.launcher, 0)?,
            count: scratch.tiles.len(),
            rows,
            keys,
        };
        // SAFETY: lengths were checked, and every tile lies within them.
        unsafe { self.attend_tiles(shape, tiles, scratch, qkv, [k, v], out, lse) }
    }

    fn attention_bwd_checked(
        &self,
        _: Checked,
        shape: &Attention<'_>,
        attended: Attended<'_, Self>,
        dout: &Buf<L, f32>,
        dqkv: &mut Buf<L, f32>,
        [dk, dv]: [&mut Buf<L, f32>; 2],
    ) -> Result<()> {
        let op = "attention_bwd";
        let Attended {
            qkv,
            k,
            v,
            out,
            lse,
        } = attended;
        let (heads, kv_heads, d) = (shape.heads, shape.kv_heads, shape.head_dim);
        let rows = shape.rows();
        let group = heads / kv_heads;
        let kernels = match d {
            1..=64 => ["attention_bwd_q_64", "attention_bwd_kv_64"],
            65..=128 => ["attention_bwd_q_128", "attention_bwd_kv_128"],
            _ => ["", ""],
        };
        if kernels[0].is_empty() || group > QUERY_ROWS {
            return Err(Error::Unsupported {
                what: format!("gradients of attention with heads of {d} in groups of {group}"),
                have: "widths up to 128, and groups up to 32".into(),
            });
        }
        if rows == 0 {
            return Ok(());
        }
        let tiles = tiles(shape, QUERY_ROWS / group)?;
        let (keys, visits) = key_tiles(shape)?;

        let mut scratch = self.scratch();
        scratch.tiles.clear();
        let tables: [&[u8]; 3] = [
            bytemuck::cast_slice(&tiles),
            bytemuck::cast_slice(&keys),
            bytemuck::cast_slice(&visits),
        ];
        let [tiles_at, keys_at, visits_at] = scratch.table.fill(&self.launcher, tables)?;
        let count = rows * heads;
        let bytes = count * size_of::<f32>();
        let delta = scratch.parts.reserve(&self.launcher, bytes)?;
        let params = AttentionDeltaParams {
            out: self.at(out),
            dout: self.at(dout),
            delta,
            rows: size(op, count)?,
            head_dim: size(op, d)?,
        };
        // SAFETY: lengths were checked.
        unsafe {
            self.launch(
                "attention_delta",
                LaunchConfig::new([count.div_ceil(8), 1, 1], 256),
                &params,
            )?
        };
        let params = AttentionBwdParams {
            qkv: self.at(qkv),
            k: self.at(k),
            v: self.at(v),
            lse: self.at(lse),
            delta,
            dout: self.at(dout),
            dqkv: self.at(dqkv),
            dk: self.at(dk),
            dv: self.at(dv),
            tiles: tiles_at,
            keys: keys_at,
            visits: visits_at,
            heads: size(op, heads)?,
            kv_heads: size(op, kv_heads)?,
            head_dim: size(op, d)?,
            prefix: size(op, shape.prefix)?,
            splits: 1,
            window: match shape.window {
                Some(window) => size(op, window)?,
                None => 0,
            },
            scale: std::f32::consts::LOG2_E / (d as f32).sqrt(),
            ahead: 0,
        };
        let rows_of_tiles = 4 * 32 * (d | 1) * size_of::<f32>();
        let weights = 2 * 32 * 33 * size_of::<f32>();
        // SAFETY: lengths were checked, and tiles and visits lie within them.
        unsafe {
            let grid = [tiles.len(), kv_heads, 1];
            self.launch(
                kernels[0],
                LaunchConfig::new(grid, 256).shared(rows_of_tiles),
                &params,
            )?;
            let grid = [keys.len(), kv_heads, 1];
            self.launch(
                kernels[1],
                LaunchConfig::new(grid, 256).shared(rows_of_tiles + weights),
                &params,
            )
        }
    }
}

impl<L: Launcher> Gpu<L> {
    /// Positions of a tile of the forward.
    pub(super) fn attention_tile(
        &self,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<usize> {
        let group = heads / kv_heads.max(1);
        let variant = Variant::of(self.precision, head_dim);
        match variant
            .as_ref()
            .filter(|variant| (1..=variant.rows).contains(&group))
        {
            Some(variant) => Ok(variant.rows / group),
            None => Err(Error::Unsupported {
                what: format!(
                    "attention on this device with heads of {head_dim} in groups of {group}"
                ),
                have: match variant {
                    Some(variant) => format!("groups up to {} at this width", variant.rows),
                    None => "widths up to 256".into(),
                },
            }),
        }
    }

    /// Attention of tiles that lie on the device; of `shape` the heads, the prefix and the window matter.
    ///
    /// # Safety
    ///
    /// Every tile's rows lie within the buffers, and `lse` has room or is 0.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn attend_tiles(
        &self,
        shape: &Attention<'_>,
        tiles: Tiles,
        scratch: &mut Scratch<L>,
        qkv: &Buf<L, f32>,
        [k, v]: [&Buf<L, f32>; 2],
        out: &mut Buf<L, f32>,
        lse: u64,
    ) -> Result<()> {
        let &Attention {
            heads,
            kv_heads,
            head_dim,
            prefix,
            window,
            ahead,
            ..
        } = shape;
        let rows = tiles.rows;
        // One that `attention_tile` has found.
        let Some(variant) = Variant::of(self.precision, head_dim) else {
            return Ok(());
        };
        let keys = tiles
            .keys
            .min(window.unwrap_or(usize::MAX).saturating_add(ahead));
        let blocks = tiles.count * kv_heads;
        let splits = (2 * self.launcher.processors() as usize / blocks.max(1))
            .min(keys / KEYS)
            .clamp(1, SPLITS);
        // As many as have something to do.
        let tiles_of_keys = keys.div_ceil(KEY_TILE).max(1);
        let splits = tiles_of_keys.div_ceil(tiles_of_keys.div_ceil(splits));
        let parts = match splits {
            1 => 0,
            _ => {
                let bytes = splits * rows * heads * (head_dim + 2) * size_of::<f32>();
                scratch.parts.reserve(&self.launcher, bytes)?
            }
        };
        // Rows of heads are rows of the operand where nothing is to be filled up.
        let width = heads * head_dim;
        let fits = self.precision.padded(width) == width;
        let packed = match fits {
            true => self.leave(scratch, rows, width)?,
            false => 0,
        };
        let params = AttentionParams {
            qkv: self.at(qkv),
            k: self.at(k),
            v: self.at(v),
            tiles: tiles.at,
            out: self.at(out),
            parts,
            lse,
            packed,
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
            ahead: ahead.min(FARTHEST) as u32,
            unused: 0,
        };
        let grid = [blocks, 1, splits];
        // SAFETY: the caller's promise.
        unsafe {
            self.launch(
                variant.kernel,
                LaunchConfig::new(grid, variant.threads).shared(variant.shared),
                &params,
            )?
        };
        if splits > 1 {
            let params = AttentionMergeParams {
                parts,
                out: self.at(out),
                lse,
                packed,
                rows: size("attention", rows)?,
                heads: size("attention", heads)?,
                head_dim: size("attention", head_dim)?,
                splits: size("attention", splits)?,
            };
            let grid = [(rows * heads).div_ceil(8), 1, 1];
            // SAFETY: as above; the parts were made for these splits.
            unsafe { self.launch("attention_merge", LaunchConfig::new(grid, 256), &params)? };
        }
        if fits {
            self.left(scratch, out, rows, width);
        }
        Ok(())
    }
}

/// Runs of up to `positions` positions of each sequence.
fn tiles(shape: &Attention<'_>, positions: usize) -> Result<Vec<AttentionTile>> {
    let mut tiles = Vec::new();
    let mut row = 0;
    for (i, &length) in shape.lengths.iter().enumerate() {
        for first in (0..length).step_by(positions) {
            tiles.push(AttentionTile {
                row: size("attention", row + first)?,
                count: positions.min(length - first) as u32,
                position: size("attention", shape.prefix + first)?,
                from: size("attention", shape.prefixes.get(i).copied().unwrap_or(0))?,
                own: size("attention", shape.at + row)?,
                end: size("attention", shape.prefix + length)?,
            });
        }
        row += length;
    }
    Ok(tiles)
}

/// The rows of the cache that are seen, in runs of up to [`KEY_ROWS`] of which each query sees all or
/// none, each with the sequences that see it.
fn key_tiles(shape: &Attention<'_>) -> Result<(Vec<KeyTile>, Vec<Visit>)> {
    /// Rows of the cache that a sequence sees, its first position there, and its queries.
    struct Range {
        rows: std::ops::Range<usize>,
        position: usize,
        query: usize,
        queries: usize,
    }
    let mut ranges = Vec::with_capacity(2 * shape.lengths.len());
    let mut query = 0;
    for (i, &queries) in shape.lengths.iter().enumerate() {
        let from = shape.prefixes.get(i).copied().unwrap_or(0);
        let own = shape.at + query;
        let of = |rows, position| Range {
            rows,
            position,
            query,
            queries,
        };
        if queries > 0 {
            ranges.push(of(from..from + shape.prefix, 0));
            ranges.push(of(own..own + queries, shape.prefix));
        }
        query += queries;
    }
    let mut cuts: Vec<usize> = ranges
        .iter()
        .flat_map(|r| [r.rows.start, r.rows.end])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    ranges.sort_by_key(|range| range.rows.start);
    let (mut tiles, mut visits) = (Vec::new(), Vec::new());
    let (mut open, mut next): (Vec<&Range>, usize) = (Vec::new(), 0);
    for cut in cuts.windows(2) {
        let (start, end) = (cut[0], cut[1]);
        open.retain(|range| range.rows.end > start);
        while let Some(range) = ranges.get(next).filter(|range| range.rows.start <= start) {
            if range.rows.end > start {
                open.push(range);
            }
            next += 1;
        }
        if open.is_empty() {
            continue;
        }
        for row in (start..end).step_by(KEY_ROWS) {
            let first_visit = visits.len();
            for range in &open {
                visits.push(Visit {
                    position: size("attention", range.position + row - range.rows.start)?,
                    row: size("attention", range.query)?,
                    queries: size("attention", range.queries)?,
                    unused: 0,
                });
            }
            tiles.push(KeyTile {
                row: size("attention", row)?,
                count: KEY_ROWS.min(end - row) as u32,
                first_visit: size("attention", first_visit)?,
                visits: open.len() as u32,
            });
        }
    }
    Ok((tiles, visits))
}
