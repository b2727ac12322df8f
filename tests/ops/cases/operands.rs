//! The operands of a case, and how they come to a device.

use prefold::Result;
use prefold::ops::{Backend, TopKOutput};

use super::{BEFORE, Case, Heads, Host, Op, Placed, floats, nothing, parts};

impl Case {
    /// The operands.
    pub fn host(&self) -> Host {
        let (n, seed) = (self.rows, 16 * self.seed);
        let numbers = |count, scale, which| floats(count, scale, seed + which);
        let head = |width: usize, vocab: usize| {
            // Logits of about ±3.
            let scale = 3.0 / (width as f32 / 3.0).sqrt();
            (vocab, width, numbers(vocab * width, scale, 1))
        };
        match self.op {
            Op::Linear {
                inputs,
                outputs,
                add,
            } => {
                let scale = 1.0 / (inputs as f32 / 3.0).sqrt();
                Host {
                    matrices: vec![(outputs, inputs, numbers(outputs * inputs, scale, 1))],
                    inputs: vec![numbers(n * inputs, 1.0, 2), numbers(outputs, 1.0, 3)],
                    outputs: vec![match add {
                        true => numbers(n * outputs, 1.0, 4),
                        false => nothing(n * outputs),
                    }],
                }
            }
            Op::Nll { width, vocab } => Host {
                matrices: vec![head(width, vocab)],
                inputs: vec![numbers(n * width, 1.0, 2)],
                outputs: vec![nothing(n)],
            },
            Op::NllBwd { width, vocab } => Host {
                matrices: vec![head(width, vocab)],
                inputs: vec![numbers(n * width, 1.0, 2)],
                outputs: vec![nothing(n), numbers(n * width, 0.5, 3)],
            },
            Op::Norm { width, .. } => Host {
                inputs: vec![
                    numbers(n * width, 1.0, 1),
                    numbers(width, 1.0, 2),
                    numbers(width, 1.0, 3),
                ],
                outputs: vec![nothing(n * width)],
                ..Host::default()
            },
            Op::NormBwd { width, .. } => Host {
                inputs: vec![
                    numbers(n * width, 1.0, 1),
                    numbers(width, 1.0, 2),
                    numbers(n * width, 1.0, 3),
                ],
                outputs: vec![numbers(n * width, 0.5, 4)],
                ..Host::default()
            },
            Op::Rotate { heads, .. } => Host {
                // Any numbers will do as cosines and sines; of them, small ones stay small when timed.
                inputs: vec![
                    numbers(n * heads.dim, 0.7, 1),
                    numbers(heads.dim, 1.0, 2),
                    numbers(heads.dim, 1.0, 3),
                ],
                outputs: vec![
                    numbers(n * heads.all(), 1.0, 4),
                    nothing((BEFORE + n) * heads.kv()),
                    nothing((BEFORE + n) * heads.kv()),
                ],
                ..Host::default()
            },
            Op::RotateBwd { heads, .. } => Host {
                inputs: vec![
                    numbers(n * heads.dim, 0.7, 1),
                    numbers(heads.dim, 1.0, 2),
                    numbers(heads.dim, 1.0, 3),
                    numbers(n * heads.all(), 1.0, 4),
                    numbers((BEFORE + n) * heads.kv(), 1.0, 5),
                    numbers((BEFORE + n) * heads.kv(), 1.0, 6),
                ],
                outputs: vec![numbers(n * heads.all(), 1.0, 7)],
                ..Host::default()
            },
            Op::Swiglu { width } | Op::Geglu { width } => Host {
                inputs: vec![numbers(n * 2 * width, 4.0, 1)],
                outputs: vec![nothing(n * width)],
                ..Host::default()
            },
            Op::SwigluBwd { width } => Host {
                inputs: vec![numbers(n * 2 * width, 4.0, 1), numbers(n * width, 1.0, 2)],
                outputs: vec![nothing(n * 2 * width)],
                ..Host::default()
            },
            Op::Gelu { width } | Op::GeluErf { width } => Host {
                inputs: vec![numbers(n * width, 4.0, 1)],
                outputs: vec![nothing(n * width)],
                ..Host::default()
            },
            Op::GeluBwd { width } => Host {
                inputs: vec![numbers(n * width, 4.0, 1), numbers(n * width, 1.0, 2)],
                outputs: vec![nothing(n * width)],
                ..Host::default()
            },
            Op::Attention { heads, prefix, .. } => Host {
                inputs: vec![
                    numbers(n * heads.all(), 1.5, 1),
                    numbers((prefix + n) * heads.kv(), 1.5, 2),
                    numbers((prefix + n) * heads.kv(), 1.5, 3),
                ],
                outputs: vec![nothing(n * heads.out())],
                ..Host::default()
            },
            Op::AttentionBwd { heads, prefix, .. } => Host {
                inputs: vec![
                    numbers(n * heads.all(), 1.5, 1),
                    numbers((prefix + n) * heads.kv(), 1.5, 2),
                    numbers((prefix + n) * heads.kv(), 1.5, 3),
                    numbers(n * heads.out(), 1.0, 4),
                    // Out and lse of the forward, which `run` makes.
                    nothing(n * heads.out()),
                    nothing(n * heads.queries),
                ],
                outputs: vec![
                    nothing(n * heads.all()),
                    numbers((prefix + n) * heads.kv(), 0.5, 5),
                    numbers((prefix + n) * heads.kv(), 0.5, 6),
                ],
                ..Host::default()
            },
            Op::Lora { width, heads, rank } => Host {
                matrices: self.factors(width, heads, rank, seed),
                inputs: vec![numbers(n * width, 1.0, 3)],
                outputs: vec![numbers(n * heads.all(), 1.0, 4)],
            },
            Op::LoraBwd { width, heads, rank } => {
                let mut outputs = vec![numbers(n * width, 0.5, 5)];
                for part in parts(heads, rank) {
                    outputs.extend([nothing(rank * width), nothing(part.outputs * rank)]);
                }
                Host {
                    matrices: self.factors(width, heads, rank, seed),
                    inputs: vec![numbers(n * width, 1.0, 3), numbers(n * heads.all(), 1.0, 4)],
                    outputs,
                }
            }
            Op::TopK { segments } => Host {
                inputs: vec![numbers(n * segments, 10.0, 1)],
                outputs: Vec::new(),
                ..Host::default()
            },
        }
    }

    /// a, and b with zeros where no part lies.
    fn factors(
        &self,
        width: usize,
        heads: Heads,
        rank: usize,
        seed: u64,
    ) -> Vec<(usize, usize, Vec<f32>)> {
        let (ranks, outputs) = (3 * rank, heads.all());
        let a = floats(ranks * width, 1.0 / (width as f32).sqrt(), seed + 1);
        let mut b = floats(outputs * ranks, 0.1, seed + 2);
        let parts = parts(heads, rank);
        for (row, b) in b.chunks_exact_mut(ranks).enumerate() {
            let part = parts.iter().position(|p| row < p.output + p.outputs);
            for (i, b) in b.iter_mut().enumerate() {
                if Some(i / rank) != part {
                    *b = 0.0;
                }
            }
        }
        vec![(ranks, width, a), (outputs, ranks, b)]
    }

    /// Brings operands to a device.
    pub fn place<B: Backend>(&self, b: &B, host: &Host) -> Result<Placed<B>> {
        let mut matrices = Vec::new();
        for (outputs, inputs, values) in &host.matrices {
            matrices.push(b.matrix(*outputs, *inputs, values)?);
        }
        if matches!(self.op, Op::NllBwd { .. } | Op::LoraBwd { .. }) {
            for i in 0..host.matrices.len() {
                matrices.push(b.transposed(&matrices[i])?);
            }
        }
        self.place_beside(b, host, matrices)
    }

    /// The same beside matrices that are there already: those of a case of other rows.
    pub fn place_beside<B: Backend>(
        &self,
        b: &B,
        host: &Host,
        matrices: Vec<B::Matrix>,
    ) -> Result<Placed<B>> {
        let upload = |all: &[Vec<f32>]| -> Result<Vec<B::Buf<f32>>> {
            all.iter().map(|values| b.upload(values)).collect()
        };
        let (mut ids, mut selection) = (Vec::new(), None);
        if let Op::TopK { segments } = self.op {
            let scores = self.rows * segments;
            let numbers: Vec<u32> = (0..scores as u32).collect();
            ids.push(b.upload(&numbers)?);
            selection = Some(TopKOutput::new(b, scores, segments)?);
        }
        let mut placed = Placed {
            matrices,
            inputs: upload(&host.inputs)?,
            outputs: upload(&host.outputs)?,
            ids,
            selection,
        };
        if let Some(shape) = self.attention(&[self.rows])
            && matches!(self.op, Op::AttentionBwd { .. })
            && let [qkv, k, v, _, out, lse] = &mut placed.inputs[..]
        {
            b.attention_lse(&shape, qkv, k, v, out, lse)?;
        }
        Ok(placed)
    }
}
