//! The kernels as a library for the host, and a launcher that executes them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cuda_emulator::{Emulator, Error as Fault};
pub use cuda_emulator::{Order, Schedule};
use prefold::gpu::{BoxMap, Boxed, Gpu, Kernel, Launch, Launcher, Precision};
use prefold::{Error, Result};

/// Ways to run a launch, of which each finds other mistakes.
pub const SCHEDULES: [Schedule; 4] = [
    schedule(Order::Ascending, false),
    schedule(Order::Descending, true),
    schedule(Order::Random(1), true),
    schedule(Order::Random(2), false),
];

/// Multiprocessors that launches reckon with: enough that work is split.
pub const PROCESSORS: u32 = 24;

pub const fn schedule(order: Order, late: bool) -> Schedule {
    Schedule { order, late }
}

/// A backend on the kernels; none without a C++ compiler.
pub fn backend(schedule: Schedule, precision: Precision) -> Option<Gpu<Emu>> {
    Some(Gpu::new(launcher("library.cu", schedule)?, precision))
}

/// The kernels of a file of `kernels/host`.
pub fn launcher(unit: &'static str, schedule: Schedule) -> Option<Emu> {
    // SAFETY: made by `library`.
    Some(unsafe { Emu::open(&library(unit)?, schedule) })
}

/// Compiles once per content of the sources; none without a C++ compiler.
pub fn library(unit: &'static str) -> Option<PathBuf> {
    static BUILT: [OnceLock<Option<PathBuf>>; 2] = [const { OnceLock::new() }; 2];
    let which = usize::from(unit != "library.cu");
    BUILT[which].get_or_init(|| build(unit)).clone()
}

fn build(unit: &str) -> Option<PathBuf> {
    // Carried along, there is nothing to compile; or nothing is to be executed by the CPU.
    if let Some(root) = super::carried() {
        let library = root.join(format!("{}.so", unit.replace('.', "-")));
        if library.exists() {
            return Some(library);
        }
        super::say("skipped: kernels executed by the CPU, for which nothing was carried along");
        return None;
    }
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let include = [kernels.clone(), kernels.join("arch")];
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    found(cuda_emulator::compile(
        &kernels.join("host").join(unit),
        &include,
        out,
    ))
}

/// What was built. A missing compiler is said, and under CI a failure.
pub fn found<T>(built: std::result::Result<T, Fault>) -> Option<T> {
    match built {
        Ok(built) => Some(built),
        Err(error @ (Fault::NoCompiler(_) | Fault::Platform)) => {
            let required = cfg!(target_os = "linux") && std::env::var_os("CI").is_some();
            assert!(!required, "{error}");
            super::say(&format!("skipped: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Kernels executed by the CPU.
pub struct Emu(Emulator);

/// A fault as the library's callers see it.
fn fault(error: Fault) -> Error {
    Error::Device {
        device: "emulation".into(),
        reason: error.to_string(),
    }
}

impl Emu {
    /// # Safety
    ///
    /// The library is of `cuda_emulator::compile`.
    pub unsafe fn open(library: &Path, schedule: Schedule) -> Self {
        // SAFETY: the caller's promise.
        let emulator = unsafe { Emulator::open(library, schedule) };
        Emu(emulator.unwrap())
    }

    /// The same as a device of compute capability 9.0, for which some ops have kernels of their own.
    pub fn hopper(self) -> Self {
        Emu(self.0.hopper())
    }

    /// # Safety
    ///
    /// As of [`Launcher::submit`].
    unsafe fn run(&self, kernel: &Kernel) -> Result<()> {
        let config = &kernel.config;
        // Kernels run one after the other here, which every dependent launch allows, and a carve-out
        // changes speed only: it needs no more than to be possible.
        if config.carveout.is_some_and(|percent| percent > 100) {
            return Err(Error::Launch {
                kernel: kernel.name,
                reason: format!("{config:?} is possible on no device"),
            });
        }
        let launch = cuda_emulator::Launch {
            kernel: kernel.name,
            grid: config.grid,
            block: config.block,
            cluster: config.cluster,
            shared_bytes: config.shared_bytes,
            params: kernel.params.bytes(),
        };
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(&launch) }.map_err(|error| match error {
            Fault::Launch { reason, .. } => Error::Launch {
                kernel: kernel.name,
                reason,
            },
            other => fault(other),
        })
    }
}

impl Launcher for Emu {
    type Memory = cuda_emulator::Memory;
    type Graph = Vec<Kernel>;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<Self::Memory> {
        self.0.alloc(bytes, zeroed).map_err(fault)
    }

    fn address(&self, memory: &Self::Memory) -> u64 {
        memory.address()
    }

    fn write(&self, memory: &mut Self::Memory, at: usize, from: &[u8]) -> Result<()> {
        memory.write(at, from).map_err(fault)
    }

    fn read(&self, memory: &Self::Memory, at: usize, to: &mut [u8]) -> Result<()> {
        memory.read(at, to).map_err(fault)
    }

    fn copy(
        &self,
        from: &Self::Memory,
        from_at: usize,
        to: &mut Self::Memory,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        to.copy_from(to_at, from, from_at, bytes).map_err(fault)
    }

    unsafe fn submit(&self, launch: Launch) -> Result<Launch> {
        let kernel = match launch {
            Launch::Kernel(kernel) => kernel,
            Launch::Product(product) => product.kernel()?,
        };
        // SAFETY: the caller's promise.
        unsafe { self.run(&kernel)? };
        Ok(Launch::Kernel(kernel))
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Vec<Kernel>> {
        launches
            .iter()
            .map(|launch| match launch {
                Launch::Kernel(kernel) => Ok(kernel.clone()),
                Launch::Product(product) => product.kernel(),
            })
            .collect()
    }

    unsafe fn replay(&self, graph: &Vec<Kernel>) -> Result<()> {
        graph
            .iter()
            // SAFETY: the caller's promise.
            .try_for_each(|kernel| unsafe { self.run(kernel) })
    }

    fn box_map(&self, boxed: &Boxed) -> Option<BoxMap> {
        if !self.0.is_hopper() {
            return None;
        }
        let bytes = ((boxed.rows - 1) * boxed.matrix.ld + boxed.columns) * 2;
        assert!(
            self.0.holds(boxed.matrix.at, bytes),
            "a map of {bytes} bytes that are not in one piece of memory"
        );
        // SAFETY: a function of this type.
        unsafe { boxed.encoded(self.0.encode_tiled().ok()?) }
    }

    fn processors(&self) -> u32 {
        PROCESSORS
    }

    fn describe(&self) -> String {
        "kernels executed by the CPU".into()
    }
}
