//! Token pruning by `kernels/prune.cu`, and the ops of what it stages.

use super::abi::{AttentionTile, GatherParams, PruneParams, PruneRun, PruneText};
use super::attention::Tiles;
use super::gemm::Matrix;
use super::launch::{LaunchConfig, Launcher};
use super::nll::ROWS;
use super::tape::taped;
use super::topk::{SHARED, threads};
use super::{Buf, Gpu, abi, size};
use crate::error::{Error, Result};
use crate::ops::prune::{self, RUN, State, TILE};
use crate::ops::{Attention, Checked, PruneBatch, PruneOp, Rotate, Staged};

// The same words on both sides.
const _: () = assert!(size_of::<PruneText>() == size_of::<State>());
const _: () = assert!(size_of::<PruneRun>() == RUN * size_of::<u32>());
const _: () = assert!(size_of::<AttentionTile>() == TILE * size_of::<u32>());
const _: () = assert!(abi::NOWHERE == prune::NOWHERE);

/// Launches that were recorded, and the state of the memory that ops share at the time.
pub struct Recorded<L: Launcher> {
    graph: Option<(L::Graph, u64)>,
    /// The device would not record it.
    refused: bool,
}

impl<L: Launcher> Default for Recorded<L> {
    fn default() -> Self {
        Recorded {
            graph: None,
            refused: false,
        }
    }
}

impl<L: Launcher> PruneOp for Gpu<L> {
    type Recorded = Recorded<L>;

    fn runs_ahead(&self) -> bool {
        true
    }

    fn repeat(
        &self,
        recorded: &mut Recorded<L>,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        // What is recorded finds no operand that was left before it.
        self.event();
        let before = {
            let mut scratch = self.scratch();
            // A replay overwrites the operand, also one that another thread's op has left meanwhile.
            scratch.packed = None;
            let now = scratch.grown();
            if let Some((graph, then)) = &recorded.graph
                && *then == now
            {
                // SAFETY: the caller's memory is what it was, and so is that which ops share; no
                // other launches come between these while it is held.
                return unsafe { self.launcher.replay(graph) };
            }
            now
        };
        recorded.graph = None;
        let (done, launches) = taped(work);
        done?;
        // A call that grew the shared memory meanwhile freed what earlier launches used.
        if let Some(launches) = launches
            && !recorded.refused
            && self.scratch().grown() == before
        {
            // SAFETY: they were just launched, and their memory is still there.
            match unsafe { self.launcher.graph(&launches) } {
                Ok(graph) => recorded.graph = Some((graph, before)),
                // It works without; only slower.
                Err(_) => recorded.refused = true,
            }
        }
        Ok(())
    }

    fn tile(&self, heads: usize, kv_heads: usize, head_dim: usize) -> Result<usize> {
        self.attention_tile(heads, kv_heads, head_dim)
    }

    fn prune_checked(
        &self,
        _: Checked,
        texts: &mut PruneBatch<Self>,
        fresh: Option<&Buf<L, f32>>,
    ) -> Result<()> {
        let capacity = texts.capacity;
        let states = self.at(&texts.table);
        let from = states + (capacity.texts * size_of::<State>()) as u64;
        let params = PruneParams {
            ids: self.at(&texts.ids),
            from,
            loss: self.at(&texts.loss),
            nll: from + (capacity.texts * capacity.tokens * size_of::<u32>()) as u64,
            fresh: fresh.map_or(0, |fresh| self.at(fresh)),
            texts: states,
            runs: self.at(&texts.runs),
            inputs: self.at(&texts.inputs),
            targets: self.at(&texts.targets),
            positions: self.at(&texts.positions),
            places: self.at(&texts.places),
            tiles: self.at(&texts.tiles),
            capacity: size("prune", capacity.tokens)?,
            rows: size("prune", capacity.rows)?,
            tile: size("prune", texts.tile)?,
            unused: 0,
        };
        let grid = [capacity.texts, 1, 1];
        // SAFETY: `PruneBatch` made the buffers for its room and checked what it wrote into them; they
        // have no other writer.
        let config = LaunchConfig::new(grid, threads(capacity.tokens)).shared(SHARED);
        unsafe { self.launch("prune", config, &params) }
    }

    fn embed_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        what: Staged,
        table: &Matrix<L>,
        add: bool,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let rows = texts.capacity.all_rows();
        let ids = match what {
            Staged::Inputs => &texts.inputs,
            Staged::Positions => &texts.positions,
        };
        // SAFETY: what is staged is within the limits, which the table was compared with.
        unsafe { self.embed_at(self.at(ids), rows, table, add, out) }
    }

    fn angles_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        width: usize,
        table: &Buf<L, f32>,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let rows = texts.capacity.all_rows();
        let params = GatherParams {
            x: self.at(table),
            rows: self.at(&texts.positions),
            count: self.at(&texts.count),
            out: self.at(out),
            width: size("angles", width)?,
            to: 0,
        };
        // A row is short: as many as there are, up to what runs at once.
        let blocks = rows.min(8 * self.launcher.processors() as usize);
        // SAFETY: positions are below the room's tokens; lengths were checked.
        unsafe { self.launch("gather", LaunchConfig::new([blocks, 1, 1], 64), &params) }
    }

    fn rotate_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        shape: Rotate,
        qkv: &mut Buf<L, f32>,
        norms: Option<[&Buf<L, f32>; 2]>,
        angles: Option<&Buf<L, f32>>,
        k: &mut Buf<L, f32>,
        v: &mut Buf<L, f32>,
    ) -> Result<()> {
        let places = self.at(&texts.places);
        // SAFETY: places lie within the room, whose rows the cache has.
        unsafe { self.rotate_to(shape, qkv, norms, angles, [k, v], places) }
    }

    fn attention_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        shape: &Attention<'_>,
        qkv: &Buf<L, f32>,
        k: &Buf<L, f32>,
        v: &Buf<L, f32>,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let &Attention {
            heads,
            kv_heads,
            head_dim: d,
            ..
        } = shape;
        let (op, capacity, rows) = ("attention", texts.capacity, texts.capacity.all_rows());
        if self.attention_tile(heads, kv_heads, d)? != texts.tile {
            return Err(Error::Shape {
                op,
                want: format!("the heads that tiles of {} were made for", texts.tile),
                got: format!("{heads} / {kv_heads} of {d}"),
            });
        }
        let wide = rows * (heads + 2 * kv_heads) * d;
        size(
            op,
            (capacity.texts * capacity.tokens * kv_heads * d).max(wide),
        )?;
        let tiles = Tiles {
            at: self.at(&texts.tiles),
            count: capacity.texts * capacity.rows.div_ceil(texts.tile),
            rows,
            keys: capacity.tokens,
        };
        // Positions are rows of the cache, counted from a text's first.
        let shape = Attention {
            prefix: 0,
            ..*shape
        };
        let mut scratch = self.scratch();
        // SAFETY: tiles lie within the room, whose rows all buffers have.
        unsafe { self.attend_tiles(&shape, tiles, &mut scratch, qkv, [k, v], out, 0) }
    }

    fn nll_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        width: usize,
        x: &Buf<L, f32>,
        head: &Matrix<L>,
        out: &mut Buf<L, f32>,
    ) -> Result<()> {
        let (op, rows) = ("nll", texts.capacity.all_rows());
        if rows > ROWS {
            return Err(Error::Shape {
                op,
                want: format!("up to {ROWS} rows"),
                got: rows.to_string(),
            });
        }
        if rows == 0 {
            return Ok(());
        }
        let at = [0, self.at(&texts.targets)];
        let out = self.at(out);
        let mut scratch = self.scratch();
        // SAFETY: targets are below the limits, which the head was compared with; lengths were checked.
        unsafe { self.score_at(&mut scratch, width, x, head, at, rows, out, 0)? };
        Ok(())
    }
}
