//! A KV prefix as data in the host's memory, and as files: see [`crate::prefix`].

pub mod file;
pub mod llama_cpp;
pub mod store;
pub mod transformers;
pub mod vllm;

use hmac_sha256::Hash as Sha256;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use crate::rope::{Rope, RopeScaling};
pub use file::Dtype;

/// The model whose keys and values these are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelId {
    /// Name of its file or folder: for messages only.
    pub name: String,
    /// `llama`, `qwen2`, `qwen3`, `gpt2`.
    pub architecture: String,
    /// See [`crate::ModelInfo::fingerprint`].
    pub fingerprint: String,
    /// Number of its token ids; `None` in a file of version 0.1.0 or before.
    pub vocab: Option<u32>,
}

/// The ids that stand for the rows of a prefix in a prompt, where the text's own do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placeholder {
    /// Ids drawn from [`KvPrefix::content_id`], so that a cache which knows a prompt by its tokens alone keeps prefixes
    /// apart: sixteen of 32,000 ids are alike by chance once in 10⁷² pairs, a single one once in 32,000. Any id of
    /// the model may be drawn, also a control token's: the rows are loaded, their ids never embedded. Zeros
    /// for a file that does not say how many ids its model has.
    #[default]
    Unique,
    /// This id for each.
    Repeated(u32),
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = self.fingerprint.get(..12).unwrap_or(&self.fingerprint);
        write!(f, "{} ({}, {short})", self.name, self.architecture)
    }
}

/// How a prefix was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// K and V of memory tokens after the text (arXiv 2408.03094).
    #[serde(rename = "500xcompressor")]
    #[cfg_attr(feature = "cli", value(name = "500xcompressor"))]
    FiveHundredX,
    /// The memory tokens' output states, read by the decoder as embeddings (arXiv 2307.06945).
    Icae,
    /// Means of the text's output states over equal windows, read by the decoder as embeddings (arXiv
    /// 2510.20797).
    Pooled,
    /// K and V of the text itself.
    #[cfg_attr(feature = "cli", value(skip))]
    Prefill,
    /// Those of some of its tokens.
    #[cfg_attr(feature = "cli", value(skip))]
    Pruned,
    /// Rows of K and V that were trained for the text (arXiv 2506.06266).
    #[cfg_attr(feature = "cli", value(skip))]
    Trained,
}

impl Method {
    /// Whether it is an adapter's.
    pub(crate) const fn is_adapters(self) -> bool {
        matches!(self, Method::FiveHundredX | Method::Icae | Method::Pooled)
    }

    /// Whether the decoder reads states as embeddings.
    pub(crate) const fn reads_states(self) -> bool {
        matches!(self, Method::Icae | Method::Pooled)
    }

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Method::FiveHundredX => "500xcompressor",
            Method::Icae => "icae",
            Method::Pooled => "pooled",
            Method::Prefill => "prefill",
            Method::Pruned => "pruned",
            Method::Trained => "trained",
        }
    }
}

/// Where a prefix came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// Who made it, and who can read it.
    pub model: ModelId,
    /// How.
    pub method: Method,
    /// Hash of the adapter, if one was on.
    pub adapter: Option<String>,
    /// By what the kept tokens were chosen and how many, as `snapkv 0.5`; the first of memory tokens, as
    /// `first 4`; of trained rows the steps and a hash of their values.
    pub kept_by: Option<String>,
    /// Tokens of the text.
    pub source_tokens: usize,
    /// SHA-256 of the text in UTF-8, or of its ids as little-endian u32 where only ids were given.
    pub source_sha256: String,
    /// Pieces that the text was cut into.
    pub pieces: usize,
}

/// Whether keys are rotated to their positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum KRope {
    /// They are not, and `rope_positions` says where they belong.
    None,
    /// They are, to `rope_positions`.
    #[default]
    Applied,
}

impl KRope {
    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            KRope::None => "none",
            KRope::Applied => "applied",
        }
    }
}

/// Sizes of a prefix; all at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Decoder layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Rows per head.
    pub tokens: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Shape {
    /// Elements of K, or of V, of one layer; `None` beyond the address space.
    fn elements(&self) -> Option<usize> {
        self.kv_heads
            .checked_mul(self.tokens)?
            .checked_mul(self.head_dim)
    }
}

/// Keys and values of every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct KvPrefix {
    origin: Origin,
    shape: Shape,
    layers: Vec<[Vec<f32>; 2]>,
    k_rope: KRope,
    rope: Option<Rope>,
    positions: Vec<u32>,
    next_pos: usize,
    source_ids: Vec<u32>,
}

/// What a [`KvPrefix`] is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// Where it came from.
    pub origin: Origin,
    /// Its sizes.
    pub shape: Shape,
    /// For each layer K and V, `[kv_heads, tokens, head_dim]`.
    pub layers: Vec<[Vec<f32>; 2]>,
    /// The state of K.
    pub k_rope: KRope,
    /// `None` for a model with learned positions.
    pub rope: Option<Rope>,
    /// The angle that each key has or is to be given, in positions: `[tokens]`, or where heads keep
    /// different tokens `[layers, kv_heads, tokens]`.
    pub positions: Vec<u32>,
    /// The position of the first token after the prefix.
    pub next_pos: usize,
    /// The ids of the text whose K and V these are; empty for memory tokens, which have none.
    pub source_ids: Vec<u32>,
}

/// Positions beyond this are taken for garbage.
const LARGEST_POSITION: usize = 1 << 24;

impl KvPrefix {
    /// Checks the parts and puts them together.
    ///
    /// # Errors
    /// [`Error::Input`] naming the part that does not fit the sizes, or holds a number that is not finite.
    pub fn new(parts: Parts) -> Result<Self> {
        let bad = |reason: String| Err(Error::input("prefix", reason));
        let Shape {
            layers,
            kv_heads,
            tokens,
            head_dim,
        } = parts.shape;
        let Some(elements) = parts.shape.elements().filter(|&n| n > 0 && layers > 0) else {
            return bad(format!("sizes {:?}", parts.shape));
        };
        if parts.layers.len() != layers {
            return bad(format!("{} layers, not {layers}", parts.layers.len()));
        }
        for (i, part) in parts.layers.iter().flatten().enumerate() {
            if part.len() != elements {
                return bad(format!(
                    "layer {} has {} elements, not {elements}",
                    i / 2,
                    part.len()
                ));
            }
            if part.iter().any(|value| !value.is_finite()) {
                return bad(format!("layer {} holds what is not a finite number", i / 2));
            }
        }
        let all = layers.saturating_mul(kv_heads).saturating_mul(tokens);
        if parts.positions.len() != tokens && parts.positions.len() != all {
            return bad(format!(
                "{} positions for {tokens} tokens",
                parts.positions.len()
            ));
        }
        let last = parts.positions.iter().max().map_or(0, |&p| p as usize);
        if last.max(parts.next_pos) > LARGEST_POSITION || parts.next_pos < tokens {
            return bad(format!(
                "position {last}, then {}, of {tokens} tokens",
                parts.next_pos
            ));
        }
        match &parts.rope {
            Some(rope) if rope.dim != head_dim || !rope.is_sound() => {
                return bad(format!("heads of {head_dim} cannot be rotated by {rope:?}"));
            }
            None if parts.k_rope == KRope::None => {
                return bad("K is not rotated, and nothing says how to".into());
            }
            _ => {}
        }
        let Parts {
            origin,
            shape,
            layers,
            k_rope,
            rope,
            positions,
            next_pos,
            source_ids,
        } = parts;
        Ok(KvPrefix {
            origin,
            shape,
            layers,
            k_rope,
            rope,
            positions,
            next_pos,
            source_ids,
        })
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether K is rotated.
    pub fn k_rope(&self) -> KRope {
        self.k_rope
    }

    /// How K is rotated; `None` for a model with learned positions.
    pub fn rope(&self) -> Option<&Rope> {
        self.rope.as_ref()
    }

    /// The position of the first token after the prefix.
    pub fn next_pos(&self) -> usize {
        self.next_pos
    }

    /// Ids that stand for the rows in a prompt: the text's own where every token has its row, else
    /// placeholders.
    pub fn prompt_ids(&self, placeholder: Placeholder) -> Vec<u32> {
        match self.source_ids.len() == self.shape.tokens {
            true => self.source_ids.clone(),
            false => self.placeholders(placeholder, self.shape.tokens),
        }
    }

    /// So many ids that stand for no text.
    fn placeholders(&self, placeholder: Placeholder, count: usize) -> Vec<u32> {
        let ids = match (placeholder, self.origin.model.vocab) {
            (Placeholder::Repeated(id), _) => return vec![id; count],
            (Placeholder::Unique, None | Some(0)) => return vec![0; count],
            (Placeholder::Unique, Some(ids)) => ids,
        };
        let content = self.content_id();
        (0..count as u64)
            .map(|row| {
                let mut hash = Sha256::new();
                hash.update(&content);
                hash.update(row.to_le_bytes());
                let word = hash
                    .finalize()
                    .first_chunk()
                    .map_or(0, |&b| u64::from_le_bytes(b));
                (word % u64::from(ids)) as u32
            })
            .collect()
    }

    /// See [`Parts::source_ids`].
    pub fn source_ids(&self) -> &[u32] {
        &self.source_ids
    }

    /// K and V of a layer, `[kv_heads, tokens, head_dim]`; K in the state of [`KvPrefix::k_rope`].
    pub fn layer(&self, layer: usize) -> Option<&[Vec<f32>; 2]> {
        self.layers.get(layer)
    }

    /// See [`Parts::positions`].
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The positions of a head's keys.
    fn head_positions(&self, layer: usize, head: usize) -> &[u32] {
        let n = self.shape.tokens;
        if self.positions.len() == n {
            return &self.positions;
        }
        &self.positions[(layer * self.shape.kv_heads + head) * n..][..n]
    }

    /// The same with K rotated, or not.
    ///
    /// # Errors
    /// [`Error::Input`] for [`KRope::None`] of a model with learned positions.
    pub fn with_k_rope(mut self, wanted: KRope) -> Result<Self> {
        if wanted == self.k_rope {
            return Ok(self);
        }
        for layer in 0..self.layers.len() {
            let k = self.key_layer(layer, wanted)?;
            self.layers[layer][0] = k;
        }
        self.k_rope = wanted;
        Ok(self)
    }

    /// K of one layer in the state `wanted`; see [`KvPrefix::with_k_rope`].
    pub(crate) fn key_layer(&self, layer: usize, wanted: KRope) -> Result<Vec<f32>> {
        let Some([k, _]) = self.layers.get(layer) else {
            return Err(Error::input(
                format!("layer {layer}"),
                format!("the prefix has {}", self.layers.len()),
            ));
        };
        let mut k = k.clone();
        match (&self.rope, wanted == self.k_rope) {
            (_, true) => {}
            (Some(rope), false) => {
                let head = self.shape.tokens * self.shape.head_dim;
                for (h, keys) in k.chunks_exact_mut(head).enumerate() {
                    let positions = self.head_positions(layer, h);
                    rope.rotate(keys, positions, wanted == KRope::None);
                }
            }
            (None, false) => {
                let reason = "the model's positions are learned: its keys cannot be unrotated";
                return Err(Error::input("k_rope none", reason));
            }
        }
        Ok(k)
    }

    /// An id of what is in it, whatever file it lies in: a hash of model, adapter, method, text and
    /// positions. Hosts that share caches between requests need it to tell prefixes apart.
    pub fn content_id(&self) -> String {
        content_id(&self.origin, &self.positions, self.next_pos)
    }

    /// An error unless the prefix was made by `model`.
    ///
    /// # Errors
    /// [`Error::Input`] naming both models.
    pub fn check_model(&self, model: &ModelId) -> Result<()> {
        let made_by = &self.origin.model;
        if made_by.fingerprint == model.fingerprint {
            return Ok(());
        }
        Err(Error::input(
            "prefix",
            format!("it was made by {made_by}, and this model is {model}: their K and V differ"),
        ))
    }
}

/// See [`KvPrefix::content_id`].
pub(crate) fn content_id(origin: &Origin, positions: &[u32], next_pos: usize) -> String {
    let mut hash = Sha256::new();
    for text in [
        origin.model.fingerprint.as_str(),
        origin.adapter.as_deref().unwrap_or_default(),
        origin.method.name(),
        origin.kept_by.as_deref().unwrap_or_default(),
        origin.source_sha256.as_str(),
    ] {
        hash.update(text);
        hash.update([0]);
    }
    for number in positions.iter().copied().chain([next_pos as u32]) {
        hash.update(number.to_le_bytes());
    }
    hex(&hash.finalize())
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 as hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::hash(bytes))
}
