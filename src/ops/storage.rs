//! Where buffers lie: the one thing that every op of a backend shares.

use std::ops::Range;

use super::{Checked, expect_len};
use crate::error::Result;

/// What a buffer may hold.
pub trait Elem: bytemuck::Pod + Default + Send + Sync {}

impl Elem for f32 {}
impl Elem for u32 {}

/// A piece of a device's memory that knows its length.
pub trait Buffer: Send + Sync {
    /// Elements.
    fn len(&self) -> usize;

    /// Whether it is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A device's memory. Ops read and write prefixes of buffers, so that a buffer made once serves
/// batches of any size up to its own.
///
/// Only this crate implements it, so that only its own methods pass [`Checked`](super::Checked) on.
pub trait Storage: sealed::Sealed + Sized + Send + Sync + 'static {
    /// A buffer of this device.
    type Buf<T: Elem>: Buffer;

    /// A buffer of `len` zeros.
    fn zeros<T: Elem>(&self, len: usize) -> Result<Self::Buf<T>>;

    /// A buffer with the content of `host`.
    fn upload<T: Elem>(&self, host: &[T]) -> Result<Self::Buf<T>>;

    /// Makes `buf` `len` elements long; those that were there stay, new ones are zero.
    fn resize<T: Elem>(&self, buf: &mut Self::Buf<T>, len: usize) -> Result<()>;

    /// Overwrites the beginning of `buf` with `host`.
    fn write<T: Elem>(&self, host: &[T], buf: &mut Self::Buf<T>) -> Result<()> {
        expect_len("write", "the buffer", host.len(), buf.len())?;
        self.write_checked(Checked(()), host, buf)
    }

    /// The elements `range` of `buf`.
    fn download<T: Elem>(&self, buf: &Self::Buf<T>, range: Range<usize>) -> Result<Vec<T>> {
        let end = range.end.max(range.start);
        expect_len("download", "the buffer", end, buf.len())?;
        self.download_checked(Checked(()), buf, range)
    }

    /// Copies the elements `from` to `to..` of the same buffer; the two may overlap.
    fn copy_within<T: Elem>(
        &self,
        buf: &mut Self::Buf<T>,
        from: Range<usize>,
        to: usize,
    ) -> Result<()> {
        let end = from.end.max(to.saturating_add(from.len())).max(from.start);
        expect_len("copy_within", "the buffer", end, buf.len())?;
        self.copy_within_checked(Checked(()), buf, from, to)
    }

    /// Copies the elements `range` of `from` to `at..` of `to`.
    fn copy<T: Elem>(
        &self,
        from: &Self::Buf<T>,
        range: Range<usize>,
        to: &mut Self::Buf<T>,
        at: usize,
    ) -> Result<()> {
        let end = at.saturating_add(range.len());
        expect_len("copy", "the source", range.end.max(range.start), from.len())?;
        expect_len("copy", "the destination", end, to.len())?;
        self.copy_checked(Checked(()), from, range, to, at)
    }

    /// Sets the elements `range` of `buf` to zero.
    fn clear<T: Elem>(&self, buf: &mut Self::Buf<T>, range: Range<usize>) -> Result<()> {
        expect_len("clear", "the buffer", range.end.max(range.start), buf.len())?;
        self.clear_checked(Checked(()), buf, range)
    }

    /// [`Storage::write`], after its checks.
    fn write_checked<T: Elem>(&self, _: Checked, host: &[T], buf: &mut Self::Buf<T>) -> Result<()>;

    /// [`Storage::download`], after its checks.
    fn download_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &Self::Buf<T>,
        range: Range<usize>,
    ) -> Result<Vec<T>>;

    /// [`Storage::copy_within`], after its checks.
    fn copy_within_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &mut Self::Buf<T>,
        from: Range<usize>,
        to: usize,
    ) -> Result<()>;

    /// [`Storage::copy`], after its checks.
    fn copy_checked<T: Elem>(
        &self,
        _: Checked,
        from: &Self::Buf<T>,
        range: Range<usize>,
        to: &mut Self::Buf<T>,
        at: usize,
    ) -> Result<()>;

    /// [`Storage::clear`], after its checks.
    fn clear_checked<T: Elem>(
        &self,
        _: Checked,
        buf: &mut Self::Buf<T>,
        range: Range<usize>,
    ) -> Result<()>;
}

pub(crate) mod sealed {
    /// A backend of this crate.
    pub trait Sealed {}
}
