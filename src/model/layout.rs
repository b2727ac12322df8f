//! Which tensors a decoder family has: their names in both formats, shapes, and peculiarities.

use super::config::{Config, Family};

/// A tensor that a model must have.
pub(crate) struct Slot {
    /// Hugging Face's name; for a tensor of a layer, what follows the layer's prefix.
    pub hf: &'static str,
    /// GGUF's name, likewise.
    pub gguf: &'static str,
    /// As it is handed out, outermost first.
    pub shape: Vec<usize>,
    pub kind: Kind,
}

/// How the stored tensor differs from the one handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not at all.
    Same,
    /// A projection to q or k: GGUF of the Llama family interleaves the two halves of each head.
    Rotary { heads: usize },
    /// GPT-2's `Conv1D`: Hugging Face stores it `[in, out]`.
    Conv1d,
}

/// What a layer's tensor names begin with: Hugging Face's prefix, followed by the layer's number and
/// a dot.
pub(crate) fn hf_layers(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.h.",
        _ => "model.layers.",
    }
}

/// The same for GGUF.
pub(crate) const GGUF_LAYERS: &str = "blk.";

/// What Hugging Face's names begin with, but for the head; some files leave it out.
pub(crate) fn hf_prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        _ => "model.",
    }
}

/// The head's name, with the same meaning in both formats: absent means tied.
pub(crate) const HF_HEAD: &str = "lm_head.weight";
/// See [`HF_HEAD`].
pub(crate) const GGUF_HEAD: &str = "output.weight";
/// The embedding's name in GGUF.
pub(crate) const GGUF_EMBEDDING: &str = "token_embd.weight";
/// Divisors of the rotary frequencies, `[head_dim / 2]`.
pub(crate) const GGUF_ROPE_FACTORS: &str = "rope_freqs.weight";

/// The tensors outside the layers.
pub(crate) fn outer_slots(c: &Config) -> Vec<Slot> {
    let mut slots = match c.family {
        Family::Gpt2 => vec![
            slot(
                "transformer.wte.weight",
                GGUF_EMBEDDING,
                &[c.vocab, c.hidden],
            ),
            slot(
                "transformer.wpe.weight",
                "position_embd.weight",
                &[c.max_positions, c.hidden],
            ),
            slot("transformer.ln_f.weight", "output_norm.weight", &[c.hidden]),
            slot("transformer.ln_f.bias", "output_norm.bias", &[c.hidden]),
        ],
        _ => vec![
            slot(
                "model.embed_tokens.weight",
                GGUF_EMBEDDING,
                &[c.vocab, c.hidden],
            ),
            slot("model.norm.weight", "output_norm.weight", &[c.hidden]),
        ],
    };
    if !c.tied {
        slots.push(slot(HF_HEAD, GGUF_HEAD, &[c.vocab, c.hidden]));
    }
    slots
}

/// The tensors of one layer; all layers are alike.
pub(crate) fn layer_slots(c: &Config) -> Vec<Slot> {
    match c.family {
        Family::Gpt2 => gpt2_layer(c),
        _ => llama_layer(c),
    }
}

fn llama_layer(c: &Config) -> Vec<Slot> {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let mut slots = vec![
        slot("input_layernorm.weight", "attn_norm.weight", &[c.hidden]),
        Slot {
            kind: Kind::Rotary { heads: c.heads },
            ..slot("self_attn.q_proj.weight", "attn_q.weight", &[q, c.hidden])
        },
        Slot {
            kind: Kind::Rotary { heads: c.kv_heads },
            ..slot("self_attn.k_proj.weight", "attn_k.weight", &[kv, c.hidden])
        },
        slot("self_attn.v_proj.weight", "attn_v.weight", &[kv, c.hidden]),
        slot(
            "self_attn.o_proj.weight",
            "attn_output.weight",
            &[c.hidden, q],
        ),
        slot(
            "post_attention_layernorm.weight",
            "ffn_norm.weight",
            &[c.hidden],
        ),
        slot(
            "mlp.gate_proj.weight",
            "ffn_gate.weight",
            &[c.ffn, c.hidden],
        ),
        slot("mlp.up_proj.weight", "ffn_up.weight", &[c.ffn, c.hidden]),
        slot(
            "mlp.down_proj.weight",
            "ffn_down.weight",
            &[c.hidden, c.ffn],
        ),
    ];
    match c.family {
        Family::Qwen2 => slots.extend([
            slot("self_attn.q_proj.bias", "attn_q.bias", &[q]),
            slot("self_attn.k_proj.bias", "attn_k.bias", &[kv]),
            slot("self_attn.v_proj.bias", "attn_v.bias", &[kv]),
        ]),
        Family::Qwen3 => slots.extend([
            slot(
                "self_attn.q_norm.weight",
                "attn_q_norm.weight",
                &[c.head_dim],
            ),
            slot(
                "self_attn.k_norm.weight",
                "attn_k_norm.weight",
                &[c.head_dim],
            ),
        ]),
        Family::Llama | Family::Gpt2 => {}
    }
    slots
}

fn gpt2_layer(c: &Config) -> Vec<Slot> {
    let conv1d = |hf, gguf, shape: [usize; 2]| Slot {
        kind: Kind::Conv1d,
        ..slot(hf, gguf, &shape)
    };
    vec![
        slot("ln_1.weight", "attn_norm.weight", &[c.hidden]),
        slot("ln_1.bias", "attn_norm.bias", &[c.hidden]),
        conv1d(
            "attn.c_attn.weight",
            "attn_qkv.weight",
            [3 * c.hidden, c.hidden],
        ),
        slot("attn.c_attn.bias", "attn_qkv.bias", &[3 * c.hidden]),
        conv1d(
            "attn.c_proj.weight",
            "attn_output.weight",
            [c.hidden, c.hidden],
        ),
        slot("attn.c_proj.bias", "attn_output.bias", &[c.hidden]),
        slot("ln_2.weight", "ffn_norm.weight", &[c.hidden]),
        slot("ln_2.bias", "ffn_norm.bias", &[c.hidden]),
        conv1d("mlp.c_fc.weight", "ffn_up.weight", [c.ffn, c.hidden]),
        slot("mlp.c_fc.bias", "ffn_up.bias", &[c.ffn]),
        conv1d("mlp.c_proj.weight", "ffn_down.weight", [c.hidden, c.ffn]),
        slot("mlp.c_proj.bias", "ffn_down.bias", &[c.hidden]),
    ]
}

fn slot(hf: &'static str, gguf: &'static str, shape: &[usize]) -> Slot {
    Slot {
        hf,
        gguf,
        shape: shape.to_vec(),
        kind: Kind::Same,
    }
}

/// Whether a layer's tensor that no slot names can be passed over: masks and tables that the forward
/// makes itself. Any other one belongs to a model that would be computed wrongly without it.
pub(crate) fn ignorable(name: &str) -> bool {
    [
        ".attn.bias",
        ".attn.masked_bias",
        ".rotary_emb.inv_freq",
        ".attn_rot_embd.weight",
    ]
    .iter()
    .any(|suffix| name.ends_with(suffix))
}
