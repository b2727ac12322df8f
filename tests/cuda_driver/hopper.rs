//! Kernels for compute capability 9.0 alone: launched where the device, its driver and its images have what they need,
//! and on no other.

use prefold::gpu::{Boxed, Gpu, Launcher, Operand, Precision};
use prefold::ops::{GemmOp, NllOp, NllTarget, Storage};

use crate::common::device::{Device, log};
use crate::place::{Place, images};

const ROWS: usize = 5;
const WIDTH: usize = 70;
const VOCAB: usize = 300;
const UNKNOWN: i32 = 999;

/// Likelihoods, and the kernel that made them.
fn nll(gpu: &Gpu<Device>) -> (Vec<f32>, &'static str) {
    let numbers = |count: usize, step: usize| -> Vec<f32> {
        (0..count)
            .map(|i| (i * step % 113) as f32 / 64.0 - 0.8)
            .collect()
    };
    let x = gpu.upload(&numbers(ROWS * WIDTH, 7919)).unwrap();
    let head = gpu
        .matrix(VOCAB, WIDTH, &numbers(VOCAB * WIDTH, 541))
        .unwrap();
    let mut out = gpu.zeros::<f32>(ROWS).unwrap();
    let picks: Vec<NllTarget> = (0..ROWS as u32)
        .map(|row| NllTarget {
            row,
            target: row * 74,
        })
        .collect();
    log();
    gpu.nll(WIDTH, &x, &head, &picks, &mut out).unwrap();
    let kernel = log().into_iter().find(|name| name.starts_with("nll"));
    (gpu.download(&out, 0..ROWS).unwrap(), kernel.unwrap())
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn only_devices_of_9_0_run_it() {
    let mut first = None;
    for (architecture, kernel) in [(89, "nll_bf16"), (90, "nll90"), (100, "nll_bf16")] {
        let Some(place) = Place::new(architecture) else {
            return;
        };
        let gpu = place.gpu(Precision::Bf16, false);
        let (got, by) = nll(&gpu);
        assert_eq!(by, kernel, "sm_{architecture}");
        assert_eq!(place.count("clusters"), usize::from(kernel == "nll90"));
        let want = first.get_or_insert_with(|| got.clone());
        assert!(near(&got, want), "sm_{architecture}: {got:?}, {want:?}");
        drop(gpu);
    }
}

/// Images by an nvcc that does not know sm_90a.
#[test]
fn images_without_it_are_enough() {
    let Some(place) = Place::new(90) else { return };
    let without: Vec<_> = images()
        .iter()
        .copied()
        .filter(|image| image.0 != "nll90")
        .collect();
    // SAFETY: placeholders, of which the stand-in makes our kernels.
    let cuda = unsafe { prefold::gpu::Cuda::with_images(place.index, &without) }.unwrap();
    let library = false;
    let gpu = Gpu::new(Device::Cuda { cuda, library }, Precision::Bf16);
    assert_eq!(nll(&gpu).1, "nll_bf16");
}

#[test]
fn a_driver_that_refuses_a_map_is_asked_for_the_other_kernel() {
    let Some(place) = Place::new(90) else { return };
    let gpu = place.gpu(Precision::Bf16, false);
    let (want, _) = nll(&gpu);
    for nth in [1, 2] {
        place.fail("cuTensorMapEncodeTiled", nth, UNKNOWN);
        let (got, by) = nll(&gpu);
        place.fail("", 0, 0);
        assert_eq!(by, "nll_bf16", "map {nth}");
        assert!(near(&got, &want), "map {nth}");
    }
    assert_eq!(nll(&gpu), (want, "nll90"));
}

#[test]
fn what_cannot_be_copied_in_boxes_is_refused() {
    let Some(place) = Place::new(90) else { return };
    let cuda = place.open().unwrap();
    let memory = cuda.alloc(1 << 16, true).unwrap();
    let good = Boxed {
        matrix: Operand {
            at: cuda.address(&memory),
            ld: 72,
        },
        rows: 9,
        columns: 70,
        size: [128, 64],
    };
    assert!(cuda.box_map(&good).is_some());
    let (at, ld) = (good.matrix.at, good.matrix.ld);
    let of = |at, ld| Operand { at, ld };
    let bad = [
        // Not aligned to 16 bytes, by the address and by the rows; rows that overlap.
        Boxed {
            matrix: of(at + 8, ld),
            ..good
        },
        Boxed {
            matrix: of(at, 71),
            ..good
        },
        Boxed {
            matrix: of(at, 64),
            ..good
        },
        Boxed { rows: 0, ..good },
        Boxed {
            size: [257, 64],
            ..good
        },
        Boxed {
            size: [128, 128],
            ..good
        },
    ];
    for boxed in bad {
        assert_eq!(cuda.box_map(&boxed), None, "{boxed:?}");
        assert!(place.complaints().contains("cuTensorMapEncodeTiled"));
    }
}
