//! A configuration out of GGUF metadata.

use super::{
    Config, DEFAULT_THETA, EncoderConfig, EncoderHead, Family, Mlp, Positions, family, unsupported,
    unsupported_rope,
};
use crate::error::{Error, Result};
use crate::model::gguf::Metadata;
use crate::ops::NormKind;
use crate::rope::RopeScaling;

impl Config {
    /// Reads GGUF metadata. `rows` is the number of the embedding's rows (`None`: it is missing, as the
    /// caller will find), `factors` the content of `rope_freqs.weight`, `tied` whether it has no
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
            .ok_or_else(|| Error::format(path, "no general.architecture found"))?;
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
            size(name)?.ok_or_else(|| Error::format(path, format!("no {} found", key(name))))
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
                .ok_or_else(|| Error::format(path, format!("no {} found", key(eps))))?,
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
