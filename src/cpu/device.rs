//! The CPU as a backend: buffers are vectors, threads are rayon's.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use pulp::{Arch, Simd, WithSimd};

use super::gemm_int::dot::Kernel;
use super::isa::Isa;
use super::simd::TileOf;
use crate::control;
use crate::error::{Error, Result};
use crate::ops::Checked;
use crate::ops::storage::{Buffer, Elem, Storage};

impl Isa {
    /// Those that this machine has, the widest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL
            .into_iter()
            .filter(|&isa| Cpu::parts(isa).is_some())
    }
}

/// All cores, by rayon's global pool, with the widest vectors there are.
#[derive(Debug)]
pub struct Cpu {
    isa: Isa,
    pub(super) arch: Arch,
    pub(super) tile: Tile,
    /// What multiplies codes of 8 bits, if anything does.
    pub(super) kernel: Option<Kernel>,
    scratch: Mutex<Vec<Vec<f32>>>,
}

/// Rows and columns of a product that the inner kernel makes at once; see `gemm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub rows: usize,
    pub columns: usize,
}

struct ThisTile;

impl WithSimd for ThisTile {
    type Output = Tile;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Tile {
        Tile {
            rows: S::ROWS,
            columns: S::VECTORS * S::F32_LANES,
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// With the widest instruction set that this machine has.
    pub fn new() -> Self {
        let widest = Isa::available().find_map(|isa| Self::with_isa(isa).ok());
        widest.unwrap_or_else(|| Self::assemble(Isa::Scalar, Arch::Scalar, None))
    }

    /// With one instruction set: for comparisons and tests.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where this machine does not have it.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        let Some((arch, kernel)) = Self::parts(isa) else {
            let names: Vec<_> = Isa::available().map(Isa::name).collect();
            return Err(Error::Device {
                device: "cpu".into(),
                reason: format!(
                    "this processor lacks {}; use {}",
                    isa.name(),
                    names.join(" or ")
                ),
            });
        };
        Ok(Self::assemble(isa, arch, kernel))
    }

    /// One for each instruction set that this machine has, the widest first: for tests and comparisons.
    pub fn each_instruction_set() -> Vec<Self> {
        Isa::available()
            .filter_map(|isa| Self::with_isa(isa).ok())
            .collect()
    }

    fn assemble(isa: Isa, arch: Arch, kernel: Option<Kernel>) -> Self {
        let tile = arch.dispatch(ThisTile);
        Cpu {
            isa,
            arch,
            tile,
            kernel: kernel.filter(|kernel| kernel.tile() == (tile.rows, tile.columns)),
            scratch: Mutex::default(),
        }
    }

    /// Vectors, and what multiplies codes; `None` where this machine does not have them.
    fn parts(isa: Isa) -> Option<(Arch, Option<Kernel>)> {
        let kernel = Kernel::detect(isa);
        let arch = match isa {
            Isa::Scalar => Arch::Scalar,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512 => Arch::V4(pulp::x86::V4::try_new()?),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni | Isa::Avx2 => Arch::V3(pulp::x86::V3::try_new()?),
            #[cfg(target_arch = "aarch64")]
            Isa::DotProd | Isa::Neon => Arch::Neon(pulp::aarch64::Neon::try_new()?),
            #[allow(unreachable_patterns)]
            _ => return None,
        };
        let whole = kernel.is_some() || matches!(isa, Isa::Scalar | Isa::Neon);
        whole.then_some((arch, kernel))
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether [`GemmOp::estimate`](crate::ops::GemmOp::estimate) multiplies codes of 8 bits.
    pub fn estimates_in_8_bits(&self) -> bool {
        self.kernel.is_some()
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        let isa = match self.isa {
            Isa::Avx512Vnni => "AVX-512 VNNI",
            Isa::Avx512 => "AVX-512",
            Isa::AvxVnni => "AVX-VNNI",
            Isa::Avx2 => "AVX2",
            Isa::DotProd => "NEON dotprod",
            Isa::Neon => "NEON",
            Isa::Scalar => "no vectors",
        };
        format!("CPU ({} threads, {isa})", rayon::current_num_threads())
    }

    /// A vector of at least `len` elements with any content, back in the pool when dropped. No lock
    /// is held meanwhile.
    pub(super) fn scratch(&self, len: usize) -> Scratch<'_> {
        let mut pool = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut data = pool.pop().unwrap_or_default();
        drop(pool);
        if data.len() < len {
            data.resize(len, 0.0);
        }
        Scratch { cpu: self, data }
    }
}

/// Operations of a batch on each thread: some hundredths of a second.
const BATCH_FLOP: usize = 2_000_000_000;

/// Does tasks, of so many operations in all, in batches between which the call may end.
pub(super) fn in_batches<T>(
    mut tasks: Vec<T>,
    flop: usize,
    mut batch: impl FnMut(Vec<T>),
) -> Result<()> {
    let threads = rayon::current_num_threads();
    let batches = flop.div_ceil(BATCH_FLOP * threads).max(1);
    let share = tasks.len().div_ceil(batches).max(4 * threads);
    while !tasks.is_empty() {
        control::check()?;
        let rest = tasks.split_off(share.min(tasks.len()));
        batch(std::mem::replace(&mut tasks, rest));
    }
    Ok(())
}

/// See [`Cpu::scratch`].
pub(super) struct Scratch<'a> {
    cpu: &'a Cpu,
    pub data: Vec<f32>,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let mut pool = self
            .cpu
            .scratch
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pool.push(std::mem::take(&mut self.data));
    }
}

impl<T: Elem> Buffer for Vec<T> {
    fn len(&self) -> usize {
        self.len()
    }
}

impl crate::ops::storage::sealed::Sealed for Cpu {}

impl Storage for Cpu {
    type Buf<T: Elem> = Vec<T>;

    fn zeros<T: Elem>(&self, len: usize) -> Result<Vec<T>> {
        Ok(vec![T::default(); len])
    }

    fn upload<T: Elem>(&self, host: &[T]) -> Result<Vec<T>> {
        Ok(host.to_vec())
    }

    fn resize<T: Elem>(&self, buf: &mut Vec<T>, len: usize) -> Result<()> {
        buf.resize(len, T::default());
        Ok(())
    }

    fn write_checked<T: Elem>(&self, _: Checked, host: &[T], buf: &mut Vec<T>) -> Result<()> {
        buf[..host.len()].copy_from_slice(host);
        Ok(())
    }

    fn download_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &Vec<T>,
        range: Range<usize>,
    ) -> Result<Vec<T>> {
        Ok(buf[range].to_vec())
    }

    fn copy_within_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &mut Vec<T>,
        from: Range<usize>,
        to: usize,
    ) -> Result<()> {
        buf.copy_within(from, to);
        Ok(())
    }

    fn copy_checked<T: Elem>(
        &self,
        _: Checked,
        from: &Vec<T>,
        range: Range<usize>,
        to: &mut Vec<T>,
        at: usize,
    ) -> Result<()> {
        to[at..at + range.len()].copy_from_slice(&from[range]);
        Ok(())
    }

    fn clear_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &mut Vec<T>,
        range: Range<usize>,
    ) -> Result<()> {
        buf[range].fill(T::default());
        Ok(())
    }
}
