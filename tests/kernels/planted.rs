//! Mistakes in kernels that the runtime for the CPU must find, each with the way in which it does.

use crate::common::emu::{Emu, Order, Schedule, launcher, schedule};
use bytemuck::{Pod, Zeroable};
use prefold::Error;
use prefold::gpu::{self, Kernel, Launch, LaunchConfig, Launcher};

/// As in `kernels/host/planted.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    y: u64,
    which: u32,
    unused: u32,
}

const RIGHT: u32 = 0;
const DROPPED_BARRIER: u32 = 1;
const PLAIN_INCREMENT: u32 = 2;
const WEAK_WAIT: u32 = 3;
const DIVERGENT_BARRIER: u32 = 5;
const ABSENT_LANE: u32 = 6;
const REUSED_STAGE: u32 = 7;
const BEYOND_BUFFER: u32 = 8;

pub const EARLY: [Schedule; 3] = [
    schedule(Order::Ascending, false),
    schedule(Order::Descending, false),
    schedule(Order::Random(3), false),
];
pub const LATE: [Schedule; 3] = [
    schedule(Order::Ascending, true),
    schedule(Order::Descending, true),
    schedule(Order::Random(3), true),
];

fn x(i: usize) -> f32 {
    i as f32 + 0.5
}

fn kernel_of(name: &'static str, config: LaunchConfig, params: &[u8]) -> Launch {
    Launch::Kernel(Kernel {
        name,
        config,
        params: gpu::Params::new(params),
    })
}

fn run(emu: &Emu, kernel: &'static str, which: u32) -> Result<Vec<f32>, Error> {
    let host: Vec<f32> = (0..256).map(x).collect();
    let mut from = emu.alloc(1024, false)?;
    emu.write(&mut from, 0, bytemuck::cast_slice(&host))?;
    let to = emu.alloc(256, true)?;
    let params = Params {
        x: emu.address(&from),
        y: emu.address(&to),
        which,
        unused: 0,
    };
    let config = LaunchConfig::new([2, 1, 1], 64).shared(1024);
    // SAFETY: as the kernels demand, but for the mistakes, which stay within guards.
    unsafe { emu.submit(kernel_of(kernel, config, bytemuck::bytes_of(&params)))? };
    let mut got = vec![0.0; 64];
    emu.read(&to, 0, bytemuck::cast_slice_mut(&mut got))?;
    Ok(got)
}

/// What each schedule makes of it; `None` for what is right.
fn found(schedules: &[Schedule], kernel: &'static str, which: u32) -> Option<Vec<Option<String>>> {
    let want: Vec<f32> = (0..64)
        .map(|i| match kernel {
            "planted_reverse" => x(63 - i),
            "planted_histogram" => [64.0, 64.0, 64.0, 64.0].get(i).copied().unwrap_or(0.0),
            "planted_pipeline" => (0..4).map(|tile| x(tile * 64 + 63 - i)).sum(),
            _ => x(i / 32 * 32),
        })
        .collect();
    let mut all = Vec::new();
    for &schedule in schedules {
        let emu = launcher("planted.cu", schedule)?;
        all.push(match run(&emu, kernel, which) {
            Ok(got) if got == want => None,
            Ok(_) => Some("a wrong result".into()),
            Err(error) => Some(error.to_string()),
        });
    }
    Some(all)
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for kernel in [
        "planted_reverse",
        "planted_histogram",
        "planted_pipeline",
        "planted_shuffle",
    ] {
        for schedules in [EARLY, LATE] {
            let Some(found) = found(&schedules, kernel, RIGHT) else {
                return;
            };
            assert_eq!(found, [None, None, None], "{kernel}");
        }
    }
}

#[test]
fn a_dropped_barrier_gives_a_wrong_result_in_every_order() {
    let Some(found) = found(&EARLY, "planted_reverse", DROPPED_BARRIER) else {
        return;
    };
    assert!(found.iter().all(Option::is_some), "{found:?}");
}

#[test]
fn barriers_that_some_do_not_reach_are_reported_with_their_place() {
    let Some(found) = found(&EARLY, "planted_reverse", DIVERGENT_BARRIER) else {
        return;
    };
    for report in found {
        let report = report.unwrap();
        assert!(
            report.contains("40 threads wait for a barrier at planted.cu:")
                && report.contains("24 of 64 have ended"),
            "{report}"
        );
    }
}

#[test]
fn a_shuffle_from_an_absent_lane_is_reported_with_its_place() {
    let Some(found) = found(&EARLY, "planted_shuffle", ABSENT_LANE) else {
        return;
    };
    for report in found {
        let report = report.unwrap();
        assert!(
            report.contains("a lane that is not in its mask at planted.cu:"),
            "{report}"
        );
    }
}

#[test]
fn a_weak_wait_shows_where_copies_are_late() {
    let Some(late) = found(&LATE, "planted_pipeline", WEAK_WAIT) else {
        return;
    };
    assert!(late.iter().all(Option::is_some), "{late:?}");
    assert_eq!(
        found(&EARLY, "planted_pipeline", WEAK_WAIT).unwrap(),
        [None, None, None],
        "early copies cannot show it"
    );
}

#[test]
fn a_stage_that_is_reused_too_soon_shows_where_copies_are_early() {
    let Some(early) = found(&EARLY, "planted_pipeline", REUSED_STAGE) else {
        return;
    };
    assert!(early.iter().any(Option::is_some), "{early:?}");
}

#[test]
fn a_write_beyond_a_buffer_damages_its_guard() {
    let Some(found) = found(&EARLY, "planted_reverse", BEYOND_BUFFER) else {
        return;
    };
    for report in found {
        let report = report.unwrap();
        assert!(
            report.contains("wrote outside a buffer of 256 bytes"),
            "{report}"
        );
    }
}

/// Fibers take turns at barriers only, so that no order loses an update: `make kernels-sanitize` does it.
#[test]
fn a_plain_increment_is_beyond_this_net() {
    let Some(found) = found(&EARLY, "planted_histogram", PLAIN_INCREMENT) else {
        return;
    };
    assert_eq!(found, [None, None, None]);
}

#[test]
fn launches_that_cuda_would_refuse_are_refused() {
    let Some(emu) = launcher("planted.cu", EARLY[0]) else {
        return;
    };
    let params = [0u8; 24];
    let submit = |kernel, config, params: &[u8]| {
        // SAFETY: none of these is started.
        let result = unsafe { emu.submit(kernel_of(kernel, config, params)) };
        result.unwrap_err().to_string()
    };
    let launch = |kernel, grid, threads, shared, params: &[u8]| {
        submit(
            kernel,
            LaunchConfig::new(grid, threads).shared(shared),
            params,
        )
    };
    let good = "planted_reverse";
    assert!(launch("planted_nothing", [1; 3], 64, 0, &params).contains("no such kernel"));
    assert!(
        launch(good, [1; 3], 64, 0, &params[..16]).contains("its params have 24 bytes, not 16")
    );
    assert!(launch(good, [1; 3], 33, 0, &params).contains("whole warps up to 64"));
    assert!(launch(good, [1; 3], 128, 0, &params).contains("whole warps up to 64"));
    assert!(launch(good, [1, 70_000, 1], 64, 0, &params).contains("grid"));
    assert!(launch(good, [1; 3], 64, 300_000, &params).contains("shared memory"));
    let config = LaunchConfig::new([6, 1, 1], 64);
    for cluster in [[4, 1, 1], [1, 2, 1], [0, 1, 1]] {
        let config = LaunchConfig { cluster, ..config };
        assert!(submit(good, config, &params).contains("possible on no device"));
    }
    let (wide, cluster) = (LaunchConfig::new([16, 1, 1], 64), [16, 1, 1]);
    let wide = LaunchConfig { cluster, ..wide };
    assert!(submit(good, wide, &params).contains("possible on no device"));
    let carveout = Some(101);
    let config = LaunchConfig { carveout, ..config };
    assert!(submit(good, config, &params).contains("possible on no device"));
}
