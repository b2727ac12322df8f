//! Shapes and constants of a decoder or an encoder, read from `config.json` or from GGUF metadata.

mod gguf;
mod json;

use std::path::Path;

use crate::error::{Error, Result};
use crate::mapped::one_line;
use crate::ops::NormKind;
use crate::rope::Rope;
pub use crate::rope::RopeScaling;

/// The families whose forward is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama and its kin: SmolLM2, Mistral.
    Llama,
    /// Qwen2 and 2.5: a bias on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on each head of q and k.
    Qwen3,
    /// GPT-2: LayerNorm, learned positions, GELU, biases everywhere.
    Gpt2,
    /// BERT and MiniLM, an encoder.
    Bert,
    /// RoBERTa and XLM-RoBERTa: BERT with another offset of its positions.
    XlmRoberta,
    /// ModernBERT: norms before, rotary positions, GeGLU, most layers seeing near keys only.
    ModernBert,
}

impl Family {
    /// `llama`, `qwen2`, `qwen3`, `gpt2`, `bert`, `xlm-roberta` or `modernbert`.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gpt2 => "gpt2",
            Family::Bert => "bert",
            Family::XlmRoberta => "xlm-roberta",
            Family::ModernBert => "modernbert",
        }
    }

    /// From `model_type` or `general.architecture`.
    fn from_name(name: &str) -> Option<Family> {
        Some(match name {
            "llama" | "mistral" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gpt2" => Family::Gpt2,
            "bert" => Family::Bert,
            "roberta" | "xlm-roberta" => Family::XlmRoberta,
            "modernbert" => Family::ModernBert,
            _ => return None,
        })
    }
}

/// What lies between the two projections of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `silu(gate) · up`.
    SwiGlu,
    /// `gelu(gate) · up`, by the error function.
    GeGlu,
    /// `gelu(up)`, by a hyperbolic tangent.
    Gelu,
    /// `gelu(up)`, by the error function.
    GeluErf,
}

impl Mlp {
    /// What the first projection puts out for each element of the inner layer: up, or gate and up.
    pub const fn parts(self) -> usize {
        match self {
            Mlp::SwiGlu | Mlp::GeGlu => 2,
            Mlp::Gelu | Mlp::GeluErf => 1,
        }
    }
}

/// How a model tells positions apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Keys and queries are rotated.
    Rotary,
    /// A table of embeddings is added.
    Learned,
}

/// Shapes and constants of a model. Those of an open model are checked: sizes lie between 1 and
/// 2²⁴, `heads` is a multiple of `kv_heads`, constants are finite and positive, and every tensor has
/// the shape that follows from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Names of its tensors and the marks of its tokens follow from this; what is computed follows from
    /// the other fields.
    pub family: Family,
    /// Which normalisation.
    pub norm: NormKind,
    /// The MLP.
    pub mlp: Mlp,
    /// Rotated or learned.
    pub positions: Positions,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head; `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Width of the MLP's inner layer.
    pub ffn: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Added to the variance in RMSNorm and LayerNorm.
    pub norm_eps: f32,
    /// Base of the rotary frequencies; unused by GPT-2.
    pub rope_theta: f32,
    /// Stretch of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Keys further back than this are not seen (Mistral v0.1); `None`: all are.
    pub sliding_window: Option<usize>,
    /// The LM head is the embedding matrix.
    pub tied: bool,
    /// Id of the token that begins a text, if it is one of `vocab`.
    pub bos: Option<u32>,
    /// Id of the token that ends a text (the first where there are several), if it is one of `vocab`.
    pub eos: Option<u32>,
    /// What an encoder has beyond that; `None`: it is a decoder.
    pub encoder: Option<EncoderConfig>,
}

/// Constants of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Rows of the table of token types; ModernBERT has no such table, and one type.
    pub token_types: usize,
    /// Row of the table of positions that the first token takes: 0, or after the padding's (XLM-RoBERTa).
    /// [`Config::max_positions`] counts from there.
    pub first_position: u32,
    /// Id of the token that fills up a batch.
    pub padding: u32,
    /// Which layers see near keys only; `None`: none.
    pub local: Option<LocalAttention>,
    /// A text's classes are made of the mean of its states, not of the first (ModernBERT).
    pub classes_of_mean: bool,
    /// What reads the hidden states.
    pub head: EncoderHead,
}

/// The layers of ModernBERT that see near keys only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalAttention {
    /// Layers 0, `every`, 2 · `every` and so on see all keys, all others near ones.
    pub every: usize,
    /// Keys on either side that those see.
    pub reach: usize,
    /// Base of their rotary frequencies.
    pub theta: f32,
}

/// What reads an encoder's hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderHead {
    /// Nothing: they are averaged to one vector.
    None,
    /// A classifier of tokens, with so many classes.
    Tokens(usize),
    /// A classifier of texts, with so many classes; a reranker has one.
    Text(usize),
}

/// Sizes beyond this are taken for garbage: it bounds what a hostile file can have allocated, and
/// keeps products of two sizes far from overflow.
const LARGEST: usize = 1 << 24;
/// The rotary base where none is given.
const DEFAULT_THETA: f32 = 10_000.0;
impl Config {
    /// How keys and queries are rotated; `None` where positions are learned.
    pub fn rope(&self) -> Option<Rope> {
        (self.positions == Positions::Rotary).then(|| Rope {
            theta: self.rope_theta,
            dim: self.head_dim,
            scaling: self.rope_scaling.clone(),
        })
    }

    /// What is wrong with the values by themselves, if anything; `file` is where they came from.
    pub(crate) fn check(&self, file: &Path) -> Result<()> {
        let bad = |reason: String| Err(Error::format(file, reason));
        let local = self.encoder.as_ref().and_then(|encoder| encoder.local);
        for (name, value) in [
            ("vocabulary size", self.vocab),
            ("hidden size", self.hidden),
            ("number of layers", self.layers),
            ("number of heads", self.heads),
            ("number of key-value heads", self.kv_heads),
            ("head size", self.head_dim),
            ("feed-forward size", self.ffn),
            ("number of positions", self.max_positions),
            ("sliding window", self.sliding_window.unwrap_or(1)),
            (
                "number of token types",
                self.encoder
                    .as_ref()
                    .map_or(1, |encoder| encoder.token_types),
            ),
            (
                "layers from one with global attention to the next",
                local.map_or(1, |local| local.every),
            ),
            (
                "reach of local attention",
                local.map_or(1, |local| local.reach),
            ),
            (
                "number of labels",
                match self.encoder.as_ref().map(|encoder| encoder.head) {
                    Some(EncoderHead::Tokens(labels) | EncoderHead::Text(labels)) => labels,
                    Some(EncoderHead::None) | None => 1,
                },
            ),
        ] {
            if !(1..=LARGEST).contains(&value) {
                return bad(format!("{name} is {value}, expected 1 to {LARGEST}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad(format!(
                "{} heads cannot share {} key-value heads evenly",
                self.heads, self.kv_heads
            ));
        }
        if (self.positions == Positions::Learned || self.encoder.is_some())
            && self.heads * self.head_dim != self.hidden
        {
            return bad(format!(
                "hidden size {} is not a multiple of {} heads",
                self.hidden, self.heads
            ));
        }
        if self.encoder.is_some() && self.kv_heads != self.heads {
            return bad(format!(
                "{} key-value heads, expected the {} of the queries: an encoder shares none",
                self.kv_heads, self.heads
            ));
        }
        if self.positions == Positions::Rotary && !self.head_dim.is_multiple_of(2) {
            return bad(format!("head size {} is odd", self.head_dim));
        }
        let mut constants = vec![
            ("norm epsilon", self.norm_eps),
            ("rope theta", self.rope_theta),
            ("local rope theta", local.map_or(1.0, |local| local.theta)),
        ];
        match &self.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => constants.push(("rope factor", *factor)),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            } => {
                constants.extend([
                    ("rope factor", *factor),
                    ("low frequency factor", *low),
                    ("high frequency factor", *high),
                    ("original number of positions", *original as f32),
                ]);
                if high <= low {
                    return bad(format!(
                        "rope: high_freq_factor {high} is not above low_freq_factor {low}"
                    ));
                }
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != self.head_dim / 2 {
                    return bad(format!(
                        "{} rope factors, expected half the head size, {}",
                        factors.len(),
                        self.head_dim / 2
                    ));
                }
                constants.extend(factors.iter().map(|&factor| ("rope factor", factor)));
            }
        }
        for (name, value) in constants {
            if !(value.is_finite() && value > 0.0) {
                return bad(format!("{name} is {value}, expected a positive number"));
            }
        }
        Ok(())
    }
}

fn family(path: &Path, name: &str, have: &str) -> Result<Family> {
    Family::from_name(name)
        .ok_or_else(|| unsupported(path, &format!("architecture {:?}", one_line(name)), have))
}

fn unsupported(path: &Path, what: &str, have: &str) -> Error {
    Error::Unsupported {
        what: format!("{}: {what}", path.display()),
        have: have.into(),
    }
}

fn unsupported_rope(path: &Path, kind: &str, have: &str) -> Error {
    unsupported(path, &format!("rope scaling {:?}", one_line(kind)), have)
}
