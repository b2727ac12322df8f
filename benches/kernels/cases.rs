//! What is measured, and what it is compared with.

use std::cell::RefCell;

use prefold::Result;
use prefold::gpu::{Buf, Gpu};
use prefold::ops::{
    Attention, AttentionOp, Cpu, GemmOp, Keep, LayerOp, Linear, NllOp, Norm, NormKind, Pairing,
    Pick, Rotate, Select, Selection, Storage, TopKOp,
};
use rayon::prelude::*;
use serde_json::json;

use super::clock::{Ceilings, Clock, Times};
use super::expected::expected;
use super::tape::Tape;
use super::whole;

/// The shapes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    name: &'static str,
    pub hidden: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

const MODELS: [Shape; 2] = [
    Shape {
        name: "smollm2",
        hidden: 576,
        ffn: 1536,
        vocab: 49_152,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
    },
    Shape {
        name: "llama3-8b",
        hidden: 4096,
        ffn: 14_336,
        vocab: 128_256,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
    },
];
const TINY: Shape = Shape {
    name: "tiny",
    hidden: 48,
    ffn: 40,
    vocab: 300,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
};

/// What of it to run.
pub struct Selected {
    pub json: bool,
    pub only: Vec<String>,
    pub models: Vec<String>,
    pub rows: Vec<usize>,
    tiny: bool,
}

impl Default for Selected {
    fn default() -> Self {
        Selected {
            json: false,
            only: Vec::new(),
            models: Vec::new(),
            rows: vec![200, 2000, 8192],
            tiny: false,
        }
    }
}

impl Selected {
    /// Shapes that a CPU can execute.
    pub fn tiny(self) -> Self {
        Selected {
            rows: vec![9, 70],
            tiny: true,
            models: Vec::new(),
            ..self
        }
    }
}

/// What bounds an op, if one thing does.
#[derive(Clone, Copy)]
pub enum Bound {
    Products,
    Memory,
    Latency,
}

/// An op at a shape.
pub struct Case {
    pub op: &'static str,
    pub detail: &'static str,
    pub rows: usize,
    /// Multiplications and additions.
    pub flops: f64,
    /// Each operand once.
    pub bytes: f64,
    pub bound: Bound,
}

pub struct Bench<L: Clock> {
    pub gpu: Gpu<Tape<L>>,
    cpu: Cpu,
    ceilings: Option<Ceilings>,
    pub selected: Selected,
    failed: usize,
}

type Floats<L> = Buf<Tape<L>, f32>;

/// So many numbers from −scale to scale, another sequence for every seed.
pub fn floats(count: usize, scale: f32, seed: u64) -> Vec<f32> {
    let number = |i: usize| {
        let z = (seed << 40 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ z >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..count).into_par_iter().map(number).collect()
}

/// The greatest difference, with everything that is not a number as infinite.
pub fn worst(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let difference = |(a, b): (&f32, &f32)| match (a - b).abs() {
        d if d.is_finite() => f64::from(d),
        _ => f64::INFINITY,
    };
    got.par_iter()
        .zip(want)
        .map(difference)
        .reduce(|| 0.0, f64::max)
}

impl<L: Clock> Bench<L> {
    pub fn new(gpu: Gpu<Tape<L>>, ceilings: Option<Ceilings>, selected: Selected) -> Self {
        Bench {
            gpu,
            cpu: Cpu::new(),
            ceilings,
            selected,
            failed: 0,
        }
    }

    pub fn failed(&self) -> usize {
        self.failed
    }

    pub fn head(&self) {
        let flops = self.ceilings.and_then(|c| c.flops);
        if self.selected.json {
            let line = json!({
                "bench": "kernels", "op": "ceilings", "device": self.gpu.describe(),
                "bytes_per_second": self.ceilings.map(|c| c.bytes), "flops_per_second": flops,
                "cached_bytes_per_second": self.ceilings.map(|c| c.cached),
            });
            println!("{line}");
            return;
        }
        println!("{}", self.gpu.describe());
        if let Some(c) = self.ceilings {
            println!("  a large copy: {:.2} TB/s", c.bytes / 1e12);
            println!(
                "  a copy within the last cache: {:.2} TB/s",
                c.cached / 1e12
            );
            match flops {
                Some(flops) => {
                    println!("  a large product by cublasLt: {:.0} TFLOP/s", flops / 1e12)
                }
                None => println!("  no cublasLt: products are not compared with it"),
            }
        }
        println!(
            "  {:<10} {:<18} {:<11} {:>5} {:>10} {:>10} {:>11} {:>9} {:>8} {:>9}",
            "model",
            "op",
            "",
            "rows",
            "cold µs",
            "warm µs",
            "expected µs",
            "TFLOP/s",
            "GB/s",
            "of best"
        );
    }

    pub fn all(&mut self) -> Result<()> {
        let models: Vec<Shape> = if self.selected.tiny {
            vec![TINY]
        } else {
            let wanted = &self.selected.models;
            MODELS
                .into_iter()
                .filter(|m| wanted.is_empty() || wanted.iter().any(|name| name == m.name))
                .collect()
        };
        for model in models {
            self.nll(model)?;
            self.products(model)?;
            self.attention(model)?;
            self.selection(model)?;
            self.layers(model)?;
            self.lora(model)?;
            self.nll_bwd(model)?;
            self.attention_bwd(model)?;
            self.layers_bwd(model)?;
        }
        Ok(())
    }

    pub fn wants(&self, op: &str) -> bool {
        self.selected.only.is_empty() || self.selected.only.iter().any(|only| only == op)
    }

    /// Runs a case, compares, times, and says so. `check` gives the greatest difference from what is
    /// right; more than `allowed` is wrong.
    pub fn case(
        &mut self,
        model: Shape,
        case: &Case,
        allowed: f64,
        mut run: impl FnMut(&Gpu<Tape<L>>) -> Result<()>,
        check: impl FnOnce(&Gpu<Tape<L>>) -> Result<f64>,
    ) -> Result<()> {
        run(&self.gpu)?;
        let off = check(&self.gpu)?;
        let right = off <= allowed;
        self.failed += usize::from(!right);
        let tape = self.gpu.launcher();
        tape.start();
        run(&self.gpu)?;
        let entries = tape.stop();
        // SAFETY: all buffers are still there: the caller's, the backend's own, which change only when an
        // op asks for more, and what the op made for itself, which the tape keeps.
        let times = unsafe { L::time(tape, &entries)? };
        tape.release();
        self.report(model, case, right, off, entries.len(), times);
        Ok(())
    }

    fn report(
        &self,
        model: Shape,
        case: &Case,
        right: bool,
        off: f64,
        launches: usize,
        times: Option<Times>,
    ) {
        let rates = times.map(|t| (case.flops / t.cold, case.bytes / t.cold));
        let expected = expected(model.name, case.op, case.detail, case.rows);
        let best = match (case.bound, self.ceilings, rates) {
            (Bound::Products, Some(c), Some((flops, _))) => c.flops.map(|best| flops / best),
            (Bound::Memory, Some(c), Some((_, bytes))) => Some(bytes / c.bytes),
            _ => None,
        };
        if self.selected.json {
            let line = json!({
                "bench": "kernels", "op": case.op, "detail": case.detail, "model": model.name,
                "rows": case.rows, "right": right, "worst_difference": off, "launches": launches,
                "seconds": times.map(|t| t.cold), "warm_seconds": times.map(|t| t.warm),
                "flops": case.flops, "bytes": case.bytes,
                "flops_per_second": rates.map(|r| r.0), "bytes_per_second": rates.map(|r| r.1),
                "of_ceiling": best, "expected_seconds": expected,
            });
            println!("{line}");
            return;
        }
        let micro = |seconds: Option<f64>| match seconds {
            Some(seconds) => format!("{:.1}", seconds * 1e6),
            None => "-".into(),
        };
        let rate = |value: Option<f64>, unit: f64| match value {
            Some(value) if value > 0.0 => format!("{:.1}", value / unit),
            _ => "-".into(),
        };
        println!(
            "  {:<10} {:<18} {:<11} {:>5} {:>10} {:>10} {:>11} {:>9} {:>8} {:>9}{}",
            model.name,
            case.op,
            case.detail,
            case.rows,
            micro(times.map(|t| t.cold)),
            micro(times.map(|t| t.warm)),
            expected.map_or("-".into(), |[from, to]| format!(
                "{:.0}-{:.0}",
                from * 1e6,
                to * 1e6
            )),
            rate(rates.map(|r| r.0), 1e12),
            rate(rates.map(|r| r.1), 1e9),
            best.map_or("-".into(), |best| format!("{:.0} %", 100.0 * best)),
            if right {
                String::new()
            } else {
                format!("  WRONG by {off:e}")
            },
        );
    }

    pub fn poisoned(&self, len: usize) -> Result<Floats<L>> {
        self.gpu.upload(&vec![f32::NAN; len])
    }

    /// LM head, log-softmax and gather in one; and from given logits.
    fn nll(&mut self, m: Shape) -> Result<()> {
        if !self.wants("nll") {
            return Ok(());
        }
        let d = m.hidden;
        // Logits of about ±3.
        let scale = 3.0 / (d as f32 / 3.0).sqrt();
        let weights = floats(m.vocab * d, scale, 1);
        let head = self.gpu.matrix(m.vocab, d, &weights)?;
        let cpu_head = self.cpu.matrix(m.vocab, d, &weights)?;
        drop(weights);
        for rows in self.selected.rows.clone() {
            let x = floats(rows * d, 1.0, 2);
            let picks: Vec<Pick> = (0..rows)
                .map(|row| Pick {
                    row: row as u32,
                    target: (row * 7919 % m.vocab) as u32,
                })
                .collect();
            let x_on = self.gpu.upload(&x)?;
            let out = RefCell::new(self.poisoned(rows)?);
            let case = Case {
                op: "nll",
                detail: "",
                rows,
                flops: 2.0 * (rows * m.vocab * d) as f64,
                bytes: (2 * m.vocab * d + 2 * rows * d + 4 * rows) as f64,
                bound: Bound::Products,
            };
            let cpu = Cpu::new();
            self.case(
                m,
                &case,
                0.02,
                |gpu| gpu.nll(d, &x_on, &head, &picks, &mut out.borrow_mut()),
                |gpu| {
                    let sample: Vec<Pick> =
                        [0, rows / 3, rows / 2, rows - 1].map(|i| picks[i]).into();
                    let mut want = vec![0.0; sample.len()];
                    cpu.nll(d, &x, &cpu_head, &sample, &mut want)?;
                    let all = gpu.download(&out.borrow(), 0..rows)?;
                    let got: Vec<f32> = sample.iter().map(|p| all[p.row as usize]).collect();
                    let every = whole::nll(gpu, [d, m.vocab], &x, &head, &picks, &all)?;
                    Ok(worst(&got, &want).max(every))
                },
            )?;
        }
        let rows = self.selected.rows[0];
        let logits = floats(rows * m.vocab, 8.0, 3);
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % m.vocab) as u32).collect();
        let logits_on = self.gpu.upload(&logits)?;
        let out = RefCell::new(self.poisoned(rows)?);
        let case = Case {
            op: "nll_logits",
            detail: "",
            rows,
            flops: 0.0,
            bytes: (4 * rows * m.vocab) as f64,
            bound: Bound::Memory,
        };
        self.case(
            m,
            &case,
            1e-4,
            |gpu| gpu.nll_of_logits(m.vocab, &logits_on, &targets, &mut out.borrow_mut()),
            |gpu| {
                let want: Vec<f32> = logits
                    .par_chunks_exact(m.vocab)
                    .zip(&targets)
                    .map(|(row, &target)| {
                        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
                        (sum.ln() - f64::from(row[target as usize])) as f32
                    })
                    .collect();
                Ok(worst(&gpu.download(&out.borrow(), 0..rows)?, &want))
            },
        )
    }

    /// Projections, by the device's library and by the kernel that stands in for it.
    fn products(&mut self, m: Shape) -> Result<()> {
        if !self.wants("linear") {
            return Ok(());
        }
        let qkv = (m.heads + 2 * m.kv_heads) * m.head_dim;
        // The head's is what nll is to be held against: its product alone, with logits that are written.
        for (name, inputs, outputs) in [
            ("qkv", m.hidden, qkv),
            ("up", m.hidden, 2 * m.ffn),
            ("head", m.hidden, m.vocab),
        ] {
            let scale = 1.0 / (inputs as f32 / 3.0).sqrt();
            let weights = floats(outputs * inputs, scale, 4);
            let w = self.gpu.matrix(outputs, inputs, &weights)?;
            let cpu_w = self.cpu.matrix(outputs, inputs, &weights)?;
            for rows in self.selected.rows.clone() {
                let x = floats(rows * inputs, 1.0, 5);
                let x_on = self.gpu.upload(&x)?;
                // All rows of the library's, for ours to be compared with.
                let from_library = RefCell::new(Vec::new());
                for library in [true, false] {
                    if library && self.ceilings.is_none_or(|c| c.flops.is_none()) {
                        continue;
                    }
                    if !library && name == "head" {
                        continue;
                    }
                    let y = RefCell::new(self.poisoned(rows * outputs)?);
                    let shape = |rows| Linear {
                        rows,
                        inputs,
                        outputs,
                        add: false,
                    };
                    let case = Case {
                        op: if library { "linear" } else { "linear (own)" },
                        detail: name,
                        rows,
                        flops: 2.0 * (rows * inputs * outputs) as f64,
                        bytes: (2 * inputs * outputs + 4 * rows * (inputs + outputs)) as f64,
                        bound: Bound::Products,
                    };
                    self.gpu.launcher().use_library(library);
                    let cpu = Cpu::new();
                    let done = self.case(
                        m,
                        &case,
                        0.05,
                        |gpu| gpu.linear(shape(rows), &x_on, &w, None, &mut y.borrow_mut()),
                        |gpu| {
                            let few = rows.min(4);
                            let (skip, mut want) = (rows - few, vec![0.0; few * outputs]);
                            let tail = x[skip * inputs..].to_vec();
                            cpu.linear(shape(few), &tail, &cpu_w, None, &mut want)?;
                            let all = gpu.download(&y.borrow(), 0..rows * outputs)?;
                            let mut off = worst(&all[skip * outputs..], &want);
                            let mut other = from_library.borrow_mut();
                            if other.is_empty() {
                                let finite = all.par_iter().all(|v| v.is_finite());
                                off = if finite { off } else { f64::INFINITY };
                                *other = all;
                            } else {
                                off = off.max(worst(&all, &other));
                            }
                            Ok(off)
                        },
                    );
                    self.gpu.launcher().use_library(true);
                    done?;
                }
            }
        }
        Ok(())
    }

    /// Prefill, and few queries behind many keys.
    fn attention(&mut self, m: Shape) -> Result<()> {
        if !self.wants("attention") {
            return Ok(());
        }
        let first = self.selected.rows[0];
        let mut shapes: Vec<(usize, usize, &str)> = self
            .selected
            .rows
            .iter()
            .map(|&rows| (rows, 0, "prefill"))
            .collect();
        shapes.push((first, 9 * first, "on 10x keys"));
        let (width, kv) = (
            (m.heads + 2 * m.kv_heads) * m.head_dim,
            m.kv_heads * m.head_dim,
        );
        for (rows, prefix, detail) in shapes {
            let keys = prefix + rows;
            let qkv = floats(rows * width, 1.5, 6);
            let [k, v] = [7, 8].map(|seed| floats(keys * kv, 1.5, seed));
            let qkv_on = self.gpu.upload(&qkv)?;
            let [k_on, v_on] = [self.gpu.upload(&k)?, self.gpu.upload(&v)?];
            let out_width = m.heads * m.head_dim;
            let out = RefCell::new(self.poisoned(rows * out_width)?);
            let seen = (rows * prefix + rows * (rows + 1) / 2) as f64;
            let case = Case {
                op: "attention",
                detail,
                rows,
                flops: 4.0 * seen * out_width as f64,
                bytes: (8 * keys * kv + 4 * rows * (width + out_width)) as f64,
                bound: Bound::Products,
            };
            let lengths = [rows];
            let shape = Attention {
                heads: m.heads,
                kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                prefix,
                prefixes: &[],
                at: prefix,
                lengths: &lengths,
                window: None,
                ahead: 0,
            };
            let cpu = Cpu::new();
            self.case(
                m,
                &case,
                0.05,
                |gpu| gpu.attention(&shape, &qkv_on, &k_on, &v_on, &mut out.borrow_mut()),
                |gpu| {
                    // The last rows see everything before them, as rows behind a prefix do.
                    let few = rows.min(4);
                    let lengths = [few];
                    let last = Attention {
                        prefix: keys - few,
                        at: keys - few,
                        lengths: &lengths,
                        ..shape
                    };
                    let mut want = vec![0.0; few * out_width];
                    let tail = qkv[(rows - few) * width..].to_vec();
                    cpu.attention(&last, &tail, &k, &v, &mut want)?;
                    let all = gpu.download(&out.borrow(), 0..rows * out_width)?;
                    let off = worst(&all[(rows - few) * out_width..], &want);
                    let every = whole::attention(gpu, &shape, &qkv, [&k_on, &v_on], &all)?;
                    Ok(off.max(every))
                },
            )?;
        }
        Ok(())
    }

    /// Half of the scores of one segment, and of many at once; and the rows of a cache that stay.
    fn selection(&mut self, m: Shape) -> Result<()> {
        if !self.wants("topk") {
            return Ok(());
        }
        for rows in self.selected.rows.clone() {
            for (segments, detail) in [(1, "1 segment"), (64, "64 segments")] {
                let n = rows * segments;
                let scores = floats(n, 10.0, 9);
                let ids: Vec<u32> = (0..n as u32).collect();
                let select: Vec<Select> = (0..segments)
                    .map(|i| Select {
                        first: (i * rows) as u32,
                        len: rows as u32,
                        keep: Keep::Count(rows as u32 / 2),
                    })
                    .collect();
                let scores_on = self.gpu.upload(&scores)?;
                let ids_on = self.gpu.upload(&ids)?;
                let out = RefCell::new(Selection::new(&self.gpu, n, segments)?);
                let case = Case {
                    op: "topk",
                    detail,
                    rows,
                    flops: 0.0,
                    bytes: (8 * n + 4 * n + 8 * n / 2) as f64,
                    bound: Bound::Latency,
                };
                let cpu = Cpu::new();
                self.case(
                    m,
                    &case,
                    0.0,
                    |gpu| gpu.topk(&select, &scores_on, &ids_on, &mut out.borrow_mut()),
                    |gpu| {
                        let mut want = Selection::new(&cpu, n, segments)?;
                        cpu.topk(&select, &scores, &ids, &mut want)?;
                        let got = gpu.download(&out.borrow().mask, 0..n)?;
                        let wrong = got.iter().zip(&want.mask).filter(|(a, b)| a != b);
                        Ok(wrong.count() as f64)
                    },
                )?;
                if segments > 1 {
                    continue;
                }
                let width = m.kv_heads * m.head_dim;
                let x = floats(rows * width, 1.0, 10);
                let x_on = self.gpu.upload(&x)?;
                let moved = RefCell::new(self.poisoned(rows * width)?);
                let selection = out.borrow();
                let case = Case {
                    op: "gather",
                    detail: "half",
                    rows,
                    flops: 0.0,
                    bytes: (2 * (rows / 2) * width * 4) as f64,
                    bound: Bound::Memory,
                };
                let of = select[0];
                self.case(
                    m,
                    &case,
                    0.0,
                    |gpu| {
                        let to = &mut moved.borrow_mut();
                        gpu.gather(width, &x_on, &selection, 0, of, 0, to)
                    },
                    |gpu| {
                        let stay = gpu.download(&selection.rows, 0..rows / 2)?;
                        let want: Vec<f32> = stay
                            .iter()
                            .flat_map(|&row| x[row as usize * width..][..width].iter().copied())
                            .collect();
                        Ok(worst(&gpu.download(&moved.borrow(), 0..want.len())?, &want))
                    },
                )?;
            }
        }
        Ok(())
    }

    /// What stands between the products.
    fn layers(&mut self, m: Shape) -> Result<()> {
        if !self.wants("layer") {
            return Ok(());
        }
        for rows in self.selected.rows.clone() {
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

            let (x, weight) = (floats(rows * d, 1.0, 11), floats(d, 1.0, 12));
            let (x_on, weight_on) = (self.gpu.upload(&x)?, self.gpu.upload(&weight)?);
            let y = RefCell::new(self.poisoned(rows * d)?);
            let shape = Norm {
                rows,
                width: d,
                eps: 1e-5,
                kind: NormKind::Rms,
            };
            self.case(
                m,
                &memory("norm", 2 * rows * d),
                1e-4,
                |gpu| gpu.norm(shape, &x_on, &weight_on, None, &mut y.borrow_mut()),
                |gpu| {
                    let mut want = vec![0.0; rows * d];
                    cpu.norm(shape, &x, &weight, None, &mut want)?;
                    Ok(worst(&gpu.download(&y.borrow(), 0..rows * d)?, &want))
                },
            )?;

            let x = floats(rows * 2 * f, 4.0, 13);
            let x_on = self.gpu.upload(&x)?;
            let y = RefCell::new(self.poisoned(rows * f)?);
            self.case(
                m,
                &memory("swiglu", 3 * rows * f),
                1e-4,
                |gpu| gpu.swiglu(rows, f, &x_on, &mut y.borrow_mut()),
                |gpu| {
                    let mut want = vec![0.0; rows * f];
                    cpu.swiglu(rows, f, &x, &mut want)?;
                    Ok(worst(&gpu.download(&y.borrow(), 0..rows * f)?, &want))
                },
            )?;

            self.case(
                m,
                &memory("geglu", 3 * rows * f),
                1e-4,
                |gpu| gpu.geglu(rows, f, &x_on, &mut y.borrow_mut()),
                |gpu| {
                    let mut want = vec![0.0; rows * f];
                    cpu.geglu(rows, f, &x, &mut want)?;
                    Ok(worst(&gpu.download(&y.borrow(), 0..rows * f)?, &want))
                },
            )?;

            let all = (m.heads + 2 * m.kv_heads) * m.head_dim;
            let kv = m.kv_heads * m.head_dim;
            let qkv = floats(rows * all, 1.0, 14);
            // Any numbers will do as cosines and sines; of them, small ones stay small when timed.
            let angles = floats(rows * m.head_dim, 0.7, 15);
            let qkv_on = RefCell::new(self.gpu.upload(&qkv)?);
            let angles_on = self.gpu.upload(&angles)?;
            let k = RefCell::new(self.poisoned(rows * kv)?);
            let v = RefCell::new(self.poisoned(rows * kv)?);
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
                &memory("rotate", 2 * rows * all + 2 * rows * kv),
                1e-4,
                |gpu| {
                    let [qkv, k, v] = [&qkv_on, &k, &v].map(|buf| buf.borrow_mut());
                    let (mut qkv, mut k, mut v) = (qkv, k, v);
                    gpu.rotate(shape, &mut qkv, None, Some(&angles_on), &mut k, &mut v)
                },
                |gpu| {
                    let (mut want, mut want_k, mut want_v) =
                        (qkv.clone(), vec![0.0; rows * kv], vec![0.0; rows * kv]);
                    let angles = Some(&angles);
                    cpu.rotate(shape, &mut want, None, angles, &mut want_k, &mut want_v)?;
                    let off = [(&qkv_on, &want), (&k, &want_k), (&v, &want_v)]
                        .map(|(buf, want)| {
                            Ok(worst(&gpu.download(&buf.borrow(), 0..want.len())?, want))
                        })
                        .into_iter()
                        .collect::<Result<Vec<f64>>>()?;
                    Ok(off.into_iter().fold(0.0, f64::max))
                },
            )?;
        }
        Ok(())
    }
}
