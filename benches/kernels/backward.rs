//! What training adds: gradients, and the adapter's low-rank update.

use std::cell::RefCell;

use prefold::Result;
use prefold::cpu::Cpu;
use prefold::ops::{
    Attended, Attention, AttentionOp, GemmOp, LayerOp, Linear, LoraFactors, LoraOp, LoraPart,
    LoraUpdate, NllOp, Norm, NormKind, Pairing, Pick, Rotate, Storage,
};
use rayon::prelude::*;

use super::cases::{Bench, Bound, Case, Shape, floats, worst};
use super::clock::Clock;

/// Training's batches are not larger.
const ROWS: usize = 2000;
/// As 500xCompressor has it.
const RANK: usize = 64;

impl<L: Clock> Bench<L> {
    fn rows(&self) -> Vec<usize> {
        let all = &self.selected.rows;
        let few: Vec<usize> = all.iter().copied().filter(|&rows| rows <= ROWS).collect();
        if few.is_empty() { all.clone() } else { few }
    }

    /// Nll and its gradient through the head: logits are made twice.
    pub fn nll_bwd(&mut self, m: Shape) -> Result<()> {
        if !self.wants("nll_bwd") {
            return Ok(());
        }
        let d = m.hidden;
        let scale = 3.0 / (d as f32 / 3.0).sqrt();
        let weights = floats(m.vocab * d, scale, 21);
        let head = self.gpu.matrix(m.vocab, d, &weights)?;
        let across = self.gpu.transposed(&head)?;
        for rows in self.rows() {
            let x = floats(rows * d, 1.0, 22);
            let picks: Vec<Pick> = (0..rows)
                .map(|row| Pick {
                    row: row as u32,
                    target: (row * 7919 % m.vocab) as u32,
                })
                .collect();
            let x_on = self.gpu.upload(&x)?;
            let out = RefCell::new(self.poisoned(rows)?);
            let dx = RefCell::new(self.gpu.zeros::<f32>(rows * d)?);
            let case = Case {
                op: "nll_bwd",
                detail: "",
                rows,
                flops: 6.0 * (rows * m.vocab * d) as f64,
                bytes: (4 * m.vocab * d + 12 * rows * d) as f64,
                bound: Bound::Products,
            };
            self.case(
                m,
                &case,
                0.02,
                |gpu| {
                    let [mut out, mut dx] = [out.borrow_mut(), dx.borrow_mut()];
                    gpu.nll_bwd(d, &x_on, &head, &across, &picks, &mut out, &mut dx)
                },
                |gpu| {
                    let got = gpu.download(&dx.borrow(), 0..rows * d)?;
                    let off = [0, rows / 3, rows - 1].map(|row| {
                        let target = picks[row].target as usize;
                        let want = gradient(&x[row * d..][..d], &weights, target);
                        worst(&got[row * d..][..d], &want)
                    });
                    let finite = got.par_iter().all(|v| v.is_finite());
                    let off = off.into_iter().fold(0.0, f64::max);
                    Ok(if finite { off } else { f64::INFINITY })
                },
            )?;
        }
        Ok(())
    }

    /// Of the prefill: its forward has kept what it needs.
    pub fn attention_bwd(&mut self, m: Shape) -> Result<()> {
        if !self.wants("attention_bwd") {
            return Ok(());
        }
        let (width, kv) = (
            (m.heads + 2 * m.kv_heads) * m.head_dim,
            m.kv_heads * m.head_dim,
        );
        let out_width = m.heads * m.head_dim;
        for rows in self.rows() {
            let qkv = floats(rows * width, 1.5, 23);
            let [k, v] = [24, 25].map(|seed| floats(rows * kv, 1.5, seed));
            let dout = floats(rows * out_width, 1.0, 26);
            let lengths = [rows];
            let shape = Attention {
                heads: m.heads,
                kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                prefix: 0,
                prefixes: &[],
                at: 0,
                lengths: &lengths,
                window: None,
                ahead: 0,
            };
            let upload = |host: &Vec<f32>| self.gpu.upload(host);
            let (qkv_on, k_on, v_on, dout_on) =
                (upload(&qkv)?, upload(&k)?, upload(&v)?, upload(&dout)?);
            let mut out = self.poisoned(rows * out_width)?;
            let mut lse = self.poisoned(rows * m.heads)?;
            self.gpu
                .attention_lse(&shape, &qkv_on, &k_on, &v_on, &mut out, &mut lse)?;
            let dqkv = RefCell::new(self.gpu.zeros::<f32>(rows * width)?);
            let [dk, dv] = [(); 2].map(|()| self.gpu.zeros::<f32>(rows * kv));
            let (dk, dv) = (RefCell::new(dk?), RefCell::new(dv?));
            let seen = (rows * (rows + 1) / 2) as f64;
            let case = Case {
                op: "attention_bwd",
                detail: "prefill",
                rows,
                flops: 10.0 * seen * out_width as f64,
                bytes: (4 * rows * (2 * width + 2 * out_width + 4 * kv)) as f64,
                bound: Bound::Products,
            };
            let cpu = Cpu::new();
            self.case(
                m,
                &case,
                0.1,
                |gpu| {
                    let attended = Attended {
                        qkv: &qkv_on,
                        k: &k_on,
                        v: &v_on,
                        out: &out,
                        lse: &lse,
                    };
                    let [mut dqkv, mut dk, mut dv] = [&dqkv, &dk, &dv].map(RefCell::borrow_mut);
                    gpu.attention_bwd(&shape, attended, &dout_on, &mut dqkv, &mut dk, &mut dv)
                },
                |gpu| {
                    let (mut out, mut lse) = (vec![0.0; dout.len()], vec![0.0; rows * m.heads]);
                    cpu.attention_lse(&shape, &qkv, &k, &v, &mut out, &mut lse)?;
                    let mut want = vec![0.0; rows * width];
                    let [mut want_k, mut want_v] = [(); 2].map(|()| vec![0.0; rows * kv]);
                    let attended = Attended {
                        qkv: &qkv,
                        k: &k,
                        v: &v,
                        out: &out,
                        lse: &lse,
                    };
                    cpu.attention_bwd(
                        &shape,
                        attended,
                        &dout,
                        &mut want,
                        &mut want_k,
                        &mut want_v,
                    )?;
                    let mut off = 0.0f64;
                    for (buf, want) in [(&dqkv, &want), (&dk, &want_k), (&dv, &want_v)] {
                        off = off.max(worst(&gpu.download(&buf.borrow(), 0..want.len())?, want));
                    }
                    Ok(off)
                },
            )?;
        }
        Ok(())
    }

    /// Of what stands between the products.
    pub fn layers_bwd(&mut self, m: Shape) -> Result<()> {
        if !self.wants("layer_bwd") {
            return Ok(());
        }
        for rows in self.rows() {
            let cpu = Cpu::new();
            let (d, f) = (m.hidden, m.ffn);
            let memory = |op, elements: usize| Case {
                op,
                detail: "",
                rows,
                flops: 0.0,
                bytes: 4.0 * elements as f64,
                bound: Bound::Memory,
            };

            let [x, dy] = [31, 32].map(|seed| floats(rows * d, 1.0, seed));
            let weight = floats(d, 1.0, 33);
            let (x_on, dy_on) = (self.gpu.upload(&x)?, self.gpu.upload(&dy)?);
            let weight_on = self.gpu.upload(&weight)?;
            let dx = RefCell::new(self.gpu.zeros::<f32>(rows * d)?);
            let shape = Norm {
                rows,
                width: d,
                eps: 1e-5,
                kind: NormKind::Rms,
            };
            self.case(
                m,
                &memory("norm_bwd", 4 * rows * d),
                1e-4,
                |gpu| gpu.norm_bwd(shape, &x_on, &weight_on, &dy_on, &mut dx.borrow_mut()),
                |gpu| {
                    let mut want = vec![0.0; rows * d];
                    cpu.norm_bwd(shape, &x, &weight, &dy, &mut want)?;
                    Ok(worst(&gpu.download(&dx.borrow(), 0..rows * d)?, &want))
                },
            )?;

            let (x, dy) = (floats(rows * 2 * f, 4.0, 34), floats(rows * f, 1.0, 35));
            let (x_on, dy_on) = (self.gpu.upload(&x)?, self.gpu.upload(&dy)?);
            let dx = RefCell::new(self.poisoned(rows * 2 * f)?);
            self.case(
                m,
                &memory("swiglu_bwd", 5 * rows * f),
                1e-4,
                |gpu| gpu.swiglu_bwd(rows, f, &x_on, &dy_on, &mut dx.borrow_mut()),
                |gpu| {
                    let mut want = vec![0.0; rows * 2 * f];
                    cpu.swiglu_bwd(rows, f, &x, &dy, &mut want)?;
                    Ok(worst(&gpu.download(&dx.borrow(), 0..want.len())?, &want))
                },
            )?;

            let all = (m.heads + 2 * m.kv_heads) * m.head_dim;
            let kv = m.kv_heads * m.head_dim;
            let given = floats(rows * all, 1.0, 36);
            let angles = floats(rows * m.head_dim, 0.7, 37);
            let [dk, dv] = [38, 39].map(|seed| floats(rows * kv, 1.0, seed));
            let (angles_on, dk_on, dv_on) = (
                self.gpu.upload(&angles)?,
                self.gpu.upload(&dk)?,
                self.gpu.upload(&dv)?,
            );
            let dqkv = RefCell::new(self.gpu.upload(&given)?);
            // Without norms nobody reads what was rotated.
            let none = self.gpu.zeros::<f32>(0)?;
            let shape = Rotate {
                rows,
                heads: m.heads,
                kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                at: 0,
                eps: 1e-5,
                pairing: Pairing::Halves,
            };
            self.case(
                m,
                &memory("rotate_bwd", 2 * rows * all),
                1e-4,
                |gpu| {
                    let (turns, mut dqkv) = (Some(&angles_on), dqkv.borrow_mut());
                    gpu.rotate_bwd(shape, &none, None, turns, &dk_on, &dv_on, &mut dqkv)
                },
                |gpu| {
                    let mut want = given.clone();
                    let (turns, none) = (Some(&angles), Vec::new());
                    cpu.rotate_bwd(shape, &none, None, turns, &dk, &dv, &mut want)?;
                    Ok(worst(&gpu.download(&dqkv.borrow(), 0..want.len())?, &want))
                },
            )?;
        }
        Ok(())
    }

    /// The update of q, k and v by one kernel and by two products, and its gradients.
    pub fn lora(&mut self, m: Shape) -> Result<()> {
        if !self.wants("lora") {
            return Ok(());
        }
        let (d, rank) = (m.hidden, RANK.min(m.hidden / 4));
        let kv = m.kv_heads * m.head_dim;
        let (mut parts, mut outputs) = (Vec::new(), 0);
        for (i, width) in [m.heads * m.head_dim, kv, kv].into_iter().enumerate() {
            parts.push(LoraPart {
                rank: i * rank,
                ranks: rank,
                output: outputs,
                outputs: width,
            });
            outputs += width;
        }
        let ranks = 3 * rank;
        let a = floats(ranks * d, 1.0 / (d as f32).sqrt(), 41);
        let mut b = floats(outputs * ranks, 0.1, 42);
        for (row, b) in b.chunks_exact_mut(ranks).enumerate() {
            let part = parts.iter().position(|p| row < p.output + p.outputs);
            for (i, b) in b.iter_mut().enumerate() {
                if Some(i / rank) != part {
                    *b = 0.0;
                }
            }
        }
        let (a_on, b_on) = (
            self.gpu.matrix(ranks, d, &a)?,
            self.gpu.matrix(outputs, ranks, &b)?,
        );
        let a_across = self.gpu.transposed(&a_on)?;
        let b_across = self.gpu.transposed(&b_on)?;
        let cpu = Cpu::new();
        let (a, b) = (cpu.matrix(ranks, d, &a)?, cpu.matrix(outputs, ranks, &b)?);
        let across = [cpu.transposed(&a)?, cpu.transposed(&b)?];
        for rows in self.rows() {
            let (x, dy) = (floats(rows * d, 1.0, 43), floats(rows * outputs, 1.0, 44));
            let (x_on, dy_on) = (self.gpu.upload(&x)?, self.gpu.upload(&dy)?);
            let shape = LoraUpdate {
                rows,
                inputs: d,
                outputs,
                ranks,
                parts: &parts,
                dropout: None,
            };
            let case = |op, flops: usize, elements: usize| Case {
                op,
                detail: "qkv",
                rows,
                flops: 2.0 * (rows * flops) as f64,
                bytes: 4.0 * (rows * elements) as f64,
                bound: Bound::Memory,
            };
            let (narrow, wide) = (ranks * d, rank * outputs);
            for op in ["lora", "lora (products)"] {
                let y = RefCell::new(self.gpu.zeros::<f32>(rows * outputs)?);
                let low = RefCell::new(self.gpu.zeros::<f32>(rows * ranks)?);
                self.case(
                    m,
                    &case(op, narrow + wide, d + 2 * outputs),
                    0.02,
                    |gpu| {
                        let [mut y, mut low] = [y.borrow_mut(), low.borrow_mut()];
                        if op == "lora" {
                            return gpu.lora(&shape, &x_on, &a_on, &b_on, &mut y);
                        }
                        let down = Linear {
                            rows,
                            inputs: d,
                            outputs: ranks,
                            add: false,
                        };
                        let up = Linear {
                            rows,
                            inputs: ranks,
                            outputs,
                            add: true,
                        };
                        gpu.linear(down, &x_on, &a_on, None, &mut low)?;
                        gpu.linear(up, &low, &b_on, None, &mut y)
                    },
                    |gpu| {
                        let mut want = vec![0.0; rows * outputs];
                        cpu.lora(&shape, &x, &a, &b, &mut want)?;
                        Ok(worst(&gpu.download(&y.borrow(), 0..want.len())?, &want))
                    },
                )?;
            }

            let dx = RefCell::new(self.gpu.zeros::<f32>(rows * d)?);
            let mut found = Vec::new();
            for part in &parts {
                let da = self.poisoned(rank * d)?;
                found.push([da, self.poisoned(part.outputs * rank)?]);
            }
            let found = RefCell::new(found);
            self.case(
                m,
                &case("lora_bwd", 3 * narrow + 2 * wide, 3 * d + outputs),
                // Sums over the rows of what was rounded to 8 bits.
                0.01 * (rows as f64).sqrt(),
                |gpu| {
                    let factors = LoraFactors {
                        a: &a_on,
                        a_across: &a_across,
                        b_across: &b_across,
                    };
                    let (mut dx, mut found) = (dx.borrow_mut(), found.borrow_mut());
                    let mut wanted: Vec<_> = found.iter_mut().map(|[a, b]| Some([a, b])).collect();
                    gpu.lora_bwd(&shape, &factors, &x_on, &dy_on, Some(&mut dx), &mut wanted)
                },
                |gpu| {
                    let mut want = vec![0.0; rows * d];
                    let mut pairs: Vec<[Vec<f32>; 2]> = parts
                        .iter()
                        .map(|part| [vec![0.0; rank * d], vec![0.0; part.outputs * rank]])
                        .collect();
                    let mut wanted: Vec<_> = pairs.iter_mut().map(|[a, b]| Some([a, b])).collect();
                    let factors = LoraFactors {
                        a: &a,
                        a_across: &across[0],
                        b_across: &across[1],
                    };
                    cpu.lora_bwd(&shape, &factors, &x, &dy, Some(&mut want), &mut wanted)?;
                    let mut off = worst(&gpu.download(&dx.borrow(), 0..want.len())?, &want);
                    let found = found.borrow();
                    for (got, want) in found.iter().flatten().zip(pairs.iter().flatten()) {
                        off = off.max(worst(&gpu.download(got, 0..want.len())?, want));
                    }
                    Ok(off)
                },
            )?;
        }
        Ok(())
    }
}

/// Of `-ln softmax(x · weightsᵀ)[target]` with respect to x.
fn gradient(x: &[f32], weights: &[f32], target: usize) -> Vec<f32> {
    let logits: Vec<f64> = weights
        .par_chunks_exact(x.len())
        .map(|w| w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum())
        .collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    let blank = || vec![0.0f64; x.len()];
    let add = |mut to: Vec<f64>, more: Vec<f64>| {
        to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
        to
    };
    let out = weights
        .par_chunks_exact(x.len())
        .zip(&logits)
        .enumerate()
        .fold(blank, |mut out, (id, (w, logit))| {
            let slope = (logit - max).exp() / sum - f64::from(u8::from(id == target));
            for (out, &w) in out.iter_mut().zip(w) {
                *out += slope * f64::from(w);
            }
            out
        })
        .reduce(blank, add);
    out.into_iter().map(|v| v as f32).collect()
}
