//! One launcher for tests: kernels executed by the CPU, or by a CUDA device where there is one.

use std::cell::RefCell;

use prefold::gpu::{Cuda, Gpu, Launch, Launcher, Precision};
use prefold::{Error, Result};

use super::emu::{Emu, SCHEDULES, Schedule, launcher};

/// Either.
pub enum Device {
    Emu(Emu),
    /// One kernel does nothing.
    Without(Emu, &'static str),
    /// One kernel cannot be launched.
    Failing(Emu, &'static str),
    Cuda {
        cuda: Cuda,
        /// Products by the device's library, where it has them; otherwise all by kernels of ours.
        library: bool,
    },
}

/// A graph of either.
pub enum Graph {
    Emu(<Emu as Launcher>::Graph),
    Cuda(<Cuda as Launcher>::Graph),
}

/// Memory of either.
pub enum Memory {
    Emu(<Emu as Launcher>::Memory),
    Cuda(<Cuda as Launcher>::Memory),
}

/// Calls `test` with backends on all schedules of the CPU and on the first CUDA device.
pub fn everywhere(precision: Precision, test: impl Fn(&Gpu<Device>, &str)) {
    backends(precision, &SCHEDULES, |gpu, at| test(&gpu, at));
}

/// Calls `test` with a backend for each schedule of the CPU, and with two on the first CUDA device:
/// products by its library, and by kernels of ours. What is missing is said; a missing device is a
/// failure if `PREFOLD_REQUIRE_CUDA` is 1.
pub fn backends(precision: Precision, schedules: &[Schedule], test: impl Fn(Gpu<Device>, &str)) {
    for &schedule in schedules {
        if let Some(emu) = launcher("library.cu", schedule) {
            let gpu = Gpu::new(Device::Emu(emu), precision);
            test(gpu, &format!("{precision:?}, {schedule:?}"));
        }
    }
    for library in [true, false] {
        let Some(cuda) = cuda() else {
            return;
        };
        let gpu = Gpu::new(Device::Cuda { cuda, library }, precision);
        let by = if library {
            "its library"
        } else {
            "kernels of ours"
        };
        let at = format!("{}, products by {by}", gpu.describe());
        test(gpu, &at);
    }
}

/// The first CUDA device, or a word that none was found.
pub fn cuda() -> Option<Cuda> {
    match Cuda::open(0) {
        Ok(cuda) => Some(cuda),
        Err(error) => {
            let required = std::env::var_os("PREFOLD_REQUIRE_CUDA").is_some_and(|v| v == "1");
            assert!(!required, "{error}");
            super::say(&format!("skipped: {error}"));
            None
        }
    }
}

thread_local! {
    /// What this thread has launched, written and read, and the graphs that it made and replayed.
    static LOG: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

/// What this thread has done with devices since it was asked last: names of kernels, "write", "read", which
/// waits for all before it, "graph" and "replay".
pub fn log() -> Vec<&'static str> {
    LOG.with_borrow_mut(std::mem::take)
}

fn mixed() -> Error {
    Error::Device {
        device: "test".into(),
        reason: "memory of another device".into(),
    }
}

impl Launcher for Device {
    type Memory = Memory;
    type Graph = Graph;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<Memory> {
        match self {
            Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _) => {
                emu.alloc(bytes, zeroed).map(Memory::Emu)
            }
            Device::Cuda { cuda, .. } => cuda.alloc(bytes, zeroed).map(Memory::Cuda),
        }
    }

    fn address(&self, memory: &Memory) -> u64 {
        match (self, memory) {
            (
                Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _),
                Memory::Emu(memory),
            ) => emu.address(memory),
            (Device::Cuda { cuda, .. }, Memory::Cuda(memory)) => cuda.address(memory),
            _ => 0,
        }
    }

    fn write(&self, memory: &mut Memory, at: usize, from: &[u8]) -> Result<()> {
        LOG.with_borrow_mut(|log| log.push("write"));
        match (self, memory) {
            (
                Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _),
                Memory::Emu(memory),
            ) => emu.write(memory, at, from),
            (Device::Cuda { cuda, .. }, Memory::Cuda(memory)) => cuda.write(memory, at, from),
            _ => Err(mixed()),
        }
    }

    fn read(&self, memory: &Memory, at: usize, to: &mut [u8]) -> Result<()> {
        LOG.with_borrow_mut(|log| log.push("read"));
        match (self, memory) {
            (
                Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _),
                Memory::Emu(memory),
            ) => emu.read(memory, at, to),
            (Device::Cuda { cuda, .. }, Memory::Cuda(memory)) => cuda.read(memory, at, to),
            _ => Err(mixed()),
        }
    }

    fn copy(
        &self,
        from: &Memory,
        from_at: usize,
        to: &mut Memory,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        match (self, from, to) {
            (
                Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _),
                Memory::Emu(from),
                Memory::Emu(to),
            ) => emu.copy(from, from_at, to, to_at, bytes),
            (Device::Cuda { cuda, .. }, Memory::Cuda(from), Memory::Cuda(to)) => {
                cuda.copy(from, from_at, to, to_at, bytes)
            }
            _ => Err(mixed()),
        }
    }

    unsafe fn submit(&self, launch: Launch) -> Result<Launch> {
        let by_library = matches!(self, Device::Cuda { library: true, .. });
        let launch = match launch {
            Launch::Product(product) if !by_library => Launch::Kernel(product.kernel()?),
            launch => launch,
        };
        let name = match &launch {
            Launch::Kernel(kernel) => kernel.name,
            Launch::Product(_) => "product",
        };
        LOG.with_borrow_mut(|log| log.push(name));
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Device::Without(_, missing) if *missing == name => Ok(launch),
                Device::Failing(_, failing) if *failing == name => Err(mixed()),
                Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _) => {
                    emu.submit(launch)
                }
                Device::Cuda { cuda, .. } => cuda.submit(launch),
            }
        }
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Graph> {
        LOG.with_borrow_mut(|log| log.push("graph"));
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                // What does nothing would do something from a graph.
                Device::Without(..) | Device::Failing(..) => Err(mixed()),
                Device::Emu(emu) => emu.graph(launches).map(Graph::Emu),
                Device::Cuda { cuda, .. } => cuda.graph(launches).map(Graph::Cuda),
            }
        }
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        LOG.with_borrow_mut(|log| log.push("replay"));
        // SAFETY: the caller's promise.
        unsafe {
            match (self, graph) {
                (Device::Emu(emu), Graph::Emu(graph)) => emu.replay(graph),
                (Device::Cuda { cuda, .. }, Graph::Cuda(graph)) => Launcher::replay(cuda, graph),
                _ => Err(mixed()),
            }
        }
    }

    fn processors(&self) -> u32 {
        match self {
            Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _) => {
                emu.processors()
            }
            Device::Cuda { cuda, .. } => cuda.processors(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Device::Emu(emu) | Device::Without(emu, _) | Device::Failing(emu, _) => emu.describe(),
            Device::Cuda { cuda, .. } => cuda.describe(),
        }
    }
}
