//! An adapter merged into its model: `W + s·B·A`, as a Hugging Face folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::View;
use serde_json::{Value, json};

use super::folder::{check_new, new_folder, read_config};
use super::parameters::Parameters;
use crate::error::{Error, Result};
use crate::kv_prefix::Dtype;
use crate::model::config::{Config, Family, RopeScaling};
use crate::model::lora::refuse_memory;
use crate::model::weights::Weights;
use crate::text::tokenizer_json;

/// PyTorch's name of an element type.
const fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

/// What a merged folder has for a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokens {
    /// The source's `tokenizer.json`.
    Copied,
    /// One made of a GGUF's metadata.
    Made,
    /// None, and why: it serves ids.
    None(String),
}

/// Writes the model of `weights` with the adapter in `adapter` merged to a new folder: `config.json`,
/// `model.safetensors`, and a tokenizer where there is one. The folder is whole or absent.
///
/// # Errors
/// [`Error::Input`] for a folder that is there already; [`Error::Format`] for an adapter that does not fit
/// the model; [`Error::Unsupported`] for a kind of adapter that is not built, or a configuration that Hugging
/// Face cannot express; [`Error::Io`].
pub fn merge(weights: &Weights, adapter: &Path, out: &Path, dtype: Dtype) -> Result<Tokens> {
    check_new(out)?;
    refuse_memory(adapter)?;
    let parameters = Parameters::open(adapter, weights.config(), false)?;
    let mut deltas: HashMap<String, Delta<'_>> = HashMap::new();
    for pair in parameters.tensors.chunks_exact(2) {
        let [a, b] = pair else { continue };
        let module = a.name.trim_start_matches("base_model.model.");
        let module = module.trim_end_matches(".lora_A.weight");
        let delta = Delta {
            rank: a.shape[0],
            scale: parameters.scale(),
            a: &a.values,
            b: &b.values,
        };
        deltas.insert(format!("{module}.weight"), delta);
    }
    let source = weights.path();
    let config = match weights.gguf() {
        Some(_) => config_json(source, weights.config(), dtype)?,
        None => {
            let mut config = read_config(source)?;
            let old = ["torch_dtype", "dtype"]
                .into_iter()
                .find(|key| config.get(key).is_some());
            config[old.unwrap_or("torch_dtype")] = torch_name(dtype).into();
            config["tie_word_embeddings"] = weights.config().tied.into();
            config
        }
    };

    let tensors: BTreeMap<&str, Merged<'_>> = weights
        .names()
        .map(|name| {
            let merged = Merged {
                weights,
                name,
                shape: weights.get(name)?.shape,
                delta: deltas.get(name),
                dtype,
            };
            Ok((name, merged))
        })
        .collect::<Result<_>>()?;
    new_folder(out, |folder| {
        folder.write("config.json", format!("{config:#}\n").as_bytes())?;
        folder.tensors(tensors)?;
        match weights.gguf() {
            Some(metadata) => match tokenizer_json(&metadata.vocab()?) {
                Ok(json) => {
                    folder.write("tokenizer.json", json.to_string().as_bytes())?;
                    Ok(Tokens::Made)
                }
                Err(why) => Ok(Tokens::None(why)),
            },
            None => {
                folder.companions(source)?;
                match weights.tokenizer_path() {
                    Some(_) => Ok(Tokens::Copied),
                    None => Ok(Tokens::None("the model has no tokenizer.json".into())),
                }
            }
        }
    })
}

/// What an adapter adds to one matrix.
struct Delta<'a> {
    rank: usize,
    scale: f32,
    /// `[rank, inputs]`.
    a: &'a [f32],
    /// `[outputs, rank]`.
    b: &'a [f32],
}

/// A tensor of the merged model, made when it is written: only one at a time is in memory.
struct Merged<'a> {
    weights: &'a Weights,
    name: &'a str,
    shape: Vec<usize>,
    delta: Option<&'a Delta<'a>>,
    dtype: Dtype,
}

impl View for Merged<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // `get` found it before, and its data is as long as its shape says.
        let values = self.weights.get(self.name).and_then(|view| view.to_f32());
        let mut values = values.unwrap_or_default();
        if let (Some(delta), &[_, inputs]) = (self.delta, &self.shape[..]) {
            let rows = values.par_chunks_exact_mut(inputs);
            let rows = rows.zip(delta.b.par_chunks_exact(delta.rank));
            rows.for_each(|(row, b)| {
                let mut more = vec![0.0f64; inputs];
                for (&b, a) in b.iter().zip(delta.a.chunks_exact(inputs)) {
                    let terms = more.iter_mut().zip(a);
                    terms.for_each(|(sum, &a)| *sum += f64::from(b) * f64::from(a));
                }
                let scale = f64::from(delta.scale);
                let sums = row.iter_mut().zip(&more);
                sums.for_each(|(w, &d)| *w = (f64::from(*w) + scale * d) as f32);
            });
        }
        Cow::Owned(self.dtype.le_bytes(&values))
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// A GGUF's configuration in Hugging Face's words.
fn config_json(file: &Path, c: &Config, dtype: Dtype) -> Result<Value> {
    let (kind, class) = match (c.family, c.sliding_window) {
        (Family::Llama, None) => ("llama", "LlamaForCausalLM"),
        // Llama's own configuration has no window.
        (Family::Llama, Some(_)) => ("mistral", "MistralForCausalLM"),
        (Family::Qwen2, _) => ("qwen2", "Qwen2ForCausalLM"),
        (Family::Qwen3, _) => ("qwen3", "Qwen3ForCausalLM"),
        (Family::Gpt2 | Family::Bert | Family::XlmRoberta | Family::ModernBert, _) => {
            let name = match c.family {
                Family::Gpt2 => "GPT-2",
                family => family.name(),
            };
            return Err(Error::Unsupported {
                what: format!("{}: merging into {name}", file.display()),
                have: "Llama, Mistral, Qwen2, Qwen3".into(),
            });
        }
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": kind,
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_positions,
        "rms_norm_eps": shortest(c.norm_eps),
        "rope_theta": shortest(c.rope_theta),
        "tie_word_embeddings": c.tied,
        "attention_bias": false,
        "torch_dtype": torch_name(dtype),
    });
    if c.family == Family::Llama {
        config["mlp_bias"] = false.into();
    }
    for (key, id) in [("bos_token_id", c.bos), ("eos_token_id", c.eos)] {
        if let Some(id) = id {
            config[key] = id.into();
        }
    }
    if let Some(window) = c.sliding_window {
        config["sliding_window"] = window.into();
        if c.family != Family::Llama {
            config["use_sliding_window"] = true.into();
            config["max_window_layers"] = 0.into();
        }
    }
    let llama3 = |factor: f32, low: f32, high: f32, original: usize| {
        json!({
            "rope_type": "llama3",
            "factor": shortest(factor),
            "low_freq_factor": shortest(low),
            "high_freq_factor": shortest(high),
            "original_max_position_embeddings": original,
        })
    };
    let scaling = match &c.rope_scaling {
        RopeScaling::None => return Ok(config),
        RopeScaling::Linear { factor } => {
            json!({"rope_type": "linear", "factor": shortest(*factor)})
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => llama3(
            *factor,
            *low_freq_factor,
            *high_freq_factor,
            *original_max_positions,
        ),
        RopeScaling::Factors(_) => {
            return Err(Error::Unsupported {
                what: format!(
                    "{}: a config.json for rotary factors of a GGUF",
                    file.display()
                ),
                have: "merging into the same model's Hugging Face folder".into(),
            });
        }
    };
    config["rope_scaling"] = scaling;
    Ok(config)
}

/// The shortest decimal that is this f32: `1e-5` and not `9.999999747378752e-6`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
