//! Token pruning on a CPU, as the definition of what `kernels/prune.cu` does.

use super::device::Cpu;
use super::panels::Panels;
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::attention::{Attention, AttentionOp};
use crate::ops::layer::{LayerOp, Rotate};
use crate::ops::nll::{NllOp, NllTarget};
use crate::ops::prune::{Capacity, NOWHERE, PruneBatch, PruneOp, RUN, STATE, Staged, State};

/// The plain way, for comparison: a CPU is never ahead of itself, and is better served by passes of
/// just the rows that there are.
impl PruneOp for Cpu {
    type Recorded = ();

    fn runs_ahead(&self) -> bool {
        false
    }

    fn repeat(&self, (): &mut (), work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        work()
    }

    fn tile(&self, _: usize, _: usize, _: usize) -> Result<usize> {
        Ok(64)
    }

    fn prune_checked(
        &self,
        _: Checked,
        texts: &mut PruneBatch<Self>,
        fresh: Option<&Vec<f32>>,
    ) -> Result<()> {
        let capacity = texts.capacity;
        for text in 0..capacity.texts {
            let fresh = fresh.map(|fresh| &fresh[text * capacity.rows..]);
            prune_text(texts, text, fresh);
        }
        Ok(())
    }

    fn embed_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        what: Staged,
        table: &Panels,
        add: bool,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let ids = match what {
            Staged::Inputs => &texts.inputs,
            Staged::Positions => &texts.positions,
        };
        self.embed(ids, table, add, out)
    }

    fn angles_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        width: usize,
        table: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let rows = out.chunks_exact_mut(width.max(1)).zip(&texts.positions);
        for (to, &position) in rows {
            to.copy_from_slice(&table[position as usize * width..][..width]);
        }
        Ok(())
    }

    fn rotate_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        shape: Rotate,
        qkv: &mut Vec<f32>,
        norms: Option<[&Vec<f32>; 2]>,
        angles: Option<&Vec<f32>>,
        k: &mut Vec<f32>,
        v: &mut Vec<f32>,
    ) -> Result<()> {
        let (rows, kv) = (shape.rows, shape.kv_heads * shape.head_dim);
        let mut fresh = [vec![0.0; rows * kv], vec![0.0; rows * kv]];
        let [own_k, own_v] = &mut fresh;
        self.rotate(shape, qkv, norms, angles, own_k, own_v)?;
        for (from, cache) in fresh.iter().zip([k, v]) {
            for (from, &place) in from.chunks_exact(kv).zip(&texts.places) {
                if place != NOWHERE {
                    cache[place as usize * kv..][..kv].copy_from_slice(from);
                }
            }
        }
        Ok(())
    }

    fn attention_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        shape: &Attention<'_>,
        qkv: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (rows, d) = (texts.capacity.rows, shape.head_dim);
        let (wide, narrow) = ((shape.heads + 2 * shape.kv_heads) * d, shape.heads * d);
        for text in 0..texts.capacity.texts {
            let (state, from) = (texts.state(text), text * texts.capacity.tokens);
            let count = state.reading(rows);
            let prefix = state.past as usize;
            let own = qkv[text * rows * wide..][..count * wide].to_vec();
            let mut attended = vec![0.0; count * narrow];
            let shape = Attention {
                prefix,
                prefixes: &[from],
                at: from + prefix,
                lengths: &[count],
                ..*shape
            };
            self.attention(&shape, &own, k, v, &mut attended)?;
            out[text * rows * narrow..][..count * narrow].copy_from_slice(&attended);
        }
        Ok(())
    }

    fn nll_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        width: usize,
        x: &Vec<f32>,
        head: &Panels,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let rows = (0..).zip(&texts.targets);
        let picks: Vec<NllTarget> = rows
            .map(|(row, &target)| NllTarget { row, target })
            .collect();
        self.nll(width, x, head, &picks, out)
    }
}

impl State {
    /// Rows of the pass that is staged, of at most `rows`.
    fn reading(&self, rows: usize) -> usize {
        if self.run == self.runs {
            return 0;
        }
        ((self.read - self.past) as usize).min(rows)
    }
}

impl PruneBatch<Cpu> {
    fn state(&self, text: usize) -> State {
        let mut state = State::default();
        let words: &mut [u32; STATE] = bytemuck::cast_mut(&mut state);
        words.copy_from_slice(&self.table[text * STATE..][..STATE]);
        state
    }
}

/// What `kernels/prune.cu` does with one text.
fn prune_text(texts: &mut PruneBatch<Cpu>, text: usize, fresh: Option<&[f32]>) {
    let Capacity {
        texts: n,
        tokens,
        rows,
        ..
    } = texts.capacity;
    let mut state = texts.state(text);
    let first = text * tokens;
    let ids = &mut texts.ids[first..][..tokens];
    let loss = &mut texts.loss[first..][..tokens];
    let (states, table) = texts.table.split_at_mut(n * STATE);
    let (from, nll) = table.split_at_mut(n * tokens);
    let (from, nll) = (&mut from[first..][..tokens], &mut nll[first..][..tokens]);
    if state.run < state.runs {
        let past = state.past as usize;
        for at in past..(state.read as usize).saturating_sub(1) {
            if let Some(fresh) = fresh {
                loss[at] = fresh[at - past];
            }
            nll[from[at + 1] as usize] = loss[at].to_bits();
        }
        // A token that has moved up to the front has the nll of its place.
        if past > 0 {
            nll[from[past] as usize] = loss[past - 1].to_bits();
        }
        let (mut left, mut end) = (state.left as usize, state.end as usize);
        let size = state.size as usize;
        loop {
            let run = &texts.runs[state.run as usize * RUN..][..RUN];
            let ratio = f64::from_bits(u64::from(run[0]) | u64::from(run[1]) << 32);
            let scores = left.saturating_sub(1);
            let limit = threshold(&loss[..scores], ratio);
            let (begin, stop) = (end - size, end - size + run[2] as usize);
            let last_stays = scores > 0 && loss[0] > 0.0;
            let mut to = begin;
            for i in begin..left {
                let exceeds = match i < scores {
                    true => loss[i] > limit,
                    false => last_stays,
                };
                if i >= stop || exceeds {
                    (ids[to], from[to]) = (ids[i], from[i]);
                    if i < scores {
                        loss[to] = loss[i];
                    }
                    to += 1;
                }
            }
            end = stop + size - (left - to);
            left = to;
            state.run += 1;
            if run[3] == 1 {
                break;
            }
        }
        // The first pass is of the whole text, and nothing of it stays in the cache.
        state.past = fresh.map_or(0, |_| state.end - state.size);
        state.left = left as u32;
        state.read = end as u32;
        state.end = end as u32;
        states[text * STATE..][..STATE]
            .copy_from_slice(bytemuck::cast_ref::<_, [u32; STATE]>(&state));
    }
    let (count, past) = (state.reading(rows), state.past as usize);
    for row in 0..rows {
        let (here, at, to) = (row < count, past + row, text * rows + row);
        texts.inputs[to] = if here { ids[at] } else { 0 };
        texts.targets[to] = if row + 1 < count { ids[at + 1] } else { 0 };
        texts.positions[to] = if here { at as u32 } else { 0 };
        texts.places[to] = if here { (first + at) as u32 } else { NOWHERE };
    }
}

/// What an nll must exceed.
fn threshold(losses: &[f32], ratio: f64) -> f32 {
    let n = losses.len();
    if n == 0 || ratio == 1.0 {
        return f32::NEG_INFINITY;
    }
    let rank = ((n as f64 * ratio) as usize).saturating_sub(1).min(n - 1);
    let mut losses = losses.to_vec();
    *losses.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1
}
