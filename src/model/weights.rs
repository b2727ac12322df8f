//! Tensors by their Hugging Face names, whatever file they came from.
//!
//! Every linear layer is handed out as `[out, in]`, and the rows of q and k in the order of
//! Hugging Face's rotary embedding (the two halves of a head one after the other). Where the file
//! has it otherwise (GPT-2's `Conv1D` in safetensors; q and k of the Llama family in GGUF) the
//! tensor is rearranged when asked for; all others are borrowed from the mapped file.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::config::{Config, EncoderHead, RopeScaling};
use super::layout::{self, Kind, Slot};
use super::raw::RawTensor;
use super::rows::{FileRows, HeldRows, stored_row};
use super::{gguf, quant, safetensors, split};
use crate::error::{Error, Result};
use crate::mapped::one_line;
use crate::ops::RowSource;

pub use super::quant::DType;
pub use crate::mapped::Access;

/// A tensor, as a rule as it lies in the mapped file.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: DType,
    /// Outermost first, as Hugging Face and numpy write it.
    pub shape: Vec<usize>,
    /// Row-major; a row is a whole number of blocks.
    pub data: Cow<'a, [u8]>,
}

impl TensorView<'_> {
    /// Number of elements; `None` for a shape beyond the address space.
    pub fn elements(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
    }

    /// The elements without a copy, where they are F32 and lie aligned on a little-endian machine.
    pub fn as_f32(&self) -> Option<&[f32]> {
        if self.dtype != DType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(&self.data).ok()
    }

    /// Dequantises to f32, row-major, on all cores.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if shape and data disagree, which does not happen to a view from
    /// [`Weights::get`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        // Checked before anything of that size is allocated.
        let elements = self
            .elements()
            .filter(|&elements| self.dtype.bytes(elements) == Some(self.data.len()))
            .ok_or_else(|| Error::Shape {
                op: "TensorView::to_f32",
                want: format!("{:?} of {}", self.shape, self.dtype.name()),
                got: format!("{} bytes", self.data.len()),
            })?;
        let mut out = vec![0.0; elements];
        quant::dequantize(self.dtype, &self.data, &mut out)?;
        Ok(out)
    }
}

/// The weights of an open model. Cheap to open: the files are mapped and only their headers read.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    config: Config,
    tensors: BTreeMap<String, Entry>,
    gguf: Option<gguf::Metadata>,
    tokenizer: Option<PathBuf>,
}

#[derive(Debug)]
struct Entry {
    raw: RawTensor,
    dtype: DType,
    /// As handed out.
    shape: Vec<usize>,
    order: Order,
}

/// How the stored bytes become those that are handed out.
#[derive(Debug, Clone, Copy)]
enum Order {
    Stored,
    /// Stored as `[heads, head_dim / 2, 2]` rows, wanted as `[heads, 2, head_dim / 2]`.
    Interleaved {
        heads: usize,
    },
    Transposed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gguf,
    HuggingFace,
}

impl Weights {
    /// Opens a GGUF file, one part of a GGUF that was split, or a Hugging Face folder: `config.json`
    /// beside `model.safetensors` or beside shards with `model.safetensors.index.json`.
    ///
    /// The files stay mapped: see [`Access::Map`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where a file cannot be read; [`Error::Format`] where it is malformed, cut
    /// short, or lacks a tensor or has it in another shape than its configuration demands;
    /// [`Error::Unsupported`] for an architecture, element type or feature that is not built. All of
    /// them name the file.
    pub fn open(path: &Path) -> Result<Weights> {
        Self::open_with(path, Access::Map)
    }

    /// [`Weights::open`] with files that are mapped or read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where a file cannot be read; [`Error::Format`] where it is malformed or does not fit its
    /// configuration; [`Error::Unsupported`] for an architecture, element type or feature that is not built.
    pub fn open_with(path: &Path, access: Access) -> Result<Weights> {
        let is_folder = fs::metadata(path).map_err(Error::io(path))?.is_dir();
        split::check_model(path, is_folder)?;
        if is_folder {
            Self::open_folder(path, access)
        } else {
            Self::open_gguf(path, access)
        }
    }

    fn open_folder(path: &Path, access: Access) -> Result<Weights> {
        let mut config = Config::from_json(&path.join("config.json"))?;
        let mut raw = HashMap::new();
        let encodes = config.encoder.is_some();
        let prefix = layout::hf_prefix(config.family);
        for (name, tensor) in safetensors::read_folder(path, access)? {
            // The first checkpoints of BERT name them so.
            let name = name
                .replace(".LayerNorm.gamma", ".LayerNorm.weight")
                .replace(".LayerNorm.beta", ".LayerNorm.bias");
            // Some files leave the prefix out.
            let full = if name.starts_with(prefix) || layout::is_head(&name) {
                name
            } else {
                format!("{prefix}{name}")
            };
            let file = tensor.file.clone();
            if raw.contains_key(&full) {
                return Err(file.error(format!("tensor {} stands twice", one_line(&full))));
            }
            raw.insert(full, tensor);
        }
        if config.tied {
            raw.remove(layout::HF_HEAD);
        }
        config.tied = encodes || !raw.contains_key(layout::HF_HEAD);
        let tokenizer = path.join("tokenizer.json");
        Ok(Weights {
            path: path.to_owned(),
            tensors: bind(path, &config, raw, Format::HuggingFace)?,
            config,
            gguf: None,
            tokenizer: tokenizer.is_file().then_some(tokenizer),
        })
    }

    fn open_gguf(path: &Path, access: Access) -> Result<Weights> {
        let (metadata, raw) = split::read(path, access)?;
        if metadata.str("general.type")? == Some("adapter") || metadata.has("adapter.type") {
            return Err(Error::format(
                path,
                "is a LoRA adapter for llama.cpp, not a model; give the model it was trained on",
            ));
        }
        let vocab = match raw.get(layout::GGUF_EMBEDDING).map(|t| &t.shape[..]) {
            Some(&[rows, _]) => Some(rows),
            Some(shape) => {
                return Err(Error::format(
                    path,
                    format!(
                        "tensor {}: expected two dimensions, got {shape:?}",
                        layout::GGUF_EMBEDDING
                    ),
                ));
            }
            // Said later: what is wrong may be the architecture.
            None => None,
        };
        let factors = match raw.get(layout::GGUF_ROPE_FACTORS) {
            Some(RawTensor {
                dtype: Ok(dtype),
                shape,
                ..
            }) if *dtype != DType::F32 || shape.len() != 1 => {
                return Err(Error::format(
                    path,
                    format!(
                        "tensor {}: expected one dimension of F32, got {shape:?} of {}",
                        layout::GGUF_ROPE_FACTORS,
                        dtype.name()
                    ),
                ));
            }
            Some(tensor) => {
                let mut factors = vec![0.0; tensor.bytes().len() / size_of::<f32>()];
                quant::dequantize(DType::F32, tensor.bytes(), &mut factors)?;
                Some(factors)
            }
            None => None,
        };
        let tied = !raw.contains_key(layout::GGUF_HEAD);
        let head = match raw
            .get(layout::GGUF_CLASSES)
            .map(|tensor| &tensor.shape[..])
        {
            Some(&[labels, _]) => EncoderHead::Text(labels),
            _ => EncoderHead::None,
        };
        let config = Config::from_gguf(&metadata, vocab, factors, tied, head)?;
        Ok(Weights {
            path: path.to_owned(),
            tensors: bind(path, &config, raw, Format::Gguf)?,
            config,
            gguf: Some(metadata),
            tokenizer: None,
        })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shapes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether there is a tensor of that name. The head of a tied model is not there.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All names, sorted: exactly those that the configuration demands.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of weights; a tied head counts once.
    pub fn parameters(&self) -> usize {
        self.tensors
            .values()
            .map(|entry| entry.shape.iter().product::<usize>())
            .sum()
    }

    /// The tensor of a Hugging Face name, with the prefix `model.` (GPT-2: `transformer.`) even
    /// where the file leaves it out.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] if the model has no such tensor.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let entry = self.entry(name)?;
        let bytes = entry.raw.bytes();
        Ok(TensorView {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: match entry.order {
                Order::Stored => Cow::Borrowed(bytes),
                Order::Interleaved { heads } => {
                    Cow::Owned(deinterleave(bytes, &entry.shape, heads))
                }
                Order::Transposed => {
                    Cow::Owned(transpose(bytes, &entry.shape, entry.dtype.block_bytes()))
                }
            },
        })
    }

    /// A matrix by its rows, of which none is read yet.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] if the model has no such tensor, or it is not a matrix.
    pub(crate) fn rows(&self, name: &str) -> Result<Arc<dyn RowSource>> {
        let entry = self.entry(name)?;
        let &[height, width] = &entry.shape[..] else {
            return Err(Error::format(
                &self.path,
                format!(
                    "tensor {} is not a matrix: {:?}",
                    one_line(name),
                    entry.shape
                ),
            ));
        };
        let shape = [height, width];
        let interleaved = match entry.order {
            Order::Stored => None,
            Order::Interleaved { heads } => Some(heads),
            Order::Transposed => {
                let values = self.get(name)?.to_f32()?;
                return Ok(Arc::new(HeldRows { values, shape }));
            }
        };
        Ok(Arc::new(FileRows {
            tensor: entry.raw.clone(),
            dtype: entry.dtype,
            shape,
            interleaved,
        }))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::format(&self.path, format!("no tensor {} found", one_line(name))))
    }

    /// The metadata of a GGUF, from which a tokenizer can be rebuilt.
    pub fn gguf(&self) -> Option<&gguf::Metadata> {
        self.gguf.as_ref()
    }

    /// A folder's `tokenizer.json`, if it has one.
    pub fn tokenizer_path(&self) -> Option<PathBuf> {
        self.tokenizer.clone()
    }

    /// An id that tells whether two models are the same: a hash, as 32 hexadecimal digits, of the
    /// constants that shape K and V and of every tensor's name, type, shape and some of its bytes. It
    /// is the same wherever the files lie, and another for another quantisation.
    pub fn fingerprint(&self) -> String {
        let c = &self.config;
        let mut hash = Fnv128::new();
        let sizes = [
            c.heads,
            c.kv_heads,
            c.head_dim,
            c.sliding_window.unwrap_or(0),
        ];
        hash.text(c.family.name());
        for size in sizes {
            hash.number(size as u64);
        }
        hash.number(c.norm_eps.to_bits().into());
        hash.number(c.rope_theta.to_bits().into());
        match &c.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => hash.floats(&[*factor]),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                hash.floats(&[*factor, *low_freq_factor, *high_freq_factor]);
                hash.number(*original_max_positions as u64);
            }
            RopeScaling::Factors(factors) => hash.floats(factors),
        }
        for (name, entry) in &self.tensors {
            hash.text(name);
            hash.text(entry.dtype.name());
            for &dim in &entry.shape {
                hash.number(dim as u64);
            }
            hash.samples(entry.raw.bytes());
        }
        format!("{:032x}", hash.0)
    }
}

/// Finds every tensor that the configuration demands and checks its type and shape.
fn bind(
    path: &Path,
    config: &Config,
    mut raw: HashMap<String, RawTensor>,
    format: Format,
) -> Result<BTreeMap<String, Entry>> {
    let hf_layers = layout::hf_layers(config.family);
    let mut tensors = BTreeMap::new();
    let mut take = |hf: String, stored: String, slot: &Slot| -> Result<()> {
        let tensor = raw
            .remove(&stored)
            .ok_or_else(|| Error::format(path, format!("tensor {stored} is missing")))?;
        tensors.insert(hf, entry(&stored, tensor, slot, config, format)?);
        Ok(())
    };
    for slot in &layout::outer_slots(config) {
        let stored = match format {
            Format::Gguf => slot.gguf,
            Format::HuggingFace => slot.hf,
        };
        take(slot.hf.to_owned(), stored.to_owned(), slot)?;
    }
    // A number of layers beyond what the file holds ends at the first that is missing.
    for layer in 0..config.layers {
        for slot in &layout::layer_slots(config, layer) {
            let hf = format!("{hf_layers}{layer}.{}", slot.hf);
            let stored = match format {
                Format::Gguf => format!("{}{layer}.{}", layout::GGUF_LAYERS, slot.gguf),
                Format::HuggingFace => hf.clone(),
            };
            take(hf, stored, slot)?;
        }
    }
    let layers = match format {
        Format::Gguf => layout::GGUF_LAYERS,
        Format::HuggingFace => hf_layers,
    };
    let left = raw
        .keys()
        .filter(|name| name.starts_with(layers) && !layout::ignorable(name))
        .min();
    match left {
        Some(name) => Err(Error::Unsupported {
            what: format!("{}: tensor {}", path.display(), one_line(name)),
            have: format!(
                "{} layers of {} without it",
                config.layers,
                config.family.name()
            ),
        }),
        None => Ok(tensors),
    }
}

fn entry(
    stored: &str,
    raw: RawTensor,
    slot: &Slot,
    config: &Config,
    format: Format,
) -> Result<Entry> {
    let order = match (slot.kind, format) {
        (Kind::Rotary { heads }, Format::Gguf) if config.family == super::config::Family::Llama => {
            Order::Interleaved { heads }
        }
        (Kind::Conv1d, Format::HuggingFace) => Order::Transposed,
        _ => Order::Stored,
    };
    let mut expected = slot.shape.clone();
    if matches!(order, Order::Transposed) {
        expected.reverse();
    }
    if raw.shape != expected {
        return Err(raw.file.error(format!(
            "tensor {stored}: expected {expected:?}, got {:?}",
            raw.shape
        )));
    }
    let dtype = raw.dtype.clone().map_err(|name| Error::Unsupported {
        what: format!("{}: tensor {stored} of {name}", raw.file.path().display()),
        have: "F32, F16, BF16".into(),
    })?;
    Ok(Entry {
        dtype,
        shape: slot.shape.clone(),
        order,
        raw,
    })
}

/// Puts rows stored as `[heads, half, 2]` into the order `[heads, 2, half]`.
///
/// The shape is one that [`bind`] checked: no size is zero, and the rows are `heads` times an even
/// number.
fn deinterleave(bytes: &[u8], shape: &[usize], heads: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    let rows = shape[0];
    let row_bytes = bytes.len() / rows;
    let head_dim = rows / heads;
    out.par_chunks_exact_mut(row_bytes)
        .enumerate()
        .for_each(|(row, out)| {
            let source = stored_row(row, head_dim);
            out.copy_from_slice(&bytes[source * row_bytes..][..row_bytes]);
        });
    out
}

/// Transposes elements of `size` bytes, stored `[shape[1], shape[0]]`, into `shape`, checked as
/// above.
fn transpose(bytes: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    // Rows written together, so that whole cache lines are read.
    const TILE: usize = 16;
    let mut out = vec![0; bytes.len()];
    let (rows, row_bytes) = (shape[0], shape[1] * size);
    out.par_chunks_mut(TILE * row_bytes)
        .enumerate()
        .for_each(|(tile, out)| {
            for (column, stored) in bytes.chunks_exact(rows * size).enumerate() {
                let elements = stored[tile * TILE * size..].chunks_exact(size);
                for (out, element) in out.chunks_exact_mut(row_bytes).zip(elements) {
                    out[column * size..][..size].copy_from_slice(element);
                }
            }
        });
    out
}

/// The hash FNV-1a of 128 bits: small, and its values are the same for ever.
struct Fnv128(u128);

impl Fnv128 {
    fn new() -> Self {
        Fnv128(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }

    fn floats(&mut self, floats: &[f32]) {
        self.number(floats.len() as u64);
        for float in floats {
            self.bytes(&float.to_le_bytes());
        }
    }

    /// All of a short run of bytes, or the first bytes of each of 32 equal parts of a long one.
    fn samples(&mut self, bytes: &[u8]) {
        const PARTS: usize = 32;
        const SAMPLE: usize = 16;
        if bytes.len() <= PARTS * SAMPLE {
            self.bytes(bytes);
        } else {
            for part in bytes.chunks(bytes.len().div_ceil(PARTS)) {
                self.bytes(&part[..part.len().min(SAMPLE)]);
            }
        }
    }
}
