//! Kernels executed by a CPU: see `kernels/host/runtime.cpp` for what that shows and what not.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;

use super::boxes::EncodeTiled;
use super::launch::{BoxMap, Boxed, Kernel, Launch, LaunchConfig, Launcher};
use super::tape;
use crate::error::{Error, Result};

/// In which order the threads of a block take their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the first on.
    Ascending,
    /// From the last on.
    Descending,
    /// Another order at every turn, by a seed.
    Random(u64),
}

/// What CUDA leaves open and this launcher lets one choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Turns of threads.
    pub order: Order,
    /// Asynchronous copies land as late as they may, instead of at once.
    pub late: bool,
}

type Entry = unsafe extern "C" fn(
    name: *const c_char,
    params: *const c_void,
    size: usize,
    grid: *const c_uint,
    cluster: *const c_uint,
    threads: c_uint,
    shared: usize,
    order: c_int,
    late: c_int,
    seed: u64,
    report: *mut c_char,
    report_size: usize,
) -> c_int;

/// A launcher without a GPU, for tests. It is thorough, not fast.
pub struct Emu {
    library: Library,
    schedule: Schedule,
    processors: u32,
    /// Whether kernels for compute capability 9.0 run.
    hopper: bool,
    /// Begin and size of the memory that is in use.
    live: Arc<Mutex<BTreeMap<usize, usize>>>,
}

/// Dynamic shared memory that a block can have on every architecture that the kernels are compiled for: sm_89 and
/// sm_120 give the least.
const SHARED: usize = 99 << 10;
/// The same on sm_90, for kernels that run nowhere else.
const SHARED_HOPPER: usize = 227 << 10;
/// Blocks of a cluster that every device with clusters can run.
const CLUSTER: u64 = 8;
/// Bytes before and after a piece of memory that must not be touched.
const GUARD: usize = 256;
const CANARY: u8 = 0xa5;
/// What memory holds that is not zeroed: NaN as bf16 and f32, and no index of anything.
const POISON: u8 = 0xff;

impl Emu {
    /// Loads a library made of `kernels/` and `kernels/host/` by a host compiler. `processors` is how
    /// many multiprocessors the launches shall reckon with: more of them, more splits.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if it cannot be loaded.
    ///
    /// # Safety
    ///
    /// The library's initialisers run; it must be such a library.
    pub unsafe fn open(library: &Path, schedule: Schedule, processors: u32) -> Result<Self> {
        // SAFETY: the caller's promise.
        let library = unsafe { Library::new(library) }.map_err(|error| Error::Device {
            device: "emulation".into(),
            reason: error.to_string(),
        })?;
        Ok(Emu {
            library,
            schedule,
            processors,
            hopper: false,
            live: Arc::default(),
        })
    }

    /// The same as a device of compute capability 9.0, for which some ops have kernels of their own.
    pub fn hopper(self) -> Self {
        Emu {
            hopper: true,
            ..self
        }
    }

    /// Begin and size of a piece of memory whose guards are damaged.
    fn damaged(&self) -> Option<(usize, usize)> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let damaged = live.iter().find(|&(&begin, &bytes)| {
            [begin - GUARD, begin + bytes].into_iter().any(|guard| {
                // SAFETY: the memory is live, and its guards belong to it.
                let guard = unsafe { std::slice::from_raw_parts(guard as *const u8, GUARD) };
                guard.iter().any(|&byte| byte != CANARY)
            })
        });
        damaged.map(|(&begin, &bytes)| (begin, bytes))
    }

    /// # Safety
    ///
    /// As of [`Launcher::submit`].
    unsafe fn run(&self, launch: &Kernel) -> Result<()> {
        let &Kernel {
            name: kernel,
            config,
            ref params,
        } = launch;
        let failed = |reason: String| Error::Launch { kernel, reason };
        // Kernels run one after the other here, which every dependent launch allows, and a carve-out
        // changes speed only: both need no more than to be possible.
        let LaunchConfig { grid, cluster, .. } = config;
        let blocks = cluster.iter().map(|&side| u64::from(side)).product::<u64>();
        let whole = grid
            .iter()
            .zip(cluster)
            .all(|(&grid, cluster)| cluster > 0 && grid.is_multiple_of(cluster));
        if !whole || blocks > CLUSTER || config.carveout.is_some_and(|percent| percent > 100) {
            return Err(failed(format!("{config:?} is possible on no device")));
        }
        let shared = config.shared_bytes;
        let most = if self.hopper && blocks > 1 {
            SHARED_HOPPER
        } else {
            SHARED
        };
        if shared > most {
            let reason = format!("{shared} bytes of shared memory, more than every device has");
            return Err(failed(reason));
        }
        let name = CString::new(kernel).map_err(|error| failed(error.to_string()))?;
        let (order, seed) = match self.schedule.order {
            Order::Ascending => (0, 0),
            Order::Descending => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let mut report = [0u8; 512];
        // SAFETY: the library is ours, so that its function has this type; the rest is the caller's
        // promise.
        let code = unsafe {
            let run = self
                .library
                .get::<Entry>(b"prefold_launch_cluster\0")
                .map_err(|error| failed(error.to_string()))?;
            run(
                name.as_ptr(),
                params.bytes().as_ptr().cast(),
                params.bytes().len(),
                grid.as_ptr(),
                cluster.as_ptr(),
                config.block,
                shared,
                order,
                self.schedule.late.into(),
                seed,
                report.as_mut_ptr().cast(),
                report.len(),
            )
        };
        if code != 0 {
            let end = report.iter().position(|&byte| byte == 0).unwrap_or(0);
            return Err(failed(String::from_utf8_lossy(&report[..end]).into_owned()));
        }
        match self.damaged() {
            Some((_, bytes)) => Err(failed(format!("wrote outside a buffer of {bytes} bytes"))),
            None => Ok(()),
        }
    }
}

/// Memory between guards.
pub struct Guarded {
    begin: NonNull<u8>,
    bytes: usize,
    live: Arc<Mutex<BTreeMap<usize, usize>>>,
}

// SAFETY: it is plain memory; who writes it holds it exclusively.
unsafe impl Send for Guarded {}
// SAFETY: as above.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(2 * GUARD)?, GUARD).ok()
    }

    fn new(bytes: usize, fill: u8, live: &Arc<Mutex<BTreeMap<usize, usize>>>) -> Option<Self> {
        let layout = Self::layout(bytes)?;
        // SAFETY: the size is not zero, and all of it is written before anyone reads.
        let begin = unsafe {
            let Some(base) = NonNull::new(alloc(layout)) else {
                handle_alloc_error(layout)
            };
            base.write_bytes(CANARY, bytes + 2 * GUARD);
            let begin = base.add(GUARD);
            begin.write_bytes(fill, bytes);
            begin
        };
        live.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(begin.as_ptr() as usize, bytes);
        Some(Guarded {
            begin,
            bytes,
            live: live.clone(),
        })
    }

    /// The place of `count` bytes from `at` on.
    fn place(&self, at: usize, count: usize) -> Result<*mut u8> {
        if at.checked_add(count).is_none_or(|end| end > self.bytes) {
            return Err(Error::Shape {
                op: "copy",
                want: format!("at most {} bytes", self.bytes),
                got: format!("{count} from {at} on"),
            });
        }
        // SAFETY: within the allocation.
        Ok(unsafe { self.begin.as_ptr().add(at) })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(self.begin.as_ptr() as usize));
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated with this layout, GUARD bytes before.
            unsafe { dealloc(self.begin.as_ptr().sub(GUARD), layout) };
        }
    }
}

impl Launcher for Emu {
    type Memory = Guarded;
    type Graph = Vec<Kernel>;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<Guarded> {
        tape::spoil();
        let fill = if zeroed { 0 } else { POISON };
        Guarded::new(bytes, fill, &self.live).ok_or_else(|| Error::Device {
            device: "emulation".into(),
            reason: format!("no memory of {bytes} bytes"),
        })
    }

    fn address(&self, memory: &Guarded) -> u64 {
        memory.begin.as_ptr() as u64
    }

    fn write(&self, memory: &mut Guarded, at: usize, from: &[u8]) -> Result<()> {
        tape::spoil();
        let to = memory.place(at, from.len())?;
        // SAFETY: `place` checked the length; the memory is held exclusively.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn read(&self, memory: &Guarded, at: usize, to: &mut [u8]) -> Result<()> {
        tape::spoil();
        let from = memory.place(at, to.len())?;
        // SAFETY: as above.
        unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(
        &self,
        from: &Guarded,
        from_at: usize,
        to: &mut Guarded,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        tape::spoil();
        let from = from.place(from_at, bytes)?;
        let to = to.place(to_at, bytes)?;
        // SAFETY: as above; two pieces do not overlap.
        unsafe { to.copy_from_nonoverlapping(from, bytes) };
        Ok(())
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
        if !self.hopper {
            return None;
        }
        let at = boxed.matrix.at as usize;
        let bytes = ((boxed.rows - 1) * boxed.matrix.ld + boxed.columns) * 2;
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let (&begin, &held) = live.range(..=at).next_back()?;
        assert!(
            at + bytes <= begin + held,
            "a map of {bytes} bytes in memory of {held}"
        );
        // SAFETY: the library is ours, so that its function has this type and nothing else is called.
        unsafe {
            let encode = self.library.get::<EncodeTiled>(b"prefold_tensor_map\0");
            boxed.encoded(*encode.ok()?)
        }
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn describe(&self) -> String {
        "kernels executed by the CPU".into()
    }
}
