//! Attention on a cache, and its gradient.

use prefold::Result;
use prefold::ops::{self, Attended, Backend};

use super::{Bound, Case, Heads, Host, OpCase, Placed, Want, f32s, heads, nothing};
use crate::oracle;

#[derive(Debug, Clone, Copy)]
pub struct Attention {
    pub heads: Heads,
    pub prefix: usize,
    pub window: Option<usize>,
    pub ahead: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct AttentionBwd {
    pub heads: Heads,
    pub prefix: usize,
    pub window: Option<usize>,
}

impl AttentionBwd {
    fn forward(self) -> Attention {
        Attention {
            heads: self.heads,
            prefix: self.prefix,
            window: self.window,
            ahead: 0,
        }
    }
}

impl Attention {
    /// The op's shape of one sequence.
    pub fn shape(self, lengths: &[usize]) -> ops::Attention<'_> {
        let Heads { queries, keys, dim } = self.heads;
        ops::Attention {
            heads: queries,
            kv_heads: keys,
            head_dim: dim,
            prefix: self.prefix,
            prefixes: &[],
            at: self.prefix,
            lengths,
            window: self.window,
            ahead: self.ahead,
        }
    }

    fn out(self, rows: usize, host: &Host) -> Vec<f64> {
        let [qkv, k, v] = &host.inputs[..3] else {
            unreachable!()
        };
        oracle::attention(&self.shape(&[rows]), qkv, k, v)
    }

    /// Pairs of a query and a key that it sees.
    fn pairs(self, rows: usize) -> f64 {
        let rows = rows as f64;
        rows * self.prefix as f64 + rows * (rows + 1.0) / 2.0
    }
}

const PREFIXES: [(usize, Option<usize>, usize); 5] = [
    (0, None, 0),
    (40, None, 0),
    (9, Some(7), 0),
    (0, None, usize::MAX),
    (5, Some(4), 3),
];

/// q, k and v of the rows, and the cache.
fn inputs<O>(case: &Case<O>, heads: Heads, prefix: usize) -> Vec<Vec<f32>> {
    let rows = case.rows;
    vec![
        case.numbers(rows * heads.all(), 1.5, 1),
        case.numbers((prefix + rows) * heads.kv(), 1.5, 2),
        case.numbers((prefix + rows) * heads.kv(), 1.5, 3),
    ]
}

fn small(rows: &[usize], with_ahead: bool) -> Vec<(Attention, Vec<usize>)> {
    let mut cases = Vec::new();
    for heads in [heads(1, 1, 2), heads(6, 2, 8), heads(3, 1, 64)] {
        for (prefix, window, ahead) in PREFIXES {
            if ahead == 0 || with_ahead {
                let op = Attention {
                    heads,
                    prefix,
                    window,
                    ahead,
                };
                cases.push((op, rows.to_vec()));
            }
        }
    }
    cases
}

impl OpCase for Attention {
    const NAME: &'static str = "attention";
    const BOUND: Bound = Bound::Products;

    fn small() -> Vec<(Self, Vec<usize>)> {
        small(&[1, 35], true)
    }

    fn flops(case: &Case<Self>) -> f64 {
        4.0 * case.op.pairs(case.rows) * case.op.heads.out() as f64
    }

    fn bytes(case: &Case<Self>) -> usize {
        let Attention { heads, prefix, .. } = case.op;
        f32s(2 * (prefix + case.rows) * heads.kv() + case.rows * (heads.all() + heads.out()))
    }

    fn tolerance(_: &Case<Self>, bf16: bool) -> [f64; 2] {
        [if bf16 { 0.05 } else { 2e-5 }, 1e-5]
    }

    fn host(case: &Case<Self>) -> Host {
        let Attention { heads, prefix, .. } = case.op;
        Host {
            inputs: inputs(case, heads, prefix),
            outputs: vec![nothing(case.rows * heads.out())],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let [qkv, k, v] = &on.inputs[..] else {
            unreachable!()
        };
        let lengths = [case.rows];
        b.attention(&case.op.shape(&lengths), qkv, k, v, &mut on.outputs[0])
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        vec![Want::all(0, case.op.out(case.rows, host))]
    }

    /// The last rows see everything before them, as rows after a prefix do.
    fn tail(self, skip: usize) -> Option<Self> {
        let prefix = self.prefix + skip;
        Some(Attention { prefix, ..self })
    }
}

impl OpCase for AttentionBwd {
    const NAME: &'static str = "attention_bwd";
    const BOUND: Bound = Bound::Products;

    fn small() -> Vec<(Self, Vec<usize>)> {
        let backward = |(op, rows): (Attention, _)| {
            let op = AttentionBwd {
                heads: op.heads,
                prefix: op.prefix,
                window: op.window,
            };
            (op, rows)
        };
        small(&[12], false).into_iter().map(backward).collect()
    }

    fn flops(case: &Case<Self>) -> f64 {
        10.0 * case.op.forward().pairs(case.rows) * case.op.heads.out() as f64
    }

    fn bytes(case: &Case<Self>) -> usize {
        let heads = case.op.heads;
        f32s(case.rows * (2 * heads.all() + 2 * heads.out() + 4 * heads.kv()))
    }

    fn tolerance(_: &Case<Self>, bf16: bool) -> [f64; 2] {
        [if bf16 { 0.1 } else { 5e-4 }, 1e-3]
    }

    fn host(case: &Case<Self>) -> Host {
        let AttentionBwd { heads, prefix, .. } = case.op;
        let rows = case.rows;
        let mut inputs = inputs(case, heads, prefix);
        inputs.extend([
            case.numbers(rows * heads.out(), 1.0, 4),
            // Out and lse of the forward, which `prepare` makes.
            nothing(rows * heads.out()),
            nothing(rows * heads.queries),
        ]);
        Host {
            inputs,
            outputs: vec![
                nothing(rows * heads.all()),
                case.numbers((prefix + rows) * heads.kv(), 0.5, 5),
                case.numbers((prefix + rows) * heads.kv(), 0.5, 6),
            ],
            ..Host::default()
        }
    }

    fn prepare<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let [qkv, k, v, _, out, lse] = &mut on.inputs[..] else {
            unreachable!()
        };
        let lengths = [case.rows];
        b.attention_lse(&case.op.forward().shape(&lengths), qkv, k, v, out, lse)
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let [qkv, k, v, dout, out, lse] = &on.inputs[..] else {
            unreachable!()
        };
        let attended = Attended {
            qkv,
            k,
            v,
            out,
            lse,
        };
        let [dqkv, dk, dv] = &mut on.outputs[..] else {
            unreachable!()
        };
        let lengths = [case.rows];
        let shape = case.op.forward().shape(&lengths);
        b.attention_bwd(&shape, attended, dout, dqkv, dk, dv)
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let (heads, forward) = (case.op.heads, case.op.forward());
        let slopes = |input, before: &[f32]| {
            let out = |host: &Host| forward.out(case.rows, host);
            Want::slopes(host, input, &host.inputs[3], input, before, out)
        };
        // The places of k and v in qkv stay.
        let of_qkv = slopes(0, &[]);
        let own = of_qkv.at.into_iter().zip(of_qkv.values);
        let (at, values) = own.filter(|(at, _)| at % heads.all() < heads.out()).unzip();
        let of_q = Want {
            output: 0,
            at,
            values,
        };
        let of_cache = [1, 2].map(|which| slopes(which, &host.outputs[which]));
        [of_q].into_iter().chain(of_cache).collect()
    }
}
