//! A launcher that writes down what is launched, so that the launches alone can be timed: what an op
//! does on the host, and the small tables that it sends, stay out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prefold::Result;
use prefold::gpu::{BoxMap, Boxed, Launch, Launcher};

/// Memory that was dropped while it may still be used; none: it is freed at once.
type Attic<M> = Arc<Mutex<Option<Vec<M>>>>;

/// Memory of the device, or the attic's once it is dropped.
pub struct Kept<M> {
    /// There until it is dropped.
    memory: Option<M>,
    attic: Attic<M>,
}

impl<M> Drop for Kept<M> {
    fn drop(&mut self) {
        let mut attic = self.attic.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = attic.as_mut() {
            kept.extend(self.memory.take());
        }
    }
}

/// A device whose launches are written down between [`Tape::start`] and [`Tape::stop`]; what memory ops give
/// back from then on stays until [`Tape::release`].
pub struct Tape<L: Launcher> {
    pub device: L,
    entries: Mutex<Option<Vec<Launch>>>,
    attic: Attic<L::Memory>,
    library: AtomicBool,
    boxes: AtomicBool,
}

impl<L: Launcher> Tape<L> {
    pub fn new(device: L) -> Self {
        Tape {
            device,
            entries: Mutex::new(None),
            attic: Attic::default(),
            library: AtomicBool::new(true),
            boxes: AtomicBool::new(true),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Option<Vec<Launch>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether products go to the device's library.
    pub fn use_library(&self, yes: bool) {
        self.library.store(yes, Ordering::Relaxed);
    }

    /// Whether kernels that copy in boxes are used where the device has them.
    pub fn use_boxes(&self, yes: bool) {
        self.boxes.store(yes, Ordering::Relaxed);
    }

    pub fn start(&self) {
        *self.entries() = Some(Vec::new());
        *self.attic.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Nothing that was written down will be launched again.
    pub fn release(&self) {
        let kept = std::mem::take(&mut *self.attic.lock().unwrap_or_else(PoisonError::into_inner));
        drop(kept);
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
            unsafe { self.device.submit(entry.clone())? };
        }
        Ok(())
    }
}

impl<L: Launcher> Launcher for Tape<L> {
    type Memory = Kept<L::Memory>;
    type Graph = L::Graph;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<Self::Memory> {
        Ok(Kept {
            memory: Some(self.device.alloc(bytes, zeroed)?),
            attic: self.attic.clone(),
        })
    }

    fn address(&self, memory: &Self::Memory) -> u64 {
        let memory = memory.memory.as_ref();
        memory.map_or(0, |memory| self.device.address(memory))
    }

    fn write(&self, memory: &mut Self::Memory, at: usize, from: &[u8]) -> Result<()> {
        match &mut memory.memory {
            Some(memory) => self.device.write(memory, at, from),
            None => Ok(()),
        }
    }

    fn read(&self, memory: &Self::Memory, at: usize, to: &mut [u8]) -> Result<()> {
        match &memory.memory {
            Some(memory) => self.device.read(memory, at, to),
            None => Ok(()),
        }
    }

    fn copy(
        &self,
        from: &Self::Memory,
        from_at: usize,
        to: &mut Self::Memory,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        match (&from.memory, &mut to.memory) {
            (Some(from), Some(to)) => self.device.copy(from, from_at, to, to_at, bytes),
            _ => Ok(()),
        }
    }

    unsafe fn submit(&self, launch: Launch) -> Result<Launch> {
        let launch = match launch {
            Launch::Product(product) if !self.library.load(Ordering::Relaxed) => {
                Launch::Kernel(product.kernel()?)
            }
            launch => launch,
        };
        // SAFETY: the caller's promise.
        let done = unsafe { self.device.submit(launch)? };
        if let Some(entries) = self.entries().as_mut() {
            entries.push(done.clone());
        }
        Ok(done)
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<L::Graph> {
        // SAFETY: the caller's promise.
        unsafe { self.device.graph(launches) }
    }

    unsafe fn replay(&self, graph: &L::Graph) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.replay(graph) }
    }

    fn box_map(&self, boxed: &Boxed) -> Option<BoxMap> {
        match self.boxes.load(Ordering::Relaxed) {
            true => self.device.box_map(boxed),
            false => None,
        }
    }

    fn processors(&self) -> u32 {
        self.device.processors()
    }

    fn describe(&self) -> String {
        self.device.describe()
    }
}
