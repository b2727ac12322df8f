//! The CPU as a backend: buffers are vectors, threads are rayon's.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use pulp::{Arch, Simd, WithSimd};

use super::gemm::TileOf;
use super::gemm_int::Vnni;
use super::storage::{Elem, Storage};
use super::{expect_len, gemm_int};
use crate::error::Result;

/// All cores, by rayon's global pool, with the widest vectors there are.
#[derive(Debug)]
pub struct Cpu {
    pub(super) arch: Arch,
    pub(super) tile: Tile,
    /// Integer dot products, if there are any.
    pub(super) vnni: Option<Vnni>,
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
        Self::with_arch(Arch::new())
    }

    /// One for each instruction set that this machine has and that code is compiled for, the widest
    /// first: for tests and comparisons.
    pub fn each_instruction_set() -> Vec<Self> {
        let mut all = vec![Self::new()];
        #[cfg(target_arch = "x86_64")]
        if let Arch::V4(_) = all[0].arch
            && let Some(v3) = pulp::x86::V3::try_new()
        {
            all.push(Self::with_arch(Arch::V3(v3)));
        }
        #[cfg(target_arch = "x86_64")]
        if !matches!(all[0].arch, Arch::Scalar) {
            all.push(Self::with_arch(Arch::Scalar));
        }
        all
    }

    fn with_arch(arch: Arch) -> Self {
        let tile = arch.dispatch(ThisTile);
        Cpu {
            arch,
            tile,
            vnni: Vnni::detect().filter(|_| tile == gemm_int::TILE),
            scratch: Mutex::default(),
        }
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        let lanes = match self.arch {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) => "AVX2",
            #[cfg(target_arch = "aarch64")]
            _ if self.tile.columns > 3 => "NEON",
            _ => "no vectors",
        };
        format!("CPU ({} threads, {lanes})", rayon::current_num_threads())
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

impl Storage for Cpu {
    type Buf<T: Elem> = Vec<T>;

    fn zeros<T: Elem>(&self, len: usize) -> Result<Vec<T>> {
        Ok(vec![T::default(); len])
    }

    fn upload<T: Elem>(&self, host: &[T]) -> Result<Vec<T>> {
        Ok(host.to_vec())
    }

    fn write<T: Elem>(&self, host: &[T], buf: &mut Vec<T>) -> Result<()> {
        expect_len("write", "the buffer", host.len(), buf.len())?;
        buf[..host.len()].copy_from_slice(host);
        Ok(())
    }

    fn download<T: Elem>(&self, buf: &Vec<T>, range: Range<usize>) -> Result<Vec<T>> {
        expect_len(
            "download",
            "the buffer",
            range.end.max(range.start),
            buf.len(),
        )?;
        Ok(buf[range].to_vec())
    }

    fn resize<T: Elem>(&self, buf: &mut Vec<T>, len: usize) -> Result<()> {
        buf.resize(len, T::default());
        Ok(())
    }

    fn copy_within<T: Elem>(&self, buf: &mut Vec<T>, from: Range<usize>, to: usize) -> Result<()> {
        let want = from.end.max(to.saturating_add(from.len()));
        expect_len("copy_within", "the buffer", want.max(from.start), buf.len())?;
        buf.copy_within(from, to);
        Ok(())
    }

    fn copy<T: Elem>(
        &self,
        from: &Vec<T>,
        range: Range<usize>,
        to: &mut Vec<T>,
        at: usize,
    ) -> Result<()> {
        let end = at.saturating_add(range.len());
        expect_len("copy", "the source", range.end.max(range.start), from.len())?;
        expect_len("copy", "the destination", end, to.len())?;
        to[at..end].copy_from_slice(&from[range]);
        Ok(())
    }

    fn clear<T: Elem>(&self, buf: &mut Vec<T>, range: Range<usize>) -> Result<()> {
        expect_len("clear", "the buffer", range.end.max(range.start), buf.len())?;
        buf[range].fill(T::default());
        Ok(())
    }
}
