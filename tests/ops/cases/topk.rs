//! Selections.

use prefold::Result;
use prefold::ops::{Backend, Keep, Select, TopKOutput};

use super::{Bound, Case, Host, OpCase, Placed, Want};

/// The upper half of each segment of as many scores as there are rows.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    pub segments: usize,
}

impl<O> Case<O> {
    /// The segments of a selection.
    pub fn segments(&self, segments: usize) -> Vec<Select> {
        let of = |i: usize| Select {
            first: (i * self.rows) as u32,
            len: self.rows as u32,
            keep: Keep::Count(self.rows as u32 / 2),
        };
        (0..segments).map(of).collect()
    }
}

impl OpCase for TopK {
    const NAME: &'static str = "topk";
    const BOUND: Bound = Bound::Latency;

    fn small() -> Vec<(Self, Vec<usize>)> {
        vec![
            (TopK { segments: 1 }, vec![1, 33, 1500]),
            (TopK { segments: 5 }, vec![257]),
        ]
    }

    fn bytes(case: &Case<Self>) -> usize {
        16 * case.rows * case.op.segments
    }

    fn tolerance(_: &Case<Self>, _: bool) -> [f64; 2] {
        [0.0, 0.0]
    }

    fn host(case: &Case<Self>) -> Host {
        Host {
            inputs: vec![case.numbers(case.rows * case.op.segments, 10.0, 1)],
            ..Host::default()
        }
    }

    fn prepare<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let segments = case.op.segments;
        let scores = case.rows * segments;
        let numbers: Vec<u32> = (0..scores as u32).collect();
        on.ids.push(b.upload(&numbers)?);
        on.selection = Some(TopKOutput::new(b, scores, segments)?);
        Ok(())
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        match &mut on.selection {
            Some(out) => {
                let segments = case.segments(case.op.segments);
                b.topk(&segments, &on.inputs[0], &on.ids[0], out)
            }
            None => Ok(()),
        }
    }

    /// Of equals the first stay.
    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let scores = &host.inputs[0];
        let mut mask = Vec::with_capacity(scores.len());
        for scores in scores.chunks_exact(scores.len() / case.op.segments) {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]).then(i.cmp(&j)));
            let mut kept = vec![0.0; scores.len()];
            for &i in &order[..scores.len() / 2] {
                kept[i] = 1.0;
            }
            mask.extend(kept);
        }
        vec![Want::all(0, mask)]
    }
}
