//! Estimated products: as far from the real ones as their rounding allows, and no further.

use crate::common::{Random, oracle};
use prefold::ops::{Cpu, GemmOp, Linear, NllOp, Pick};

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
    assert!(y.pop().unwrap().is_nan(), "wrote behind the output");
    y
}

/// What rounding can add up to: an activation is off by half of 1/127 of its block's largest, and so is a
/// weight.
fn bound(x: &[f32], w: &[f32]) -> f64 {
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let sum = |values: &[f32]| f64::from(values.iter().map(|v| v.abs()).sum::<f32>());
    let blocks = x.chunks(64).zip(w.chunks(64));
    blocks
        .map(|(x, w)| {
            let (of_x, of_w) = (largest(x) / 254.0, largest(w) / 254.0);
            let both = f64::from(of_x) * f64::from(of_w) * x.len() as f64;
            f64::from(of_x) * sum(w) + f64::from(of_w) * sum(x) + both
        })
        .sum::<f64>()
        * 1.0001
        + 1e-5
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
            assert!(error < 1e-2, "{error}");
        }
    }
}

/// Whole multiples, up to 127, of one number a block are coded exactly.
#[test]
fn what_lies_on_the_grid_is_exact() {
    let mut random = Random(12);
    let (rows, inputs, outputs) = (9, 160, 50);
    let mut on_grid = |count: usize| -> Vec<f32> {
        let mut values = Vec::new();
        for block in 0..count * inputs / 32 {
            // A block is the largest common part of 64 and of what is left of a row.
            let step = 0.01 * (1 + block % (inputs / 32) / 2) as f32;
            values.extend((0..32).map(|i| match i {
                3 => -127.0 * step,
                20 => 127.0 * step,
                _ => (random.float() * 127.0).round() * step,
            }));
        }
        values
    };
    let (x, w) = (on_grid(rows), on_grid(outputs));
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
    let picks: Vec<Pick> = (0..rows as u32)
        .map(|row| Pick {
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
            assert!(off < 0.05, "{got}, not {want}");
        }
    }
}

/// What is no number must not be estimated as one, and must not reach other rows.
#[test]
fn what_is_no_number_stays_none() {
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
