//! Which tensors a family has: their names in both formats, shapes, and peculiarities.

use super::config::{Config, EncoderHead, Family};

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
        Family::Bert => "bert.encoder.layer.",
        Family::XlmRoberta => "roberta.encoder.layer.",
        _ => "model.layers.",
    }
}

/// The same for GGUF.
pub(crate) const GGUF_LAYERS: &str = "blk.";

/// What Hugging Face's names begin with, but for the head; some files leave it out.
pub(crate) fn hf_prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        Family::Bert => "bert.",
        Family::XlmRoberta => "roberta.",
        _ => "model.",
    }
}

/// Whether a tensor of a Hugging Face file stands beside what [`hf_prefix`] is put in front of.
pub(crate) fn is_head(name: &str) -> bool {
    name == HF_HEAD || name.starts_with("classifier.") || name.starts_with("head.")
}

/// The two layers of an encoder's classifier of texts, by their Hugging Face names.
pub(crate) fn text_head(family: Family) -> [&'static str; 2] {
    match family {
        Family::XlmRoberta => ["classifier.dense", "classifier.out_proj"],
        _ => ["bert.pooler.dense", "classifier"],
    }
}

/// The head's name, with the same meaning in both formats: absent means tied.
pub(crate) const HF_HEAD: &str = "lm_head.weight";
/// See [`HF_HEAD`].
pub(crate) const GGUF_HEAD: &str = "output.weight";
/// The last layer of a reranker.
pub(crate) const GGUF_CLASSES: &str = "cls.output.weight";
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
        Family::Bert | Family::XlmRoberta => encoder_slots(c),
        Family::ModernBert => modernbert_slots(c),
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

/// The tensors of the layer of that number.
pub(crate) fn layer_slots(c: &Config, layer: usize) -> Vec<Slot> {
    match c.family {
        Family::ModernBert => modernbert_layer(c, layer),
        Family::Gpt2 => gpt2_layer(c),
        Family::Bert | Family::XlmRoberta => bert_layer(c),
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
        Family::Llama | Family::Gpt2 | Family::Bert | Family::XlmRoberta | Family::ModernBert => {}
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

/// An encoder's tensors outside the layers; the same names for both families but for their prefix.
fn encoder_slots(c: &Config) -> Vec<Slot> {
    let Some(encoder) = &c.encoder else {
        return Vec::new();
    };
    let positions = c.max_positions + encoder.first_position as usize;
    let bert = c.family == Family::Bert;
    let named = |bert_name, roberta_name, gguf, shape: &[usize]| {
        slot(if bert { bert_name } else { roberta_name }, gguf, shape)
    };
    let mut slots = vec![
        named(
            "bert.embeddings.word_embeddings.weight",
            "roberta.embeddings.word_embeddings.weight",
            GGUF_EMBEDDING,
            &[c.vocab, c.hidden],
        ),
        named(
            "bert.embeddings.position_embeddings.weight",
            "roberta.embeddings.position_embeddings.weight",
            "position_embd.weight",
            &[positions, c.hidden],
        ),
        named(
            "bert.embeddings.token_type_embeddings.weight",
            "roberta.embeddings.token_type_embeddings.weight",
            "token_types.weight",
            &[encoder.token_types, c.hidden],
        ),
        named(
            "bert.embeddings.LayerNorm.weight",
            "roberta.embeddings.LayerNorm.weight",
            "token_embd_norm.weight",
            &[c.hidden],
        ),
        named(
            "bert.embeddings.LayerNorm.bias",
            "roberta.embeddings.LayerNorm.bias",
            "token_embd_norm.bias",
            &[c.hidden],
        ),
    ];
    let wide = [c.hidden, c.hidden];
    match encoder.head {
        EncoderHead::None => {}
        EncoderHead::Tokens(labels) => slots.extend([
            slot("classifier.weight", "cls.weight", &[labels, c.hidden]),
            slot("classifier.bias", "cls.bias", &[labels]),
        ]),
        EncoderHead::Text(labels) if bert => slots.extend([
            slot("bert.pooler.dense.weight", "cls.weight", &wide),
            slot("bert.pooler.dense.bias", "cls.bias", &[c.hidden]),
            slot("classifier.weight", GGUF_CLASSES, &[labels, c.hidden]),
            slot("classifier.bias", "cls.output.bias", &[labels]),
        ]),
        EncoderHead::Text(labels) => slots.extend([
            slot("classifier.dense.weight", "cls.weight", &wide),
            slot("classifier.dense.bias", "cls.bias", &[c.hidden]),
            slot(
                "classifier.out_proj.weight",
                GGUF_CLASSES,
                &[labels, c.hidden],
            ),
            slot("classifier.out_proj.bias", "cls.output.bias", &[labels]),
        ]),
    }
    slots
}

fn bert_layer(c: &Config) -> Vec<Slot> {
    let (wide, row) = ([c.hidden, c.hidden], [c.hidden]);
    vec![
        slot("attention.self.query.weight", "attn_q.weight", &wide),
        slot("attention.self.query.bias", "attn_q.bias", &row),
        slot("attention.self.key.weight", "attn_k.weight", &wide),
        slot("attention.self.key.bias", "attn_k.bias", &row),
        slot("attention.self.value.weight", "attn_v.weight", &wide),
        slot("attention.self.value.bias", "attn_v.bias", &row),
        slot("attention.output.dense.weight", "attn_output.weight", &wide),
        slot("attention.output.dense.bias", "attn_output.bias", &row),
        slot(
            "attention.output.LayerNorm.weight",
            "attn_output_norm.weight",
            &row,
        ),
        slot(
            "attention.output.LayerNorm.bias",
            "attn_output_norm.bias",
            &row,
        ),
        slot(
            "intermediate.dense.weight",
            "ffn_up.weight",
            &[c.ffn, c.hidden],
        ),
        slot("intermediate.dense.bias", "ffn_up.bias", &[c.ffn]),
        slot("output.dense.weight", "ffn_down.weight", &[c.hidden, c.ffn]),
        slot("output.dense.bias", "ffn_down.bias", &row),
        slot("output.LayerNorm.weight", "layer_output_norm.weight", &row),
        slot("output.LayerNorm.bias", "layer_output_norm.bias", &row),
    ]
}

fn modernbert_slots(c: &Config) -> Vec<Slot> {
    let row = [c.hidden];
    let mut slots = vec![
        slot(
            "model.embeddings.tok_embeddings.weight",
            GGUF_EMBEDDING,
            &[c.vocab, c.hidden],
        ),
        slot(
            "model.embeddings.norm.weight",
            "token_embd_norm.weight",
            &row,
        ),
        slot("model.final_norm.weight", "output_norm.weight", &row),
    ];
    let head = c.encoder.as_ref().map(|encoder| encoder.head);
    if let Some(EncoderHead::Tokens(labels) | EncoderHead::Text(labels)) = head {
        slots.extend([
            slot("head.dense.weight", "cls.weight", &[c.hidden, c.hidden]),
            slot("head.norm.weight", "cls.norm.weight", &row),
            slot("classifier.weight", GGUF_CLASSES, &[labels, c.hidden]),
            slot("classifier.bias", "cls.output.bias", &[labels]),
        ]);
    }
    slots
}

/// What a layer of ModernBERT has; the first one reads the embeddings' norm.
fn modernbert_layer(c: &Config, layer: usize) -> Vec<Slot> {
    let (width, row) = (c.hidden, [c.hidden]);
    let mut slots = vec![
        slot("attn.Wqkv.weight", "attn_qkv.weight", &[3 * width, width]),
        slot("attn.Wo.weight", "attn_output.weight", &[width, width]),
        slot("mlp_norm.weight", "ffn_norm.weight", &row),
        slot("mlp.Wi.weight", "ffn_up.weight", &[2 * c.ffn, width]),
        slot("mlp.Wo.weight", "ffn_down.weight", &[width, c.ffn]),
    ];
    if layer > 0 {
        slots.push(slot("attn_norm.weight", "attn_norm.weight", &row));
    }
    slots
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
