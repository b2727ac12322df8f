//! Runs the cases of a model's sizes on a device: first compared with the CPU, then timed.

use std::cell::RefCell;

use prefold::Result;
use prefold::cpu::{Cpu, Panels};
use prefold::gpu::{Buf, Gpu, Launch, Matrix};
use prefold::ops::{Buffer, GemmOp, Linear, Storage, TopKOp};
use rayon::prelude::*;
use serde_json::json;

use super::cases::{
    Bound, Case, MODELS, Nll, Op, Placed, Sizes, TINY, TopK, Want, distance, floats, of_model,
};
use super::clock::{Ceilings, Clock, Times};
use super::expected::expected;
use super::tape::Tape;
use super::whole;

/// Last rows that are compared where the whole would take a CPU too long.
const FEW: usize = 4;

/// What to run.
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

    /// An op by its name, or by that of its group.
    fn wants(&self, op: &str) -> bool {
        let group = match op {
            "norm" | "swiglu" | "geglu" | "rotate" => "layer",
            "norm_bwd" | "swiglu_bwd" | "rotate_bwd" => "layer_bwd",
            "lora_bwd" => "lora",
            "nll_logits" => "nll",
            op => op,
        };
        let wanted = |only: &String| only == op || only == group;
        self.only.is_empty() || self.only.iter().any(wanted)
    }
}

/// What a line of the report says of an op.
struct Line<'a> {
    model: &'a Sizes,
    op: &'a str,
    detail: &'a str,
    rows: usize,
    flops: f64,
    bytes: f64,
    bound: Bound,
}

/// Matrices of an op, which are the same for all numbers of rows.
type Matrices<L> = Option<(Vec<Matrix<Tape<L>>>, Vec<Panels>)>;

pub struct Bench<L: Clock> {
    gpu: Gpu<Tape<L>>,
    cpu: Cpu,
    ceilings: Option<Ceilings>,
    selected: Selected,
    failed: usize,
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
            let cached = c.cached / 1e12;
            println!("  a copy within the last cache: {cached:.2} TB/s");
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
        let models: Vec<Sizes> = if self.selected.tiny {
            vec![TINY]
        } else {
            let wanted = &self.selected.models;
            MODELS
                .into_iter()
                .filter(|m| wanted.is_empty() || wanted.iter().any(|name| name == m.name))
                .collect()
        };
        for model in &models {
            for (op, detail, rows) in of_model(model, &self.selected.rows) {
                let mut matrices = None;
                for rows in rows {
                    let case = Case {
                        op,
                        rows,
                        skipped: 0,
                        seed: 1,
                    };
                    if self.selected.wants(case.name()) {
                        matrices = self.case(model, &case, detail, matrices)?;
                    }
                }
            }
            if self.selected.wants("nll_logits") {
                self.nll_logits(model)?;
            }
        }
        Ok(())
    }

    /// Compares and times a case of the table; gives its matrices back.
    fn case(
        &mut self,
        model: &Sizes,
        case: &Case,
        detail: &str,
        matrices: Matrices<L>,
    ) -> Result<Matrices<L>> {
        let host = case.host();
        let (on_gpu, on_cpu) = matrices.map_or((None, None), |(gpu, cpu)| (Some(gpu), Some(cpu)));
        let mut placed = match on_gpu {
            Some(matrices) => case.place_beside(&self.gpu, &host, matrices)?,
            None => case.place(&self.gpu, &host)?,
        };
        let part = case.tail(&host, case.rows.min(FEW));
        let tail = part.is_some();
        let (small, of_small) = part.unwrap_or((*case, host));
        let mut reference = match on_cpu {
            Some(matrices) => small.place_beside(&self.cpu, &of_small, matrices)?,
            None => small.place(&self.cpu, &of_small)?,
        };
        small.run(&self.cpu, &mut reference)?;
        let want = small.read(&self.cpu, &reference)?;
        drop(of_small);

        let line = Line {
            model,
            op: case.name(),
            detail,
            rows: case.rows,
            flops: case.flops(),
            bytes: case.bytes(),
            bound: case.bound(),
        };
        let allowed = case.tolerance(true);
        // All rows of the library's products, for ours to be compared with.
        let library = RefCell::new(Vec::new());
        let check = |gpu: &Gpu<Tape<L>>, placed: &Placed<Gpu<Tape<L>>>| {
            let got = case.read(gpu, placed)?;
            let far = compare(&got, &want, tail, allowed)?;
            if !tail {
                return Ok(far);
            }
            let every = match case.op {
                Op::Nll(Nll { width, vocab }) => {
                    let (x, head) = (&placed.inputs[0], &placed.matrices[0]);
                    whole::nll(gpu, [width, vocab], x, head, &case.picks(vocab))?
                }
                Op::Attention(attention) => {
                    let [qkv, k, v] = [0, 1, 2].map(|i| &placed.inputs[i]);
                    whole::attention(gpu, &attention.shape(&[case.rows]), qkv, [k, v])?
                }
                Op::Linear(_) => library.replace(got[0].clone()),
                _ => return Ok(far),
            };
            match every.is_empty() {
                true => Ok(far),
                // Two ways, each as far from what is right as it may be.
                false => Ok(far.max(compare(&got, &[every], false, allowed.map(|a| 2.0 * a))?)),
            }
        };
        let run = |gpu: &Gpu<Tape<L>>, placed: &mut Placed<Gpu<Tape<L>>>| case.run(gpu, placed);
        let by_library = self.ceilings.is_some_and(|c| c.flops.is_some());
        match case.op {
            Op::Linear(_) => {
                if by_library {
                    self.measure(&line, &mut placed, run, check)?;
                }
                if detail == "head" {
                    return Ok(Some((placed.matrices, reference.matrices)));
                }
                self.gpu.launcher().use_library(false);
                let own = Line {
                    op: "linear (own)",
                    ..line
                };
                let done = self.measure(&own, &mut placed, run, check);
                self.gpu.launcher().use_library(true);
                done?;
            }
            Op::Nll(_) => {
                let kernels = self.measure(&line, &mut placed, run, check)?;
                if kernels.contains(&"nll90") {
                    // The kernel of all other devices, beside it.
                    self.gpu.launcher().use_boxes(false);
                    let line = Line {
                        op: "nll (mma.sync)",
                        ..line
                    };
                    let done = self.measure(&line, &mut placed, run, check);
                    self.gpu.launcher().use_boxes(true);
                    done?;
                }
            }
            Op::Lora(_) => {
                self.measure(&line, &mut placed, run, check)?;
                self.lora_by_products(line, case)?;
            }
            Op::TopK(TopK { segments: 1 }) => {
                self.measure(&line, &mut placed, run, check)?;
                self.gather(model, case, &placed)?;
            }
            _ => {
                self.measure(&line, &mut placed, run, check)?;
            }
        }
        Ok(Some((placed.matrices, reference.matrices)))
    }

    /// Runs an op, compares by `check` (up to 1 is right), times it, and says so. Gives what was launched.
    fn measure<P>(
        &mut self,
        line: &Line<'_>,
        placed: &mut P,
        mut run: impl FnMut(&Gpu<Tape<L>>, &mut P) -> Result<()>,
        check: impl FnOnce(&Gpu<Tape<L>>, &P) -> Result<f64>,
    ) -> Result<Vec<&'static str>> {
        run(&self.gpu, placed)?;
        let far = check(&self.gpu, placed)?;
        let right = far <= 1.0;
        self.failed += usize::from(!right);
        let tape = self.gpu.launcher();
        tape.start();
        run(&self.gpu, placed)?;
        let entries = tape.stop();
        // SAFETY: all buffers are still there: the caller's, the backend's own, which change only when an
        // op asks for more, and what the op made for itself, which the tape keeps.
        let times = unsafe { L::time(tape, &entries)? };
        tape.release();
        self.report(line, right, far, entries.len(), times);
        let name = |launch: &Launch| match launch {
            Launch::Kernel(kernel) => kernel.name,
            Launch::Product(_) => "a product",
        };
        Ok(entries.iter().map(name).collect())
    }

    fn report(
        &self,
        line: &Line<'_>,
        right: bool,
        far: f64,
        launches: usize,
        times: Option<Times>,
    ) {
        let rates = times.map(|t| (line.flops / t.cold, line.bytes / t.cold));
        let expected = expected(line.model.name, line.op, line.detail, line.rows);
        let best = match (line.bound, self.ceilings, rates) {
            (Bound::Products, Some(c), Some((flops, _))) => c.flops.map(|best| flops / best),
            (Bound::Memory, Some(c), Some((_, bytes))) => Some(bytes / c.bytes),
            _ => None,
        };
        if self.selected.json {
            let record = json!({
                "bench": "kernels", "op": line.op, "detail": line.detail, "model": line.model.name,
                "rows": line.rows, "right": right, "difference_of_allowed": far,
                "launches": launches,
                "seconds": times.map(|t| t.cold), "warm_seconds": times.map(|t| t.warm),
                "flops": line.flops, "bytes": line.bytes,
                "flops_per_second": rates.map(|r| r.0), "bytes_per_second": rates.map(|r| r.1),
                "of_ceiling": best, "expected_seconds": expected,
            });
            println!("{record}");
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
            line.model.name,
            line.op,
            line.detail,
            line.rows,
            micro(times.map(|t| t.cold)),
            micro(times.map(|t| t.warm)),
            expected.map_or("-".into(), |[from, to]| {
                format!("{:.0}-{:.0}", from * 1e6, to * 1e6)
            }),
            rate(rates.map(|r| r.0), 1e12),
            rate(rates.map(|r| r.1), 1e9),
            best.map_or("-".into(), |best| format!("{:.0} %", 100.0 * best)),
            if right {
                String::new()
            } else {
                format!("  WRONG by {far:e} of what is allowed")
            },
        );
    }

    /// The update by two matmuls, for comparison.
    fn lora_by_products(&mut self, line: Line<'_>, case: &Case) -> Result<()> {
        let host = case.host();
        let placed = case.place(&self.gpu, &host)?;
        let mut on_cpu = case.place(&self.cpu, &host)?;
        case.run(&self.cpu, &mut on_cpu)?;
        let want = case.read(&self.cpu, &on_cpu)?;
        let Placed {
            matrices,
            inputs,
            mut outputs,
            ..
        } = placed;
        let shapes = [&on_cpu.matrices[0], &on_cpu.matrices[1]].map(prefold::ops::Shaped::shape);
        let [[ranks, width], [columns, _]] = shapes;
        let low = RefCell::new(self.gpu.zeros::<f32>(case.rows * ranks)?);
        let matmul = |inputs, outputs, add| Linear {
            rows: case.rows,
            inputs,
            outputs,
            add,
        };
        let line = Line {
            op: "lora (matmuls)",
            ..line
        };
        self.measure(
            &line,
            &mut outputs,
            |gpu, outputs| {
                let mut low = low.borrow_mut();
                let down = matmul(width, ranks, false);
                gpu.linear(down, &inputs[0], &matrices[0], None, &mut low)?;
                let up = matmul(ranks, columns, true);
                gpu.linear(up, &low, &matrices[1], None, &mut outputs[0])
            },
            |gpu, outputs| {
                let got = gpu.download(&outputs[0], 0..outputs[0].len())?;
                compare(&[got], &want, false, case.tolerance(true))
            },
        )?;
        Ok(())
    }

    /// The rows of a cache that a selection keeps, moved together.
    fn gather(&mut self, model: &Sizes, case: &Case, placed: &Placed<Gpu<Tape<L>>>) -> Result<()> {
        let (rows, width) = (case.rows, model.heads.keys * model.heads.dim);
        let Some(selection) = &placed.selection else {
            return Ok(());
        };
        let x = floats(rows * width, 1.0, 10);
        let x_on = self.gpu.upload(&x)?;
        let mut moved = self.gpu.upload(&vec![f32::NAN; rows * width])?;
        let line = Line {
            model,
            op: "gather",
            detail: "half",
            rows,
            flops: 0.0,
            bytes: (2 * (rows / 2) * width * 4) as f64,
            bound: Bound::Memory,
        };
        let of = case.segments(1)[0];
        self.measure(
            &line,
            &mut moved,
            |gpu, moved| gpu.gather(width, &x_on, selection, 0, of, 0, moved),
            |gpu, moved| {
                let stay = gpu.download(&selection.rows, 0..rows / 2)?;
                let want: Vec<f32> = stay
                    .iter()
                    .flat_map(|&row| x[row as usize * width..][..width].iter().copied())
                    .collect();
                let got = gpu.download(moved, 0..want.len())?;
                compare(&[got], &[want], false, [0.0, 0.0])
            },
        )?;
        Ok(())
    }

    /// Likelihoods from logits that exist already: not an op of the trait.
    fn nll_logits(&mut self, m: &Sizes) -> Result<()> {
        let rows = self.selected.rows[0];
        let logits = floats(rows * m.vocab, 8.0, 3);
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % m.vocab) as u32).collect();
        let logits_on = self.gpu.upload(&logits)?;
        let mut out: Buf<Tape<L>, f32> = self.gpu.upload(&vec![f32::NAN; rows])?;
        let line = Line {
            model: m,
            op: "nll_logits",
            detail: "",
            rows,
            flops: 0.0,
            bytes: (4 * rows * m.vocab) as f64,
            bound: Bound::Memory,
        };
        self.measure(
            &line,
            &mut out,
            |gpu, out| gpu.nll_of_logits(m.vocab, &logits_on, &targets, out),
            |gpu, out| {
                let want: Vec<f32> = logits
                    .par_chunks_exact(m.vocab)
                    .zip(&targets)
                    .map(|(row, &target)| {
                        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
                        (sum.ln() - f64::from(row[target as usize])) as f32
                    })
                    .collect();
                compare(&[gpu.download(out, 0..rows)?], &[want], false, [1e-4, 0.0])
            },
        )?;
        Ok(())
    }
}

/// How far results are from others in multiples of what is allowed; with `tail` from the last of them, and
/// all must be numbers.
fn compare(got: &[Vec<f32>], want: &[Vec<f32>], tail: bool, allowed: [f64; 2]) -> Result<f64> {
    let written = |all: &Vec<f32>| all.par_iter().all(|v| v.is_finite());
    if tail && !got.iter().all(written) {
        return Ok(f64::INFINITY);
    }
    let mut parts = Vec::new();
    for (output, (got, want)) in got.iter().zip(want).enumerate() {
        let first = got.len() - want.len();
        // What neither wrote is as it was.
        let both = |&i: &usize| !(got[first + i].is_nan() && want[i].is_nan());
        let at: Vec<usize> = (0..want.len()).filter(both).collect();
        parts.push(Want {
            output,
            values: at.iter().map(|&i| want[i].into()).collect(),
            at: at.into_iter().map(|i| first + i).collect(),
        });
    }
    Ok(distance(got, &parts, allowed))
}
