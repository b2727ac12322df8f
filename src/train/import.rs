//! ICAE's published weights as an adapter's folder.
//!
//! Their code (version 2, for Mistral) saves one safetensors file of a module that has the encoder with
//! LoRA as `icae.base_model.model.…` and one table of embeddings, `memory_token_embed.weight`: a row for
//! each memory token, and then \[AE\], \[LM\] and \[FT\]. Whatever else such a file holds, as the frozen
//! weights or the decoder's copy of them, is passed over.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::json;

use super::folder::{check_new, new_folder};
use super::parameters::short;
use super::start::MEMORY;
use crate::error::{Error, Result};
use crate::kv_prefix::Method;
use crate::mapped::{Access, one_line};
use crate::model::lora::{Target, parse};
use crate::model::quant::DType;
use crate::model::raw::RawTensor;
use crate::model::safetensors as files;
use crate::soft::{Cut, SETTINGS, Settings};

/// What the decoder is to do after the memory tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Purpose {
    /// Give the text back: `[AE]` asks for it, for weights that were pretrained.
    Regen,
    /// Follow an instruction: `[FT]` stands before it, for weights that were fine-tuned.
    Qa,
    /// Continue the text: `[LM]` stands before what follows, for weights that were pretrained with it.
    Continue,
}

/// What the file itself does not say.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Which of the last three rows is used, and how.
    pub purpose: Purpose,
    /// LoRA's alpha: finite, above 0.
    pub alpha: f32,
    /// Tokens of text for one memory token, 1 to 1024: pieces are as long as that times the number of
    /// memory tokens.
    pub compression: usize,
    /// Id that the encoder reads before a text.
    pub bos: Option<u32>,
    /// Ids that the decoder reads before the memory tokens.
    pub decoder_begin: Vec<u32>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Rank of LoRA's matrices.
    pub rank: usize,
    /// Memory tokens of a piece.
    pub memory_tokens: usize,
    /// Layers that have LoRA.
    pub layers: usize,
    /// Longest piece, in tokens.
    pub piece_tokens: usize,
}

/// The table of memory tokens, \[AE\], \[LM\] and \[FT\].
const TABLE: &str = "memory_token_embed.weight";
/// What the encoder is called in the module.
const ENCODER: &str = "icae.";
/// More tokens of text for one memory token are a slip of the pen: published are 4.
const MAX_COMPRESSION: usize = 1024;
/// No model has more layers: a number above it is not one of a layer.
const MAX_LAYERS: usize = 4096;

/// Writes the weights in the file `checkpoint` as the new adapter's folder `out`, which is whole or absent.
///
/// # Errors
/// [`Error::Input`] for options outside their ranges or a folder that is there already;
/// [`Error::Format`] for a file of another layout; [`Error::Unsupported`] for LoRA on anything but q, k,
/// v, o, gate, up and down, or element types other than F32, F16 and BF16; [`Error::Io`].
pub fn import(checkpoint: &Path, out: &Path, options: &Options) -> Result<Imported> {
    check_new(out)?;
    if !(options.alpha.is_finite() && options.alpha > 0.0) {
        let what = format!("alpha {}", options.alpha);
        return Err(Error::input(what, "expected a positive number"));
    }
    if !(1..=MAX_COMPRESSION).contains(&options.compression) {
        let what = format!("compression {}", options.compression);
        let reason = format!("expected 1 to {MAX_COMPRESSION} tokens of text for one memory token");
        return Err(Error::input(what, reason));
    }
    let bad = |reason: String| Error::format(checkpoint, reason);
    let mut tensors = files::read(checkpoint, Access::Map)?;
    let table = tensors.remove(TABLE).ok_or_else(|| {
        bad(format!(
            "no tensor {TABLE} found: not of ICAE's published layout"
        ))
    })?;
    let (memory_tokens, width) = match table.shape[..] {
        [rows, width] if rows > 3 && width > 0 => (rows - 3, width),
        _ => {
            let got = one_line(&format!("{:?}", table.shape));
            let want = "a row for each memory token and three more";
            return Err(bad(format!("{TABLE} is {got}, expected {want}")));
        }
    };
    let piece_tokens = memory_tokens.saturating_mul(options.compression);
    let lora = lora(checkpoint, tensors)?;
    let mut targets = BTreeSet::new();
    let (mut layers, mut rank) = (BTreeSet::new(), None);
    for ((layer, target, side), tensor) in &lora {
        let own = tensor.shape.get(*side).copied().unwrap_or(0);
        if *rank.get_or_insert(own) != own || own == 0 {
            let name = target.tensor(*layer, *side);
            let got = one_line(&format!("{:?}", tensor.shape));
            return Err(bad(format!("{name} is {got}, which is another rank")));
        }
        if *layer >= MAX_LAYERS {
            let reason = format!("LoRA of layer {layer}, expected fewer than {MAX_LAYERS} layers");
            return Err(bad(reason));
        }
        if !lora.contains_key(&(*layer, *target, 1 - side)) {
            let (has, lacks) = (
                target.tensor(*layer, *side),
                target.tensor(*layer, 1 - side),
            );
            return Err(bad(format!("there is {has} without {lacks}")));
        }
        // What goes into the other two is as wide as the heads or the feed-forward layer.
        let reads_states = !matches!(target, Target::O | Target::Down);
        if *side == 0 && reads_states && tensor.shape.get(1) != Some(&width) {
            let name = target.tensor(*layer, *side);
            let got = one_line(&format!("{:?}", tensor.shape));
            let reason = format!("{name} is {got}, but the rows of {TABLE} have {width} values");
            return Err(bad(reason));
        }
        layers.insert(*layer);
        let named = Target::ALL.iter().filter(|(other, _)| other == target);
        targets.extend(named.map(|(_, module)| short(module)));
    }
    let Some(rank) = rank else {
        return Err(bad(format!("no LoRA of {ENCODER}base_model found in it")));
    };

    let row = |from: usize, count: usize, shape: Vec<usize>| Stored {
        tensor: &table,
        from: from * width,
        count: count * width,
        shape,
    };
    let special = |number: usize| row(memory_tokens + number, 1, vec![width]);
    let (begin, after) = match options.purpose {
        Purpose::Regen => (Some(special(0)), None),
        Purpose::Continue => (None, Some(special(1))),
        Purpose::Qa => (None, Some(special(2))),
    };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": options.alpha,
        "target_modules": targets,
        "bias": "none",
    });
    let settings = json!(Settings {
        method: Method::Icae,
        max_text_tokens: Some(piece_tokens),
        cut: Cut::RoundedUp,
        text_bos: options.bos,
        decoder_begin: options.decoder_begin.clone(),
        ..Settings::default()
    });
    let factors: Vec<(String, Stored<'_>)> = lora
        .iter()
        .map(|(&(layer, target, side), tensor)| {
            let stored = Stored {
                tensor,
                from: 0,
                count: tensor.shape.iter().product(),
                shape: tensor.shape.clone(),
            };
            stored.dtype_of(checkpoint)?;
            Ok((target.tensor(layer, side), stored))
        })
        .collect::<Result<_>>()?;
    let memory = row(0, memory_tokens, vec![memory_tokens, width]);
    memory.dtype_of(checkpoint)?;
    new_folder(out, |folder| {
        folder.write("adapter_config.json", format!("{config:#}\n").as_bytes())?;
        folder.write(SETTINGS, format!("{settings:#}\n").as_bytes())?;
        folder.tensors_to("adapter_model.safetensors", factors)?;
        folder.tensors_to(&format!("{MEMORY}.safetensors"), [(MEMORY, memory)])?;
        for (name, stored) in [("ae_embedding", begin), ("after_memory", after)] {
            if let Some(stored) = stored {
                folder.tensors_to(&format!("{name}.safetensors"), [(name, stored)])?;
            }
        }
        Ok(())
    })?;
    Ok(Imported {
        rank,
        memory_tokens,
        layers: layers.len(),
        piece_tokens,
    })
}

/// Layer, projection and side (0: A, 1: B) of a factor.
type Place = (usize, Target, usize);

/// The encoder's LoRA among the tensors.
fn lora(
    checkpoint: &Path,
    tensors: impl IntoIterator<Item = (String, RawTensor)>,
) -> Result<BTreeMap<Place, RawTensor>> {
    let mut found = BTreeMap::new();
    for (name, tensor) in tensors {
        let Some(own) = name.strip_prefix(ENCODER) else {
            continue;
        };
        if !own.contains(".lora_") {
            continue;
        }
        let place = parse(own).ok_or_else(|| Error::Unsupported {
            what: format!("{}: tensor {}", checkpoint.display(), one_line(&name)),
            have: "lora_A and lora_B of q, k, v, o, gate, up and down".into(),
        })?;
        if tensor.shape.len() != 2 || found.insert(place, tensor).is_some() {
            let reason = format!("tensor {} is not a matrix or occurs twice", one_line(&name));
            return Err(Error::format(checkpoint, reason));
        }
    }
    Ok(found)
}

/// Some rows of a tensor as they lie in its file, on their way to another one.
struct Stored<'a> {
    tensor: &'a RawTensor,
    /// Elements that come before, and how many are taken.
    from: usize,
    count: usize,
    shape: Vec<usize>,
}

impl Stored<'_> {
    fn dtype_of(&self, checkpoint: &Path) -> Result<Dtype> {
        let name = match &self.tensor.dtype {
            Ok(DType::F32) => return Ok(Dtype::F32),
            Ok(DType::F16) => return Ok(Dtype::F16),
            Ok(DType::BF16) => return Ok(Dtype::BF16),
            Ok(other) => other.name(),
            Err(name) => name,
        };
        Err(Error::Unsupported {
            what: format!("{}: a tensor of {name}", checkpoint.display()),
            have: "F32, F16, BF16".into(),
        })
    }

    fn width(&self) -> usize {
        match self.tensor.dtype {
            Ok(DType::F32) => 4,
            _ => 2,
        }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.dtype {
            Ok(DType::F32) => Dtype::F32,
            Ok(DType::BF16) => Dtype::BF16,
            _ => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let (start, len) = (self.from * self.width(), self.data_len());
        let bytes = self.tensor.bytes().get(start..start + len);
        Cow::Borrowed(bytes.unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.count * self.width()
    }
}
