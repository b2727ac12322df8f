//! The forward of a decoder: Llama and its kin, Qwen, GPT-2.

pub(super) mod layers;
pub(super) mod load;
mod step;
mod workspace;

use std::sync::{Mutex, PoisonError};

use crate::control;
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::model::kv::Kv;
use crate::model::lora::{LayerLora, Lora, LowRank};
use crate::ops::{Attention, Backend, Linear, NllTarget, Pairing, Rotate};
use crate::rope;

use layers::{Layer, NormWeights, Projection, activate};

pub(in crate::model) use workspace::Workspace;

/// An open model on a device. Any number of threads may use it at once.
pub struct Model<B: Backend> {
    /// Workspaces of token pruning that are not in use, the one last used last. They are freed before the device.
    pub(super) workspaces: Mutex<Vec<Workspace<B>>>,
    pub(super) backend: B,
    pub(super) config: Config,
    pub(super) embedding: B::Matrix,
    /// Learned positions (GPT-2).
    pub(super) positions: Option<B::Matrix>,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) norm: NormWeights<B>,
    /// `None`: the embedding.
    head: Option<B::Matrix>,
    /// Of half a head; `None` where positions are learned.
    pub(super) frequencies: Option<Vec<f32>>,
    /// Buffers of forward passes that are over.
    pool: Mutex<Vec<Scratch<B>>>,
}

/// The buffers of one forward pass, for up to `rows` rows.
struct Scratch<B: Backend> {
    rows: usize,
    /// The residual stream.
    x: B::Buf<f32>,
    /// Its norm.
    h: B::Buf<f32>,
    qkv: B::Buf<f32>,
    attention: B::Buf<f32>,
    up: B::Buf<f32>,
    inner: B::Buf<f32>,
    angles: B::Buf<f32>,
    nll: B::Buf<f32>,
}

/// Called with the number of each layer and its queries, rotated: `[rows, heads, head_dim]`.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(usize, Vec<f32>);

/// What a forward pass begins with.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Token ids.
    Ids(&'a [u32]),
    /// Embeddings, `[rows, hidden]`.
    Embeddings(&'a [f32]),
}

impl Input<'_> {
    /// Rows of it, of a model so wide.
    pub fn rows(&self, hidden: usize) -> usize {
        match self {
            Input::Ids(ids) => ids.len(),
            Input::Embeddings(rows) => rows.len() / hidden.max(1),
        }
    }
}

/// Token ids of sequences that share a prefix, which is what the KV cache holds, and do not see each
/// other.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// All ids, one sequence after the other.
    pub ids: &'a [u32],
    /// Ids of each sequence.
    pub lengths: &'a [usize],
}

/// The last hidden states of a forward pass, normed: what the LM head reads.
pub struct Hidden<'a, B: Backend> {
    model: &'a Model<B>,
    scratch: Option<Scratch<B>>,
    rows: usize,
    estimate: bool,
}

impl<B: Backend> Model<B> {
    /// Shapes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// An empty KV cache.
    pub fn kv(&self) -> Result<Kv<B>> {
        Kv::new(&self.backend, &self.config)
    }

    /// Runs a batch through all layers. Its K and V go to `kv` after what it holds, in the batch's
    /// order; its length stays what it was, so that they are overwritten by the next call unless
    /// they are counted in.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for an id outside the vocabulary or a position outside the model's range;
    /// [`Error::Device`] if the device fails.
    pub fn forward(&self, batch: &Batch<'_>, kv: &mut Kv<B>) -> Result<Hidden<'_, B>> {
        self.forward_with(batch, None, kv)
    }

    /// [`Model::forward`] with the adapter `lora` on, if there is one.
    pub(crate) fn forward_with(
        &self,
        batch: &Batch<'_>,
        lora: Option<&Lora<B>>,
        kv: &mut Kv<B>,
    ) -> Result<Hidden<'_, B>> {
        self.run(Input::Ids(batch.ids), batch.lengths, lora, kv, None, false)
    }

    /// [`Model::forward`] by estimated products ([`crate::ops::GemmOp::estimate`]), several times as
    /// fast on a processor with integer dot products. A token's nll comes out a few hundredths off: good
    /// enough to rank texts by, and never for K and V that are kept. What the adapter `lora` adds is
    /// exact.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for an id outside the vocabulary or a position outside the model's range;
    /// [`Error::Device`] if the device fails.
    pub(crate) fn estimate(
        &self,
        batch: &Batch<'_>,
        lora: Option<&Lora<B>>,
        kv: &mut Kv<B>,
    ) -> Result<Hidden<'_, B>> {
        self.run(Input::Ids(batch.ids), batch.lengths, lora, kv, None, true)
    }

    /// Runs one sequence of ids or embeddings, with the adapter `lora` on if there is one; the rest is
    /// as in [`Model::forward`].
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for embeddings that are not whole rows; [`Error::Input`] for an id outside the
    /// vocabulary or a position outside the model's range; [`Error::Device`] if the device fails.
    pub fn forward_adapted(
        &self,
        input: Input<'_>,
        lora: Option<&Lora<B>>,
        kv: &mut Kv<B>,
    ) -> Result<Hidden<'_, B>> {
        let rows = input.rows(self.config.hidden);
        self.run(input, &[rows], lora, kv, None, false)
    }

    /// Runs several sequences of embeddings, `[rows, hidden]` one after the other, which do not see each other.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for embeddings that are not whole rows; [`Error::Input`] for a position outside the
    /// model's range; [`Error::Device`] if the device fails.
    pub(crate) fn forward_separate(
        &self,
        embeddings: &[f32],
        lengths: &[usize],
        lora: Option<&Lora<B>>,
        kv: &mut Kv<B>,
    ) -> Result<Hidden<'_, B>> {
        let input = Input::Embeddings(embeddings);
        self.run(input, lengths, lora, kv, None, false)
    }

    /// Runs one sequence without an adapter while `watch` looks on.
    pub(crate) fn forward_watched(
        &self,
        input: Input<'_>,
        kv: &mut Kv<B>,
        watch: Watch<'_>,
    ) -> Result<Hidden<'_, B>> {
        let rows = input.rows(self.config.hidden);
        self.run(input, &[rows], None, kv, Some(watch), false)
    }

    fn run(
        &self,
        input: Input<'_>,
        lengths: &[usize],
        lora: Option<&Lora<B>>,
        kv: &mut Kv<B>,
        mut watch: Option<Watch<'_>>,
        estimate: bool,
    ) -> Result<Hidden<'_, B>> {
        let (c, prefix, next) = (&self.config, kv.len(), kv.position());
        let (what, got, width) = match input {
            Input::Ids(ids) => ("ids", ids.len(), 1),
            Input::Embeddings(rows) => ("embedding elements", rows.len(), c.hidden),
        };
        let total = lengths
            .iter()
            .try_fold(0usize, |sum, &n| sum.checked_add(n))
            .and_then(|rows| rows.checked_mul(width));
        if total != Some(got) {
            return Err(Error::Shape {
                op: "forward",
                want: format!("lengths that add up to {got} {what}"),
                got: format!("{total:?}"),
            });
        }
        let rows = got / width;
        log::debug!(
            "forward pass: {rows} tokens of {} sequences after {prefix} cached{}",
            lengths.len(),
            if estimate { ", estimated" } else { "" }
        );
        let longest = lengths.iter().max().copied().unwrap_or(0);
        self.check_positions(next, longest)?;
        let positions: Vec<u32> = lengths
            .iter()
            .flat_map(|&n| (next..next + n).map(|position| position as u32))
            .collect();

        kv.reserve(&self.backend, rows)?;
        let mut hidden = self.hidden(rows, estimate)?;
        let Some(scratch) = hidden.scratch.as_mut() else {
            return Ok(hidden);
        };
        control::step(|| self.enter(input, &positions, scratch))?;
        let attention = self.attention(prefix, lengths);
        for (i, layer) in self.layers.iter().enumerate() {
            let lora = lora.map(|lora| lora.layer(i)).unwrap_or_default();
            control::step(|| {
                self.layer(layer, lora, rows, scratch, estimate, &mut |s| {
                    let Scratch {
                        qkv,
                        angles,
                        attention: out,
                        ..
                    } = s;
                    self.attend(layer, &attention, rows, qkv, angles, kv.layer(i), out)
                })
            })?;
            if let Some(watch) = &mut watch {
                let (width, stride) = (
                    c.heads * c.head_dim,
                    (c.heads + 2 * c.kv_heads) * c.head_dim,
                );
                let qkv = self.backend.download(&scratch.qkv, 0..rows * stride)?;
                let queries = qkv.chunks_exact(stride).flat_map(|row| &row[..width]);
                watch(i, queries.copied().collect());
            }
        }
        control::step(|| self.norm(&self.norm, rows, &scratch.x, &mut scratch.h))?;
        Ok(hidden)
    }

    /// Embeds what a pass begins with at `positions`.
    fn enter(&self, input: Input<'_>, positions: &[u32], scratch: &mut Scratch<B>) -> Result<()> {
        match input {
            Input::Ids(ids) => {
                self.backend
                    .embed(ids, &self.embedding, false, &mut scratch.x)?;
            }
            Input::Embeddings(rows) => self.backend.write(rows, &mut scratch.x)?,
        }
        if let Some(table) = &self.positions {
            self.backend.embed(positions, table, true, &mut scratch.x)?;
        }
        if let Some(frequencies) = &self.frequencies {
            let angles = rope::angles(frequencies, positions);
            self.backend.write(&angles, &mut scratch.angles)?;
        }
        Ok(())
    }

    /// The shape of attention after so many rows of a cache.
    fn attention<'a>(&self, held: usize, lengths: &'a [usize]) -> Attention<'a> {
        let c = &self.config;
        Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            prefix: held,
            prefixes: &[],
            at: held,
            lengths,
            window: c.sliding_window,
            ahead: 0,
        }
    }

    /// One layer; `attend` makes attention's output of the q, k and v of its rows.
    #[allow(clippy::too_many_arguments)]
    fn layer(
        &self,
        layer: &Layer<B>,
        lora: LayerLora<'_, B>,
        rows: usize,
        s: &mut Scratch<B>,
        estimate: bool,
        attend: &mut dyn FnMut(&mut Scratch<B>) -> Result<()>,
    ) -> Result<()> {
        let (b, c) = (&self.backend, &self.config);
        self.norm(&layer.attention_norm, rows, &s.x, &mut s.h)?;
        layer
            .qkv
            .apply(b, rows, &s.h, false, estimate, &mut s.qkv)?;
        self.adapt(lora.qkv, rows, &s.h, &mut s.qkv)?;
        attend(s)?;
        layer
            .output
            .apply(b, rows, &s.attention, true, estimate, &mut s.x)?;
        self.adapt(lora.output, rows, &s.attention, &mut s.x)?;
        self.norm(&layer.mlp_norm, rows, &s.x, &mut s.h)?;
        layer.up.apply(b, rows, &s.h, false, estimate, &mut s.up)?;
        self.adapt(lora.up, rows, &s.h, &mut s.up)?;
        activate(b, c, rows, &s.up, &mut s.inner)?;
        layer
            .down
            .apply(b, rows, &s.inner, true, estimate, &mut s.x)?;
        self.adapt(lora.down, rows, &s.inner, &mut s.x)
    }

    /// Rotates q and k, puts k and v into the cache, and attends.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        layer: &Layer<B>,
        attention: &Attention<'_>,
        rows: usize,
        qkv: &mut B::Buf<f32>,
        angles: &B::Buf<f32>,
        [k, v]: &mut [B::Buf<f32>; 2],
        out: &mut B::Buf<f32>,
    ) -> Result<()> {
        let c = &self.config;
        let rotate = Rotate {
            rows,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            at: attention.at,
            eps: c.norm_eps,
            pairing: Pairing::Halves,
        };
        let qk_norm = layer.qk_norm.as_ref().map(|[q, k]| [q, k]);
        let angles = self.frequencies.is_some().then_some(angles);
        self.backend.rotate(rotate, qkv, qk_norm, angles, k, v)?;
        self.backend.attention(attention, qkv, k, v, out)
    }

    /// Adds what an adapter adds to a projection of `x`, if it does.
    fn adapt(
        &self,
        adapter: Option<&LowRank<B>>,
        rows: usize,
        x: &B::Buf<f32>,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        let Some(adapter) = adapter else {
            return Ok(());
        };
        let update = adapter.update(rows, None);
        self.backend.lora(&update, x, &adapter.a, &adapter.b, y)
    }

    pub(super) fn norm(
        &self,
        weights: &NormWeights<B>,
        rows: usize,
        x: &B::Buf<f32>,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        weights.apply(&self.backend, &self.config, rows, x, y)
    }

    pub(super) fn project(
        &self,
        projection: &Projection<B>,
        rows: usize,
        x: &B::Buf<f32>,
        add: bool,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        projection.apply(&self.backend, rows, x, add, false, y)
    }

    pub(super) fn head(&self) -> &B::Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Embeddings of `ids` to the beginning of `out`.
    pub(crate) fn embed(&self, ids: &[u32], out: &mut B::Buf<f32>) -> Result<()> {
        self.backend.embed(ids, &self.embedding, false, out)
    }

    /// Embeddings of `ids`, `[ids, hidden]`.
    pub(crate) fn embeddings(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let len = ids.len() * self.config.hidden;
        let mut out = self.backend.zeros(len)?;
        self.embed(ids, &mut out)?;
        self.backend.download(&out, 0..len)
    }

    /// An error unless `more` positions fit after `held`.
    pub(crate) fn check_positions(&self, held: usize, more: usize) -> Result<()> {
        let max = self.config.max_positions;
        match held.checked_add(more) {
            Some(end) if end <= max => Ok(()),
            _ => Err(Error::input(
                match held {
                    0 => format!("a text of {more} tokens"),
                    _ => format!("{more} tokens after {held}"),
                },
                format!("the model has {max} positions; shorten the text"),
            )),
        }
    }

    /// Buffers for `rows` rows, from the pool or new.
    fn hidden(&self, rows: usize, estimate: bool) -> Result<Hidden<'_, B>> {
        let pooled = self
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let scratch = match pooled {
            Some(scratch) if scratch.rows >= rows => scratch,
            _ => Scratch::new(&self.backend, &self.config, rows)?,
        };
        Ok(Hidden {
            model: self,
            scratch: Some(scratch),
            rows,
            estimate,
        })
    }
}

impl<B: Backend> Scratch<B> {
    fn new(backend: &B, c: &Config, rows: usize) -> Result<Self> {
        let rows = rows.next_multiple_of(64);
        Ok(Scratch {
            rows,
            x: backend.zeros(rows * c.hidden)?,
            h: backend.zeros(rows * c.hidden)?,
            qkv: backend.zeros(rows * (c.heads + 2 * c.kv_heads) * c.head_dim)?,
            attention: backend.zeros(rows * c.heads * c.head_dim)?,
            up: backend.zeros(rows * c.mlp.parts() * c.ffn)?,
            inner: backend.zeros(rows * c.ffn)?,
            angles: backend.zeros(rows * c.head_dim)?,
            nll: backend.zeros(rows)?,
        })
    }
}

impl<B: Backend> Hidden<'_, B> {
    /// Rows of the pass.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Nll (natural log) of each pick's target given its row.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for a target outside the vocabulary, [`Error::Shape`] for a row that is not
    /// there or for more picks than rows.
    pub fn nll(&mut self, picks: &[NllTarget]) -> Result<Vec<f32>> {
        self.score(picks)?;
        match self.scratch.as_ref() {
            Some(scratch) => self.model.backend.download(&scratch.nll, 0..picks.len()),
            None => Ok(Vec::new()),
        }
    }

    /// The same on the device: so many at a time, one after the other, each to its place in `out`.
    pub(crate) fn nll_to(
        &mut self,
        picks: &[NllTarget],
        out: &mut B::Buf<f32>,
        parts: impl IntoIterator<Item = (usize, usize)>,
    ) -> Result<()> {
        self.score(picks)?;
        let Some(scratch) = self.scratch.as_ref() else {
            return Ok(());
        };
        let mut from = 0;
        let mut parts = parts.into_iter().peekable();
        while let Some((mut count, at)) = parts.next() {
            // Neighbours in one go.
            while let Some((more, _)) = parts.next_if(|&(_, next)| next == at + count) {
                count += more;
            }
            let range = from..from + count;
            self.model.backend.copy(&scratch.nll, range, out, at)?;
            from += count;
        }
        Ok(())
    }

    /// Nll to the scratch.
    fn score(&mut self, picks: &[NllTarget]) -> Result<()> {
        let model = self.model;
        let Some(scratch) = self.scratch.as_mut() else {
            return Ok(());
        };
        if let Some(pick) = picks.iter().find(|pick| pick.row as usize >= self.rows) {
            return Err(Error::Shape {
                op: "nll",
                want: format!("rows below {}", self.rows),
                got: pick.row.to_string(),
            });
        }
        let (backend, width) = (&model.backend, model.config.hidden);
        let (h, head, out) = (&scratch.h, model.head(), &mut scratch.nll);
        let estimate = self.estimate;
        control::step(|| match estimate {
            true => backend.estimate_nll(width, h, head, picks, out),
            false => backend.nll(width, h, head, picks, out),
        })
    }

    /// The states themselves, `[rows, hidden]`.
    pub fn states(&self) -> Result<Vec<f32>> {
        let Some(scratch) = self.scratch.as_ref() else {
            return Ok(Vec::new());
        };
        let len = self.rows * self.model.config.hidden;
        self.model.backend.download(&scratch.h, 0..len)
    }

    /// Logits of one row, `[vocab]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a row that is not there.
    pub fn row_logits(&self, row: usize) -> Result<Vec<f32>> {
        let (backend, c) = (&self.model.backend, &self.model.config);
        let scratch = self.scratch.as_ref().filter(|_| row < self.rows);
        let Some(scratch) = scratch else {
            return Err(Error::Shape {
                op: "logits",
                want: format!("a row below {}", self.rows),
                got: row.to_string(),
            });
        };
        let row = backend.download(&scratch.h, row * c.hidden..(row + 1) * c.hidden)?;
        let shape = Linear {
            rows: 1,
            inputs: c.hidden,
            outputs: c.vocab,
            add: false,
        };
        let head = self.model.head();
        control::step(|| {
            let mut logits = backend.zeros(c.vocab)?;
            backend.linear(shape, &backend.upload(&row)?, head, None, &mut logits)?;
            backend.download(&logits, 0..c.vocab)
        })
    }

    /// Logits of all rows, `[rows, vocab]`: for few rows.
    pub fn logits(&self) -> Result<Vec<f32>> {
        let (model, c) = (self.model, &self.model.config);
        let Some(scratch) = self.scratch.as_ref() else {
            return Ok(Vec::new());
        };
        let shape = Linear {
            rows: self.rows,
            inputs: c.hidden,
            outputs: c.vocab,
            add: false,
        };
        control::step(|| {
            let mut logits = model.backend.zeros(self.rows * c.vocab)?;
            model
                .backend
                .linear(shape, &scratch.h, model.head(), None, &mut logits)?;
            model.backend.download(&logits, 0..self.rows * c.vocab)
        })
    }
}

impl<B: Backend> Drop for Hidden<'_, B> {
    fn drop(&mut self) {
        let mut pool = self
            .model
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pool.extend(self.scratch.take());
    }
}
