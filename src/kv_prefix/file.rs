//! A prefix as one safetensors file.
//!
//! Tensors: `layers.{i}.k` and `layers.{i}.v`, `[kv_heads, tokens, head_dim]`; `rope_positions`, i32
//! `[tokens]` or `[layers, kv_heads, tokens]`; `source_ids`, i32, where the prefix stands for a text's
//! own tokens. The metadata, all strings, are those that `metadata` writes.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{KRope, KvPrefix, ModelId, Origin, Parts, Rope, Shape, sha256};
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::mapped::{Access, Mapped};

/// What the metadata call the format.
const FORMAT: &str = "prefold-kv";
/// The only version.
const VERSION: &str = "1";
/// A header of 1,000 layers has a quarter of this; parsing one of hostile size would take many times
/// its length.
const LONGEST_HEADER: u64 = 1 << 20;
/// Decoder layers that there can be.
const MAX_LAYERS: usize = 4096;

/// Element type of K and V in a file; in memory they are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits: nothing is lost.
    #[default]
    F32,
    /// 16 bits, up to 65,504.
    F16,
    /// 16 bits, the range of f32.
    Bf16,
}

impl Dtype {
    /// `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Little-endian bytes of `values`, every one of which is in the type's range.
    ///
    /// # Errors
    /// [`Error::Input`] if one is beyond it.
    pub(crate) fn encode(self, values: &[f32]) -> Result<Vec<u8>> {
        let finite = |value: f32| match self {
            Dtype::F32 => true,
            Dtype::F16 => f16::from_f32(value).is_finite(),
            Dtype::Bf16 => bf16::from_f32(value).is_finite(),
        };
        match values.iter().find(|&&value| !finite(value)) {
            None => Ok(self.le_bytes(values)),
            Some(value) => Err(Error::input(
                format!("dtype {}", self.name()),
                format!("{value} is beyond its range; bf16 and f32 have room"),
            )),
        }
    }

    /// Little-endian bytes of `values`; what is beyond the type's range becomes infinite.
    pub(crate) fn le_bytes(self, values: &[f32]) -> Vec<u8> {
        let values = values.iter();
        match self {
            Dtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            Dtype::Bf16 => values
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Dtype::F32 => {
                let words = bytes.as_chunks::<4>().0;
                words.iter().map(|&word| f32::from_le_bytes(word)).collect()
            }
            Dtype::F16 => {
                let words = bytes.as_chunks::<2>().0;
                let wide = |&word| f16::from_le_bytes(word).to_f32();
                words.iter().map(wide).collect()
            }
            Dtype::Bf16 => {
                let words = bytes.as_chunks::<2>().0;
                let wide = |&word| bf16::from_le_bytes(word).to_f32();
                words.iter().map(wide).collect()
            }
        }
    }
}

/// The strings of a file's header.
fn metadata(prefix: &KvPrefix, dtype: Dtype, data: &[u8]) -> Map<String, Value> {
    let o = &prefix.origin;
    let mut map = Map::new();
    let mut put = |name: &str, value: String| map.insert(name.into(), value.into());
    put("format", FORMAT.into());
    put("format_version", VERSION.into());
    put(
        "made_by",
        concat!("prefold ", env!("CARGO_PKG_VERSION")).into(),
    );
    put("model", o.model.name.clone());
    put("architecture", o.model.architecture.clone());
    put("model_fingerprint", o.model.fingerprint.clone());
    if let Some(vocab) = o.model.vocab {
        put("vocab", vocab.to_string());
    }
    put("method", o.method.name().into());
    if let Some(adapter) = &o.adapter {
        put("adapter", adapter.clone());
    }
    if let Some(by) = &o.kept_by {
        put("kept_by", by.clone());
    }
    put("source_tokens", o.source_tokens.to_string());
    put("source_sha256", o.source_sha256.clone());
    put("pieces", o.pieces.to_string());
    put("content_id", prefix.content_id());
    put("data_sha256", sha256(data));
    put("dtype", dtype.name().into());
    put("k_rope", prefix.k_rope.name().into());
    if let Some(rope) = &prefix.rope {
        put("rope_pairing", "half".into());
        put("rope_theta", rope.theta.to_string());
        put("rope_dim", rope.dim.to_string());
        put("rope_scaling", json!(rope.scaling).to_string());
    }
    put("next_pos", prefix.next_pos.to_string());
    map
}

impl KvPrefix {
    /// Writes the prefix to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] for a value beyond the range of `dtype`.
    pub fn write(&self, path: &Path, dtype: Dtype) -> Result<()> {
        write_whole(path, &self.to_bytes(dtype)?)
    }

    /// The content of the file that [`KvPrefix::write`] writes; the same prefix gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Input`] for a value beyond the range of `dtype`.
    pub fn to_bytes(&self, dtype: Dtype) -> Result<Vec<u8>> {
        let s = self.shape;
        let mut header = Map::new();
        // Its place in front is kept for what is known in the end.
        header.insert("__metadata__".into(), Value::Null);
        let mut data: Vec<u8> = Vec::new();
        let mut add = |name: String, dtype: &str, shape: Vec<usize>, bytes: &[u8]| {
            let range = [data.len(), data.len() + bytes.len()];
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": range});
            header.insert(name, entry);
            data.extend_from_slice(bytes);
        };
        let numbers = |values: &[u32]| -> Vec<u8> {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        let shape = match self.positions.len() == s.tokens {
            true => vec![s.tokens],
            false => vec![s.layers, s.kv_heads, s.tokens],
        };
        add(
            "rope_positions".into(),
            "I32",
            shape,
            &numbers(&self.positions),
        );
        if !self.source_ids.is_empty() {
            let shape = vec![self.source_ids.len()];
            add(
                "source_ids".into(),
                "I32",
                shape,
                &numbers(&self.source_ids),
            );
        }
        let shape = [s.kv_heads, s.tokens, s.head_dim];
        let encoded: Vec<[Vec<u8>; 2]> = self
            .layers
            .par_iter()
            .map(|[k, v]| Ok([dtype.encode(k)?, dtype.encode(v)?]))
            .collect::<Result<_>>()?;
        for (i, parts) in encoded.iter().enumerate() {
            for (name, bytes) in ["k", "v"].iter().zip(parts) {
                let dtype = dtype.name().to_uppercase();
                add(format!("layers.{i}.{name}"), &dtype, shape.to_vec(), bytes);
            }
        }
        header.insert("__metadata__".into(), metadata(self, dtype, &data).into());
        let mut text = Value::Object(header).to_string();
        // The data begin aligned.
        text.extend(std::iter::repeat_n(' ', (8 - text.len() % 8) % 8));
        let mut out = Vec::with_capacity(8 + text.len() + data.len());
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
        out.extend(data);
        Ok(out)
    }

    /// Reads a prefix and the element type that its file has.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for whatever is not a sound prefix.
    pub fn read(path: &Path) -> Result<(Self, Dtype)> {
        let bad = |reason: String| Error::format(path, reason.replace(char::is_control, " "));
        // Mapped, so that a large file that is not a prefix costs nothing.
        let map = Mapped::open(path, Access::Map)?;
        let bytes = map.bytes();
        let header = bytes
            .first_chunk()
            .map(|length| u64::from_le_bytes(*length));
        if header.is_none_or(|length| length > LONGEST_HEADER) {
            return Err(bad("not a prefix: no safetensors header of its size".into()));
        }
        let sound = |error| bad(format!("not a safetensors file: {error}"));
        let (length, header) = SafeTensors::read_metadata(bytes).map_err(sound)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(sound)?;
        let strings: HashMap<String, String> =
            header.metadata().clone().into_iter().flatten().collect();
        // Files of version 0.1.0 and before have none.
        if let Some(want) = strings.get("data_sha256")
            && sha256(bytes.get(8 + length..).unwrap_or_default()) != *want
        {
            return Err(bad(
                "damaged: its data have another SHA-256 than its metadata say".into(),
            ));
        }
        let reader = Reader {
            path,
            strings,
            tensors,
        };
        reader.prefix()
    }
}

/// A file's header, checked piece by piece.
struct Reader<'a> {
    path: &'a Path,
    strings: HashMap<String, String>,
    tensors: SafeTensors<'a>,
}

impl Reader<'_> {
    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::format(self.path, reason.into().replace(char::is_control, " "))
    }

    fn get(&self, name: &str) -> Result<&str> {
        self.strings
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| self.bad(format!("its metadata lack {name}: not a prefix")))
    }

    /// A number in decimal, or a name in lower case, as a value of JSON.
    fn value<T: DeserializeOwned>(&self, name: &str, quoted: bool) -> Result<T> {
        let text = self.get(name)?;
        let read = match quoted {
            true => serde_json::from_value(text.into()),
            false => serde_json::from_str(text),
        };
        read.map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            self.bad(format!("{name} {shown:?} is not understood"))
        })
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let missing = |_| self.bad(format!("no tensor {name} found"));
        self.tensors.tensor(name).map_err(missing)
    }

    /// Non-negative numbers.
    fn numbers(&self, name: &str) -> Result<(Vec<u32>, Vec<usize>)> {
        let view = self.tensor(name)?;
        if view.dtype() != safetensors::Dtype::I32 {
            return Err(self.bad(format!("{name} is not i32")));
        }
        let words = view.data().as_chunks::<4>().0;
        let numbers = words
            .iter()
            .map(|&word| u32::try_from(i32::from_le_bytes(word)).ok())
            .collect::<Option<_>>()
            .ok_or_else(|| self.bad(format!("{name} holds a negative number")))?;
        Ok((numbers, view.shape().to_vec()))
    }

    fn origin(&self) -> Result<Origin> {
        let text = |name: &str| self.get(name).map(str::to_owned);
        Ok(Origin {
            model: ModelId {
                name: text("model")?,
                architecture: text("architecture")?,
                fingerprint: text("model_fingerprint")?,
                vocab: match self.strings.contains_key("vocab") {
                    true => Some(self.value("vocab", false)?),
                    false => None,
                },
            },
            method: self.value("method", true)?,
            adapter: self.strings.get("adapter").cloned(),
            kept_by: self.strings.get("kept_by").cloned(),
            source_tokens: self.value("source_tokens", false)?,
            source_sha256: text("source_sha256")?,
            pieces: self.value("pieces", false)?,
        })
    }

    fn prefix(self) -> Result<(KvPrefix, Dtype)> {
        for (name, want) in [("format", FORMAT), ("format_version", VERSION)] {
            let got = self.get(name)?;
            if got != want {
                return Err(self.bad(format!("{name} is {got:.40}, not {want}")));
            }
        }
        let names = self.tensors.names();
        let layers = names.iter().filter(|name| name.ends_with(".k")).count();
        if layers == 0 || layers > MAX_LAYERS {
            return Err(self.bad(format!("{layers} layers")));
        }
        let first = self.tensor("layers.0.k")?;
        let &[kv_heads, tokens, head_dim] = first.shape() else {
            return Err(self.bad("layers.0.k is not [kv_heads, tokens, head_dim]"));
        };
        let shape = Shape {
            layers,
            kv_heads,
            tokens,
            head_dim,
        };
        // Before anything is cut into heads.
        if shape.elements().is_none_or(|elements| elements == 0) {
            return Err(self.bad(format!("sizes {shape:?}")));
        }
        let stored = first.dtype();
        let dtype = match stored {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            other => return Err(self.bad(format!("K of {other:?}, not F32, F16 or BF16"))),
        };
        let (rope, interleaved) = match self.strings.contains_key("rope_theta") {
            false => (None, false),
            true => {
                let rope = Rope {
                    theta: self.value("rope_theta", false)?,
                    dim: self.value("rope_dim", false)?,
                    scaling: self.value("rope_scaling", false)?,
                };
                match self.get("rope_pairing")? {
                    "half" => (Some(rope), false),
                    "interleaved" if head_dim.is_multiple_of(2) => (Some(rope), true),
                    _ => return Err(self.bad("rope_pairing is neither half nor interleaved")),
                }
            }
        };
        let mut pairs = Vec::with_capacity(layers);
        for i in 0..layers {
            let part = |name: &str| -> Result<Vec<f32>> {
                let name = format!("layers.{i}.{name}");
                let view = self.tensor(&name)?;
                if view.shape() != first.shape() || view.dtype() != stored {
                    let reason = format!("{name} has another shape or type than layers.0.k");
                    return Err(self.bad(reason));
                }
                Ok(dtype.decode(view.data()))
            };
            let (mut k, v) = (part("k")?, part("v")?);
            if interleaved {
                k.chunks_exact_mut(head_dim).for_each(halves);
            }
            pairs.push([k, v]);
        }
        let (positions, position_shape) = self.numbers("rope_positions")?;
        if position_shape != [tokens] && position_shape != [layers, kv_heads, tokens] {
            return Err(self.bad(format!("rope_positions is {position_shape:?}")));
        }
        let source_ids = match names.contains(&"source_ids") {
            true => self.numbers("source_ids")?.0,
            false => Vec::new(),
        };
        let parts = Parts {
            origin: self.origin()?,
            shape,
            layers: pairs,
            k_rope: self.value::<KRope>("k_rope", true)?,
            rope,
            positions,
            next_pos: self.value("next_pos", false)?,
            source_ids,
        };
        let prefix = KvPrefix::new(parts).map_err(|error| match error {
            Error::Input { reason, .. } => self.bad(reason),
            other => other,
        })?;
        Ok((prefix, dtype))
    }
}

/// Brings a head from interleaved pairs to halves.
fn halves(head: &mut [f32]) {
    let pairs = head.to_vec();
    let half = head.len() / 2;
    for (i, pair) in pairs.chunks_exact(2).enumerate() {
        (head[i], head[half + i]) = (pair[0], pair[1]);
    }
}
