//! Runs kernels of a compiled library, one block after another.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;

use crate::{Error, Result};

/// In which order the threads of a block run between barriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the first on.
    Ascending,
    /// From the last on.
    Descending,
    /// Another order between any two barriers, by a seed.
    Random(u64),
}

/// What CUDA leaves open, and a test chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Order of threads.
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

/// `cuTensorMapEncodeTiled`, with its enumerations as numbers.
pub type EncodeTiled = unsafe extern "C" fn(
    map: *mut c_void,
    data_type: c_int,
    rank: c_uint,
    address: *mut c_void,
    sides: *const u64,
    strides: *const u64,
    size: *const c_uint,
    steps: *const c_uint,
    interleave: c_int,
    swizzle: c_int,
    promotion: c_int,
    fill: c_int,
) -> c_int;

/// Kernels of a library, and the memory that they work on. It is thorough, not fast.
pub struct Emulator {
    library: &'static Library,
    schedule: Schedule,
    /// Whether it is a device of compute capability 9.0.
    hopper: bool,
    /// Begin and size of the memory that is in use.
    live: Arc<Mutex<BTreeMap<usize, usize>>>,
}

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster, of which the grid must be a multiple; ones for none.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// The bytes of the kernel's parameter struct.
    pub params: &'a [u8],
}

/// Dynamic shared memory that a block can have on every architecture since sm_80: sm_89 and sm_120 give
/// the least.
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

impl Emulator {
    /// Loads a library that [`compile`](crate::compile) made.
    ///
    /// # Errors
    ///
    /// [`Error::Load`].
    ///
    /// # Safety
    ///
    /// The library's initialisers run; it must be such a library.
    pub unsafe fn open(library: &Path, schedule: Schedule) -> Result<Self> {
        // SAFETY: the caller's promise.
        let library = unsafe { loaded(library) }?;
        Ok(Emulator {
            library,
            schedule,
            hopper: false,
            live: Arc::default(),
        })
    }

    /// The same as a device of compute capability 9.0, whose blocks in clusters have more shared memory.
    pub fn hopper(self) -> Self {
        Emulator {
            hopper: true,
            ..self
        }
    }

    /// Bytes between guards, aligned to 256: zeros, or NaN.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] where so much cannot be had.
    pub fn alloc(&self, bytes: usize, zeroed: bool) -> Result<Memory> {
        let fill = if zeroed { 0 } else { POISON };
        Memory::new(bytes, fill, &self.live)
            .ok_or_else(|| Error::Memory(format!("no memory of {bytes} bytes")))
    }

    /// Whether it is a device of compute capability 9.0.
    pub fn is_hopper(&self) -> bool {
        self.hopper
    }

    /// The library's stand-in for `cuTensorMapEncodeTiled`, for matrices of bf16 in boxes of 128 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] for a library without it.
    pub fn encode_tiled(&self) -> Result<EncodeTiled> {
        // SAFETY: the library is of `compile`, so that its function has this type.
        Ok(unsafe {
            *self
                .library
                .get::<EncodeTiled>(b"cuda_emulator_tensor_map\0")?
        })
    }

    /// Whether bytes lie within one piece of memory.
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let at = address as usize;
        let piece = live.range(..=at).next_back();
        piece.is_some_and(|(&begin, &held)| at - begin <= held && bytes <= held - (at - begin))
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

    /// Runs a kernel to its end.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] for a launch that a device would refuse, and for every fault that was found: a
    /// deadlock, lanes at different collectives, a write past a piece of memory.
    ///
    /// # Safety
    ///
    /// The parameters are the kernel's, and each address in them is of memory that is as large as the
    /// kernel expects, or wrong by less than the guards' 256 bytes.
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let failed = |reason: String| Error::Launch {
            kernel: launch.kernel.into(),
            reason,
        };
        let Launch { grid, cluster, .. } = launch;
        let blocks = cluster.iter().map(|&side| u64::from(side)).product::<u64>();
        let whole = grid
            .iter()
            .zip(cluster)
            .all(|(&grid, &cluster)| cluster > 0 && grid.is_multiple_of(cluster));
        if !whole || blocks > CLUSTER {
            let reason =
                format!("clusters of {cluster:?} in a grid of {grid:?} are possible on no device");
            return Err(failed(reason));
        }
        let shared = launch.shared_bytes;
        let limit = match self.hopper && blocks > 1 {
            true => SHARED_HOPPER,
            false => SHARED,
        };
        if shared > limit {
            let reason = format!("{shared} bytes of shared memory, more than every device has");
            return Err(failed(reason));
        }
        let name = CString::new(launch.kernel).map_err(|error| failed(error.to_string()))?;
        let (order, seed) = match self.schedule.order {
            Order::Ascending => (0, 0),
            Order::Descending => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let mut report = [0u8; 512];
        // SAFETY: the library is ours, so that its function has this type; the rest is the caller's
        // promise.
        let code = unsafe {
            let run = self.library.get::<Entry>(b"cuda_emulator_launch\0")?;
            run(
                name.as_ptr(),
                launch.params.as_ptr().cast(),
                launch.params.len(),
                grid.as_ptr(),
                cluster.as_ptr(),
                launch.block,
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

/// Loads a library once and for good: each time that one is loaded anew takes of the little memory that there
/// is for thread-local variables of libraries.
///
/// # Safety
///
/// As of [`Emulator::open`].
unsafe fn loaded(path: &Path) -> Result<&'static Library> {
    static LOADED: Mutex<BTreeMap<PathBuf, &'static Library>> = Mutex::new(BTreeMap::new());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = loaded.get(path) {
        return Ok(library);
    }
    // SAFETY: the caller's promise.
    let library: &Library = Box::leak(Box::new(unsafe { Library::new(path) }?));
    loaded.insert(path.into(), library);
    Ok(library)
}

/// Memory between guards.
pub struct Memory {
    begin: NonNull<u8>,
    bytes: usize,
    live: Arc<Mutex<BTreeMap<usize, usize>>>,
}

// SAFETY: it is plain memory, written only where it is held exclusively.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(2 * GUARD)?, GUARD).ok()
    }

    fn new(bytes: usize, fill: u8, live: &Arc<Mutex<BTreeMap<usize, usize>>>) -> Option<Self> {
        let layout = Self::layout(bytes)?;
        // SAFETY: the size is not zero, and all of it is written before anyone reads.
        let begin = unsafe {
            let base = NonNull::new(alloc(layout))?;
            base.write_bytes(CANARY, bytes + 2 * GUARD);
            let begin = base.add(GUARD);
            begin.write_bytes(fill, bytes);
            begin
        };
        live.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(begin.as_ptr() as usize, bytes);
        Some(Memory {
            begin,
            bytes,
            live: live.clone(),
        })
    }

    /// Its address, which kernels take.
    pub fn address(&self) -> u64 {
        self.begin.as_ptr() as u64
    }

    /// Writes bytes from byte `at` on.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] beyond the end.
    pub fn write(&mut self, at: usize, from: &[u8]) -> Result<()> {
        let to = self.place(at, from.len())?;
        // SAFETY: `place` checked the length; the memory is held exclusively.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Reads bytes from byte `at` on.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] beyond the end.
    pub fn read(&self, at: usize, to: &mut [u8]) -> Result<()> {
        let from = self.place(at, to.len())?;
        // SAFETY: as above.
        unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies `bytes` bytes of another piece from its byte `from_at` on.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] beyond an end.
    pub fn copy_from(
        &mut self,
        at: usize,
        from: &Memory,
        from_at: usize,
        bytes: usize,
    ) -> Result<()> {
        let from = from.place(from_at, bytes)?;
        let to = self.place(at, bytes)?;
        // SAFETY: as above; two pieces do not overlap.
        unsafe { to.copy_from_nonoverlapping(from, bytes) };
        Ok(())
    }

    /// Where `count` bytes begin, `at` bytes after the begin.
    fn place(&self, at: usize, count: usize) -> Result<*mut u8> {
        if at.checked_add(count).is_none_or(|end| end > self.bytes) {
            return Err(Error::Memory(format!(
                "{count} bytes from {at} on, of {}",
                self.bytes
            )));
        }
        // SAFETY: within the allocation.
        Ok(unsafe { self.begin.as_ptr().add(at) })
    }
}

impl Drop for Memory {
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
