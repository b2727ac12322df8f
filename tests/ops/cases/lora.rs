//! LoRA updates of q, k and v, and their gradient.

use prefold::Result;
use prefold::ops::{Backend, LoraFactors, LoraPart, LoraUpdate};

use super::{Case, Heads, Host, OpCase, Placed, Want, f32s, heads, nothing, spread};
use crate::oracle;

#[derive(Debug, Clone, Copy)]
pub struct Lora {
    pub width: usize,
    pub heads: Heads,
    pub rank: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct LoraBwd {
    pub width: usize,
    pub heads: Heads,
    pub rank: usize,
}

impl LoraBwd {
    fn forward(self) -> Lora {
        Lora {
            width: self.width,
            heads: self.heads,
            rank: self.rank,
        }
    }
}

impl Lora {
    fn parts(self) -> Vec<LoraPart> {
        let heads = self.heads;
        let mut parts = Vec::new();
        let mut output = 0;
        for (i, outputs) in [heads.out(), heads.kv(), heads.kv()]
            .into_iter()
            .enumerate()
        {
            parts.push(LoraPart {
                rank: i * self.rank,
                ranks: self.rank,
                output,
                outputs,
            });
            output += outputs;
        }
        parts
    }

    fn update(self, rows: usize, parts: &[LoraPart]) -> LoraUpdate<'_> {
        LoraUpdate {
            rows,
            inputs: self.width,
            outputs: self.heads.all(),
            ranks: 3 * self.rank,
            parts,
            dropout: None,
        }
    }

    /// a, and b with zeros where no part lies.
    fn factors<O>(self, case: &Case<O>) -> Vec<(usize, usize, Vec<f32>)> {
        let (ranks, outputs, width) = (3 * self.rank, self.heads.all(), self.width);
        let a = case.numbers(ranks * width, 1.0 / (width as f32).sqrt(), 1);
        let mut b = case.numbers(outputs * ranks, 0.1, 2);
        let parts = self.parts();
        for (row, b) in b.chunks_exact_mut(ranks).enumerate() {
            let part = parts.iter().position(|p| row < p.output + p.outputs);
            for (i, b) in b.iter_mut().enumerate() {
                if Some(i / self.rank) != part {
                    *b = 0.0;
                }
            }
        }
        vec![(ranks, width, a), (outputs, ranks, b)]
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

impl OpCase for Lora {
    const NAME: &'static str = "lora";

    fn small() -> Vec<(Self, Vec<usize>)> {
        let heads = heads(4, 2, 8);
        [(20, 1), (33, 8)]
            .map(|(width, rank)| (Lora { width, heads, rank }, vec![1, 33]))
            .into()
    }

    fn flops(case: &Case<Self>) -> f64 {
        let Lora { width, heads, rank } = case.op;
        2.0 * case.rows as f64 * (rank * (3 * width + heads.all())) as f64
    }

    fn bytes(case: &Case<Self>) -> usize {
        f32s(case.rows * (case.op.width + 2 * case.op.heads.all()))
    }

    fn tolerance(_: &Case<Self>, bf16: bool) -> [f64; 2] {
        [if bf16 { 0.02 } else { 5e-5 }, 1e-5]
    }

    fn host(case: &Case<Self>) -> Host {
        let Lora { width, heads, .. } = case.op;
        Host {
            matrices: case.op.factors(case),
            inputs: vec![case.numbers(case.rows * width, 1.0, 3)],
            outputs: vec![case.numbers(case.rows * heads.all(), 1.0, 4)],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let parts = case.op.parts();
        let [down, up] = &on.matrices[..] else {
            unreachable!()
        };
        let shape = case.op.update(case.rows, &parts);
        b.lora(&shape, &on.inputs[0], down, up, &mut on.outputs[0])
    }

    fn want(_: &Case<Self>, host: &Host) -> Vec<Want> {
        let [(ranks, width, a), (outputs, _, b)] = &host.matrices[..] else {
            unreachable!()
        };
        let low = oracle::linear(&host.inputs[0], a, None, *width);
        let mut y = wide(&host.outputs[0]);
        for (y, low) in y.chunks_exact_mut(*outputs).zip(low.chunks_exact(*ranks)) {
            for (y, b) in y.iter_mut().zip(b.chunks_exact(*ranks)) {
                let products = b.iter().zip(low).map(|(&b, low)| f64::from(b) * low);
                *y += products.sum::<f64>();
            }
        }
        vec![Want::all(0, y)]
    }
}

impl OpCase for LoraBwd {
    const NAME: &'static str = "lora_bwd";

    fn small() -> Vec<(Self, Vec<usize>)> {
        let heads = heads(4, 2, 8);
        [(20, 1), (33, 8)]
            .map(|(width, rank)| (LoraBwd { width, heads, rank }, vec![33]))
            .into()
    }

    fn flops(case: &Case<Self>) -> f64 {
        let LoraBwd { width, heads, rank } = case.op;
        2.0 * case.rows as f64 * (rank * (9 * width + 2 * heads.all())) as f64
    }

    fn bytes(case: &Case<Self>) -> usize {
        f32s(case.rows * (3 * case.op.width + case.op.heads.all()))
    }

    /// Sums over the rows.
    fn tolerance(case: &Case<Self>, bf16: bool) -> [f64; 2] {
        let one = if bf16 { 0.01 } else { 2e-4 };
        [one * (case.rows as f64).sqrt(), 1e-3]
    }

    fn host(case: &Case<Self>) -> Host {
        let LoraBwd { width, heads, rank } = case.op;
        let rows = case.rows;
        let forward = case.op.forward();
        let mut outputs = vec![case.numbers(rows * width, 0.5, 5)];
        for part in forward.parts() {
            outputs.extend([nothing(rank * width), nothing(part.outputs * rank)]);
        }
        Host {
            matrices: forward.factors(case),
            transposed: true,
            inputs: vec![
                case.numbers(rows * width, 1.0, 3),
                case.numbers(rows * heads.all(), 1.0, 4),
            ],
            outputs,
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let forward = case.op.forward();
        let parts = forward.parts();
        let shape = forward.update(case.rows, &parts);
        let [a, _, a_across, b_across] = &on.matrices[..] else {
            unreachable!()
        };
        let factors = LoraFactors {
            a,
            a_across,
            b_across,
        };
        let (dx, pairs) = on.outputs.split_at_mut(1);
        let mut wanted: Vec<_> = pairs
            .chunks_exact_mut(2)
            .map(|pair| {
                let [da, db] = pair else { unreachable!() };
                Some([da, db])
            })
            .collect();
        let [x, dy] = &on.inputs[..] else {
            unreachable!()
        };
        b.lora_bwd(&shape, &factors, x, dy, Some(&mut dx[0]), &mut wanted)
    }

    /// Of the loss `Σ dy · lora`, which is linear in each operand: differences would be exact, and slow.
    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let LoraBwd { width, heads, rank } = case.op;
        let rows = case.rows;
        let (x, dy) = (wide(&host.inputs[0]), wide(&host.inputs[1]));
        let (a, b) = (wide(&host.matrices[0].2), wide(&host.matrices[1].2));
        let (ranks, outputs) = (3 * rank, heads.all());
        let sum = |count: usize, of: &dyn Fn(usize) -> f64| (0..count).map(of).sum::<f64>();
        // dy · b and x · aᵀ, [rows, ranks].
        let dlow =
            |row: usize, r: usize| sum(outputs, &|o| dy[row * outputs + o] * b[o * ranks + r]);
        let low = |row: usize, r: usize| sum(width, &|i| x[row * width + i] * a[r * width + i]);
        let some = |output: usize, len: usize, value: &dyn Fn(usize) -> f64| {
            let at = spread(len, 60);
            let values = at.iter().map(|&i| value(i)).collect();
            Want { output, at, values }
        };
        let mut all = vec![some(0, rows * width, &|i| {
            let (row, column) = (i / width, i % width);
            f64::from(host.outputs[0][i]) + sum(ranks, &|r| dlow(row, r) * a[r * width + column])
        })];
        for (p, part) in case.op.forward().parts().iter().enumerate() {
            all.push(some(1 + 2 * p, rank * width, &|i| {
                let (r, column) = (part.rank + i / width, i % width);
                sum(rows, &|row| dlow(row, r) * x[row * width + column])
            }));
            all.push(some(2 + 2 * p, part.outputs * rank, &|i| {
                let (column, r) = (part.output + i / rank, part.rank + i % rank);
                sum(rows, &|row| dy[row * outputs + column] * low(row, r))
            }));
        }
        all
    }
}
