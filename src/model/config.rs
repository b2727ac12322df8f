//! Shapes and constants of a decoder or an encoder, read from `config.json` or from GGUF metadata.

use std::path::Path;

use serde_json::Value;

use super::gguf::Metadata;
use crate::error::{Error, Result};
use crate::mapped::{one_line, read_json};
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
/// A `config.json` has a few kilobytes.
const LONGEST_CONFIG: u64 = 1 << 20;

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

    /// Reads a Hugging Face `config.json`. A head that is not said to be tied may yet be missing: the
    /// caller sets `tied` then.
    pub(crate) fn from_json(path: &Path) -> Result<Config> {
        let json: Value = read_json(path, LONGEST_CONFIG)?;
        let json = Json {
            file: path,
            what: "",
            value: &json,
        };
        let name = json.str("model_type")?.ok_or_else(|| {
            Error::format(
                path,
                "there is no \"model_type\": not a model's config.json",
            )
        })?;
        let family = family(
            path,
            name,
            "llama, mistral, qwen2, qwen3, gpt2, bert, roberta, xlm-roberta, modernbert",
        )?;
        if json.get("quantization_config").is_some() {
            return Err(unsupported(
                path,
                "quantized safetensors",
                "F32, F16 and BF16, or a quantized GGUF",
            ));
        }
        let mut config = match family {
            Family::Gpt2 => gpt2_from_json(json)?,
            Family::Bert | Family::XlmRoberta => bert_from_json(json, family)?,
            Family::ModernBert => modernbert_from_json(json)?,
            _ => llama_from_json(json, family)?,
        };
        config.bos = json.token("bos_token_id", config.vocab);
        config.eos = json.token("eos_token_id", config.vocab);
        config.check(path)?;
        Ok(config)
    }

    /// Reads GGUF metadata. `rows` is the number of the embedding's rows (`None`: it is missing, as the
    /// caller will find), `factors` the content of `rope_freqs.weight`, `tied` whether there is no
    /// head, `head` that of a reranker.
    pub(crate) fn from_gguf(
        meta: &Metadata,
        rows: Option<usize>,
        factors: Option<Vec<f32>>,
        tied: bool,
        head: EncoderHead,
    ) -> Result<Config> {
        let path = meta.path();
        let arch = meta
            .str("general.architecture")?
            .ok_or_else(|| Error::format(path, "there is no general.architecture"))?;
        let have = "llama, qwen2, qwen3, gpt2, bert";
        let mut family = family(path, arch, have)?;
        // llama.cpp gives both the same name; XLM-RoBERTa alone has this kind of vocabulary.
        if family == Family::Bert && meta.str("tokenizer.ggml.model")? == Some("t5") {
            family = Family::XlmRoberta;
        } else if matches!(family, Family::XlmRoberta | Family::ModernBert) {
            return Err(unsupported(
                path,
                &format!("{} as a GGUF", family.name()),
                have,
            ));
        }
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str| meta.usize(&key(name));
        let required = |name: &str| {
            size(name)?.ok_or_else(|| Error::format(path, format!("there is no {}", key(name))))
        };

        let hidden = required("embedding_length")?;
        let heads = required("attention.head_count")?;
        let head_dim = match size("attention.key_length")? {
            Some(size) => size,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let (norm, mlp, positions) = match family {
            Family::Gpt2 => (NormKind::Layer, Mlp::Gelu, Positions::Learned),
            Family::Bert | Family::XlmRoberta => {
                (NormKind::Layer, Mlp::GeluErf, Positions::Learned)
            }
            _ => (NormKind::Rms, Mlp::SwiGlu, Positions::Rotary),
        };
        let eps = match norm {
            NormKind::Layer => "attention.layer_norm_epsilon",
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
        };
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = size(name)?.filter(|&other| other != head_dim) {
                return Err(unsupported(
                    path,
                    &format!("{} {other} beside a head size of {head_dim}", key(name)),
                    "one size for all of a head",
                ));
            }
        }
        if size("expert_count")?.unwrap_or(0) > 0 {
            return Err(unsupported(
                path,
                "a mixture of experts",
                "one MLP per layer",
            ));
        }
        let tokens = meta.count("tokenizer.ggml.tokens")?;
        let vocab = rows.or(tokens).unwrap_or(1);
        if let Some(tokens) = tokens.filter(|&tokens| tokens > vocab) {
            return Err(Error::format(
                path,
                format!("{tokens} tokens, but the embedding has {vocab} rows"),
            ));
        }
        let token = |name: &str| -> Result<Option<u32>> {
            let id = meta.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
            Ok(id.filter(|&id| (id as usize) < vocab))
        };
        let config = Config {
            family,
            norm,
            mlp,
            positions,
            vocab,
            hidden,
            layers: required("block_count")?,
            heads,
            kv_heads: size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            ffn: required("feed_forward_length")?,
            max_positions: required("context_length")?,
            norm_eps: meta
                .f32(&key(eps))?
                .ok_or_else(|| Error::format(path, format!("there is no {}", key(eps))))?,
            rope_theta: meta.f32(&key("rope.freq_base"))?.unwrap_or(DEFAULT_THETA),
            rope_scaling: gguf_rope_scaling(meta, arch, factors)?,
            sliding_window: size("attention.sliding_window")?.filter(|&window| window > 0),
            tied,
            bos: token("bos")?,
            eos: token("eos")?,
            // Their positions begin at 0 in a GGUF, whatever the padding was: the rows before are cut off.
            encoder: matches!(family, Family::Bert | Family::XlmRoberta).then_some(EncoderConfig {
                token_types: meta.u32("tokenizer.ggml.token_type_count")?.unwrap_or(1) as usize,
                first_position: 0,
                padding: token("padding")?.unwrap_or(0),
                local: None,
                classes_of_mean: false,
                head,
            }),
        };
        config.check(path)?;
        Ok(config)
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

fn gguf_rope_scaling(
    meta: &Metadata,
    arch: &str,
    factors: Option<Vec<f32>>,
) -> Result<RopeScaling> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let kind = meta.str(&key("scaling.type"))?.unwrap_or("linear");
    let linear = match kind {
        "none" => 1.0,
        "linear" => {
            let factor = match meta.f32(&key("scaling.factor"))? {
                None => meta.f32(&key("scale_linear"))?,
                some => some,
            };
            // 0 stands for "not set".
            factor.filter(|&factor| factor != 0.0).unwrap_or(1.0)
        }
        other => return Err(unsupported_rope(meta.path(), other, "linear")),
    };
    Ok(match factors {
        Some(factors) => {
            RopeScaling::Factors(factors.into_iter().map(|factor| factor * linear).collect())
        }
        None if linear == 1.0 => RopeScaling::None,
        None => RopeScaling::Linear { factor: linear },
    })
}

fn unsupported_rope(path: &Path, kind: &str, have: &str) -> Error {
    unsupported(path, &format!("rope scaling {:?}", one_line(kind)), have)
}

/// A JSON object that knows the file and the key it comes from.
#[derive(Clone, Copy)]
struct Json<'a> {
    file: &'a Path,
    what: &'a str,
    value: &'a Value,
}

impl<'a> Json<'a> {
    /// A value that is there and not null.
    fn get(self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn object(self, key: &'a str) -> Result<Option<Json<'a>>> {
        self.typed(key, "an object", |value| {
            value.is_object().then_some(Json {
                file: self.file,
                what: key,
                value,
            })
        })
    }

    fn str(self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    fn bool(self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn size(self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| {
            value.as_u64()?.try_into().ok()
        })
    }

    fn f32(self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |value| Some(value.as_f64()? as f32))
    }

    fn typed<T>(
        self,
        key: &str,
        want: &str,
        decode: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        decode(value).map(Some).ok_or_else(|| {
            let shown = one_line(&value.to_string());
            Error::format(
                self.file,
                format!("{}{key} is {shown}, expected {want}", self.place()),
            )
        })
    }

    fn require<T>(self, key: &str, value: Result<Option<T>>) -> Result<T> {
        value?.ok_or_else(|| Error::format(self.file, format!("there is no {}{key}", self.place())))
    }

    fn required_size(self, key: &str) -> Result<usize> {
        self.require(key, self.size(key))
    }

    fn required_f32(self, key: &str) -> Result<f32> {
        self.require(key, self.f32(key))
    }

    fn place(self) -> String {
        if self.what.is_empty() {
            String::new()
        } else {
            format!("{}.", self.what)
        }
    }

    /// A token's id, or the first of several; none where it is not an id of the vocabulary, as in tiny
    /// models that kept the ids of a large one.
    fn token(self, key: &str, vocab: usize) -> Option<u32> {
        let value = self.get(key)?;
        let id = value.get(0).unwrap_or(value).as_u64()?;
        id.try_into().ok().filter(|&id: &u32| (id as usize) < vocab)
    }

    /// Refuses a value that changes the forward in a way that is not built.
    fn only(self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(value) if !allowed.contains(value) => {
                let have: Vec<String> = allowed.iter().map(Value::to_string).collect();
                Err(unsupported(
                    self.file,
                    &format!("{key} = {}", one_line(&value.to_string())),
                    &have.join(", "),
                ))
            }
            _ => Ok(()),
        }
    }
}

fn llama_from_json(json: Json, family: Family) -> Result<Config> {
    json.only("hidden_act", &["silu".into(), "swish".into()])?;
    json.only("attention_bias", &[false.into()])?;
    json.only("mlp_bias", &[false.into()])?;
    json.only("partial_rotary_factor", &[1.into(), 1.0.into()])?;
    let hidden = json.required_size("hidden_size")?;
    let heads = json.required_size("num_attention_heads")?;
    let max_positions = json.required_size("max_position_embeddings")?;
    let (rope_theta, rope_scaling) = json_rope(json, max_positions)?;
    Ok(Config {
        family,
        norm: NormKind::Rms,
        mlp: Mlp::SwiGlu,
        positions: Positions::Rotary,
        vocab: json.required_size("vocab_size")?,
        hidden,
        layers: json.required_size("num_hidden_layers")?,
        heads,
        kv_heads: json.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: match json.size("head_dim")? {
            Some(size) => size,
            None => hidden.checked_div(heads).unwrap_or(0),
        },
        ffn: json.required_size("intermediate_size")?,
        max_positions,
        norm_eps: json.f32("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        sliding_window: json_sliding_window(json, family)?,
        tied: json.bool("tie_word_embeddings")?.unwrap_or(false),
        bos: None,
        eos: None,
        encoder: None,
    })
}

/// One window for all layers, or none. Qwen can have it in some layers only, which is not built.
fn json_sliding_window(json: Json, family: Family) -> Result<Option<usize>> {
    let Some(window) = json.size("sliding_window")? else {
        return Ok(None);
    };
    if family == Family::Llama {
        return Ok(Some(window));
    }
    if !json.bool("use_sliding_window")?.unwrap_or(false) {
        return Ok(None);
    }
    let first = json.size("max_window_layers")?.unwrap_or(28);
    match first {
        0 => Ok(Some(window)),
        _ if first >= json.required_size("num_hidden_layers")? => Ok(None),
        _ => Err(unsupported(
            json.file,
            "a sliding window in some layers only",
            "one in all layers or in none",
        )),
    }
}

/// Base and stretch, from the top level or from `rope_scaling` (older) or `rope_parameters` (newer).
fn json_rope(json: Json, max_positions: usize) -> Result<(f32, RopeScaling)> {
    let theta = json.f32("rope_theta")?;
    let nested = match json.object("rope_parameters")? {
        None => json.object("rope_scaling")?,
        some => some,
    };
    let Some(rope) = nested else {
        return Ok((theta.unwrap_or(DEFAULT_THETA), RopeScaling::None));
    };
    let theta = rope.f32("rope_theta")?.or(theta).unwrap_or(DEFAULT_THETA);
    rope.only("partial_rotary_factor", &[1.into(), 1.0.into()])?;
    let kind = match rope.str("rope_type")? {
        None => rope.str("type")?,
        some => some,
    };
    let scaling = match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: rope.required_f32("factor")?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: rope.required_f32("factor")?,
            low_freq_factor: rope.required_f32("low_freq_factor")?,
            high_freq_factor: rope.required_f32("high_freq_factor")?,
            original_max_positions: rope
                .size("original_max_position_embeddings")?
                .unwrap_or(max_positions),
        },
        Some(other) => return Err(unsupported_rope(json.file, other, "linear, llama3")),
    };
    Ok((theta, scaling))
}

fn gpt2_from_json(json: Json) -> Result<Config> {
    json.only(
        "activation_function",
        &["gelu_new".into(), "gelu_pytorch_tanh".into()],
    )?;
    json.only("scale_attn_weights", &[true.into()])?;
    json.only("scale_attn_by_inverse_layer_idx", &[false.into()])?;
    json.only("add_cross_attention", &[false.into()])?;
    let hidden = json.required_size("n_embd")?;
    let heads = json.required_size("n_head")?;
    Ok(Config {
        family: Family::Gpt2,
        norm: NormKind::Layer,
        mlp: Mlp::Gelu,
        positions: Positions::Learned,
        vocab: json.required_size("vocab_size")?,
        hidden,
        layers: json.required_size("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: hidden.checked_div(heads).unwrap_or(0),
        ffn: match json.size("n_inner")? {
            Some(size) => size,
            None => hidden.saturating_mul(4),
        },
        max_positions: json.required_size("n_positions")?,
        norm_eps: json.f32("layer_norm_epsilon")?.unwrap_or(1e-5),
        rope_theta: DEFAULT_THETA,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied: json.bool("tie_word_embeddings")?.unwrap_or(true),
        bos: None,
        eos: None,
        encoder: None,
    })
}

fn bert_from_json(json: Json, family: Family) -> Result<Config> {
    json.only("position_embedding_type", &["absolute".into()])?;
    json.only("is_decoder", &[false.into()])?;
    json.only("add_cross_attention", &[false.into()])?;
    let tanh = ["gelu_new", "gelu_pytorch_tanh"];
    json.only(
        "hidden_act",
        &["gelu".into(), tanh[0].into(), tanh[1].into()],
    )?;
    let hidden = json.required_size("hidden_size")?;
    let heads = json.required_size("num_attention_heads")?;
    let vocab = json.required_size("vocab_size")?;
    let padding = json.token("pad_token_id", vocab);
    // RoBERTa's positions begin after that of the padding, whose number is its id.
    let first_position = match family {
        Family::XlmRoberta => padding.unwrap_or(1).saturating_add(1),
        _ => 0,
    };
    let rows = json.required_size("max_position_embeddings")?;
    let is_tanh = json
        .str("hidden_act")?
        .is_some_and(|name| tanh.contains(&name));
    Ok(Config {
        family,
        norm: NormKind::Layer,
        mlp: if is_tanh { Mlp::Gelu } else { Mlp::GeluErf },
        positions: Positions::Learned,
        vocab,
        hidden,
        layers: json.required_size("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_dim: hidden.checked_div(heads).unwrap_or(0),
        ffn: json.required_size("intermediate_size")?,
        max_positions: rows.saturating_sub(first_position as usize),
        norm_eps: json.f32("layer_norm_eps")?.unwrap_or(1e-12),
        rope_theta: DEFAULT_THETA,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied: true,
        bos: None,
        eos: None,
        encoder: Some(EncoderConfig {
            token_types: json.size("type_vocab_size")?.unwrap_or(2),
            first_position,
            padding: padding.unwrap_or(0),
            local: None,
            classes_of_mean: false,
            head: encoder_head(json)?,
        }),
    })
}

fn modernbert_from_json(json: Json) -> Result<Config> {
    for bias in ["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"] {
        json.only(bias, &[false.into()])?;
    }
    json.only("hidden_activation", &["gelu".into()])?;
    json.only("classifier_activation", &["gelu".into()])?;
    json.only("classifier_pooling", &["cls".into(), "mean".into()])?;
    json.only("rope_scaling", &[Value::Null])?;
    let hidden = json.required_size("hidden_size")?;
    let heads = json.required_size("num_attention_heads")?;
    let vocab = json.required_size("vocab_size")?;
    let layers = json.required_size("num_hidden_layers")?;
    let every = json.size("global_attn_every_n_layers")?.unwrap_or(3);
    // transformers 5 names each layer's kind; here it follows from the layer's number.
    if let Some(kinds) = json.get("layer_types").and_then(Value::as_array) {
        let regular = kinds.iter().enumerate().all(|(layer, kind)| {
            let want = match every > 0 && layer.is_multiple_of(every) {
                true => "full_attention",
                false => "sliding_attention",
            };
            kind == want
        });
        if !regular || kinds.len() != layers {
            return Err(unsupported(
                json.file,
                "\"layer_types\" of no regular pattern",
                "full_attention in every so many layers, from the first on",
            ));
        }
    }
    let theta = |kind: &str, older: &str, default: f32| -> Result<f32> {
        let own = json.get("rope_parameters").and_then(|all| all.get(kind));
        let Some(value) = own.filter(|value| value.is_object()) else {
            return Ok(json.f32(older)?.unwrap_or(default));
        };
        let own = Json {
            what: "rope_parameters",
            value,
            ..json
        };
        own.only("rope_type", &["default".into()])?;
        Ok(own.f32("rope_theta")?.unwrap_or(default))
    };
    Ok(Config {
        family: Family::ModernBert,
        norm: NormKind::Layer,
        mlp: Mlp::GeGlu,
        positions: Positions::Rotary,
        vocab,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_dim: hidden.checked_div(heads).unwrap_or(0),
        ffn: json.required_size("intermediate_size")?,
        max_positions: json.required_size("max_position_embeddings")?,
        norm_eps: json.f32("norm_eps")?.unwrap_or(1e-5),
        rope_theta: theta("full_attention", "global_rope_theta", 160_000.0)?,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied: true,
        bos: None,
        eos: None,
        encoder: Some(EncoderConfig {
            token_types: 1,
            first_position: 0,
            padding: json.token("pad_token_id", vocab).unwrap_or(0),
            local: Some(LocalAttention {
                every,
                // The window, whose middle is the query.
                reach: json.size("local_attention")?.unwrap_or(128) / 2,
                theta: theta("sliding_attention", "local_rope_theta", DEFAULT_THETA)?,
            }),
            // What transformers takes where nothing is said.
            classes_of_mean: json.str("classifier_pooling")? == Some("mean"),
            head: encoder_head(json)?,
        }),
    })
}

/// The head that the first architecture named has, and its number of classes.
fn encoder_head(json: Json) -> Result<EncoderHead> {
    let named = json.get("architectures").and_then(|list| list.get(0));
    let named = named.and_then(Value::as_str).unwrap_or_default();
    let labels = match json.get("id2label").and_then(Value::as_object) {
        Some(labels) => labels.len(),
        None => json.size("num_labels")?.unwrap_or(2),
    };
    Ok(match named {
        _ if named.ends_with("ForTokenClassification") => EncoderHead::Tokens(labels),
        _ if named.ends_with("ForSequenceClassification") => EncoderHead::Text(labels),
        _ => EncoderHead::None,
    })
}
