//! The forward of an encoder: BERT and its kin, XLM-RoBERTa. Attention sees the whole text, each norm follows
//! a residual sum, positions are learned.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::control;
use crate::error::{Error, Result};
use crate::model::config::{Config, EncoderConfig, EncoderHead};
use crate::model::decoder::{Loader, NormWeights, Projection};
use crate::model::layout;
use crate::model::weights::Weights;
use crate::ops::{Attention, Backend, Pairing, Rotate};

/// Rows of a forward pass, as a decoder's.
const PASS: usize = 1024;

/// A text as an encoder reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncoderInput {
    /// Token ids, the special ones among them, or [`EncoderInput::MEAN`].
    pub ids: Vec<u32>,
    /// Token types, one per id: 1 for the second of two texts; empty where all are 0.
    pub types: Vec<u32>,
    /// Rows of the table of positions, one per id; empty where they follow each other from the first that
    /// the model has, paddings apart (XLM-RoBERTa).
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
    positions: B::Matrix,
    types: B::Matrix,
    norm: NormWeights<B>,
    layers: Vec<Layer<B>>,
    head: Option<Head<B>>,
    /// The mean of all embeddings, when it was asked for.
    mean: OnceLock<Vec<f32>>,
    /// Buffers of forward passes that are over.
    pool: Mutex<Vec<Scratch<B>>>,
}

struct Layer<B: Backend> {
    /// q, k and v in one.
    qkv: Projection<B>,
    output: Projection<B>,
    attention_norm: NormWeights<B>,
    up: Projection<B>,
    down: Projection<B>,
    mlp_norm: NormWeights<B>,
}

enum Head<B: Backend> {
    /// Classes of each token.
    Tokens(Projection<B>),
    /// Classes of the text, by its first token: a layer with a hyperbolic tangent, then the classes.
    Text {
        dense: Projection<B>,
        classes: Projection<B>,
    },
}

/// The buffers of one forward pass, for up to `rows` rows.
struct Scratch<B: Backend> {
    rows: usize,
    /// Hidden states, before a layer and after it.
    h: B::Buf<f32>,
    /// Those between attention and MLP.
    x: B::Buf<f32>,
    qkv: B::Buf<f32>,
    kv: [B::Buf<f32>; 2],
    attention: B::Buf<f32>,
    up: B::Buf<f32>,
    inner: B::Buf<f32>,
}

impl<B: Backend> Encoder<B> {
    /// Brings the weights to a device.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a decoder; those of [`Weights::get`] and of the device.
    pub fn load(backend: B, weights: &Weights) -> Result<Self> {
        let config = weights.config().clone();
        let Some(shape) = config.encoder.clone() else {
            return Err(Error::Unsupported {
                what: format!(
                    "{}: a decoder ({}) where an encoder is wanted",
                    weights.path().display(),
                    config.family.name()
                ),
                have: "bert, roberta, xlm-roberta".into(),
            });
        };
        let loader = Loader {
            backend: &backend,
            weights,
        };
        let prefix = layout::hf_prefix(config.family);
        let embeddings = |name: &str| format!("{prefix}embeddings.{name}");
        let layers = layout::hf_layers(config.family);
        Ok(Encoder {
            words: loader.matrix(&embeddings("word_embeddings.weight"))?,
            positions: loader.matrix(&embeddings("position_embeddings.weight"))?,
            types: loader.matrix(&embeddings("token_type_embeddings.weight"))?,
            norm: loader.norm(&embeddings("LayerNorm"))?,
            layers: (0..config.layers)
                .map(|layer| Layer::load(&loader, &format!("{layers}{layer}")))
                .collect::<Result<_>>()?,
            head: match shape.head {
                EncoderHead::None => None,
                EncoderHead::Tokens(_) => {
                    Some(Head::Tokens(loader.projection("classifier", &[""])?))
                }
                EncoderHead::Text(_) => {
                    let [dense, classes] = layout::text_head(config.family);
                    Some(Head::Text {
                        dense: loader.projection(dense, &[""])?,
                        classes: loader.projection(classes, &[""])?,
                    })
                }
            },
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
    /// positions, [`Error::Shape`] for types or positions of another number than ids; errors of the device.
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
    /// As [`Encoder::states`].
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
            out.extend(by_text(inputs, &states, width).map(|own| pool(own, width, pooling)));
            Ok(())
        })?;
        Ok(out)
    }

    /// Logits of each token's classes, `[ids, labels]` per text.
    ///
    /// # Errors
    ///
    /// As [`Encoder::states`], and [`Error::Unsupported`] for a model without such a head.
    pub fn token_logits(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        let Some(Head::Tokens(classes)) = &self.head else {
            return Err(self.lacks("a token classifier"));
        };
        let labels = classes.outputs();
        let mut out = Vec::with_capacity(inputs.len());
        self.passes(inputs, false, |scratch, inputs, rows| {
            let mut logits = self.backend.zeros(rows * labels)?;
            classes.apply(&self.backend, rows, &scratch.h, false, false, &mut logits)?;
            let logits = self.backend.download(&logits, 0..rows * labels)?;
            out.extend(by_text(inputs, &logits, labels).map(<[f32]>::to_vec));
            Ok(())
        })?;
        Ok(out)
    }

    /// Logits of each text's classes, `[labels]` per text; a reranker has one.
    ///
    /// # Errors
    ///
    /// As [`Encoder::states`], and [`Error::Unsupported`] for a model without such a head.
    pub fn text_logits(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        let Some(Head::Text { dense, classes }) = &self.head else {
            return Err(self.lacks("a classifier of texts"));
        };
        let (b, width, labels) = (&self.backend, self.config.hidden, classes.outputs());
        let mut out = Vec::with_capacity(inputs.len());
        self.passes(inputs, false, |scratch, inputs, _| {
            let count = inputs.len();
            let mut first = b.zeros(count * width)?;
            let mut row = 0;
            for (i, input) in inputs.iter().enumerate() {
                b.copy(
                    &scratch.h,
                    row * width..(row + 1) * width,
                    &mut first,
                    i * width,
                )?;
                row += input.ids.len();
            }
            let mut inner = b.zeros(count * width)?;
            dense.apply(b, count, &first, false, false, &mut inner)?;
            // A few rows: not worth a kernel.
            let mut values = b.download(&inner, 0..count * width)?;
            values.iter_mut().for_each(|value| *value = value.tanh());
            b.write(&values, &mut inner)?;
            let mut logits = b.zeros(count * labels)?;
            classes.apply(b, count, &inner, false, false, &mut logits)?;
            let logits = b.download(&logits, 0..count * labels)?;
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
                None => Scratch::new(&self.backend, &self.config, rows)?,
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
            b.embed(&ids, &self.words, false, &mut s.x)?;
            if !means.is_empty() {
                let mean = b.upload(self.mean()?)?;
                for row in means {
                    b.copy(&mean, 0..c.hidden, &mut s.x, row * c.hidden)?;
                }
            }
            b.embed(&positions, &self.positions, true, &mut s.x)?;
            b.embed(&types, &self.types, true, &mut s.x)?;
            self.norm.apply(b, c, rows, &s.x, &mut s.h)
        })?;
        let attention = Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            prefix: 0,
            prefixes: &[],
            at: 0,
            lengths: &lengths,
            window: c.sliding_window,
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
        for layer in &self.layers {
            control::step(|| {
                layer
                    .qkv
                    .apply(b, rows, &s.h, false, estimate, &mut s.qkv)?;
                let [k, v] = &mut s.kv;
                b.rotate(append, &mut s.qkv, None, None, k, v)?;
                b.attention(&attention, &s.qkv, k, v, &mut s.attention)?;
                layer
                    .output
                    .apply(b, rows, &s.attention, true, estimate, &mut s.h)?;
                layer.attention_norm.apply(b, c, rows, &s.h, &mut s.x)?;
                layer.up.apply(b, rows, &s.x, false, estimate, &mut s.up)?;
                match self.shape.gelu_tanh {
                    true => b.gelu(rows * c.ffn, &s.up, &mut s.inner)?,
                    false => b.gelu_erf(rows * c.ffn, &s.up, &mut s.inner)?,
                }
                layer
                    .down
                    .apply(b, rows, &s.inner, true, estimate, &mut s.x)?;
                layer.mlp_norm.apply(b, c, rows, &s.x, &mut s.h)
            })?;
        }
        Ok(())
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
            attention_norm: loader.norm(&format!("{at}.attention.output.LayerNorm"))?,
            up: loader.projection(at, &["intermediate.dense"])?,
            down: loader.projection(at, &["output.dense"])?,
            mlp_norm: loader.norm(&format!("{at}.output.LayerNorm"))?,
        })
    }
}

impl<B: Backend> Scratch<B> {
    fn new(backend: &B, c: &Config, rows: usize) -> Result<Self> {
        let rows = rows.next_multiple_of(64);
        let hidden = || backend.zeros(rows * c.hidden);
        Ok(Scratch {
            rows,
            h: hidden()?,
            x: hidden()?,
            qkv: backend.zeros(rows * 3 * c.hidden)?,
            kv: [hidden()?, hidden()?],
            attention: hidden()?,
            up: backend.zeros(rows * c.ffn)?,
            inner: backend.zeros(rows * c.ffn)?,
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

/// One vector of length 1 of a text's states.
fn pool(states: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let mut vector = states[..width].to_vec();
    if pooling == Pooling::Mean {
        for row in states.chunks_exact(width).skip(1) {
            for (sum, value) in vector.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
    let length = vector
        .iter()
        .map(|v| f64::from(*v).powi(2))
        .sum::<f64>()
        .sqrt();
    let scale = 1.0 / (length as f32).max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|value| *value *= scale);
    vector
}
