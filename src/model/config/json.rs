//! A configuration out of a Hugging Face folder's `config.json`.

use std::path::Path;

use serde_json::Value;

use super::{
    Config, DEFAULT_THETA, EncoderConfig, EncoderHead, Family, LocalAttention, Mlp, Positions,
    family, unsupported, unsupported_rope,
};
use crate::error::{Error, Result};
use crate::mapped::{one_line, read_json};
use crate::ops::NormKind;
use crate::rope::RopeScaling;

/// A `config.json` has a few kilobytes.
const LONGEST_CONFIG: u64 = 1 << 20;

impl Config {
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
            Error::format(path, "no \"model_type\" found: not a model's config.json")
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
        value?.ok_or_else(|| Error::format(self.file, format!("no {}{key} found", self.place())))
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
