//! The low-rank update and its gradients: the CPU's, the kernels executed by a CPU and, where there is one,
//! by a CUDA device, beside the definition in f64 and its central differences.

use crate::common::Random;
use crate::common::compare::{assert_close, wide};
use crate::common::device::everywhere;
use half::bf16;
use prefold::cpu::Cpu;
use prefold::gpu::Precision;
use prefold::ops::{Dropout, LoraFactors, LoraOp, LoraPart, LoraUpdate};
use prefold::{Error, Result};

/// Rows, inputs, outputs, and of each part its ranks, first output and outputs; the share that is dropped.
type Case = (usize, usize, usize, &'static [[usize; 3]], Option<f32>);

const CASES: [Case; 7] = [
    (1, 1, 1, &[[1, 0, 1]], None),
    (5, 31, 33, &[[3, 2, 29]], Some(0.5)),
    // As q, k and v: ranks that begin in the middle of 16 bytes, and a projection without a part.
    (
        33,
        40,
        100,
        &[[4, 0, 50], [5, 60, 25], [8, 85, 15]],
        Some(0.1),
    ),
    // More than three.
    (
        9,
        32,
        64,
        &[[1, 0, 10], [2, 10, 10], [3, 20, 10], [4, 30, 10]],
        None,
    ),
    // All stages several times over in the first product; ranks of two warps' halves.
    (70, 257, 140, &[[100, 0, 140]], Some(0.3)),
    // In the second: few runs, several tiles and pieces of ranks each.
    (390, 24, 300, &[[72, 0, 300]], None),
    // Ranks of more than one launch, more than one launch can have at once.
    (
        40,
        20,
        90,
        &[[130, 0, 30], [128, 30, 30], [128, 60, 30]],
        Some(0.2),
    ),
];
const SEED: u64 = 0x1234_5678_9abc_def0;

struct Given {
    parts: Vec<LoraPart>,
    ranks: usize,
    x: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    y: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
}

impl Given {
    fn new((rows, inputs, outputs, of_parts, _): Case) -> Self {
        let mut random = Random(rows as u64);
        let mut parts = Vec::new();
        let mut ranks = 0;
        for &[of, output, outputs] in of_parts {
            parts.push(LoraPart {
                rank: ranks,
                ranks: of,
                output,
                outputs,
            });
            ranks += of;
        }
        let mut floats = |count: usize, scale: usize| -> Vec<f32> {
            let scale = 1.0 / (scale as f32).sqrt();
            (0..count).map(|_| random.float() * scale).collect()
        };
        let mut b = floats(outputs * ranks, ranks / parts.len());
        for (i, b) in b.iter_mut().enumerate() {
            let (row, column) = (i / ranks, i % ranks);
            let lies_in = |p: &LoraPart| {
                (p.output..p.output + p.outputs).contains(&row)
                    && (p.rank..p.rank + p.ranks).contains(&column)
            };
            if !parts.iter().any(lies_in) {
                *b = 0.0;
            }
        }
        Given {
            ranks,
            x: floats(rows * inputs, 1),
            a: floats(ranks * inputs, inputs),
            b,
            y: floats(rows * outputs, 1),
            dy: floats(rows * outputs, 1),
            dx: floats(rows * inputs, 1),
            parts,
        }
    }

    fn shape(&self, (rows, inputs, outputs, _, dropout): Case) -> LoraUpdate<'_> {
        LoraUpdate {
            rows,
            inputs,
            outputs,
            ranks: self.ranks,
            parts: &self.parts,
            dropout: dropout.map(|rate| (rate, SEED)),
        }
    }
}

/// What an operand becomes.
fn rounded(precision: Precision, values: &[f32]) -> Vec<f64> {
    let round = |&v: &f32| match precision {
        Precision::F32 => v.into(),
        Precision::Bf16 => bf16::from_f32(v).to_f64(),
    };
    values.iter().map(round).collect()
}

/// `(drop(x) · aᵀ) · bᵀ`.
fn added(shape: &LoraUpdate<'_>, x: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut out = Vec::new();
    let drops = shape.dropout.map(|(rate, seed)| Dropout {
        len: x.len(),
        rate,
        seed,
        add: false,
    });
    for row in 0..shape.rows {
        let dropped: Vec<f64> = (0..shape.inputs)
            .map(|i| row * shape.inputs + i)
            .map(|i| match drops {
                Some(d) if !d.keeps(i as u32) => 0.0,
                Some(d) => x[i] / (1.0 - f64::from(d.rate)),
                None => x[i],
            })
            .collect();
        let times = |w: &[f64], v: &[f64]| -> f64 { w.iter().zip(v).map(|(w, v)| w * v).sum() };
        let low: Vec<f64> = a
            .chunks_exact(shape.inputs)
            .map(|a| times(a, &dropped))
            .collect();
        out.extend(b.chunks_exact(shape.ranks).map(|b| times(b, &low)));
    }
    out
}

/// The update by a backend.
fn updated<B: LoraOp>(backend: &B, case: Case, given: &Given) -> Result<Vec<f32>> {
    let (rows, inputs, outputs, ..) = case;
    let a = backend.matrix(given.ranks, inputs, &given.a)?;
    let b = backend.matrix(outputs, given.ranks, &given.b)?;
    let x = backend.upload(&given.x)?;
    let mut y = backend.upload(&given.y)?;
    backend.lora(&given.shape(case), &x, &a, &b, &mut y)?;
    backend.download(&y, 0..rows * outputs)
}

#[test]
fn update() {
    for case in CASES {
        let given = Given::new(case);
        let shape = given.shape(case);
        let want = |precision| -> Vec<f64> {
            let [x, a, b] = [&given.x, &given.a, &given.b].map(|v| rounded(precision, v));
            let more = added(&shape, &x, &a, &b);
            wide(&given.y)
                .iter()
                .zip(more)
                .map(|(y, v)| y + v)
                .collect()
        };
        let exact = want(Precision::F32);
        for cpu in Cpu::each_instruction_set() {
            let got = updated(&cpu, case, &given).unwrap();
            assert_close(&format!("{shape:?}, cpu"), &got, &exact, 1e-5, 1e-5);
        }
        // In bf16 what lies between the products, up to about 2, is rounded to 8 bits.
        for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.02)] {
            let want = want(precision);
            everywhere(precision, |gpu, at| {
                let got = updated(gpu, case, &given).unwrap();
                assert_close(&format!("{shape:?}, {at}"), &got, &want, bound, 1e-5);
            });
        }
    }
}

/// Gradients of x, and of each part's a and b.
struct Gradients {
    dx: Vec<f32>,
    factors: Vec<[Vec<f32>; 2]>,
}

/// Those by a backend; without `with_x` that of x is not asked for.
fn gradients<B: LoraOp>(backend: &B, case: Case, given: &Given, with_x: bool) -> Result<Gradients> {
    let (_, inputs, outputs, ..) = case;
    let a = backend.matrix(given.ranks, inputs, &given.a)?;
    let b = backend.matrix(outputs, given.ranks, &given.b)?;
    let factors = LoraFactors {
        a: &a,
        a_across: &backend.transposed(&a)?,
        b_across: &backend.transposed(&b)?,
    };
    let (x, dy) = (backend.upload(&given.x)?, backend.upload(&given.dy)?);
    let mut dx = backend.upload(&given.dx)?;
    let poisoned = |len: usize| backend.upload(&vec![f32::NAN; len]);
    let mut pairs = Vec::new();
    for part in &given.parts {
        let of_a = poisoned(part.ranks * inputs)?;
        pairs.push([of_a, poisoned(part.outputs * part.ranks)?]);
    }
    let mut wanted: Vec<_> = pairs.iter_mut().map(|[a, b]| Some([a, b])).collect();
    let of_x = with_x.then_some(&mut dx);
    backend.lora_bwd(&given.shape(case), &factors, &x, &dy, of_x, &mut wanted)?;
    let mut found = Vec::new();
    for (part, [a, b]) in given.parts.iter().zip(&pairs) {
        let of_a = backend.download(a, 0..part.ranks * inputs)?;
        found.push([of_a, backend.download(b, 0..part.outputs * part.ranks)?]);
    }
    Ok(Gradients {
        dx: backend.download(&dx, 0..given.x.len())?,
        factors: found,
    })
}

/// Where gradients are compared, and what they must be.
struct Wanted {
    x: (Vec<usize>, Vec<f64>),
    /// Part, side, index there, gradient.
    factors: Vec<(usize, usize, usize, f64)>,
}

impl Wanted {
    /// By central differences, which of something linear in each operand are exact.
    fn new(precision: Precision, case: Case, given: &Given) -> Self {
        let (_, inputs, ..) = case;
        let shape = given.shape(case);
        let operands = [&given.x, &given.a, &given.b].map(|v| rounded(precision, v));
        let dy = rounded(precision, &given.dy);
        let slope = |which: usize, i: usize| {
            let mut moved = operands.clone();
            let old = moved[which][i];
            let [above, below] = [0.5, -0.5].map(|step| {
                moved[which][i] = old + step;
                let out = added(&shape, &moved[0], &moved[1], &moved[2]);
                out.iter().zip(&dy).map(|(v, dy)| v * dy).sum::<f64>()
            });
            above - below
        };
        let spread = |len: usize| (0..len).step_by(len.div_ceil(23).max(1));
        let at: Vec<usize> = spread(given.x.len()).collect();
        let of_x = at
            .iter()
            .map(|&i| f64::from(given.dx[i]) + slope(0, i))
            .collect();
        let mut factors = Vec::new();
        for (p, part) in given.parts.iter().enumerate() {
            for i in spread(part.ranks * inputs) {
                factors.push((p, 0, i, slope(1, part.rank * inputs + i)));
            }
            for i in spread(part.outputs * part.ranks) {
                let (row, column) = (part.output + i / part.ranks, part.rank + i % part.ranks);
                factors.push((p, 1, i, slope(2, row * given.ranks + column)));
            }
        }
        Wanted {
            x: (at, of_x),
            factors,
        }
    }

    #[track_caller]
    fn compare(&self, what: &str, got: &Gradients, atol: f64) {
        let dx: Vec<f32> = self.x.0.iter().map(|&i| got.dx[i]).collect();
        assert_close(&format!("dx, {what}"), &dx, &self.x.1, atol, 1e-5);
        for &(part, side, i, want) in &self.factors {
            let what = format!("factor {side} of part {part} at {i}, {what}");
            assert_close(&what, &[got.factors[part][side][i]], &[want], atol, 1e-5);
        }
    }
}

#[test]
fn gradients_of_it() {
    for case in CASES {
        let given = Given::new(case);
        let what = format!("{:?}", given.shape(case));
        let exact = Wanted::new(Precision::F32, case, &given);
        for cpu in Cpu::each_instruction_set() {
            let got = gradients(&cpu, case, &given, true).unwrap();
            exact.compare(&format!("{what}, cpu"), &got, 5e-5);
        }
        // Sums over the rows of what was rounded to 8 bits.
        let bound = 0.01 + 0.002 * (case.0 as f64).sqrt();
        for (precision, bound) in [(Precision::F32, 5e-5), (Precision::Bf16, bound)] {
            let want = Wanted::new(precision, case, &given);
            everywhere(precision, |gpu, at| {
                let got = gradients(gpu, case, &given, true).unwrap();
                want.compare(&format!("{what}, {at}"), &got, bound);
                let alone = gradients(gpu, case, &given, false).unwrap();
                assert_eq!(alone.dx, given.dx, "{what}, {at}");
                assert_eq!(alone.factors, got.factors, "{what}, {at}");
            });
        }
    }
}

#[test]
fn operands_are_checked() {
    fn check<B: LoraOp>(backend: &B) {
        let part = |rank, output| LoraPart {
            rank,
            ranks: 2,
            output,
            outputs: 3,
        };
        let (good, overlapping) = ([part(0, 0), part(2, 3)], [part(0, 0), part(2, 2)]);
        let (gap, outside) = ([part(0, 0), part(3, 3)], [part(0, 0), part(2, 4)]);
        let a = backend.matrix(4, 5, &[1.0; 20]).unwrap();
        let b = backend.matrix(6, 4, &[1.0; 24]).unwrap();
        let run = |shape: LoraUpdate<'_>, x: usize, y: usize| {
            let x = backend.zeros(x).unwrap();
            let mut y = backend.zeros(y).unwrap();
            backend.lora(&shape, &x, &a, &b, &mut y)
        };
        let shape = LoraUpdate {
            rows: 2,
            inputs: 5,
            outputs: 6,
            ranks: 4,
            parts: &good,
            dropout: None,
        };
        run(shape, 10, 12).unwrap();
        let all = |rate| LoraUpdate {
            dropout: Some((rate, 1)),
            ..shape
        };
        let of = |parts| LoraUpdate { parts, ..shape };
        for (shape, x, y) in [
            (shape, 9, 12),
            (shape, 10, 11),
            (LoraUpdate { inputs: 4, ..shape }, 10, 12),
            (LoraUpdate { ranks: 3, ..shape }, 10, 12),
            (of(&overlapping), 10, 12),
            (of(&gap), 10, 12),
            (of(&outside), 10, 12),
            (all(1.0), 10, 12),
        ] {
            let error = run(shape, x, y).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }
    check(&Cpu::new());
    everywhere(Precision::Bf16, |gpu, _| check(gpu));
}
