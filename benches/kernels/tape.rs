//! A launcher that writes down what is launched, so that the launches alone can be timed: what an op
//! does on the host, and the small tables that it sends, stay out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prefold::Result;
use prefold::gpu::{Launcher, Product};

/// One launch.
pub enum Entry {
    Kernel {
        name: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        params: Vec<u8>,
    },
    Product(Product),
}

/// A device whose launches are written down between [`Tape::start`] and [`Tape::stop`].
pub struct Tape<L> {
    pub device: L,
    entries: Mutex<Option<Vec<Entry>>>,
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

    fn entries(&self) -> MutexGuard<'_, Option<Vec<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether products go to the device's library.
    pub fn use_library(&self, yes: bool) {
        self.library.store(yes, Ordering::Relaxed);
    }

    pub fn start(&self) {
        *self.entries() = Some(Vec::new());
    }

    pub fn stop(&self) -> Vec<Entry> {
        self.entries().take().unwrap_or_default()
    }

    /// Launches again what was written down.
    ///
    /// # Safety
    ///
    /// All memory that it uses is still there.
    pub unsafe fn play(&self, entries: &[Entry]) -> Result<()> {
        for entry in entries {
            // SAFETY: they were sound the first time, and the memory is the same.
            unsafe {
                match entry {
                    Entry::Kernel {
                        name,
                        grid,
                        threads,
                        shared,
                        params,
                    } => self.device.launch(name, *grid, *threads, *shared, params)?,
                    Entry::Product(product) => {
                        if let Some(done) = self.device.product(product) {
                            done?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl<L: Launcher> Launcher for Tape<L> {
    type Memory = L::Memory;

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
            entries.push(Entry::Kernel {
                name: kernel,
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
            entries.push(Entry::Product(*product));
        }
        Some(done)
    }

    fn processors(&self) -> u32 {
        self.device.processors()
    }

    fn describe(&self) -> String {
        self.device.describe()
    }
}
