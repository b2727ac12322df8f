//! The cases: small ones for tests, and those of models.

use prefold::ops::{NormKind, Pairing};

use super::{Case, Heads, Op};

/// Cases small enough for the oracle and for a CPU that executes kernels: every op, with sizes around
/// those of tiles and vectors.
pub fn small() -> Vec<Case> {
    let heads = |queries, keys, dim| Heads { queries, keys, dim };
    let mut cases = Vec::new();
    let mut add = |op: Op, rows: &[usize]| {
        for &rows in rows {
            let seed = cases.len() as u64 + 1;
            cases.push(Case {
                op,
                rows,
                skipped: 0,
                seed,
            });
        }
    };
    for (inputs, outputs) in [(1, 1), (33, 48), (64, 130)] {
        for add_to in [false, true] {
            let op = Op::Linear {
                inputs,
                outputs,
                add: add_to,
            };
            add(op, &[1, 7, 33]);
        }
    }
    for (width, vocab) in [(8, 31), (33, 257)] {
        add(Op::Nll { width, vocab }, &[1, 33]);
        add(Op::NllBwd { width, vocab }, &[5, 33]);
    }
    for width in [1, 31, 257] {
        for kind in [NormKind::Rms, NormKind::Layer] {
            add(Op::Norm { width, kind }, &[1, 5]);
            // Of one element there is a norm, but its slope is too steep for differences.
            add(
                Op::NormBwd {
                    width: width + 7,
                    kind,
                },
                &[3],
            );
        }
    }
    for (heads, normed) in [(heads(1, 1, 2), false), (heads(6, 2, 8), true)] {
        for pairing in [Pairing::Halves, Pairing::Interleaved] {
            let op = Op::Rotate {
                heads,
                pairing,
                normed,
            };
            add(op, &[1, 9]);
            let op = Op::RotateBwd {
                heads,
                pairing,
                normed,
            };
            add(op, &[9]);
        }
    }
    for width in [1, 33, 100] {
        add(Op::Swiglu { width }, &[1, 7]);
        add(Op::SwigluBwd { width }, &[1, 7]);
        add(Op::Geglu { width }, &[7]);
        add(Op::Gelu { width }, &[7]);
        add(Op::GeluBwd { width }, &[7]);
        add(Op::GeluErf { width }, &[7]);
    }
    for heads in [heads(1, 1, 2), heads(6, 2, 8), heads(3, 1, 64)] {
        for (prefix, window, ahead) in [
            (0, None, 0),
            (40, None, 0),
            (9, Some(7), 0),
            (0, None, usize::MAX),
            (5, Some(4), 3),
        ] {
            let op = Op::Attention {
                heads,
                prefix,
                window,
                ahead,
            };
            add(op, &[1, 35]);
            if ahead == 0 {
                let op = Op::AttentionBwd {
                    heads,
                    prefix,
                    window,
                };
                add(op, &[12]);
            }
        }
    }
    for (width, rank) in [(20, 1), (33, 8)] {
        let heads = heads(4, 2, 8);
        add(Op::Lora { width, heads, rank }, &[1, 33]);
        add(Op::LoraBwd { width, heads, rank }, &[33]);
    }
    add(Op::TopK { segments: 1 }, &[1, 33, 1500]);
    add(Op::TopK { segments: 5 }, &[257]);
    cases
}

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
        heads: Heads {
            queries: 9,
            keys: 3,
            dim: 64,
        },
    },
    Sizes {
        name: "llama3-8b",
        hidden: 4096,
        ffn: 14_336,
        vocab: 128_256,
        heads: Heads {
            queries: 32,
            keys: 8,
            dim: 128,
        },
    },
];

/// One that a CPU can execute.
pub const TINY: Sizes = Sizes {
    name: "tiny",
    hidden: 48,
    ffn: 40,
    vocab: 300,
    heads: Heads {
        queries: 4,
        keys: 2,
        dim: 16,
    },
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
    let linear = |inputs, outputs| Op::Linear {
        inputs,
        outputs,
        add: false,
    };
    let attention = |prefix| Op::Attention {
        heads,
        prefix,
        window: None,
        ahead: 0,
    };
    let (kind, pairing, normed) = (NormKind::Rms, Pairing::Halves, false);
    let inference = [
        (
            Op::Nll {
                width: hidden,
                vocab: m.vocab,
            },
            "",
        ),
        (linear(hidden, heads.all()), "qkv"),
        (linear(hidden, 2 * ffn), "up"),
        // What nll is to be held against: its matmul alone, with logits that are written.
        (linear(hidden, m.vocab), "head"),
        (attention(0), "prefill"),
        (Op::TopK { segments: 1 }, "1 segment"),
        (Op::TopK { segments: 64 }, "64 segments"),
        (
            Op::Norm {
                width: hidden,
                kind,
            },
            "",
        ),
        (Op::Swiglu { width: ffn }, ""),
        (Op::Geglu { width: ffn }, ""),
        (
            Op::Rotate {
                heads,
                pairing,
                normed,
            },
            "",
        ),
    ];
    let trained = [
        (
            Op::Lora {
                width: hidden,
                heads,
                rank,
            },
            "qkv",
        ),
        (
            Op::LoraBwd {
                width: hidden,
                heads,
                rank,
            },
            "qkv",
        ),
        (
            Op::NllBwd {
                width: hidden,
                vocab: m.vocab,
            },
            "",
        ),
        (
            Op::AttentionBwd {
                heads,
                prefix: 0,
                window: None,
            },
            "prefill",
        ),
        (
            Op::NormBwd {
                width: hidden,
                kind,
            },
            "",
        ),
        (Op::SwigluBwd { width: ffn }, ""),
        (
            Op::RotateBwd {
                heads,
                pairing,
                normed,
            },
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
