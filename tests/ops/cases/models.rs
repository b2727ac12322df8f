//! The cases of models' sizes, which are timed.

use prefold::ops::{NormKind, Pairing};

use super::{
    Attention, AttentionBwd, Geglu, Heads, Linear, Lora, LoraBwd, Nll, NllBwd, Norm, NormBwd, Op,
    Rotate, RotateBwd, Swiglu, SwigluBwd, TopK, heads,
};

/// The sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub name: &'static str,
    pub hidden: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub heads: Heads,
}

pub const MODELS: [Sizes; 2] = [
    Sizes {
        name: "smollm2",
        hidden: 576,
        ffn: 1536,
        vocab: 49_152,
        heads: heads(9, 3, 64),
    },
    Sizes {
        name: "llama3-8b",
        hidden: 4096,
        ffn: 14_336,
        vocab: 128_256,
        heads: heads(32, 8, 128),
    },
];

/// One that a CPU can execute.
pub const TINY: Sizes = Sizes {
    name: "tiny",
    hidden: 48,
    ffn: 40,
    vocab: 300,
    heads: heads(4, 2, 16),
};

/// Batches of training have no more rows.
const TRAINING_ROWS: usize = 2000;
/// As 500xCompressor has it.
const RANK: usize = 64;

/// What a model asks of its device, each op with a word on which, for so many rows each.
pub fn of_model(m: &Sizes, rows: &[usize]) -> Vec<(Op, &'static str, Vec<usize>)> {
    let Sizes {
        hidden, ffn, heads, ..
    } = *m;
    let few: Vec<usize> = rows
        .iter()
        .copied()
        .filter(|&rows| rows <= TRAINING_ROWS)
        .collect();
    let training = if few.is_empty() { rows } else { &few };
    let rank = RANK.min(hidden / 4);
    let (width, vocab, window) = (hidden, m.vocab, None);
    let linear = |inputs, outputs| {
        Op::from(Linear {
            inputs,
            outputs,
            add: false,
        })
    };
    let attention = |prefix| {
        Op::from(Attention {
            heads,
            prefix,
            window,
            ahead: 0,
        })
    };
    let (kind, pairing, normed) = (NormKind::Rms, Pairing::Halves, false);
    let inference: [(Op, &str); 11] = [
        (Nll { width, vocab }.into(), ""),
        (linear(hidden, heads.all()), "qkv"),
        (linear(hidden, 2 * ffn), "up"),
        // What nll is to be held against: its matmul alone, with logits that are written.
        (linear(hidden, m.vocab), "head"),
        (attention(0), "prefill"),
        (TopK { segments: 1 }.into(), "1 segment"),
        (TopK { segments: 64 }.into(), "64 segments"),
        (Norm { width, kind }.into(), ""),
        (Swiglu { width: ffn }.into(), ""),
        (Geglu { width: ffn }.into(), ""),
        (
            Rotate {
                heads,
                pairing,
                normed,
            }
            .into(),
            "",
        ),
    ];
    let trained: [(Op, &str); 7] = [
        (Lora { width, heads, rank }.into(), "qkv"),
        (LoraBwd { width, heads, rank }.into(), "qkv"),
        (NllBwd { width, vocab }.into(), ""),
        (
            AttentionBwd {
                heads,
                prefix: 0,
                window,
            }
            .into(),
            "prefill",
        ),
        (NormBwd { width, kind }.into(), ""),
        (SwigluBwd { width: ffn }.into(), ""),
        (
            RotateBwd {
                heads,
                pairing,
                normed,
            }
            .into(),
            "",
        ),
    ];
    let first = rows[0];
    inference
        .into_iter()
        .map(|(op, detail)| (op, detail, rows.to_vec()))
        .chain([(attention(9 * first), "on 10x keys", vec![first])])
        .chain(
            trained
                .into_iter()
                .map(|(op, detail)| (op, detail, training.to_vec())),
        )
        .collect()
}
