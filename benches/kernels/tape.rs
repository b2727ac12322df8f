//! A launcher that writes down what is launched, so that the launches alone can be timed: what an op
//! does on the host, and the small tables that it sends, stay out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prefold::Result;
use prefold::gpu::{Launch, Launcher, Product};

/// A device whose launches are written down between [`Tape::start`] and [`Tape::stop`].
pub struct Tape<L> {
    pub device: L,
    entries: Mutex<Option<Vec<Launch>>>,
    library: AtomicBool,
}

impl<L: Launcher> Tape<L> {
    pub fn new(device: L) -> Self {
        Tape {
            device,
            entries: Mutex::new(None),
            library: AtomicBool::new(true),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Option<Vec<Launch>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether products go to the device's library.
    pub fn use_library(&self, yes: bool) {
        self.library.store(yes, Ordering::Relaxed);
    }

    pub fn start(&self) {
        *self.entries() = Some(Vec::new());
    }

    pub fn stop(&self) -> Vec<Launch> {
        self.entries().take().unwrap_or_default()
    }

    /// Launches again what was written down.
    ///
    /// # Safety
    ///
    /// All memory that it uses is still there.
    pub unsafe fn play(&self, entries: &[Launch]) -> Result<()> {
        for entry in entries {
            // SAFETY: they were sound the first time, and the memory is the same.
            unsafe { entry.on(&self.device)? };
        }
        Ok(())
    }
}

impl<L: Launcher> Launcher for Tape<L> {
    type Memory = L::Memory;
    type Graph = L::Graph;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<L::Memory> {
        self.device.alloc(bytes, zeroed)
    }

    fn address(&self, memory: &L::Memory) -> u64 {
        self.device.address(memory)
    }

    fn write(&self, memory: &mut L::Memory, at: usize, from: &[u8]) -> Result<()> {
        self.device.write(memory, at, from)
    }

    fn read(&self, memory: &L::Memory, at: usize, to: &mut [u8]) -> Result<()> {
        self.device.read(memory, at, to)
    }

    fn copy(
        &self,
        from: &L::Memory,
        from_at: usize,
        to: &mut L::Memory,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        self.device.copy(from, from_at, to, to_at, bytes)
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        params: &[u8],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.launch(kernel, grid, threads, shared, params)? };
        if let Some(entries) = self.entries().as_mut() {
            entries.push(Launch::Kernel {
                kernel,
                grid,
                threads,
                shared,
                params: params.to_vec(),
            });
        }
        Ok(())
    }

    unsafe fn product(&self, product: &Product) -> Option<Result<()>> {
        if !self.library.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: the caller's promise.
        let done = unsafe { self.device.product(product)? };
        if done.is_ok()
            && let Some(entries) = self.entries().as_mut()
        {
            entries.push(Launch::Product(*product));
        }
        Some(done)
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<L::Graph> {
        // SAFETY: the caller's promise.
        unsafe { self.device.graph(launches) }
    }

    unsafe fn replay(&self, graph: &L::Graph) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.replay(graph) }
    }

    fn processors(&self) -> u32 {
        self.device.processors()
    }

    fn describe(&self) -> String {
        self.device.describe()
    }
}
