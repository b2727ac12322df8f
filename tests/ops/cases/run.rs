//! A case run on a device, and its results read.

use prefold::Result;
use prefold::ops::{
    Attended, Attention, Backend, Buffer, Keep, Linear, LoraFactors, LoraPart, LoraUpdate, Norm,
    NormKind, Pairing, Rotate, Select,
};

use super::{BEFORE, Case, EPS, Heads, Host, Op, Placed, parts};

impl Case {
    pub fn attention<'a>(&self, lengths: &'a [usize]) -> Option<Attention<'a>> {
        let (heads, prefix, window, ahead) = match self.op {
            Op::Attention {
                heads,
                prefix,
                window,
                ahead,
            } => (heads, prefix, window, ahead),
            Op::AttentionBwd {
                heads,
                prefix,
                window,
            } => (heads, prefix, window, 0),
            _ => return None,
        };
        Some(Attention {
            heads: heads.queries,
            kv_heads: heads.keys,
            head_dim: heads.dim,
            prefix,
            prefixes: &[],
            at: prefix,
            lengths,
            window,
            ahead,
        })
    }

    fn rotation(&self, heads: Heads, pairing: Pairing) -> Rotate {
        Rotate {
            rows: self.rows,
            heads: heads.queries,
            kv_heads: heads.keys,
            head_dim: heads.dim,
            at: BEFORE,
            eps: EPS,
            pairing,
        }
    }

    fn norm(&self, width: usize, kind: NormKind) -> Norm {
        Norm {
            rows: self.rows,
            width,
            eps: EPS,
            kind,
        }
    }

    /// The segments of a selection.
    pub fn segments(&self, segments: usize) -> Vec<Select> {
        let of = |i: usize| Select {
            first: (i * self.rows) as u32,
            len: self.rows as u32,
            keep: Keep::Count(self.rows as u32 / 2),
        };
        (0..segments).map(of).collect()
    }

    /// Runs the op.
    pub fn run<B: Backend>(&self, b: &B, on: &mut Placed<B>) -> Result<()> {
        let rows = self.rows;
        let Placed {
            matrices,
            inputs,
            outputs,
            ids,
            selection,
        } = on;
        match self.op {
            Op::Linear {
                inputs: width,
                outputs: columns,
                add,
            } => {
                let shape = Linear {
                    rows,
                    inputs: width,
                    outputs: columns,
                    add,
                };
                let bias = add.then_some(&inputs[1]);
                b.linear(shape, &inputs[0], &matrices[0], bias, &mut outputs[0])
            }
            Op::Nll { width, vocab } => {
                let picks = self.picks(vocab);
                b.nll(width, &inputs[0], &matrices[0], &picks, &mut outputs[0])
            }
            Op::NllBwd { width, vocab } => {
                let picks = self.picks(vocab);
                let [head, across] = &matrices[..] else {
                    unreachable!()
                };
                let [out, dx] = &mut outputs[..] else {
                    unreachable!()
                };
                b.nll_bwd(width, &inputs[0], head, across, &picks, out, dx)
            }
            Op::Norm { width, kind } => {
                let bias = (kind == NormKind::Layer).then_some(&inputs[2]);
                let shape = self.norm(width, kind);
                b.norm(shape, &inputs[0], &inputs[1], bias, &mut outputs[0])
            }
            Op::NormBwd { width, kind } => {
                let shape = self.norm(width, kind);
                b.norm_bwd(shape, &inputs[0], &inputs[1], &inputs[2], &mut outputs[0])
            }
            Op::Rotate {
                heads,
                pairing,
                normed,
            } => {
                let [angles, q, k] = &inputs[..] else {
                    unreachable!()
                };
                let norms = normed.then_some([q, k]);
                let [qkv, k, v] = &mut outputs[..] else {
                    unreachable!()
                };
                b.rotate(
                    self.rotation(heads, pairing),
                    qkv,
                    norms,
                    Some(angles),
                    k,
                    v,
                )
            }
            Op::RotateBwd {
                heads,
                pairing,
                normed,
            } => {
                let [angles, q, k, qkv, dk, dv] = &inputs[..] else {
                    unreachable!()
                };
                let (shape, norms) = (self.rotation(heads, pairing), normed.then_some([q, k]));
                b.rotate_bwd(shape, qkv, norms, Some(angles), dk, dv, &mut outputs[0])
            }
            Op::Swiglu { width } => b.swiglu(rows, width, &inputs[0], &mut outputs[0]),
            Op::SwigluBwd { width } => {
                b.swiglu_bwd(rows, width, &inputs[0], &inputs[1], &mut outputs[0])
            }
            Op::Geglu { width } => b.geglu(rows, width, &inputs[0], &mut outputs[0]),
            Op::Gelu { width } => b.gelu(rows * width, &inputs[0], &mut outputs[0]),
            Op::GeluBwd { width } => {
                b.gelu_bwd(rows * width, &inputs[0], &inputs[1], &mut outputs[0])
            }
            Op::GeluErf { width } => b.gelu_erf(rows * width, &inputs[0], &mut outputs[0]),
            Op::Attention { .. } => match self.attention(&[rows]) {
                Some(shape) => {
                    let [qkv, k, v] = &inputs[..] else {
                        unreachable!()
                    };
                    b.attention(&shape, qkv, k, v, &mut outputs[0])
                }
                None => Ok(()),
            },
            Op::AttentionBwd { .. } => match self.attention(&[rows]) {
                Some(shape) => {
                    let [qkv, k, v, dout, out, lse] = &inputs[..] else {
                        unreachable!()
                    };
                    let attended = Attended {
                        qkv,
                        k,
                        v,
                        out,
                        lse,
                    };
                    let [dqkv, dk, dv] = &mut outputs[..] else {
                        unreachable!()
                    };
                    b.attention_bwd(&shape, attended, dout, dqkv, dk, dv)
                }
                None => Ok(()),
            },
            Op::Lora { width, heads, rank } => {
                let parts = parts(heads, rank);
                let shape = self.update(width, heads, rank, &parts);
                b.lora(
                    &shape,
                    &inputs[0],
                    &matrices[0],
                    &matrices[1],
                    &mut outputs[0],
                )
            }
            Op::LoraBwd { width, heads, rank } => {
                let parts = parts(heads, rank);
                let shape = self.update(width, heads, rank, &parts);
                let [a, _, a_across, b_across] = &matrices[..] else {
                    unreachable!()
                };
                let factors = LoraFactors {
                    a,
                    a_across,
                    b_across,
                };
                let (dx, pairs) = outputs.split_at_mut(1);
                let mut wanted: Vec<_> = pairs
                    .chunks_exact_mut(2)
                    .map(|pair| {
                        let [da, db] = pair else { unreachable!() };
                        Some([da, db])
                    })
                    .collect();
                let dx = Some(&mut dx[0]);
                b.lora_bwd(&shape, &factors, &inputs[0], &inputs[1], dx, &mut wanted)
            }
            Op::TopK { segments } => match selection {
                Some(out) => b.topk(&self.segments(segments), &inputs[0], &ids[0], out),
                None => Ok(()),
            },
        }
    }

    fn update<'a>(
        &self,
        width: usize,
        heads: Heads,
        rank: usize,
        parts: &'a [LoraPart],
    ) -> LoraUpdate<'a> {
        LoraUpdate {
            rows: self.rows,
            inputs: width,
            outputs: heads.all(),
            ranks: 3 * rank,
            parts,
            dropout: None,
        }
    }

    /// What the outputs hold; of a selection its mask.
    pub fn read<B: Backend>(&self, b: &B, on: &Placed<B>) -> Result<Vec<Vec<f32>>> {
        if let Some(selection) = &on.selection {
            let mask = b.download(&selection.mask, 0..selection.mask.len())?;
            return Ok(vec![mask.into_iter().map(|kept| kept as f32).collect()]);
        }
        let outputs = on.outputs.iter();
        outputs.map(|out| b.download(out, 0..out.len())).collect()
    }

    /// A case whose outputs are the last rows of this one's, with the operands for it: enough to look at
    /// where the whole takes too long. `None` where it does not.
    pub fn tail(&self, host: &Host, few: usize) -> Option<(Case, Host)> {
        let skip = self.rows.checked_sub(few)?;
        let last = |values: &[f32]| values[values.len() / self.rows * skip..].to_vec();
        let mut host = host.clone();
        let mut op = self.op;
        match &mut op {
            Op::Linear { .. } | Op::Nll { .. } | Op::NllBwd { .. } => {
                host.inputs[0] = last(&host.inputs[0]);
            }
            Op::Attention { prefix, .. } => {
                // They see everything before them, as rows after a prefix do.
                *prefix += skip;
                host.inputs[0] = last(&host.inputs[0]);
            }
            _ => return None,
        }
        for output in &mut host.outputs {
            *output = last(output);
        }
        let case = Case {
            op,
            rows: few,
            skipped: skip,
            ..*self
        };
        Some((case, host))
    }
}
