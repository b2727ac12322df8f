//! The forward of a decoder: Llama and its kin, Qwen, GPT-2.

mod step;
mod workspace;

use std::sync::{Arc, Mutex, PoisonError};

use crate::control;
use crate::error::{Error, Result};
use crate::model::config::{Config, Family, Mlp};
use crate::model::kv::Kv;
use crate::model::lora::{LayerLora, Lora, LowRank};
use crate::model::rows::Stacked;
use crate::model::weights::Weights;
use crate::ops::{Attention, Backend, Linear, Norm, Pairing, Pick, Rotate, RowSource};
use crate::rope;

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

pub(super) struct Layer<B: Backend> {
    pub(super) attention_norm: NormWeights<B>,
    /// q, k and v in one.
    pub(super) qkv: Projection<B>,
    /// Over each head of q and of k (Qwen3).
    pub(super) qk_norm: Option<[B::Buf<f32>; 2]>,
    pub(super) output: Projection<B>,
    pub(super) mlp_norm: NormWeights<B>,
    /// Gate and up in one (SwiGLU), or up alone (GELU).
    pub(super) up: Projection<B>,
    pub(super) down: Projection<B>,
}

pub(super) struct NormWeights<B: Backend> {
    pub(super) weight: B::Buf<f32>,
    pub(super) bias: Option<B::Buf<f32>>,
}

impl<B: Backend> NormWeights<B> {
    pub(super) fn apply(
        &self,
        backend: &B,
        config: &Config,
        rows: usize,
        x: &B::Buf<f32>,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        let shape = norm_shape(config, rows);
        backend.norm(shape, x, &self.weight, self.bias.as_ref(), y)
    }
}

/// The shape of a norm over the hidden states.
pub(super) fn norm_shape(config: &Config, rows: usize) -> Norm {
    Norm {
        rows,
        width: config.hidden,
        eps: config.norm_eps,
        kind: config.norm,
    }
}

/// What lies between the projections of an MLP.
pub(super) fn activate<B: Backend>(
    backend: &B,
    config: &Config,
    rows: usize,
    up: &B::Buf<f32>,
    inner: &mut B::Buf<f32>,
) -> Result<()> {
    let width = config.ffn;
    match config.mlp {
        Mlp::SwiGlu => backend.swiglu(rows, width, up, inner),
        Mlp::GeGlu => backend.geglu(rows, width, up, inner),
        Mlp::Gelu => backend.gelu(rows * width, up, inner),
        Mlp::GeluErf => backend.gelu_erf(rows * width, up, inner),
    }
}

pub(super) struct Projection<B: Backend> {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) weight: B::Matrix,
    pub(super) bias: Option<B::Buf<f32>>,
}

impl<B: Backend> Projection<B> {
    /// Width of what comes out.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `y = x · wᵀ + bias` of so many rows, or with `add` `y` more by that; with `estimate` by
    /// [`crate::ops::GemmOp::estimate`].
    pub(super) fn apply(
        &self,
        backend: &B,
        rows: usize,
        x: &B::Buf<f32>,
        add: bool,
        estimate: bool,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        let shape = Linear {
            rows,
            inputs: self.inputs,
            outputs: self.outputs,
            add,
        };
        let bias = self.bias.as_ref();
        match estimate {
            true => backend.estimate(shape, x, &self.weight, bias, y),
            false => backend.linear(shape, x, &self.weight, bias, y),
        }
    }
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

/// Hears the number of each layer and its queries, rotated: `[rows, heads, head_dim]`.
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
    /// Brings the weights to a device, as f32. A device that keeps its own layout of them only as it
    /// needs it, as the CPU does, reads the files later: they stay mapped as long as the model lives.
    ///
    /// # Errors
    ///
    /// Those of [`Weights::get`] and of the device.
    pub fn load(backend: B, weights: &Weights) -> Result<Self> {
        let config = weights.config().clone();
        if config.encoder.is_some() {
            return Err(Error::Unsupported {
                what: format!(
                    "{}: an encoder ({}) where a decoder is wanted",
                    weights.path().display(),
                    config.family.name()
                ),
                have: "llama, mistral, qwen2, qwen3, gpt2".into(),
            });
        }
        if config.head_dim % 2 == 1 {
            return Err(Error::Unsupported {
                what: format!("heads of odd width {}", config.head_dim),
                have: "even ones".into(),
            });
        }
        let loader = Loader {
            backend: &backend,
            weights,
        };
        let gpt2 = config.family == Family::Gpt2;
        let (outer, embedding, norm) = if gpt2 {
            ("transformer.", "wte", "ln_f")
        } else {
            ("model.", "embed_tokens", "norm")
        };
        Ok(Model {
            embedding: loader.matrix(&format!("{outer}{embedding}.weight"))?,
            positions: match gpt2 {
                true => Some(loader.matrix("transformer.wpe.weight")?),
                false => None,
            },
            layers: (0..config.layers)
                .map(|layer| match gpt2 {
                    true => loader.gpt2_layer(&format!("transformer.h.{layer}")),
                    false => loader.llama_layer(&format!("model.layers.{layer}")),
                })
                .collect::<Result<_>>()?,
            norm: loader.norm(&format!("{outer}{norm}"))?,
            head: match config.tied {
                true => None,
                false => Some(loader.matrix("lm_head.weight")?),
            },
            frequencies: config.rope().map(|rope| rope.frequencies()),
            pool: Mutex::default(),
            workspaces: Mutex::default(),
            config,
            backend,
        })
    }

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
    /// errors of the device.
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
    /// Those of [`Model::forward`].
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
    /// Those of [`Model::forward`], and [`Error::Shape`] for embeddings that are not whole rows.
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
    /// Those of [`Model::forward_adapted`].
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
    pub fn nll(&mut self, picks: &[Pick]) -> Result<Vec<f32>> {
        self.score(picks)?;
        match self.scratch.as_ref() {
            Some(scratch) => self.model.backend.download(&scratch.nll, 0..picks.len()),
            None => Ok(Vec::new()),
        }
    }

    /// The same on the device: so many at a time, one after the other, each to its place in `out`.
    pub(crate) fn nll_to(
        &mut self,
        picks: &[Pick],
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
    fn score(&mut self, picks: &[Pick]) -> Result<()> {
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

/// Reads tensors and lays them out for the device.
pub(super) struct Loader<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) weights: &'a Weights,
}

impl<B: Backend> Loader<'_, B> {
    pub(super) fn matrix(&self, name: &str) -> Result<B::Matrix> {
        Ok(self.stacked(&[name])?.0)
    }

    /// Matrices of one width, one above the other, with their height and width.
    fn stacked(&self, names: &[&str]) -> Result<(B::Matrix, usize, usize)> {
        let mut parts = Vec::with_capacity(names.len());
        let mut inputs = None;
        for name in names {
            let part = self.weights.rows(name)?;
            let shape = part.shape();
            if *inputs.get_or_insert(shape[1]) != shape[1] {
                return Err(Error::format(
                    self.weights.path(),
                    format!("tensor {name} has an unexpected shape {shape:?}"),
                ));
            }
            parts.push(part);
        }
        let source: Arc<dyn RowSource> = match parts.len() {
            1 => parts.remove(0),
            _ => Arc::new(Stacked(parts)),
        };
        let [outputs, inputs] = source.shape();
        Ok((self.backend.matrix_of(source)?, outputs, inputs))
    }

    /// The layers `names` of `layer`, one above the other; an empty name is the layer itself.
    pub(super) fn projection(&self, layer: &str, names: &[&str]) -> Result<Projection<B>> {
        let full = |suffix| -> Vec<String> {
            names
                .iter()
                .map(|name| match name.is_empty() {
                    true => format!("{layer}.{suffix}"),
                    false => format!("{layer}.{name}.{suffix}"),
                })
                .collect()
        };
        let (weights, biases) = (full("weight"), full("bias"));
        let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
        let (weight, outputs, inputs) = self.stacked(&weights)?;
        let mut bias = Vec::new();
        for name in &biases {
            if self.weights.has(name) {
                bias.extend(self.weights.get(name)?.to_f32()?);
            }
        }
        Ok(Projection {
            inputs,
            outputs,
            weight,
            bias: match bias.is_empty() {
                true => None,
                false => Some(self.backend.upload(&bias)?),
            },
        })
    }

    fn vector(&self, name: &str) -> Result<B::Buf<f32>> {
        self.backend.upload(&self.weights.get(name)?.to_f32()?)
    }

    pub(super) fn norm(&self, name: &str) -> Result<NormWeights<B>> {
        let bias = format!("{name}.bias");
        Ok(NormWeights {
            weight: self.vector(&format!("{name}.weight"))?,
            bias: match self.weights.has(&bias) {
                true => Some(self.vector(&bias)?),
                false => None,
            },
        })
    }

    fn llama_layer(&self, at: &str) -> Result<Layer<B>> {
        let q_norm = format!("{at}.self_attn.q_norm.weight");
        Ok(Layer {
            attention_norm: self.norm(&format!("{at}.input_layernorm"))?,
            qkv: self.projection(
                at,
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            )?,
            qk_norm: match self.weights.has(&q_norm) {
                true => Some([
                    self.vector(&q_norm)?,
                    self.vector(&format!("{at}.self_attn.k_norm.weight"))?,
                ]),
                false => None,
            },
            output: self.projection(at, &["self_attn.o_proj"])?,
            mlp_norm: self.norm(&format!("{at}.post_attention_layernorm"))?,
            up: self.projection(at, &["mlp.gate_proj", "mlp.up_proj"])?,
            down: self.projection(at, &["mlp.down_proj"])?,
        })
    }

    fn gpt2_layer(&self, at: &str) -> Result<Layer<B>> {
        Ok(Layer {
            attention_norm: self.norm(&format!("{at}.ln_1"))?,
            qkv: self.projection(at, &["attn.c_attn"])?,
            qk_norm: None,
            output: self.projection(at, &["attn.c_proj"])?,
            mlp_norm: self.norm(&format!("{at}.ln_2"))?,
            up: self.projection(at, &["mlp.c_fc"])?,
            down: self.projection(at, &["mlp.c_proj"])?,
        })
    }
}
