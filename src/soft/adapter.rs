//! An encoder's adapter: LoRA, memory embeddings, and how it was trained.

use std::path::{Path, PathBuf};

use hmac_sha256::Hash as Sha256;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kv_prefix::{KvPrefix, Method, hex};
use crate::mapped::{self, Access, Mapped};
use crate::model::config::Config;
use crate::model::decoder::Input;
use crate::model::lora::{LoraWeights, floats};
use crate::model::safetensors;

/// Where the decoder continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextPosition {
    /// At the number of memory tokens, as the paper's code trains it: what Hugging Face's cache does
    /// when it is told no positions. The memory tokens' own angles are those after the text.
    #[default]
    Memory,
    /// After the last memory token's own position.
    Text,
}

/// How a text that is longer than a piece may be is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Into as few pieces as can be, their lengths equal but for one token, the longer ones first.
    #[default]
    Even,
    /// Into as many, each as long as the text through their number, rounded up, and the last one what is
    /// left: as ICAE's published code cuts.
    RoundedUp,
}

impl Cut {
    fn is_default(&self) -> bool {
        *self == Cut::default()
    }
}

/// How an adapter was trained, from `prefold.json` beside it; the defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// 500xCompressor, ICAE, or pooled states.
    pub method: Method,
    /// Longest text, in tokens; `None`: as many as the model has positions for.
    pub max_text_tokens: Option<usize>,
    /// Shorter texts are filled up to so many tokens.
    pub pad_to: Option<usize>,
    /// With this id; the model's end-of-text id unless it is given.
    pub pad_id: Option<u32>,
    /// Where the decoder continues.
    pub next_position: NextPosition,
    /// [`crate::ModelInfo::fingerprint`] of the model that it was trained with. Another quantisation
    /// of that model serves as well, hence it is not demanded; a default adapter is chosen by it.
    pub model: Option<String>,
    /// How a text longer than `max_text_tokens` is cut.
    #[serde(skip_serializing_if = "Cut::is_default")]
    pub cut: Cut,
    /// Id that the encoder reads before a text, unless the text begins with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_bos: Option<u32>,
    /// Ids that the decoder reads before the memory tokens' states: those of a chat template, for an
    /// adapter that was trained in one (ICAE only).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decoder_begin: Vec<u32>,
    /// The first memory tokens were trained to stand alone, whatever their number: see
    /// [`Adapter::first`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
    /// How many memory tokens are read, the first ones; `None`: all. Of an adapter that pools, which has
    /// none, the vectors that a piece becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_tokens: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            method: Method::FiveHundredX,
            max_text_tokens: None,
            pad_to: None,
            pad_id: None,
            next_position: NextPosition::Memory,
            model: None,
            cut: Cut::default(),
            text_bos: None,
            decoder_begin: Vec::new(),
            nested: false,
            memory_tokens: None,
        }
    }
}

impl Settings {
    /// Reads those beside an adapter, if there are any.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what is not such a file.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(SETTINGS);
        if !path.exists() {
            return Ok(None);
        }
        let settings: Settings = mapped::read_json(&path, LONGEST_SETTINGS)?;
        if !settings.method.is_adapters() {
            let reason = "method is not one of 500xcompressor, icae and pooled";
            return Err(Error::format(&path, reason));
        }
        Ok(Some(settings))
    }
}

/// An encoder's adapter in memory, checked against the model that it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub(crate) lora: LoraWeights,
    /// `[num_mem, hidden]`; empty for one that pools.
    pub(crate) memory: Vec<f32>,
    count: usize,
    /// Memory tokens that it was trained with.
    trained: usize,
    hidden: usize,
    begin: Option<Vec<f32>>,
    after: Option<Vec<f32>>,
    settings: Settings,
    id: String,
}

/// The file of memory embeddings, and the tensor in it.
const MEMORY: &str = "memory_embeddings";
/// The file of what a text that is regenerated begins with, and the tensor in it.
const BEGIN: &str = "ae_embedding";
/// The file of what the decoder reads after memory tokens, and the tensor in it.
const AFTER: &str = "after_memory";
/// The file of settings.
pub(crate) const SETTINGS: &str = "prefold.json";
/// A handful of settings.
const LONGEST_SETTINGS: u64 = 1 << 16;

impl Adapter {
    /// Reads a folder: PEFT's `adapter_config.json` and `adapter_model.safetensors`,
    /// `memory_embeddings.safetensors` (`[num_mem, hidden]`), and perhaps `ae_embedding.safetensors`
    /// (`[hidden]`), `after_memory.safetensors` (`[hidden]`) and `prefold.json`.
    ///
    /// # Errors
    /// [`Error::Io`] for files that cannot be read; [`Error::Format`] for weights, memory embeddings or settings
    /// that do not fit; [`Error::Unsupported`] for a kind of adapter, a module or a model family that is not
    /// built.
    pub fn open(folder: &Path, config: &Config) -> Result<Self> {
        let lora = LoraWeights::open(folder, config)?;
        let settings_path = folder.join(SETTINGS);
        let settings = Settings::open(folder)?.unwrap_or_default();
        let bad = |reason: &str| Err(Error::format(&settings_path, reason));
        let pools = settings.method == Method::Pooled;
        let memory = match pools {
            true => Vec::new(),
            false => read_memory(folder, config)?,
        };
        let begin = read_row(folder, BEGIN, config)?;
        let after = read_row(folder, AFTER, config)?;
        let num_mem = match (pools, settings.memory_tokens) {
            (true, Some(count)) if count > 0 => count,
            (true, _) => return bad("an adapter that pools says how many vectors: memory_tokens"),
            (false, _) => memory.len() / config.hidden,
        };
        if settings.max_text_tokens == Some(0) {
            return bad("max_text_tokens is 0");
        }
        if settings.pad_to > settings.max_text_tokens && settings.max_text_tokens.is_some() {
            return bad("pad_to is more than max_text_tokens");
        }
        let outside = |id: u32| id as usize >= config.vocab;
        if settings.pad_id.is_some_and(outside) {
            return bad("pad_id is outside the vocabulary");
        }
        if settings.text_bos.is_some_and(outside) {
            return bad("text_bos is outside the vocabulary");
        }
        if settings.decoder_begin.iter().copied().any(outside) {
            return bad("decoder_begin holds an id outside the vocabulary");
        }
        let around = after.is_some() || !settings.decoder_begin.is_empty();
        if around && settings.method != Method::Icae {
            return bad("decoder_begin and after_memory are for the method icae");
        }
        if num_mem >= config.max_positions {
            let path = match pools {
                true => settings_path,
                false => folder.join(format!("{MEMORY}.safetensors")),
            };
            return Err(Error::format(
                path,
                "more memory tokens than the model has positions",
            ));
        }
        let mut hash = Sha256::new();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let path = folder.join(name);
            hash.update(Mapped::open(&path, Access::Map)?.bytes());
        }
        if pools {
            hash.update(format!("pooled {num_mem}"));
        }
        for value in memory.iter().chain(begin.iter().flatten()) {
            hash.update(value.to_le_bytes());
        }
        // Only of those that have some of it, so that the ids of all others stay what they were.
        if around || settings.text_bos.is_some() || settings.cut != Cut::default() {
            for value in after.iter().flatten() {
                hash.update(value.to_le_bytes());
            }
            let Settings {
                cut,
                text_bos,
                decoder_begin,
                ..
            } = &settings;
            hash.update(format!("{cut:?} {text_bos:?} {decoder_begin:?}"));
        }
        let first = settings.memory_tokens;
        let adapter = Adapter {
            lora,
            memory,
            count: num_mem,
            trained: num_mem,
            hidden: config.hidden,
            begin,
            after,
            settings,
            id: hex(&hash.finalize()),
        };
        match first {
            Some(count) => adapter.first(count).map_err(|error| match error {
                Error::Input { what, reason } => {
                    Error::format(&settings_path, format!("{what}: {reason}"))
                }
                other => other,
            }),
            None => Ok(adapter),
        }
    }

    /// The same adapter with its first `count` memory tokens, from 1 to as many as it has: what
    /// `train --nested` trains, in the manner of Matryoshka representations (arXiv 2205.13147).
    ///
    /// # Errors
    /// [`Error::Input`] for another number, or for fewer than all of an adapter that was trained with all
    /// of them only.
    pub fn first(mut self, count: usize) -> Result<Self> {
        let (what, have) = (format!("memory_tokens {count}"), self.num_mem());
        if !(1..=have).contains(&count) {
            return Err(Error::input(what, format!("the adapter has 1 to {have}")));
        }
        if count < have && !self.settings.nested {
            let reason = format!(
                "the adapter was trained with all of its {have} memory tokens; one that takes fewer is \
                 trained by --nested"
            );
            return Err(Error::input(what, reason));
        }
        self.memory.truncate(count * self.hidden);
        self.count = count;
        self.settings.memory_tokens = Some(count);
        Ok(self)
    }

    /// Memory tokens that it was trained with, those included that [`Adapter::first`] left out.
    pub fn trained_memory_tokens(&self) -> usize {
        self.trained
    }

    /// Number of memory tokens that are read, or of vectors that a piece of text becomes at most.
    pub fn num_mem(&self) -> usize {
        self.count
    }

    /// The embedding, `[hidden]`, that it was trained to begin a text that is regenerated with: ICAE's
    /// \[AE\] (arXiv 2307.06945, section 2.2). Without one, that is BOS.
    pub fn begin(&self) -> Option<&[f32]> {
        self.begin.as_deref()
    }

    /// The embedding, `[hidden]`, that the decoder reads after the memory tokens' states and before
    /// anything else: \[FT\] or \[LM\] of ICAE's published weights. It is a row of the prefix.
    pub fn after(&self) -> Option<&[f32]> {
        self.after.as_deref()
    }

    /// An error unless it made the prefix.
    ///
    /// # Errors
    /// [`Error::Input`] for a prefix that another adapter made.
    pub fn check_prefix(&self, prefix: &KvPrefix) -> Result<()> {
        if prefix.origin().adapter.as_deref() == Some(self.id()) {
            return Ok(());
        }
        Err(Error::input("adapter", "the prefix was not made by it"))
    }

    /// What asks a decoder for the text of a prefix: [`Adapter::begin`], or else `bos`.
    pub fn opening<'a>(&'a self, bos: &'a [u32]) -> Input<'a> {
        self.begin().map_or(Input::Ids(bos), Input::Embeddings)
    }

    /// How it was trained.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// SHA-256 of its configuration and values, hexadecimal.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The memory embeddings of an adapter's folder, `[num_mem, hidden]`, at least one.
pub(crate) fn read_memory(folder: &Path, config: &Config) -> Result<Vec<f32>> {
    let path = folder.join(format!("{MEMORY}.safetensors"));
    let tensors = safetensors::read(&path, mapped::Access::Map)?;
    let tensor = tensors
        .get(MEMORY)
        .ok_or_else(|| Error::format(&path, format!("no tensor {MEMORY} found")))?;
    match tensor.shape[..] {
        [n, width] | [1, n, width] if width == config.hidden && n > 0 => floats(tensor),
        _ => {
            let (got, hidden) = (&tensor.shape, config.hidden);
            let reason = format!("{MEMORY} is {got:?}, expected [num_mem, {hidden}]");
            Err(Error::format(&path, reason))
        }
    }
}

/// The files of an adapter's folder that training would have to continue with, and cannot.
pub(crate) fn untrained_rows(folder: &Path) -> Option<&'static str> {
    let mut names = [BEGIN, AFTER].into_iter();
    names.find(|name| row_path(folder, name).exists())
}

fn row_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.safetensors"))
}

/// An embedding, `[hidden]`, in the file of its name, if there is one.
fn read_row(folder: &Path, name: &str, config: &Config) -> Result<Option<Vec<f32>>> {
    let path = row_path(folder, name);
    if !path.exists() {
        return Ok(None);
    }
    let tensors = safetensors::read(&path, mapped::Access::Map)?;
    let tensor = tensors
        .get(name)
        .ok_or_else(|| Error::format(&path, format!("no tensor {name} found")))?;
    match tensor.shape[..] {
        [width] | [1, width] | [1, 1, width] if width == config.hidden => Ok(Some(floats(tensor)?)),
        _ => {
            let (got, hidden) = (&tensor.shape, config.hidden);
            let reason = format!("{name} is {got:?}, expected [{hidden}]");
            Err(Error::format(&path, reason))
        }
    }
}
