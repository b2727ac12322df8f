//! `nll90`, for compute capability 9.0 alone: executed by the CPU on the twins of clusters, copies in boxes and
//! warpgroup matmuls (`crates/cuda-emulator/cpp/hopper.inc`), in every order, early and late.

use crate::cases::{Op, distance, small};
use crate::common::device::{Device, log};
use crate::common::emu::{Order, SCHEDULES, Schedule, launcher};
use crate::kernels::check_nll;
use prefold::gpu::{Gpu, Precision};
use prefold::ops::{GemmOp, NllOp, NllTarget, Storage};

/// Devices of compute capability 9.0, or none without a C++ compiler.
pub fn hopper(schedule: Schedule) -> Option<Gpu<Device>> {
    let emu = launcher("library.cu", schedule)?.hopper();
    Some(Gpu::new(Device::Emu(emu), Precision::Bf16))
}

fn everywhere(test: impl Fn(&Gpu<Device>, &str)) {
    for schedule in SCHEDULES {
        if let Some(gpu) = hopper(schedule) {
            log();
            test(&gpu, &format!("nll90, {schedule:?}"));
            let launched = log();
            assert!(launched.contains(&"nll90"), "{launched:?}");
            assert!(!launched.contains(&"nll_bf16"), "{launched:?}");
        }
    }
}

#[test]
fn likelihoods() {
    for (rows, width, vocab) in [
        (1, 1, 1),
        (5, 31, 33),
        // Rows and ids to the end of a tile, and one more.
        (128, 64, 256),
        (129, 65, 257),
        // More steps than stages, several tiles of ids, and a third block whose partner has no rows.
        (257, 330, 700),
    ] {
        everywhere(|gpu, at| {
            let what = format!("{rows} x {width} x {vocab}, {at}");
            check_nll(gpu, Precision::Bf16, rows, width, vocab, &what);
        });
    }
}

#[test]
fn likelihoods_over_a_real_vocabulary() {
    // Some ranges have several tiles: copies run on from one to the next.
    if let Some(gpu) = hopper(SCHEDULES[2]) {
        check_nll(&gpu, Precision::Bf16, 3, 64, 49_152, "nll90");
    }
}

#[test]
fn logits_of_minus_infinity() {
    everywhere(|gpu, at| {
        let vocab = 600;
        let picks = [0, 299, 300, 599].map(|target| NllTarget { row: 0, target });
        let of = |w: &[f32]| {
            let x = gpu.upload(&[1.0]).unwrap();
            let head = gpu.matrix(vocab, 1, w).unwrap();
            let mut out = gpu.upload(&[f32::NAN; 4]).unwrap();
            gpu.nll(1, &x, &head, &picks, &mut out).unwrap();
            gpu.download(&out, 0..4).unwrap()
        };
        // All of the first tile, and then every second.
        let mut w = vec![f32::NEG_INFINITY; vocab];
        w[256..].iter_mut().step_by(2).for_each(|w| *w = 0.5);
        let want = (172.0f32).ln();
        let got = of(&w);
        assert_eq!([got[0], got[1], got[3]], [f32::INFINITY; 3], "{at}");
        assert!((got[2] - want).abs() < 1e-5, "{got:?}, {at}");
        // No distribution.
        let got = of(&vec![f32::NEG_INFINITY; vocab]);
        assert!(got.iter().all(|v| v.is_nan()), "{got:?}, {at}");
    });
}

#[test]
fn cases_of_the_table() {
    everywhere(|gpu, at| {
        for case in small() {
            if !matches!(case.op, Op::Nll { .. } | Op::NllBwd { .. }) {
                continue;
            }
            let host = case.host();
            let mut placed = case.place(gpu, &host).unwrap();
            case.run(gpu, &mut placed).unwrap();
            let got = case.read(gpu, &placed).unwrap();
            let far = distance(&got, &case.want(&host), case.tolerance(true));
            assert!(far <= 1.0, "{case:?}, {at}: {far} too far");
        }
    });
}

/// Bit for bit: no sum depends on which warp or copy comes first.
#[test]
fn every_order_gives_the_same_bits() {
    let (rows, width, vocab) = (140, 200, 600);
    let floats = |count, seed| crate::cases::floats(count, 1.0, seed);
    let picks: Vec<NllTarget> = (0..rows as u32)
        .map(|row| NllTarget {
            row,
            target: row * 4 + 1,
        })
        .collect();
    let mut all = Vec::new();
    for schedule in SCHEDULES.into_iter().chain((3..6).map(|seed| Schedule {
        order: Order::Random(seed),
        late: true,
    })) {
        let Some(gpu) = hopper(schedule) else { return };
        let x = gpu.upload(&floats(rows * width, 1)).unwrap();
        let head = gpu.matrix(vocab, width, &floats(vocab * width, 2)).unwrap();
        let mut out = gpu.upload(&vec![f32::NAN; rows]).unwrap();
        gpu.nll(width, &x, &head, &picks, &mut out).unwrap();
        all.push(gpu.download(&out, 0..rows).unwrap());
    }
    for (i, other) in all.iter().enumerate() {
        assert_eq!(other, &all[0], "schedule {i}");
    }
}

/// Without compute capability 9.0 the kernel for all devices does it.
#[test]
fn other_devices_have_the_other_kernel() {
    let Some(emu) = launcher("library.cu", SCHEDULES[0]) else {
        return;
    };
    let gpu = Gpu::new(Device::Emu(emu), Precision::Bf16);
    log();
    check_nll(&gpu, Precision::Bf16, 3, 8, 9, "nll_bf16");
    let launched = log();
    assert!(launched.contains(&"nll_bf16") && !launched.contains(&"nll90"));
    let Some(emu) = launcher("library.cu", SCHEDULES[0]) else {
        return;
    };
    let gpu = Gpu::new(Device::Emu(emu.hopper()), Precision::F32);
    check_nll(&gpu, Precision::F32, 3, 8, 9, "nll_f32");
    assert!(log().contains(&"nll_f32"));
}
