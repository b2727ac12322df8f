//! Negative log-likelihoods of targets under a head.

use prefold::Result;
use prefold::ops::{Backend, NllTarget};

use super::{Bound, Case, Host, OpCase, Placed, Want, f32s, nothing, of_sum};
use crate::oracle;

#[derive(Debug, Clone, Copy)]
pub struct Nll {
    pub width: usize,
    pub vocab: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct NllBwd {
    pub width: usize,
    pub vocab: usize,
}

impl<O> Case<O> {
    /// A target for each row.
    pub fn picks(&self, vocab: usize) -> Vec<NllTarget> {
        let target = |row: usize| ((self.skipped + row) * 7919 % vocab) as u32;
        let pick = |row: usize| NllTarget {
            row: row as u32,
            target: target(row),
        };
        (0..self.rows).map(pick).collect()
    }

    /// Logits of about ±3.
    fn head(&self, width: usize, vocab: usize) -> (usize, usize, Vec<f32>) {
        let scale = 3.0 / (width as f32 / 3.0).sqrt();
        (vocab, width, self.numbers(vocab * width, scale, 1))
    }

    fn nll(&self, width: usize, vocab: usize, host: &Host) -> Vec<f64> {
        let picks = self.picks(vocab).into_iter();
        let rows = picks.zip(host.inputs[0].chunks_exact(width));
        let head = &host.matrices[0].2;
        rows.map(|(pick, x)| oracle::nll(x, head, pick.target as usize))
            .collect()
    }
}

impl OpCase for Nll {
    const NAME: &'static str = "nll";
    const BOUND: Bound = Bound::Products;

    fn small() -> Vec<(Self, Vec<usize>)> {
        [(8, 31), (33, 257)]
            .map(|(width, vocab)| (Nll { width, vocab }, vec![1, 33]))
            .into()
    }

    fn flops(case: &Case<Self>) -> f64 {
        2.0 * case.rows as f64 * (case.op.width * case.op.vocab) as f64
    }

    fn bytes(case: &Case<Self>) -> usize {
        let Nll { width, vocab } = case.op;
        2 * vocab * width + 2 * case.rows * width + f32s(case.rows)
    }

    fn tolerance(case: &Case<Self>, bf16: bool) -> [f64; 2] {
        [of_sum(case.op.width, bf16), 1e-5]
    }

    fn host(case: &Case<Self>) -> Host {
        let Nll { width, vocab } = case.op;
        Host {
            matrices: vec![case.head(width, vocab)],
            inputs: vec![case.numbers(case.rows * width, 1.0, 2)],
            outputs: vec![nothing(case.rows)],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let Nll { width, vocab } = case.op;
        let picks = case.picks(vocab);
        let (x, head) = (&on.inputs[0], &on.matrices[0]);
        b.nll(width, x, head, &picks, &mut on.outputs[0])
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let Nll { width, vocab } = case.op;
        vec![Want::all(0, case.nll(width, vocab, host))]
    }

    fn tail(self, _: usize) -> Option<Self> {
        Some(self)
    }
}

impl OpCase for NllBwd {
    const NAME: &'static str = "nll_bwd";
    const BOUND: Bound = Bound::Products;

    fn small() -> Vec<(Self, Vec<usize>)> {
        [(8, 31), (33, 257)]
            .map(|(width, vocab)| (NllBwd { width, vocab }, vec![5, 33]))
            .into()
    }

    /// Logits are made twice.
    fn flops(case: &Case<Self>) -> f64 {
        6.0 * case.rows as f64 * (case.op.width * case.op.vocab) as f64
    }

    fn bytes(case: &Case<Self>) -> usize {
        let NllBwd { width, vocab } = case.op;
        4 * vocab * width + f32s(3 * case.rows * width)
    }

    fn tolerance(_: &Case<Self>, bf16: bool) -> [f64; 2] {
        [if bf16 { 0.02 } else { 2e-4 }, 1e-3]
    }

    fn host(case: &Case<Self>) -> Host {
        let NllBwd { width, vocab } = case.op;
        let rows = case.rows;
        Host {
            matrices: vec![case.head(width, vocab)],
            transposed: true,
            inputs: vec![case.numbers(rows * width, 1.0, 2)],
            outputs: vec![nothing(rows), case.numbers(rows * width, 0.5, 3)],
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let NllBwd { width, vocab } = case.op;
        let picks = case.picks(vocab);
        let [head, transposed] = &on.matrices[..] else {
            unreachable!()
        };
        let [out, dx] = &mut on.outputs[..] else {
            unreachable!()
        };
        b.nll_bwd(width, &on.inputs[0], head, transposed, &picks, out, dx)
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let NllBwd { width, vocab } = case.op;
        let nll = |host: &Host| case.nll(width, vocab, host);
        let dy = vec![1.0; case.rows];
        vec![
            Want::all(0, nll(host)),
            Want::slopes(host, 0, &dy, 1, &host.outputs[1], nll),
        ]
    }

    fn tail(self, _: usize) -> Option<Self> {
        Some(self)
    }
}
