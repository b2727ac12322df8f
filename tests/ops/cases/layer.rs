//! Norms, rotations and activations, and their gradients.

use prefold::Result;
use prefold::ops::{self, Backend, NormKind, Pairing};

use super::{BEFORE, Case, EPS, Heads, Host, OpCase, Placed, Want, f32s, heads, nothing};
use crate::oracle;

#[derive(Debug, Clone, Copy)]
pub struct Norm {
    pub width: usize,
    pub kind: NormKind,
}

#[derive(Debug, Clone, Copy)]
pub struct NormBwd {
    pub width: usize,
    pub kind: NormKind,
}

#[derive(Debug, Clone, Copy)]
pub struct Rotate {
    pub heads: Heads,
    pub pairing: Pairing,
    pub normed: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct RotateBwd {
    pub heads: Heads,
    pub pairing: Pairing,
    pub normed: bool,
}

impl Norm {
    fn shape(self, rows: usize) -> ops::Norm {
        ops::Norm {
            rows,
            width: self.width,
            eps: EPS,
            kind: self.kind,
        }
    }

    fn normed(self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
        let bias = (self.kind == NormKind::Layer).then_some(bias);
        x.chunks_exact(self.width)
            .flat_map(|x| oracle::norm(self.kind, EPS, x, weight, bias))
            .collect()
    }
}

const KINDS: [NormKind; 2] = [NormKind::Rms, NormKind::Layer];

impl OpCase for Norm {
    const NAME: &'static str = "norm";

    fn small() -> Vec<(Self, Vec<usize>)> {
        let of_width = |width| KINDS.map(|kind| (Norm { width, kind }, vec![1, 5]));
        [1, 31, 257].into_iter().flat_map(of_width).collect()
    }

    fn bytes(case: &Case<Self>) -> usize {
        f32s(2 * case.rows * case.op.width)
    }

    fn host(case: &Case<Self>) -> Host {
        let (rows, width) = (case.rows, case.op.width);
        Host {
            inputs: vec![
                case.numbers(rows * width, 1.0, 1),
                case.numbers(width, 1.0, 2),
                case.numbers(width, 1.0, 3),
            ],
            outputs: vec![nothing(rows * width)],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let [x, weight, bias] = &on.inputs[..] else {
            unreachable!()
        };
        let bias = (case.op.kind == NormKind::Layer).then_some(bias);
        b.norm(
            case.op.shape(case.rows),
            x,
            weight,
            bias,
            &mut on.outputs[0],
        )
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let [x, weight, bias] = &host.inputs[..] else {
            unreachable!()
        };
        vec![Want::all(0, case.op.normed(x, weight, bias))]
    }
}

impl OpCase for NormBwd {
    const NAME: &'static str = "norm_bwd";

    /// Of one element there is a norm, but its slope is too steep for differences.
    fn small() -> Vec<(Self, Vec<usize>)> {
        let of_width = |width| KINDS.map(|kind| (NormBwd { width, kind }, vec![3]));
        [8, 38, 264].into_iter().flat_map(of_width).collect()
    }

    fn bytes(case: &Case<Self>) -> usize {
        f32s(4 * case.rows * case.op.width)
    }

    fn tolerance(_: &Case<Self>, _: bool) -> [f64; 2] {
        [2e-4, 1e-3]
    }

    fn host(case: &Case<Self>) -> Host {
        let (rows, width) = (case.rows, case.op.width);
        Host {
            inputs: vec![
                case.numbers(rows * width, 1.0, 1),
                case.numbers(width, 1.0, 2),
                case.numbers(rows * width, 1.0, 3),
            ],
            outputs: vec![case.numbers(rows * width, 0.5, 4)],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let [x, weight, dy] = &on.inputs[..] else {
            unreachable!()
        };
        let NormBwd { width, kind } = case.op;
        let shape = Norm { width, kind }.shape(case.rows);
        b.norm_bwd(shape, x, weight, dy, &mut on.outputs[0])
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let NormBwd { width, kind } = case.op;
        let bias = vec![0.0; width];
        let normed = |host: &Host| {
            let [x, weight, _] = &host.inputs[..] else {
                unreachable!()
            };
            Norm { width, kind }.normed(x, weight, &bias)
        };
        let (dy, before) = (&host.inputs[2], &host.outputs[0]);
        vec![Want::slopes(host, 0, dy, 0, before, normed)]
    }
}

impl Rotate {
    fn shape(self, rows: usize) -> ops::Rotate {
        ops::Rotate {
            rows,
            heads: self.heads.queries,
            kv_heads: self.heads.keys,
            head_dim: self.heads.dim,
            at: BEFORE,
            eps: EPS,
            pairing: self.pairing,
        }
    }

    /// Rows of q, k and v rotated, and normed before that if they are to be.
    fn rotated(self, qkv: &[f32], [angles, q, k]: [&[f32]; 3]) -> Vec<f64> {
        let heads = self.heads;
        let mut out = Vec::with_capacity(qkv.len());
        let rows = qkv.chunks_exact(heads.all());
        for (row, angles) in rows.zip(angles.chunks_exact(heads.dim)) {
            for (i, head) in row.chunks_exact(heads.dim).enumerate() {
                let mut head64: Vec<f64> = head.iter().map(|&v| v.into()).collect();
                if i < heads.queries + heads.keys {
                    let weight = if i < heads.queries { q } else { k };
                    if self.normed {
                        head64 = oracle::norm(NormKind::Rms, EPS, head, weight, None);
                    }
                    head64 = oracle::rotate(self.pairing, &head64, angles);
                }
                out.extend(head64);
            }
        }
        out
    }
}

impl RotateBwd {
    fn forward(self) -> Rotate {
        Rotate {
            heads: self.heads,
            pairing: self.pairing,
            normed: self.normed,
        }
    }
}

/// Angles, and weights of the norms of q and k. Any numbers will do as cosines and sines; of them, small ones
/// stay small when timed.
fn angles_and_norms<O>(case: &Case<O>, dim: usize) -> Vec<Vec<f32>> {
    vec![
        case.numbers(case.rows * dim, 0.7, 1),
        case.numbers(dim, 1.0, 2),
        case.numbers(dim, 1.0, 3),
    ]
}

fn rotations() -> impl Iterator<Item = Rotate> {
    let of_heads = |(heads, normed)| {
        [Pairing::Halves, Pairing::Interleaved].map(|pairing| Rotate {
            heads,
            pairing,
            normed,
        })
    };
    [(heads(1, 1, 2), false), (heads(6, 2, 8), true)]
        .into_iter()
        .flat_map(of_heads)
}

impl OpCase for Rotate {
    const NAME: &'static str = "rotate";

    fn small() -> Vec<(Self, Vec<usize>)> {
        rotations().map(|op| (op, vec![1, 9])).collect()
    }

    fn bytes(case: &Case<Self>) -> usize {
        let heads = case.op.heads;
        f32s(case.rows * (2 * heads.all() + 2 * heads.kv()))
    }

    fn host(case: &Case<Self>) -> Host {
        let (rows, heads) = (case.rows, case.op.heads);
        Host {
            inputs: angles_and_norms(case, heads.dim),
            outputs: vec![
                case.numbers(rows * heads.all(), 1.0, 4),
                nothing((BEFORE + rows) * heads.kv()),
                nothing((BEFORE + rows) * heads.kv()),
            ],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let [angles, q, k] = &on.inputs[..] else {
            unreachable!()
        };
        let norms = case.op.normed.then_some([q, k]);
        let [qkv, k, v] = &mut on.outputs[..] else {
            unreachable!()
        };
        b.rotate(case.op.shape(case.rows), qkv, norms, Some(angles), k, v)
    }

    /// q in its place, k and v in the cache.
    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let heads = case.op.heads;
        let [angles, q, k] = [0, 1, 2].map(|i| &host.inputs[i][..]);
        let qkv = case.op.rotated(&host.outputs[0], [angles, q, k]);
        let rows = qkv.chunks_exact(heads.all());
        let cached = |output: usize, from: usize| {
            let values = rows.clone().flat_map(|row| &row[from..from + heads.kv()]);
            let values: Vec<f64> = values.copied().collect();
            let first = BEFORE * heads.kv();
            Want {
                output,
                at: (first..first + values.len()).collect(),
                values,
            }
        };
        let q = rows.clone().enumerate().flat_map(|(row, values)| {
            let q = values[..heads.out()].iter().enumerate();
            q.map(move |(i, &value)| (row * heads.all() + i, value))
        });
        let (at, values): (Vec<usize>, Vec<f64>) = q.unzip();
        let q = Want {
            output: 0,
            at,
            values,
        };
        vec![
            q,
            cached(1, heads.out()),
            cached(2, heads.out() + heads.kv()),
        ]
    }
}

impl OpCase for RotateBwd {
    const NAME: &'static str = "rotate_bwd";

    fn small() -> Vec<(Self, Vec<usize>)> {
        let backward = |op: Rotate| RotateBwd {
            heads: op.heads,
            pairing: op.pairing,
            normed: op.normed,
        };
        rotations().map(|op| (backward(op), vec![9])).collect()
    }

    fn bytes(case: &Case<Self>) -> usize {
        f32s(2 * case.rows * case.op.heads.all())
    }

    fn tolerance(_: &Case<Self>, _: bool) -> [f64; 2] {
        [2e-4, 1e-3]
    }

    fn host(case: &Case<Self>) -> Host {
        let (rows, heads) = (case.rows, case.op.heads);
        let mut inputs = angles_and_norms(case, heads.dim);
        inputs.extend([
            case.numbers(rows * heads.all(), 1.0, 4),
            case.numbers((BEFORE + rows) * heads.kv(), 1.0, 5),
            case.numbers((BEFORE + rows) * heads.kv(), 1.0, 6),
        ]);
        Host {
            inputs,
            outputs: vec![case.numbers(rows * heads.all(), 1.0, 7)],
            ..Host::default()
        }
    }

    fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
        let [angles, q, k, qkv, dk, dv] = &on.inputs[..] else {
            unreachable!()
        };
        let shape = case.op.forward().shape(case.rows);
        let norms = case.op.normed.then_some([q, k]);
        b.rotate_bwd(shape, qkv, norms, Some(angles), dk, dv, &mut on.outputs[0])
    }

    fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
        let (heads, forward) = (case.op.heads, case.op.forward());
        // The gradient of the output: that of q from its place, those of k and v from the cache.
        let mut dy = host.outputs[0].clone();
        for (row, dy) in dy.chunks_exact_mut(heads.all()).enumerate() {
            let (kv, at) = (heads.kv(), (BEFORE + row) * heads.kv());
            let cached = dy[heads.out()..].chunks_exact_mut(kv);
            for (to, from) in cached.zip([&host.inputs[4], &host.inputs[5]]) {
                to.copy_from_slice(&from[at..at + kv]);
            }
        }
        let rotated = |host: &Host| {
            let [angles, q, k, qkv] = [0, 1, 2, 3].map(|i| &host.inputs[i][..]);
            forward.rotated(qkv, [angles, q, k])
        };
        vec![Want::slopes(host, 3, &dy, 0, &[], rotated)]
    }
}

/// An activation of so many columns; a gated one has as many gates before them.
macro_rules! activation {
    ($op:ident, $name:literal, $gated:literal, $rows:expr, $oracle:expr, $run:expr) => {
        #[derive(Debug, Clone, Copy)]
        pub struct $op {
            pub width: usize,
        }

        impl OpCase for $op {
            const NAME: &'static str = $name;

            fn small() -> Vec<(Self, Vec<usize>)> {
                WIDTHS.map(|width| ($op { width }, $rows.to_vec())).into()
            }

            fn bytes(case: &Case<Self>) -> usize {
                let columns = if $gated { 3 } else { 2 };
                f32s(columns * case.rows * case.op.width)
            }

            fn host(case: &Case<Self>) -> Host {
                let elements = case.rows * case.op.width;
                let columns = if $gated { 2 } else { 1 };
                Host {
                    inputs: vec![case.numbers(columns * elements, 4.0, 1)],
                    outputs: vec![nothing(elements)],
                    ..Host::default()
                }
            }

            fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
                let (x, y) = (&on.inputs[0], &mut on.outputs[0]);
                $run(b, case.rows, case.op.width, x, y)
            }

            fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
                vec![Want::all(0, $oracle(&host.inputs[0], case.op.width))]
            }
        }
    };
}

/// The gradient of one.
macro_rules! activation_bwd {
    ($op:ident, $name:literal, $gated:literal, $rows:expr, $oracle:expr, $run:expr) => {
        #[derive(Debug, Clone, Copy)]
        pub struct $op {
            pub width: usize,
        }

        impl OpCase for $op {
            const NAME: &'static str = $name;

            fn small() -> Vec<(Self, Vec<usize>)> {
                WIDTHS.map(|width| ($op { width }, $rows.to_vec())).into()
            }

            fn bytes(case: &Case<Self>) -> usize {
                let columns = if $gated { 5 } else { 3 };
                f32s(columns * case.rows * case.op.width)
            }

            fn tolerance(_: &Case<Self>, _: bool) -> [f64; 2] {
                [2e-4, 1e-3]
            }

            fn host(case: &Case<Self>) -> Host {
                let elements = case.rows * case.op.width;
                let columns = if $gated { 2 } else { 1 };
                Host {
                    inputs: vec![
                        case.numbers(columns * elements, 4.0, 1),
                        case.numbers(elements, 1.0, 2),
                    ],
                    outputs: vec![nothing(columns * elements)],
                    ..Host::default()
                }
            }

            fn run<B: Backend>(case: &Case<Self>, b: &B, on: &mut Placed<B>) -> Result<()> {
                let [x, dy] = &on.inputs[..] else {
                    unreachable!()
                };
                $run(b, case.rows, case.op.width, x, dy, &mut on.outputs[0])
            }

            fn want(case: &Case<Self>, host: &Host) -> Vec<Want> {
                let forward = |host: &Host| $oracle(&host.inputs[0], case.op.width);
                vec![Want::slopes(host, 0, &host.inputs[1], 0, &[], forward)]
            }
        }
    };
}

const WIDTHS: [usize; 3] = [1, 33, 100];

fn gated(x: &[f32], width: usize, f: impl Fn(f32, f32) -> f64) -> Vec<f64> {
    x.chunks_exact(2 * width)
        .flat_map(|row| row[..width].iter().zip(&row[width..]))
        .map(|(&gate, &up)| f(gate, up))
        .collect()
}

fn swiglu(x: &[f32], width: usize) -> Vec<f64> {
    gated(x, width, oracle::swiglu)
}

fn geglu(x: &[f32], width: usize) -> Vec<f64> {
    gated(x, width, oracle::geglu)
}

fn gelu(x: &[f32], _: usize) -> Vec<f64> {
    x.iter().map(|&x| oracle::gelu(x)).collect()
}

fn gelu_erf(x: &[f32], _: usize) -> Vec<f64> {
    x.iter().map(|&x| oracle::gelu_erf(x)).collect()
}

activation!(Swiglu, "swiglu", true, [1, 7], swiglu, B::swiglu);
activation!(Geglu, "geglu", true, [7], geglu, B::geglu);
activation!(
    Gelu,
    "gelu",
    false,
    [7],
    gelu,
    |b: &B, rows, width, x, y| b.gelu(rows * width, x, y)
);
activation!(
    GeluErf,
    "gelu_erf",
    false,
    [7],
    gelu_erf,
    |b: &B, rows, width, x, y| b.gelu_erf(rows * width, x, y)
);
activation_bwd!(SwigluBwd, "swiglu_bwd", true, [1, 7], swiglu, B::swiglu_bwd);
activation_bwd!(
    GeluBwd,
    "gelu_bwd",
    false,
    [7],
    gelu,
    |b: &B, rows, width, x, dy, dx| b.gelu_bwd(rows * width, x, dy, dx)
);
