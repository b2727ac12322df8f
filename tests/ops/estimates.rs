//! Estimated products: as far from the real ones as their rounding allows, and no further.

use crate::common::{Random, oracle};
use prefold::cpu::{Cpu, Isa};
use prefold::ops::{GemmOp, Linear, NllOp, NllTarget};

/// Rows, inputs and outputs around the sizes of blocks and tiles.
const SHAPES: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (7, 5, 31),
    (8, 32, 48),
    (9, 33, 49),
    (31, 64, 100),
    (193, 576, 97),
    (257, 1536, 33),
];

fn floats(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.float()).collect()
}

fn estimate(cpu: &Cpu, x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let shape = Linear {
        rows: x.len() / inputs,
        inputs,
        outputs: w.len() / inputs,
        add: false,
    };
    let matrix = cpu.matrix(shape.outputs, inputs, w).unwrap();
    let mut y = vec![f32::NAN; shape.rows * shape.outputs + 1];
    cpu.estimate(shape, &x.to_vec(), &matrix, None, &mut y)
        .unwrap();
    assert!(y.pop().unwrap().is_nan(), "wrote beyond the output");
    y
}

/// The scale of a block of activations.
fn scale_of_x(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0
}

/// The largest sum, of either sign, of values that meet in a 16-bit lane: every sixteenth of a block.
fn lane_sum(w: &[f32]) -> f32 {
    let lanes = (0..16).map(|lane| w.iter().skip(lane).step_by(16));
    let sums = lanes.map(|lane| {
        let size: f32 = lane.clone().map(|v| v.abs()).sum();
        (size + lane.sum::<f32>().abs()) / 2.0
    });
    sums.fold(0.0, f32::max)
}

/// The codes of a block under a scale.
fn codes(values: &[f32], scale: f32) -> Vec<f32> {
    let inverse = if scale > f32::MIN_POSITIVE {
        1.0 / scale
    } else {
        0.0
    };
    let codes = values.iter().map(|v| (v * inverse).round_ties_even());
    codes.collect()
}

/// Codes of a block of weights, and their scale.
fn codes_of_w(w: &[f32]) -> (Vec<f32>, f32) {
    let scale = scale_of_x(w).max(lane_sum(w) / 128.0);
    let first = codes(w, scale);
    if lane_sum(&first) <= 128.0 {
        return (first, scale);
    }
    let scale = scale.max(lane_sum(w) / 126.0);
    (codes(w, scale), scale)
}

/// The codes of a row by blocks, and their scales.
type Coded = Vec<(Vec<f32>, f32)>;

fn coded(row: &[f32], of_block: impl Fn(&[f32]) -> (Vec<f32>, f32)) -> Coded {
    let blocks: Coded = row.chunks(64).map(of_block).collect();
    let whole = blocks
        .iter()
        .all(|(codes, _)| codes.iter().all(|c| c.abs() <= 127.0));
    assert!(whole, "a code has 8 bits");
    blocks
}

/// The estimate as it is defined, with sums of integers.
fn by_definition(x: &Coded, w: &Coded) -> f32 {
    let mut total = 0.0f32;
    for ((x, of_x), (w, of_w)) in x.iter().zip(w) {
        let sum: i64 = x.iter().zip(w).map(|(x, w)| *x as i64 * *w as i64).sum();
        total = (sum as f32).mul_add(of_w * of_x, total);
    }
    total
}

/// What rounding can add up to: an activation is off by half of its block's scale, and so is a weight.
fn bound(x: &[f32], w: &[f32]) -> f64 {
    let sum = |values: &[f32]| f64::from(values.iter().map(|v| v.abs()).sum::<f32>());
    let blocks = x.chunks(64).zip(w.chunks(64));
    blocks
        .map(|(x, w)| {
            let of_x = f64::from(scale_of_x(x)) / 2.0;
            let of_w = f64::from(scale_of_x(w).max(lane_sum(w) / 126.0)) / 2.0;
            of_x * sum(w) + of_w * sum(x) + of_x * of_w * x.len() as f64
        })
        .sum::<f64>()
        * 1.0001
        + 1e-5
}

/// Values of every kind: uniform, normal, of one size, and a few far out.
fn kinds(random: &mut Random, len: usize) -> [Vec<f32>; 4] {
    let uniform = floats(random, len);
    let normal = (0..len).map(|_| (0..6).map(|_| random.float()).sum());
    let normal: Vec<f32> = normal.collect();
    let equal = uniform.iter().map(|v| 0.7f32.copysign(*v)).collect();
    let mut far = normal.clone();
    far.iter_mut().step_by(37).for_each(|v| *v *= 50.0);
    [uniform, normal, equal, far]
}

#[test]
fn every_instruction_set_computes_the_definition_bit_for_bit() {
    let mut random = Random(10);
    let mut seen = 0;
    for cpu in Cpu::each_instruction_set() {
        if !cpu.estimates_in_8_bits() {
            eprintln!("skipped: {} estimates in f32", cpu.describe());
            continue;
        }
        seen += 1;
        for (rows, inputs, outputs) in SHAPES {
            let xs = kinds(&mut random, rows * inputs);
            let ws = kinds(&mut random, outputs * inputs);
            for (x, w) in xs.iter().zip(ws.iter().rev()).chain(xs.iter().zip(&ws)) {
                let got = estimate(&cpu, x, w, inputs);
                let of_x = |x: &[f32]| (codes(x, scale_of_x(x)), scale_of_x(x));
                let x: Vec<Coded> = x.chunks(inputs).map(|row| coded(row, of_x)).collect();
                let w: Vec<Coded> = w.chunks(inputs).map(|row| coded(row, codes_of_w)).collect();
                let lanes = w
                    .iter()
                    .flatten()
                    .all(|(codes, _)| lane_sum(codes) <= 128.0);
                assert!(lanes, "a lane of 16 bits would saturate");
                for (i, &got) in got.iter().enumerate() {
                    let want = by_definition(&x[i / outputs], &w[i % outputs]);
                    assert_eq!(got.to_bits(), want.to_bits(), "{got}, not {want}");
                }
            }
        }
    }
    let eight_bits = std::env::consts::ARCH == "x86_64" && Cpu::new().isa() != Isa::Scalar;
    assert!(seen > 0 || !eight_bits, "no instruction set was tested");
}

#[test]
fn products_are_off_by_no_more_than_their_rounding() {
    let mut random = Random(11);
    for cpu in Cpu::each_instruction_set() {
        for (rows, inputs, outputs) in SHAPES {
            let x = floats(&mut random, rows * inputs);
            let w = floats(&mut random, outputs * inputs);
            let got = estimate(&cpu, &x, &w, inputs);
            let want = oracle::linear(&x, &w, None, inputs);
            let (mut square, mut scale) = (0.0, 0.0);
            for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
                let x = &x[i / outputs * inputs..][..inputs];
                let w = &w[i % outputs * inputs..][..inputs];
                let (off, bound) = ((f64::from(got) - want).abs(), bound(x, w));
                assert!(off <= bound, "{inputs} inputs: {off} off, not {bound}");
                (square, scale) = (square + off * off, scale + want * want);
            }
            let error = (square / scale).sqrt();
            eprintln!("{inputs} inputs, {}: {error:.1e}", cpu.describe());
            assert!(error < 1.5e-2, "{error}");
        }
    }
}

/// Whole multiples of one number a block are coded exactly: activations up to 127, and weights up to 32
/// where those that meet in a lane add up to 128.
#[test]
fn what_lies_on_the_grid_is_exact() {
    let mut random = Random(12);
    let (rows, inputs, outputs) = (9, 160, 50);
    let mut on_grid = |count: usize, max: f32| -> Vec<f32> {
        let mut values = Vec::new();
        for block in 0..count * inputs / 32 {
            // A block is the largest common part of 64 and of what is left of a row.
            let step = 0.01 * (1 + block % (inputs / 32) / 2) as f32;
            values.extend((0..32).map(|i| match i {
                3 | 19 => max * step,
                20 => -max * step,
                _ => (random.float() * max).round() * step,
            }));
        }
        values
    };
    let (x, w) = (on_grid(rows, 127.0), on_grid(outputs, 32.0));
    let want = oracle::linear(&x, &w, None, inputs);
    for cpu in Cpu::each_instruction_set() {
        let got = estimate(&cpu, &x, &w, inputs);
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            let x = &x[i / outputs * inputs..][..inputs];
            let w = &w[i % outputs * inputs..][..inputs];
            let size: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
            let off = (f64::from(got) - want).abs();
            assert!(off < 1e-5 * f64::from(size), "{off} of {size}");
        }
    }
}

#[test]
fn bias_and_residual_are_added_in_full() {
    let mut random = Random(13);
    let (rows, inputs, outputs) = (33, 40, 61);
    let x = floats(&mut random, rows * inputs);
    let w = floats(&mut random, outputs * inputs);
    let bias = floats(&mut random, outputs);
    for cpu in Cpu::each_instruction_set() {
        let product = estimate(&cpu, &x, &w, inputs);
        let matrix = cpu.matrix(outputs, inputs, &w).unwrap();
        let mut y: Vec<f32> = (0..rows * outputs).map(|i| i as f32).collect();
        let shape = Linear {
            rows,
            inputs,
            outputs,
            add: true,
        };
        cpu.estimate(shape, &x, &matrix, Some(&bias), &mut y)
            .unwrap();
        for (i, (&got, &product)) in y.iter().zip(&product).enumerate() {
            let want = product + bias[i % outputs] + i as f32;
            assert!((got - want).abs() < 1e-3, "{got}, not {want}");
        }
    }
}

#[test]
fn blocks_of_equal_values_and_of_zeros_are_exact() {
    for cpu in Cpu::each_instruction_set() {
        for value in [0.0, 0.25, -3.0] {
            let got = estimate(&cpu, &[1.0; 70], &[value; 70 * 3], 70);
            for got in got {
                assert!((got - 70.0 * value).abs() < 1e-4, "{got}");
            }
        }
        assert_eq!(estimate(&cpu, &[0.0; 40], &[0.5; 40], 40), [0.0]);
    }
}

#[test]
fn nll_is_as_near_as_its_logits() {
    let mut random = Random(14);
    let (rows, width, vocab) = (19, 70, 1001);
    let x = floats(&mut random, rows * width);
    let head = floats(&mut random, vocab * width);
    let picks: Vec<NllTarget> = (0..rows as u32)
        .map(|row| NllTarget {
            row,
            target: (row * 331) % vocab as u32,
        })
        .collect();
    for cpu in Cpu::each_instruction_set() {
        let matrix = cpu.matrix(vocab, width, &head).unwrap();
        let mut out = vec![0.0; rows];
        cpu.estimate_nll(width, &x, &matrix, &picks, &mut out)
            .unwrap();
        for (pick, &got) in picks.iter().zip(&out) {
            let x = &x[pick.row as usize * width..][..width];
            let want = oracle::nll(x, &head, pick.target as usize);
            let worst = head.chunks(width).map(|w| bound(x, w)).fold(0.0, f64::max);
            let off = (f64::from(got) - want).abs();
            assert!(off < 2.0 * worst, "{got}, not {want}");
            assert!(off < 0.2, "{got}, not {want}");
        }
    }
}

/// What is not a number must not be estimated as one, and must not reach other rows.
#[test]
fn what_is_not_finite_stays_so() {
    let mut random = Random(14);
    let (rows, inputs, outputs) = (9, 96, 50);
    let w = floats(&mut random, outputs * inputs);
    for cpu in Cpu::each_instruction_set() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = floats(&mut random, rows * inputs);
            x[3 * inputs + 40] = bad;
            let got = estimate(&cpu, &x, &w, inputs);
            for (row, y) in got.chunks(outputs).enumerate() {
                let lost = y.iter().all(|y| !y.is_finite());
                let whole = y.iter().all(|y| y.is_finite());
                assert!(
                    if row == 3 { lost } else { whole },
                    "{bad}: row {row}: {y:?}"
                );
            }
        }
    }
}

/// An infinite weight has the scale infinity and the codes zero: not a number either.
#[test]
fn a_weight_that_is_not_finite_spoils_its_column_only() {
    let mut random = Random(15);
    let (rows, inputs, outputs) = (9, 96, 50);
    let x = floats(&mut random, rows * inputs);
    for cpu in Cpu::each_instruction_set() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut w = floats(&mut random, outputs * inputs);
            w[17 * inputs + 40] = bad;
            let got = estimate(&cpu, &x, &w, inputs);
            for (i, y) in got.iter().enumerate() {
                assert_eq!(y.is_finite(), i % outputs != 17, "{bad}: column {i}: {y}");
            }
        }
    }
}
