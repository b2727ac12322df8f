//! The forward of an encoder. In BERT and its kin and in XLM-RoBERTa attention sees the whole text, each norm
//! follows a residual sum, and positions are learned. In ModernBERT norms come before what they feed, positions
//! are rotated, and most layers see near keys only.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::control;
use crate::error::{Error, Result};
use crate::model::config::{Config, EncoderConfig, EncoderHead, Family};
use crate::model::decoder::layers::{NormWeights, Projection, activate};
use crate::model::decoder::load::Loader;
use crate::model::layout;
use crate::model::weights::Weights;
use crate::ops::{Attention, Backend, Pairing, Rotate};
use crate::rope::{self, Rope};

/// Rows of a forward pass, as a decoder's.
const PASS: usize = 1024;

/// A text as an encoder reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncoderInput {
    /// Token ids, the special ones among them, or [`EncoderInput::MEAN`].
    pub ids: Vec<u32>,
    /// Token types, one per id: 1 for the second of two texts; empty where all are 0.
    pub types: Vec<u32>,
    /// Positions, one per id, rows of their table where they are learned; empty where they follow each other
    /// from the first that the model has, paddings apart (XLM-RoBERTa).
    pub positions: Vec<u32>,
}

impl EncoderInput {
    /// Stands for a token that the vocabulary does not have: its embedding is the mean of all, which is where
    /// transformers puts tokens that are added to a model.
    pub const MEAN: u32 = u32::MAX;
}

impl From<Vec<u32>> for EncoderInput {
    fn from(ids: Vec<u32>) -> Self {
        EncoderInput {
            ids,
            ..EncoderInput::default()
        }
    }
}

/// How the hidden states of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean, as sentence-transformers' models by default.
    #[default]
    Mean,
    /// That of the first token.
    First,
}

/// An open encoder on a device. Any number of threads may use it at once.
pub struct Encoder<B: Backend> {
    backend: B,
    config: Config,
    shape: EncoderConfig,
    words: B::Matrix,
    /// Learned positions and token types (BERT and its kin).
    learned: Option<[B::Matrix; 2]>,
    norm: NormWeights<B>,
    layers: Vec<Layer<B>>,
    /// After the last layer (ModernBERT).
    final_norm: Option<NormWeights<B>>,
    head: Option<Head<B>>,
    /// Of half a head, in layers that see all keys and in those that see near ones; `None` where positions are
    /// learned.
    frequencies: Option<[Vec<f32>; 2]>,
    /// The mean of all embeddings, when it was asked for.
    mean: OnceLock<Vec<f32>>,
    /// Buffers of forward passes that are over.
    pool: Mutex<Vec<Scratch<B>>>,
}

struct Layer<B: Backend> {
    /// q, k and v in one.
    qkv: Projection<B>,
    output: Projection<B>,
    /// After attention, or before it, where the first layer has none (ModernBERT).
    attention_norm: Option<NormWeights<B>>,
    /// Up, or gate and up in one (GeGLU).
    up: Projection<B>,
    down: Projection<B>,
    mlp_norm: NormWeights<B>,
}

/// What makes classes of hidden states: those of each token or, of a text, one that stands for all.
struct Head<B: Backend> {
    dense: Option<Dense<B>>,
    classes: Projection<B>,
}

/// The layer before the classes.
enum Dense<B: Backend> {
    /// With a hyperbolic tangent.
    Tanh(Projection<B>),
    /// With GELU and a norm (ModernBERT).
    Gelu(Projection<B>, NormWeights<B>),
}

/// The buffers of one forward pass, for up to `rows` rows.
struct Scratch<B: Backend> {
    rows: usize,
    /// The hidden states when all is done. With norms after: before a layer and after it, too; with norms
    /// before: what a norm gives.
    h: B::Buf<f32>,
    /// With norms after: what lies between attention and MLP; with norms before: the residual stream.
    x: B::Buf<f32>,
    qkv: B::Buf<f32>,
    kv: [B::Buf<f32>; 2],
    attention: B::Buf<f32>,
    up: B::Buf<f32>,
    inner: B::Buf<f32>,
    /// As [`Encoder::frequencies`].
    angles: Option<[B::Buf<f32>; 2]>,
}

impl<B: Backend> Encoder<B> {
    /// Brings the weights to a device.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a decoder; [`Error::Format`] for a tensor that is missing;
    /// [`Error::Device`] if the device fails.
    pub fn load(backend: B, weights: &Weights) -> Result<Self> {
        let config = weights.config().clone();
        let Some(shape) = config.encoder.clone() else {
            return Err(Error::Unsupported {
                what: format!(
                    "{}: a decoder ({}) where an encoder is wanted",
                    weights.path().display(),
                    config.family.name()
                ),
                have: "bert, roberta, xlm-roberta, modernbert".into(),
            });
        };
        let loader = Loader {
            backend: &backend,
            weights,
        };
        let prefix = layout::hf_prefix(config.family);
        let embeddings = |name: &str| format!("{prefix}embeddings.{name}");
        let layers = layout::hf_layers(config.family);
        let modern = config.family == Family::ModernBert;
        let [words, norm] = match modern {
            true => ["tok_embeddings.weight", "norm"],
            false => ["word_embeddings.weight", "LayerNorm"],
        };
        Ok(Encoder {
            words: loader.matrix(&embeddings(words))?,
            learned: match modern {
                true => None,
                false => Some([
                    loader.matrix(&embeddings("position_embeddings.weight"))?,
                    loader.matrix(&embeddings("token_type_embeddings.weight"))?,
                ]),
            },
            norm: loader.norm(&embeddings(norm))?,
            layers: (0..config.layers)
                .map(|layer| match modern {
                    true => Layer::load_modern(&loader, &format!("{layers}{layer}"), layer),
                    false => Layer::load(&loader, &format!("{layers}{layer}")),
                })
                .collect::<Result<_>>()?,
            final_norm: match modern {
                true => Some(loader.norm(&format!("{prefix}final_norm"))?),
                false => None,
            },
            head: Head::load(&loader, &config, shape.head)?,
            frequencies: config.rope().map(|all| {
                let near = Rope {
                    theta: shape.local.map_or(all.theta, |local| local.theta),
                    ..all.clone()
                };
                [all.frequencies(), near.frequencies()]
            }),
            mean: OnceLock::new(),
            pool: Mutex::default(),
            shape,
            config,
            backend,
        })
    }

    /// Shapes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Hidden states of each text after the last layer, `[ids, hidden]`.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for an id, type or position that the model does not have or a text longer than its
    /// positions; [`Error::Shape`] for types or positions of another number than ids; [`Error::Device`] if
    /// the device fails.
    pub fn states(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        let width = self.config.hidden;
        let mut out = Vec::with_capacity(inputs.len());
        self.passes(inputs, false, |scratch, inputs, rows| {
            let states = self.backend.download(&scratch.h, 0..rows * width)?;
            out.extend(by_text(inputs, &states, width).map(<[f32]>::to_vec));
            Ok(())
        })?;
        Ok(out)
    }

    /// A vector of length 1 of each text; with `estimate` by products in 8 bits, where that is faster.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for an id, type or position that the model does not have or a text longer than its
    /// positions; [`Error::Shape`] for types or positions of another number than ids; [`Error::Device`] if
    /// the device fails.
    pub fn embed(
        &self,
        inputs: &[EncoderInput],
        pooling: Pooling,
        estimate: bool,
    ) -> Result<Vec<Vec<f32>>> {
        let width = self.config.hidden;
        let mut out = Vec::with_capacity(inputs.len());
        self.passes(inputs, estimate, |scratch, inputs, rows| {
            let states = self.backend.download(&scratch.h, 0..rows * width)?;
            out.extend(
                by_text(inputs, &states, width).map(|own| of_length_1(pool(own, width, pooling))),
            );
            Ok(())
        })?;
        Ok(out)
    }

    /// Logits of each token's classes, `[ids, labels]` per text.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for an id, type or position that the model does not have or a text longer than its
    /// positions; [`Error::Shape`] for types or positions of another number than ids; [`Error::Unsupported`]
    /// for a model without such a head; [`Error::Device`] if the device fails.
    pub fn token_logits(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        let (Some(head), EncoderHead::Tokens(labels)) = (&self.head, self.shape.head) else {
            return Err(self.lacks("a token classifier"));
        };
        let mut out = Vec::with_capacity(inputs.len());
        self.passes(inputs, false, |scratch, inputs, rows| {
            let logits = head.logits(&self.backend, &self.config, rows, &scratch.h)?;
            out.extend(by_text(inputs, &logits, labels).map(<[f32]>::to_vec));
            Ok(())
        })?;
        Ok(out)
    }

    /// Logits of each text's classes, `[labels]` per text; a reranker has one.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for an id, type or position that the model does not have or a text longer than its
    /// positions; [`Error::Shape`] for types or positions of another number than ids; [`Error::Unsupported`]
    /// for a model without such a head; [`Error::Device`] if the device fails.
    pub fn text_logits(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        let (Some(head), EncoderHead::Text(labels)) = (&self.head, self.shape.head) else {
            return Err(self.lacks("a classifier of texts"));
        };
        let (b, width) = (&self.backend, self.config.hidden);
        let mut out = Vec::with_capacity(inputs.len());
        self.passes(inputs, false, |scratch, inputs, rows| {
            let pooled = match self.shape.classes_of_mean {
                true => {
                    let states = b.download(&scratch.h, 0..rows * width)?;
                    let means: Vec<f32> = by_text(inputs, &states, width)
                        .flat_map(|own| pool(own, width, Pooling::Mean))
                        .collect();
                    b.upload(&means)?
                }
                false => {
                    let mut first = b.zeros(inputs.len() * width)?;
                    let mut row = 0;
                    for (i, input) in inputs.iter().enumerate() {
                        let own = row * width..(row + 1) * width;
                        b.copy(&scratch.h, own, &mut first, i * width)?;
                        row += input.ids.len();
                    }
                    first
                }
            };
            let logits = head.logits(b, &self.config, inputs.len(), &pooled)?;
            out.extend(logits.chunks_exact(labels).map(<[f32]>::to_vec));
            Ok(())
        })?;
        Ok(out)
    }

    fn lacks(&self, what: &str) -> Error {
        Error::Unsupported {
            what: format!("an encoder without a head as {what}"),
            have: match self.shape.head {
                EncoderHead::None => "hidden states only".into(),
                EncoderHead::Tokens(labels) => format!("{labels} classes of each token"),
                EncoderHead::Text(labels) => format!("{labels} classes of a text"),
            },
        }
    }

    /// Reads the texts, several to a pass, and lets `take` have the states of each pass.
    fn passes(
        &self,
        inputs: &[EncoderInput],
        estimate: bool,
        mut take: impl FnMut(&mut Scratch<B>, &[EncoderInput], usize) -> Result<()>,
    ) -> Result<()> {
        for input in inputs {
            self.check(input)?;
        }
        let all: usize = inputs.iter().map(|input| input.ids.len()).sum();
        let (mut rest, mut done) = (inputs, 0);
        while let Some(first) = rest.first() {
            let mut rows = first.ids.len();
            let mut count = 1;
            while let Some(next) = rest.get(count)
                && rows + next.ids.len() <= PASS
            {
                rows += next.ids.len();
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            rest = later;
            let pooled = self.pool().pop().filter(|scratch| scratch.rows >= rows);
            let mut scratch = match pooled {
                Some(scratch) => scratch,
                None => Scratch::new(self, rows)?,
            };
            let result = self
                .forward(now, rows, estimate, &mut scratch)
                .and_then(|()| take(&mut scratch, now, rows));
            self.pool().push(scratch);
            result?;
            done += rows;
            control::report(done, all);
        }
        Ok(())
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<Scratch<B>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, input: &EncoderInput) -> Result<()> {
        let (ids, max) = (input.ids.len(), self.config.max_positions);
        if ids == 0 || ids > max {
            return Err(Error::input(
                format!("a text of {ids} tokens"),
                format!("this encoder reads 1 to {max}; cut the text"),
            ));
        }
        for (what, list, limit) in [
            ("types", &input.types, self.shape.token_types),
            (
                "positions",
                &input.positions,
                max + self.shape.first_position as usize,
            ),
        ] {
            if !list.is_empty() && list.len() != ids {
                return Err(Error::Shape {
                    op: "encoder",
                    want: format!("{ids} token {what}, or none"),
                    got: list.len().to_string(),
                });
            }
            if let Some(wrong) = list.iter().find(|&&value| value as usize >= limit) {
                return Err(Error::input(
                    format!("token {what}: {wrong}"),
                    format!("the model has {limit}"),
                ));
            }
        }
        Ok(())
    }

    fn forward(
        &self,
        inputs: &[EncoderInput],
        rows: usize,
        estimate: bool,
        s: &mut Scratch<B>,
    ) -> Result<()> {
        let (b, c) = (&self.backend, &self.config);
        let lengths: Vec<usize> = inputs.iter().map(|input| input.ids.len()).collect();
        log::debug!("encoder pass: {rows} tokens of {} texts", lengths.len());
        let mut ids: Vec<u32> = inputs.iter().flat_map(|i| &i.ids).copied().collect();
        let means: Vec<usize> = (0..rows)
            .filter(|&i| ids[i] == EncoderInput::MEAN)
            .collect();
        means.iter().for_each(|&i| ids[i] = 0);
        let mut types = Vec::with_capacity(rows);
        let mut positions = Vec::with_capacity(rows);
        for input in inputs {
            match input.types.is_empty() {
                true => types.resize(types.len() + input.ids.len(), 0),
                false => types.extend_from_slice(&input.types),
            }
            let mut next = self.shape.first_position;
            match input.positions.is_empty() {
                true => {
                    positions.extend(input.ids.iter().map(|&id| {
                        match self.shape.first_position > 0 && id == self.shape.padding {
                            true => self.shape.padding,
                            false => {
                                next += 1;
                                next - 1
                            }
                        }
                    }))
                }
                false => positions.extend_from_slice(&input.positions),
            }
        }
        control::step(|| {
            // Norms after read `x` and leave `h`, norms before the reverse.
            let (from, to) = match self.final_norm {
                None => (&mut s.x, &mut s.h),
                Some(_) => (&mut s.h, &mut s.x),
            };
            b.embed(&ids, &self.words, false, from)?;
            if !means.is_empty() {
                let mean = b.upload(self.mean()?)?;
                for row in means {
                    b.copy(&mean, 0..c.hidden, from, row * c.hidden)?;
                }
            }
            if let Some([table, of_types]) = &self.learned {
                b.embed(&positions, table, true, from)?;
                b.embed(&types, of_types, true, from)?;
            }
            if let Some((frequencies, angles)) = self.frequencies.as_ref().zip(s.angles.as_mut()) {
                for (frequencies, angles) in frequencies.iter().zip(angles) {
                    b.write(&rope::angles(frequencies, &positions), angles)?;
                }
            }
            self.norm.apply(b, c, rows, from, to)
        })?;
        let everything = Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            prefix: 0,
            prefixes: &[],
            at: 0,
            lengths: &lengths,
            window: None,
            ahead: usize::MAX,
        };
        let append = Rotate {
            rows,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            at: 0,
            eps: c.norm_eps,
            pairing: Pairing::Halves,
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let near = self
                .shape
                .local
                .filter(|local| !i.is_multiple_of(local.every));
            let attention = match near {
                None => everything,
                Some(local) => Attention {
                    window: Some(local.reach + 1),
                    ahead: local.reach,
                    ..everything
                },
            };
            let attend = |s: &mut Scratch<B>| {
                let tables = s.angles.as_ref();
                let angles = tables.map(|[all, local]| if near.is_some() { local } else { all });
                let [k, v] = &mut s.kv;
                b.rotate(append, &mut s.qkv, None, angles, k, v)?;
                b.attention(&attention, &s.qkv, k, v, &mut s.attention)
            };
            control::step(|| match self.final_norm {
                None => self.norms_after(layer, rows, estimate, s, attend),
                Some(_) => self.norms_before(layer, rows, estimate, s, attend),
            })?;
        }
        match &self.final_norm {
            Some(norm) => control::step(|| norm.apply(b, c, rows, &s.x, &mut s.h)),
            None => Ok(()),
        }
    }

    /// A layer of BERT, from `h` to `h`.
    fn norms_after(
        &self,
        layer: &Layer<B>,
        rows: usize,
        estimate: bool,
        s: &mut Scratch<B>,
        attend: impl FnOnce(&mut Scratch<B>) -> Result<()>,
    ) -> Result<()> {
        let (b, c) = (&self.backend, &self.config);
        layer
            .qkv
            .apply(b, rows, &s.h, false, estimate, &mut s.qkv)?;
        attend(s)?;
        layer
            .output
            .apply(b, rows, &s.attention, true, estimate, &mut s.h)?;
        if let Some(norm) = &layer.attention_norm {
            norm.apply(b, c, rows, &s.h, &mut s.x)?;
        }
        layer.up.apply(b, rows, &s.x, false, estimate, &mut s.up)?;
        activate(b, c, rows, &s.up, &mut s.inner)?;
        layer
            .down
            .apply(b, rows, &s.inner, true, estimate, &mut s.x)?;
        layer.mlp_norm.apply(b, c, rows, &s.x, &mut s.h)
    }

    /// A layer of ModernBERT, from `x` to `x`.
    fn norms_before(
        &self,
        layer: &Layer<B>,
        rows: usize,
        estimate: bool,
        s: &mut Scratch<B>,
        attend: impl FnOnce(&mut Scratch<B>) -> Result<()>,
    ) -> Result<()> {
        let (b, c) = (&self.backend, &self.config);
        let normed = match &layer.attention_norm {
            Some(norm) => {
                norm.apply(b, c, rows, &s.x, &mut s.h)?;
                &s.h
            }
            None => &s.x,
        };
        layer
            .qkv
            .apply(b, rows, normed, false, estimate, &mut s.qkv)?;
        attend(s)?;
        layer
            .output
            .apply(b, rows, &s.attention, true, estimate, &mut s.x)?;
        layer.mlp_norm.apply(b, c, rows, &s.x, &mut s.h)?;
        layer.up.apply(b, rows, &s.h, false, estimate, &mut s.up)?;
        activate(b, c, rows, &s.up, &mut s.inner)?;
        layer
            .down
            .apply(b, rows, &s.inner, true, estimate, &mut s.x)
    }

    /// The mean of all embeddings.
    fn mean(&self) -> Result<&[f32]> {
        const ROWS: usize = 1024;
        if let Some(mean) = self.mean.get() {
            return Ok(mean);
        }
        let (b, width, vocab) = (&self.backend, self.config.hidden, self.config.vocab);
        let mut sums = vec![0.0f64; width];
        let mut some = b.zeros(ROWS * width)?;
        for first in (0..vocab).step_by(ROWS) {
            let ids: Vec<u32> = (first..vocab.min(first + ROWS))
                .map(|id| id as u32)
                .collect();
            b.embed(&ids, &self.words, false, &mut some)?;
            for row in b.download(&some, 0..ids.len() * width)?.chunks_exact(width) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(value);
                }
            }
        }
        let mean = sums.iter().map(|sum| (sum / vocab as f64) as f32).collect();
        Ok(self.mean.get_or_init(|| mean))
    }
}

impl<B: Backend> Layer<B> {
    fn load(loader: &Loader<'_, B>, at: &str) -> Result<Self> {
        Ok(Layer {
            qkv: loader.projection(
                at,
                &[
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                ],
            )?,
            output: loader.projection(at, &["attention.output.dense"])?,
            attention_norm: Some(loader.norm(&format!("{at}.attention.output.LayerNorm"))?),
            up: loader.projection(at, &["intermediate.dense"])?,
            down: loader.projection(at, &["output.dense"])?,
            mlp_norm: loader.norm(&format!("{at}.output.LayerNorm"))?,
        })
    }

    /// A layer of ModernBERT, of that number.
    fn load_modern(loader: &Loader<'_, B>, at: &str, number: usize) -> Result<Self> {
        Ok(Layer {
            attention_norm: match number {
                0 => None,
                _ => Some(loader.norm(&format!("{at}.attn_norm"))?),
            },
            qkv: loader.projection(at, &["attn.Wqkv"])?,
            output: loader.projection(at, &["attn.Wo"])?,
            mlp_norm: loader.norm(&format!("{at}.mlp_norm"))?,
            up: loader.projection(at, &["mlp.Wi"])?,
            down: loader.projection(at, &["mlp.Wo"])?,
        })
    }
}

impl<B: Backend> Head<B> {
    fn load(loader: &Loader<'_, B>, config: &Config, head: EncoderHead) -> Result<Option<Self>> {
        let one = |name: &str| loader.projection(name, &[""]);
        let dense = match (config.family, head) {
            (_, EncoderHead::None) => return Ok(None),
            (Family::ModernBert, _) => {
                Some(Dense::Gelu(one("head.dense")?, loader.norm("head.norm")?))
            }
            (_, EncoderHead::Tokens(_)) => None,
            (family, EncoderHead::Text(_)) => Some(Dense::Tanh(one(layout::text_head(family)[0])?)),
        };
        let classes = match (config.family, head) {
            (Family::Bert | Family::XlmRoberta, EncoderHead::Text(_)) => {
                one(layout::text_head(config.family)[1])?
            }
            _ => one("classifier")?,
        };
        Ok(Some(Head { dense, classes }))
    }

    /// Logits of the classes of so many states, `[rows, labels]`.
    fn logits(&self, b: &B, c: &Config, rows: usize, states: &B::Buf<f32>) -> Result<Vec<f32>> {
        let labels = self.classes.outputs();
        let inner = match &self.dense {
            Some(dense) => Some(dense.apply(b, c, rows, states)?),
            None => None,
        };
        let states = inner.as_ref().unwrap_or(states);
        let mut logits = b.zeros(rows * labels)?;
        self.classes
            .apply(b, rows, states, false, false, &mut logits)?;
        b.download(&logits, 0..rows * labels)
    }
}

impl<B: Backend> Dense<B> {
    fn apply(&self, b: &B, c: &Config, rows: usize, states: &B::Buf<f32>) -> Result<B::Buf<f32>> {
        let size = rows * c.hidden;
        let mut out = b.zeros(size)?;
        match self {
            Dense::Tanh(dense) => {
                dense.apply(b, rows, states, false, false, &mut out)?;
                // A row of each text: not worth a kernel.
                let mut values = b.download(&out, 0..size)?;
                values.iter_mut().for_each(|value| *value = value.tanh());
                b.write(&values, &mut out)?;
            }
            Dense::Gelu(dense, norm) => {
                let mut active = b.zeros(size)?;
                dense.apply(b, rows, states, false, false, &mut out)?;
                b.gelu_erf(size, &out, &mut active)?;
                norm.apply(b, c, rows, &active, &mut out)?;
            }
        }
        Ok(out)
    }
}

impl<B: Backend> Scratch<B> {
    fn new(encoder: &Encoder<B>, rows: usize) -> Result<Self> {
        let (backend, c) = (&encoder.backend, &encoder.config);
        let rows = rows.next_multiple_of(64);
        let hidden = || backend.zeros(rows * c.hidden);
        let up = encoder.layers.first().map_or(0, |layer| layer.up.outputs());
        Ok(Scratch {
            rows,
            h: hidden()?,
            x: hidden()?,
            qkv: backend.zeros(rows * 3 * c.hidden)?,
            kv: [hidden()?, hidden()?],
            attention: hidden()?,
            up: backend.zeros(rows * up)?,
            inner: backend.zeros(rows * c.ffn)?,
            angles: match encoder.frequencies {
                None => None,
                Some(_) => Some([
                    backend.zeros(rows * c.head_dim)?,
                    backend.zeros(rows * c.head_dim)?,
                ]),
            },
        })
    }
}

/// What each text has of the rows of a pass, so many elements wide.
fn by_text<'v>(
    inputs: &[EncoderInput],
    values: &'v [f32],
    width: usize,
) -> impl Iterator<Item = &'v [f32]> {
    let mut rest = values;
    inputs.iter().map(move |input| {
        let (own, others) = rest.split_at(input.ids.len() * width);
        rest = others;
        own
    })
}

/// One vector of a text's states.
fn pool(states: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let mut vector = states[..width].to_vec();
    if pooling == Pooling::Mean {
        for row in states.chunks_exact(width).skip(1) {
            for (sum, value) in vector.iter_mut().zip(row) {
                *sum += value;
            }
        }
        let count = (states.len() / width) as f32;
        vector.iter_mut().for_each(|value| *value /= count);
    }
    vector
}

fn of_length_1(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector
        .iter()
        .map(|v| f64::from(*v).powi(2))
        .sum::<f64>()
        .sqrt();
    let scale = 1.0 / (length as f32).max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|value| *value *= scale);
    vector
}
