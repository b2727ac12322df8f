//! Matmuls.

use prefold::Result;
use prefold::ops::{self, Backend};

use super::{Bound, Case, Host, OpCase, Placed, Want, f32s, nothing, of_sum};
use crate::oracle;

#[derive(Debug, Clone, Copy)]
pub struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    /// A bias, and a residual that the result is added to.
    pub add: bool,
}

impl OpCase for Linear {
    const NAME: &'static str = "linear";
    const BOUND: Bound = Bound::Products;

    fn small() -> Vec<(Self, Vec<usize>)> {
        let mut cases = Vec::new();
        for (inputs, outputs) in [(1, 1), (33, 48), (64, 130)] {
            for add in [false, true] {
                let op = Linear {
                    inputs,
                    outputs,
                    add,
                };
                cases.push((op, vec![1, 7, 33]));
            }
        }
        cases
    }

    fn flops(case: &Case<Self>) -> f64 {
        2.0 * case.rows as f64 * (case.op.inputs * case.op.outputs) as f64
    }

    fn bytes(case: &Case<Self>) -> usize {
        let Linear {
            inputs, outputs, ..
        } = case.op;
        2 * inputs * outputs + f32s(case.rows * (inputs + outputs))
    }

    fn tolerance(case: &Case<Self>, bf16: bool) -> [f64; 2] {
        [of_sum(case.op.inputs, bf16), 1e-5]
    }

    fn host(case: &Case<Self>) -> Host {
        let Linear {
            inputs,
            outputs,
            add,
        } = case.op;
        let rows = case.rows;
        let scale = 1.0 / (inputs as f32 / 3.0).sqrt();
        Host {
            matrices: vec![(outputs, inputs, case.numbers(outputs * inputs, scale, 1))],
            inputs: vec![
                case.numbers(rows * inputs, 1.0, 2),
                case.numbers(outputs, 1.0, 3),
            ],
            outputs: vec![match add {
                true => case.numbers(rows * outputs, 1.0, 4),
                false => nothing(rows * outputs),
            }],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let Linear {
            inputs,
            outputs,
            add,
        } = case.op;
        let shape = ops::Linear {
            rows: case.rows,
            inputs,
            outputs,
            add,
        };
        let bias = add.then_some(&on.inputs[1]);
        b.linear(
            shape,
            &on.inputs[0],
            &on.matrices[0],
            bias,
            &mut on.outputs[0],
        )
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let Linear { inputs, add, .. } = case.op;
        let bias = add.then_some(&host.inputs[1][..]);
        let mut y = oracle::linear(&host.inputs[0], &host.matrices[0].2, bias, inputs);
        if add {
            let old = host.outputs[0].iter().map(|&old| f64::from(old));
            y.iter_mut().zip(old).for_each(|(y, old)| *y += old);
        }
        vec![Want::all(0, y)]
    }

    fn tail(self, _: usize) -> Option<Self> {
        Some(self)
    }
}
