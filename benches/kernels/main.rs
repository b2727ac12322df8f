//! Every kernel over shapes that matter: first compared with the CPU's backend, then timed, with a cold
//! last cache and by the device's clock, beside what the device does at best in the same run.
//!
//! `cargo bench --bench kernels -- [--json] [--only OP,OP] [--rows N,N] [--models NAME,NAME]`
//!
//! Models are `smollm2` and `llama3-8b`, by their shapes: weights are random. Without a CUDA device tiny
//! shapes are executed by the CPU, as a check of the bench alone.

mod bench;
#[path = "../../tests/ops/cases/mod.rs"]
mod cases;
mod clock;
#[allow(dead_code)]
#[path = "../../tests/common/emu.rs"]
mod emu;
mod expected;
#[allow(dead_code)]
#[path = "../../tests/common/oracle.rs"]
mod oracle;
mod tape;
mod whole;

use std::path::PathBuf;
use std::process::ExitCode;

use bench::{Bench, Selected};
use clock::Clock;
use prefold::Result;
use prefold::gpu::{Cuda, Gpu, Precision};
use tape::Tape;

/// See `tests/common`: where a carried binary finds what it needs.
fn carried() -> Option<PathBuf> {
    std::env::var_os("PREFOLD_TEST_ROOT").map(PathBuf::from)
}

fn say(line: &str) {
    eprintln!("{line}");
}

fn main() -> ExitCode {
    let Some(selected) = arguments() else {
        eprintln!("usage: kernels [--json] [--only OP,OP] [--rows N,N] [--models NAME,NAME]");
        return ExitCode::from(2);
    };
    let done = match Cuda::open(0) {
        Ok(cuda) => run(cuda, selected),
        Err(error) => {
            say(&format!(
                "no GPU ({error}): tiny shapes executed by the CPU, as a check only; nothing is timed"
            ));
            match emu::launcher("library.cu", emu::SCHEDULES[2]) {
                Some(emu) => run(emu.hopper(), selected.tiny()),
                None => return ExitCode::SUCCESS,
            }
        }
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} cases are wrong");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Option<Selected> {
    let mut selected = Selected::default();
    let mut arguments = std::env::args().skip(1);
    let list = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => selected.json = true,
            // Given by `cargo bench`.
            "--bench" => {}
            "--only" => selected.only = list(arguments.next()?),
            "--models" => selected.models = list(arguments.next()?),
            "--rows" => {
                let rows = list(arguments.next()?).into_iter().map(|n| n.parse().ok());
                selected.rows = rows.collect::<Option<_>>()?;
            }
            _ => return None,
        }
    }
    Some(selected)
}

/// Cases that are wrong.
fn run<L: Clock>(device: L, selected: Selected) -> Result<usize> {
    let ceilings = device.ceilings()?;
    let gpu = Gpu::new(Tape::new(device), Precision::Bf16);
    let mut bench = Bench::new(gpu, ceilings, selected);
    bench.head();
    bench.all()?;
    Ok(bench.failed())
}
