//! Left operands of products that the op before has written: the product must take them where nothing has
//! happened in between, and must not where the rows may be others by now.

use crate::common::Random;
use crate::common::device::{Device, everywhere, log};
use prefold::gpu::{Buf, Gpu, Precision};
use prefold::ops::{
    Attention, AttentionOp, GemmOp, LayerOp, Linear, Norm, NormKind, PruneOp, Storage,
};

type Floats = Buf<Device, f32>;

const ROWS: usize = 11;
const OUTPUTS: usize = 24;

fn floats(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..count).map(|_| random.float()).collect()
}

fn bits(gpu: &Gpu<Device>, y: &Floats) -> Vec<u32> {
    let y = gpu.download(y, 0..ROWS * OUTPUTS).unwrap();
    y.into_iter().map(f32::to_bits).collect()
}

/// Makes rows by `op` and multiplies them right after it, and once more from a copy. Whether the first product
/// packed its rows must be `packs`.
fn check(gpu: &Gpu<Device>, width: usize, packs: bool, what: &str, op: impl FnOnce(&mut Floats)) {
    let w = floats(OUTPUTS * width, 3);
    let w = gpu.matrix(OUTPUTS, width, &w).unwrap();
    let shape = Linear {
        rows: ROWS,
        inputs: width,
        outputs: OUTPUTS,
        add: false,
    };
    let [mut y, mut again] = [(); 2].map(|()| gpu.zeros(ROWS * OUTPUTS).unwrap());
    let mut x = gpu.upload(&vec![f32::NAN; ROWS * width]).unwrap();
    op(&mut x);
    log();
    gpu.linear(shape, &x, &w, None, &mut y).unwrap();
    let packed = log().iter().any(|name| name.starts_with("pack"));
    let copy = gpu.download(&x, 0..ROWS * width).unwrap();
    let copy = gpu.upload(&copy).unwrap();
    gpu.linear(shape, &copy, &w, None, &mut again).unwrap();
    assert_eq!(bits(gpu, &y), bits(gpu, &again), "{what}");
    assert_eq!(packed, packs, "{what}: whether it packs");
}

fn norm(gpu: &Gpu<Device>, width: usize, kind: NormKind, y: &mut Floats) {
    let x = gpu.upload(&floats(ROWS * width, 1)).unwrap();
    let weight = gpu.upload(&floats(width, 2)).unwrap();
    let shape = Norm {
        rows: ROWS,
        width,
        eps: 1e-5,
        kind,
    };
    gpu.norm(shape, &x, &weight, Some(&weight), y).unwrap();
}

#[test]
fn a_product_takes_what_the_op_before_it_left() {
    for precision in [Precision::F32, Precision::Bf16] {
        let f32 = precision == Precision::F32;
        for width in [1, 8, 33, 36, 96, 1100] {
            everywhere(precision, |gpu, at| {
                let what = |op| format!("{op} of width {width}, {at}");
                for kind in [NormKind::Rms, NormKind::Layer] {
                    check(gpu, width, f32, &what("norm"), |y| {
                        norm(gpu, width, kind, y)
                    });
                }
                let x = gpu.upload(&floats(2 * ROWS * width, 4)).unwrap();
                check(gpu, width, f32, &what("swiglu"), |y| {
                    gpu.swiglu(ROWS, width, &x, y).unwrap();
                });
                check(gpu, width, f32, &what("geglu"), |y| {
                    gpu.geglu(ROWS, width, &x, y).unwrap();
                });
                // They know no rows: taken where rows are not filled up.
                let packs = f32 || width % 8 != 0;
                check(gpu, width, packs, &what("gelu"), |y| {
                    gpu.gelu(ROWS * width, &x, y).unwrap();
                });
                check(gpu, width, packs, &what("gelu_erf"), |y| {
                    gpu.gelu_erf(ROWS * width, &x, y).unwrap();
                });
            });
        }
        // In one launch, and in several splits.
        for (heads, head_dim, prefix) in [(4, 24, 0), (4, 24, 700), (2, 12, 0), (3, 12, 0)] {
            everywhere(precision, |gpu, at| {
                let width = heads * head_dim;
                let what = format!("attention of {heads} x {head_dim} on {prefix}, {at}");
                let qkv = gpu
                    .upload(&floats(ROWS * (width + 2 * head_dim), 5))
                    .unwrap();
                let kv = gpu.upload(&floats((prefix + ROWS) * head_dim, 6)).unwrap();
                let shape = Attention {
                    heads,
                    kv_heads: 1,
                    head_dim,
                    prefix,
                    prefixes: &[],
                    at: prefix,
                    lengths: &[4, ROWS - 4],
                    window: None,
                    ahead: 0,
                };
                check(gpu, width, f32 || width % 8 != 0, &what, |y| {
                    gpu.attention(&shape, &qkv, &kv, &kv, y).unwrap();
                });
            });
        }
    }
}

#[test]
fn rows_that_have_changed_since_are_packed() {
    const WIDTH: usize = 40;
    const ALL: usize = ROWS * WIDTH;
    everywhere(Precision::Bf16, |gpu, at| {
        let other = floats(ALL, 7);
        let other_on = gpu.upload(&other).unwrap();
        let table = gpu.matrix(ROWS, WIDTH, &other).unwrap();
        let ids: Vec<u32> = (0..ROWS as u32).rev().collect();
        let stale = |what: &str, change: &dyn Fn(&mut Floats)| {
            check(gpu, WIDTH, true, &format!("{what}, {at}"), |y| {
                norm(gpu, WIDTH, NormKind::Rms, y);
                change(y);
            });
        };
        stale("write", &|y| gpu.write(&other, y).unwrap());
        stale("clear", &|y| gpu.clear(y, 3..70).unwrap());
        stale("copy", &|y| gpu.copy(&other_on, 0..ALL, y, 0).unwrap());
        stale("copy_within", &|y| {
            gpu.copy_within(y, 0..WIDTH, 80).unwrap()
        });
        stale("resize", &|y| gpu.resize(y, ALL).unwrap());
        stale("a launch", &|y| gpu.embed(&ids, &table, false, y).unwrap());
        stale("another buffer", &|y| *y = gpu.upload(&other).unwrap());
        stale("the operand of another", &|_| {
            let mut y = gpu.zeros(ALL).unwrap();
            norm(gpu, WIDTH, NormKind::Layer, &mut y);
        });
    });
}

/// A list of launches is replayed with other rows: what was left before it is not its own.
#[test]
fn a_replay_packs_the_rows_of_its_day() {
    const WIDTH: usize = 16;
    everywhere(Precision::Bf16, |gpu, at| {
        let w = floats(OUTPUTS * WIDTH, 3);
        let w = gpu.matrix(OUTPUTS, WIDTH, &w).unwrap();
        let shape = Linear {
            rows: ROWS,
            inputs: WIDTH,
            outputs: OUTPUTS,
            add: false,
        };
        let [mut y, mut want] = [(); 2].map(|()| gpu.zeros(ROWS * OUTPUTS).unwrap());
        let mut x = gpu.zeros(ROWS * WIDTH).unwrap();
        let mut recorded = Default::default();
        for seed in 0..4 {
            gpu.write(&floats(ROWS * WIDTH, 20 + seed), &mut x).unwrap();
            gpu.linear(shape, &x, &w, None, &mut want).unwrap();
            if seed == 0 {
                norm(gpu, WIDTH, NormKind::Rms, &mut x);
            }
            gpu.repeat(&mut recorded, &mut || {
                gpu.linear(shape, &x, &w, None, &mut y)
            })
            .unwrap();
            if seed > 0 {
                assert_eq!(bits(gpu, &y), bits(gpu, &want), "{at}, {seed}");
            }
        }
    });
}
