//! Calls of the driver and of cuBLASLt that fail, one after the other: each gives one clear error or a result that is
//! right, and leaves nothing.

use prefold::gpu::{Gpu, Precision, Recorded};
use prefold::hard;
use prefold::model::Model;
use prefold::model::config::Family;
use prefold::model::weights::Weights;
use prefold::ops::PruneOp;
use prefold::ops::gemm::{GemmOp, Linear};
use prefold::ops::storage::Storage;

use super::models::{folder, jobs};
use crate::common::tiny::byte_tokenizer;
use crate::place::Place;

const OUT_OF_MEMORY: i32 = 2;
const INVALID_IMAGE: i32 = 200;
const ILLEGAL_ADDRESS: i32 = 700;
const TOO_MANY_RESOURCES: i32 = 701;
const LAUNCH_FAILED: i32 = 719;
const CAPTURE_UNSUPPORTED: i32 = 900;
const CAPTURE_INVALIDATED: i32 = 901;
const UNKNOWN: i32 = 999;
/// Of cuBLASLt.
const ALLOC_FAILED: i32 = 3;
const EXECUTION_FAILED: i32 = 13;
const NOT_SUPPORTED: i32 = 15;

/// What each function gives where it fails; the unknown error where nothing better is known.
fn codes(function: &str) -> Vec<i32> {
    let more: &[i32] = match function {
        "cuModuleLoadData" => &[INVALID_IMAGE, OUT_OF_MEMORY],
        "cuMemAllocFromPoolAsync" | "cuMemAllocAsync" | "cuMemPoolCreate" => &[OUT_OF_MEMORY],
        "cuLaunchKernel" => &[TOO_MANY_RESOURCES, LAUNCH_FAILED, CAPTURE_INVALIDATED],
        "cuStreamSynchronize" => &[LAUNCH_FAILED, ILLEGAL_ADDRESS],
        "cuStreamBeginCapture_v2" | "cuStreamEndCapture" => {
            &[CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED]
        }
        "cuGraphInstantiateWithFlags" | "cuGraphLaunch" => &[OUT_OF_MEMORY],
        name if name.starts_with("cublasLt") => {
            return vec![ALLOC_FAILED, EXECUTION_FAILED, NOT_SUPPORTED];
        }
        _ => &[],
    };
    match more {
        [] => vec![UNKNOWN],
        codes => codes.to_vec(),
    }
}

const ROWS: usize = 3;
const WIDTH: usize = 24;

/// Opens a device, launches, records and replays with it: one linear layer three times over, added up.
fn work(place: &Place) -> prefold::Result<Vec<f32>> {
    let gpu = Gpu::new(place.open()?, Precision::F32);
    let number = |i: usize| (i * 7919 % 113) as f32 / 64.0 - 0.8;
    let x: Vec<f32> = (0..ROWS * WIDTH).map(number).collect();
    let w: Vec<f32> = (0..WIDTH * WIDTH).map(|i| number(i + 5)).collect();
    let x = gpu.upload(&x)?;
    let bias = gpu.upload(&w[..WIDTH])?;
    let w = gpu.matrix(WIDTH, WIDTH, &w)?;
    let mut y = gpu.zeros::<f32>(ROWS * WIDTH)?;
    let shape = Linear {
        rows: ROWS,
        inputs: WIDTH,
        outputs: WIDTH,
        add: true,
    };
    let mut recorded = Recorded::default();
    for _ in 0..4 {
        gpu.repeat(&mut recorded, &mut || {
            gpu.linear(shape, &x, &w, Some(&bias), &mut y)
        })?;
    }
    gpu.resize(&mut y, ROWS * WIDTH + 3)?;
    gpu.launcher()
        .time(|| gpu.linear(shape, &x, &w, None, &mut gpu.zeros(ROWS * WIDTH)?))?;
    let y = gpu.download(&y, 0..ROWS * WIDTH)?;
    Ok(y)
}

#[test]
fn every_call_may_fail() {
    let Some(place) = Place::new(90) else { return };
    place.fail("", 0, 0);
    let want = work(&place).unwrap();
    let calls = place.calls();
    place.clean("without a fault");
    let count = |name: &str| {
        calls
            .iter()
            .find(|call| call.0 == name)
            .map_or(0, |call| call.1)
    };
    for name in [
        "cuGraphLaunch",
        "cublasLtMatmul",
        "cuMemFreeAsync",
        "cuEventElapsedTime",
        "cuLaunchKernel",
    ] {
        assert!(count(name) > 0, "{name} is not called: {calls:?}");
    }
    let (mut refused, mut survived) = (0, 0);
    for (name, count) in &calls {
        // The first, the last, and some between.
        let mut which = vec![1, 2, count / 2, count - count / 5, *count];
        which.retain(|nth| (1..=*count).contains(nth));
        which.sort_unstable();
        which.dedup();
        for nth in which {
            for code in codes(name) {
                let what = format!("call {nth} of {name} gives {code}");
                place.fail(name, nth, code);
                let got = work(&place);
                place.fail("", 0, 0);
                match got {
                    Ok(got) => {
                        survived += 1;
                        let near = got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-3);
                        assert!(near, "{what}: another result");
                    }
                    Err(error) => {
                        refused += 1;
                        let line = error.to_string();
                        assert!(!line.contains('\n') && line.len() > 20, "{what}: {line:?}");
                        assert!(
                            line.contains("cuda:") || line.contains("cublasLt"),
                            "{what}: {line:?}"
                        );
                    }
                }
                // What fails to go stays, and cudarc keeps a context whose attribute it cannot read.
                let goes = ["Destroy", "Unload", "Free", "Release"];
                let lost =
                    goes.iter().any(|word| name.contains(word)) || name == "cuDeviceGetAttribute";
                let (complaints, left) = (place.complaints(), place.left());
                if lost || name == "cuCtxGetCurrent" || name == "cuCtxSetCurrent" {
                    forget(place.index);
                    place.complaints();
                } else {
                    assert!(
                        complaints.is_empty() && left.is_empty(),
                        "{what}: {complaints}left: {left}"
                    );
                }
            }
        }
    }
    assert!(
        refused > 50 && survived > 20,
        "{refused} errors, {survived} results"
    );
}

/// Ends what a call that failed has left of a device, as the end of the process does.
fn forget(device: usize) {
    use cudarc::driver::result;
    let device = result::device::get(device as i32).unwrap();
    // SAFETY: the context is not used any more.
    while unsafe { result::primary_ctx::release(device) }.is_ok() {}
}

/// Memory runs out at every stage of a compression: an error each time, and with enough of it the result.
#[test]
fn memory_runs_out() {
    let folder = folder(Family::Llama);
    let weights = Weights::open(folder.path()).unwrap();
    let (tokenizer, job) = (byte_tokenizer(), &jobs()[0]);
    let (mut refused, mut done) = (0, Vec::new());
    // With the most of them there is room for the library's workspace too.
    for bytes in [18, 20, 21, 22, 24, 26].map(|bits| 1usize << bits) {
        let Some(place) = Place::with_memory(90, bytes) else {
            return;
        };
        let gpu = Gpu::new(place.open().unwrap(), Precision::F32);
        let result =
            Model::load(gpu, &weights).and_then(|model| hard::compress(&model, &tokenizer, job));
        match result {
            Ok(result) => done.push(result.text),
            Err(error) => {
                refused += 1;
                let line = error.to_string();
                assert!(line.contains("out of memory"), "{bytes} bytes: {line}");
            }
        }
    }
    assert!(refused > 0 && done.len() > 1, "{refused} errors");
    assert!(done.iter().all(|text| *text == done[0]), "{done:?}");
}

/// Several prompts have a thread each, and one device: where it fails, all of them end.
#[test]
fn a_failing_device_does_not_block_the_caller() {
    let folder = folder(Family::Llama);
    let weights = Weights::open(folder.path()).unwrap();
    let (tokenizer, jobs) = (byte_tokenizer(), jobs());
    let faults = [
        ("cuLaunchKernel", 3, LAUNCH_FAILED),
        ("cuLaunchKernel", 20, TOO_MANY_RESOURCES),
        ("cuStreamSynchronize", 1, ILLEGAL_ADDRESS),
        ("cuMemAllocFromPoolAsync", 1, OUT_OF_MEMORY),
        ("cuStreamBeginCapture_v2", 1, UNKNOWN),
        ("cuGraphInstantiateWithFlags", 1, OUT_OF_MEMORY),
        ("cuGraphLaunch", 2, LAUNCH_FAILED),
    ];
    for (function, nth, code) in faults {
        let Some(place) = Place::new(90) else { return };
        let model = Model::load(Gpu::new(place.open().unwrap(), Precision::F32), &weights).unwrap();
        place.fail_for_all(function, nth, code);
        let results = hard::compress_many(&model, &tokenizer, &jobs[..2]);
        place.fail_for_all("", 0, 0);
        let failed = results.iter().filter(|result| result.is_err()).count();
        let survives =
            function == "cuStreamBeginCapture_v2" || function == "cuGraphInstantiateWithFlags";
        // One launch or one allocation that fails for all at once is tried again for each alone, and a recording
        // that fails is launched.
        if code != TOO_MANY_RESOURCES && function != "cuMemAllocFromPoolAsync" {
            assert_eq!(
                failed == 0,
                survives,
                "{function}: {failed} of {} failed",
                results.len()
            );
        }
        for error in results.into_iter().filter_map(Result::err) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
