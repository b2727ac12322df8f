//! The ops by kernels of ours (`kernels/`), on a GPU or, for tests, executed by a CPU.
//!
//! [`Gpu`] implements every op once, over a [`Launcher`]: [`Cuda`] is a device; tests have a
//! launcher that executes the same kernels, grids and parameters on a CPU (`crates/cuda-emulator`).

#![allow(unsafe_code)]

mod abi;
mod attention;
mod boxes;
mod check;
#[cfg(feature = "cuda")]
mod cublas;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
mod cuda;
mod gemm;
mod launch;
mod layer;
mod lora;
mod nll;
mod prune;
mod tape;
mod topk;

pub use boxes::EncodeTiled;
pub use cuda::{Cuda, Recording};
pub use gemm::Matrix;
pub use launch::{BoxMap, Boxed, Kernel, Launch, LaunchConfig, Launcher, Operand, Params, Product};
pub use prune::Recorded;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tape::Watched;

use crate::error::Result;
use crate::ops::Checked;
use crate::ops::storage::{Buffer, Elem, Storage};

/// What products are made of; sums are f32 always.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights and operands in bf16, on tensor cores.
    #[default]
    Bf16,
    /// All in f32.
    F32,
}

impl Precision {
    fn bytes(self) -> usize {
        match self {
            Precision::Bf16 => 2,
            Precision::F32 => 4,
        }
    }

    /// Elements of a row, filled up to 16 bytes.
    fn padded(self, width: usize) -> usize {
        width.next_multiple_of(16 / self.bytes())
    }
}

/// A backend whose ops are kernels.
pub struct Gpu<L: Launcher> {
    launcher: Watched<L>,
    precision: Precision,
    scratch: Mutex<Scratch<L>>,
    /// Counts whatever may have changed a buffer.
    events: AtomicU64,
}

/// Memory that ops share. An op holds the lock while it puts its launches into the one queue, so that
/// the next op's come after them.
struct Scratch<L: Launcher> {
    /// Small tables that go up: ids, tiles, segments.
    table: Slot<L>,
    /// The left operand of a product.
    operand: Slot<L>,
    /// What an op has left there.
    packed: Option<Packed>,
    /// What blocks of one row found out.
    parts: Slot<L>,
    /// What `table` holds, if it is attention's tiles: they are the same in every layer.
    tiles: Vec<abi::AttentionTile>,
}

impl<L: Launcher> Scratch<L> {
    /// At least so many bytes for a left operand, in place of the one that was there; their address.
    fn operand(&mut self, launcher: &Watched<L>, bytes: usize) -> Result<u64> {
        self.packed = None;
        self.operand.reserve(launcher, bytes)
    }

    /// How often any of it has moved: addresses in it are good as long as this stays the same.
    fn grown(&self) -> u64 {
        self.table.grown + self.operand.grown + self.parts.grown
    }
}

/// Rows of a buffer that lie packed in `Scratch::operand`, as long as nothing has happened since.
#[derive(Clone, Copy, PartialEq)]
struct Packed {
    /// The buffer's address.
    of: u64,
    rows: usize,
    width: usize,
    event: u64,
}

struct Slot<L: Launcher> {
    held: Option<(L::Memory, usize)>,
    /// How often it has moved.
    grown: u64,
}

impl<L: Launcher> Slot<L> {
    fn new() -> Self {
        Slot {
            held: None,
            grown: 0,
        }
    }

    /// At least `bytes` bytes with any content; their address.
    fn reserve(&mut self, launcher: &Watched<L>, bytes: usize) -> Result<u64> {
        match &self.held {
            Some((memory, held)) if *held >= bytes => Ok(launcher.address(memory)),
            held => {
                let grown = held.as_ref().map_or(0, |(_, held)| held + held / 2);
                let bytes = bytes.max(grown).max(256);
                // The old goes first: both might not fit.
                self.held = None;
                self.grown += 1;
                let (memory, _) = self.held.insert((launcher.alloc(bytes, false)?, bytes));
                Ok(launcher.address(memory))
            }
        }
    }

    /// The bytes of `parts`, one after the other, each from a multiple of 16 bytes on; the address of
    /// each.
    fn fill<const N: usize>(
        &mut self,
        launcher: &Watched<L>,
        parts: [&[u8]; N],
    ) -> Result<[u64; N]> {
        let mut all = Vec::with_capacity(parts.iter().map(|part| part.len() + 16).sum());
        let at = parts.map(|part| {
            all.resize(all.len().next_multiple_of(16), 0);
            let at = all.len() as u64;
            all.extend_from_slice(part);
            at
        });
        let address = self.reserve(launcher, all.len())?;
        if let Some((memory, _)) = &mut self.held {
            launcher.write(memory, 0, &all)?;
        }
        Ok(at.map(|at| address + at))
    }
}

impl<L: Launcher> Gpu<L> {
    /// What products are made of.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// A backend on a device.
    pub fn new(launcher: L, precision: Precision) -> Self {
        Gpu {
            launcher: Watched(launcher),
            precision,
            scratch: Mutex::new(Scratch {
                table: Slot::new(),
                operand: Slot::new(),
                packed: None,
                parts: Slot::new(),
                tiles: Vec::new(),
            }),
            events: AtomicU64::new(0),
        }
    }

    /// The device. What is allocated or copied by it directly, recordings of launches do not notice.
    pub fn launcher(&self) -> &L {
        &self.launcher
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        let precision = match self.precision {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        };
        format!("{}, {precision}", self.launcher.describe())
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch<L>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that some buffer may have changed: the operand that an op left may be out of date.
    fn event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    /// Where an op may leave its result as the left operand of the product that follows; 0 where products are
    /// of f32.
    fn leave(&self, scratch: &mut Scratch<L>, rows: usize, width: usize) -> Result<u64> {
        match self.precision {
            Precision::Bf16 => {
                let bytes = rows * self.precision.padded(width) * self.precision.bytes();
                scratch.operand(&self.launcher, bytes)
            }
            Precision::F32 => Ok(0),
        }
    }

    /// The op that asked with [`Gpu::leave`] was launched, and wrote the same to `out` (of staged attention the
    /// rows that have a tile). An op that calls this must write the operand too: what follows reads it in place
    /// of `out`.
    fn left(&self, scratch: &mut Scratch<L>, out: &Buf<L, f32>, rows: usize, width: usize) {
        if self.precision == Precision::Bf16 {
            scratch.packed = Some(self.now(out, rows, width));
        }
    }

    /// These rows as they are now. Rows of whole 16 bytes lie one after the other, whatever their width.
    fn now(&self, of: &Buf<L, f32>, rows: usize, width: usize) -> Packed {
        let (rows, width) = match width % (16 / self.precision.bytes()) {
            0 => (1, rows * width),
            _ => (rows, width),
        };
        Packed {
            of: self.at(of),
            rows,
            width,
            event: self.events.load(Ordering::Relaxed),
        }
    }

    /// Submits a kernel. An empty grid is nothing to do.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::submit`].
    unsafe fn launch<P: bytemuck::Pod>(
        &self,
        name: &'static str,
        config: LaunchConfig,
        params: &P,
    ) -> Result<()> {
        if config.grid.contains(&0) {
            return Ok(());
        }
        let kernel = Kernel {
            name,
            config,
            params: Params::new(bytemuck::bytes_of(params)),
        };
        // SAFETY: the caller's promise.
        unsafe { self.submit(Launch::Kernel(kernel)) }
    }

    /// # Safety
    ///
    /// As of [`Launcher::submit`].
    unsafe fn submit(&self, launch: Launch) -> Result<()> {
        self.event();
        // SAFETY: the caller's promise.
        tape::note(unsafe { self.launcher.submit(launch)? });
        Ok(())
    }

    fn at<T: Elem>(&self, buf: &Buf<L, T>) -> u64 {
        self.launcher.address(&buf.memory)
    }
}

/// A size as kernels take it.
fn size(op: &'static str, value: usize) -> Result<u32> {
    // Kernels count in 32 bits, with a sign here and there.
    match u32::try_from(value) {
        Ok(size) if size <= u32::MAX / 2 => Ok(size),
        _ => Err(crate::Error::Shape {
            op,
            want: "sizes below 2^31".into(),
            got: value.to_string(),
        }),
    }
}

/// A buffer on the device.
pub struct Buf<L: Launcher, T> {
    memory: L::Memory,
    len: usize,
    of: PhantomData<T>,
}

impl<L: Launcher, T: Elem> Buffer for Buf<L, T> {
    fn len(&self) -> usize {
        self.len
    }
}

impl<L: Launcher> crate::ops::storage::sealed::Sealed for Gpu<L> {}

impl<L: Launcher> Storage for Gpu<L> {
    type Buf<T: Elem> = Buf<L, T>;

    fn zeros<T: Elem>(&self, len: usize) -> Result<Buf<L, T>> {
        self.event();
        Ok(Buf {
            memory: self.launcher.alloc(len * size_of::<T>(), true)?,
            len,
            of: PhantomData,
        })
    }

    fn upload<T: Elem>(&self, host: &[T]) -> Result<Buf<L, T>> {
        self.event();
        let mut memory = self.launcher.alloc(size_of_val(host), false)?;
        self.launcher
            .write(&mut memory, 0, bytemuck::cast_slice(host))?;
        Ok(Buf {
            memory,
            len: host.len(),
            of: PhantomData,
        })
    }

    fn write_checked<T: Elem>(&self, _: Checked, host: &[T], buf: &mut Buf<L, T>) -> Result<()> {
        self.event();
        self.launcher
            .write(&mut buf.memory, 0, bytemuck::cast_slice(host))
    }

    fn download_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &Buf<L, T>,
        range: Range<usize>,
    ) -> Result<Vec<T>> {
        let mut host = vec![T::default(); range.len()];
        let at = range.start * size_of::<T>();
        self.launcher
            .read(&buf.memory, at, bytemuck::cast_slice_mut(&mut host))?;
        Ok(host)
    }

    fn resize<T: Elem>(&self, buf: &mut Buf<L, T>, len: usize) -> Result<()> {
        self.event();
        let mut memory = self.launcher.alloc(len * size_of::<T>(), true)?;
        let bytes = len.min(buf.len) * size_of::<T>();
        self.launcher.copy(&buf.memory, 0, &mut memory, 0, bytes)?;
        buf.memory = memory;
        buf.len = len;
        Ok(())
    }

    fn copy_within_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &mut Buf<L, T>,
        from: Range<usize>,
        to: usize,
    ) -> Result<()> {
        self.event();
        let size = size_of::<T>();
        let bytes = from.len() * size;
        // By way of another buffer: source and destination may overlap.
        let mut between = self.launcher.alloc(bytes, false)?;
        self.launcher
            .copy(&buf.memory, from.start * size, &mut between, 0, bytes)?;
        self.launcher
            .copy(&between, 0, &mut buf.memory, to * size, bytes)
    }

    fn copy_checked<T: Elem>(
        &self,
        _: Checked,
        from: &Buf<L, T>,
        range: Range<usize>,
        to: &mut Buf<L, T>,
        at: usize,
    ) -> Result<()> {
        self.event();
        let size = size_of::<T>();
        self.launcher.copy(
            &from.memory,
            range.start * size,
            &mut to.memory,
            at * size,
            range.len() * size,
        )
    }

    fn clear_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &mut Buf<L, T>,
        range: Range<usize>,
    ) -> Result<()> {
        self.event();
        let size = size_of::<T>();
        let zeros = self.launcher.alloc(range.len() * size, true)?;
        self.launcher.copy(
            &zeros,
            0,
            &mut buf.memory,
            range.start * size,
            range.len() * size,
        )
    }
}
