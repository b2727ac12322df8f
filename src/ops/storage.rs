//! Where buffers lie: the one thing that every op of a backend shares.

use std::ops::Range;

use crate::error::Result;

/// What a buffer may hold.
pub trait Elem: bytemuck::Pod + Default + Send + Sync {}

impl Elem for f32 {}
impl Elem for u32 {}

/// A device's memory. Buffers know their length; ops read and write prefixes of them, so that a
/// buffer made once serves batches of any size up to its own.
pub trait Storage: Sized + Send + Sync + 'static {
    /// A buffer of this device.
    type Buf<T: Elem>: Send + Sync;

    /// A buffer of `len` zeros.
    fn zeros<T: Elem>(&self, len: usize) -> Result<Self::Buf<T>>;

    /// A buffer with the content of `host`.
    fn upload<T: Elem>(&self, host: &[T]) -> Result<Self::Buf<T>>;

    /// Overwrites the beginning of `buf` with `host`.
    fn write<T: Elem>(&self, host: &[T], buf: &mut Self::Buf<T>) -> Result<()>;

    /// The elements `range` of `buf`.
    fn download<T: Elem>(&self, buf: &Self::Buf<T>, range: Range<usize>) -> Result<Vec<T>>;

    /// Makes `buf` `len` elements long; those that were there stay, new ones are zero.
    fn resize<T: Elem>(&self, buf: &mut Self::Buf<T>, len: usize) -> Result<()>;

    /// Copies the elements `from` to `to..` of the same buffer; the two may overlap.
    fn copy_within<T: Elem>(
        &self,
        buf: &mut Self::Buf<T>,
        from: Range<usize>,
        to: usize,
    ) -> Result<()>;

    /// Copies the elements `range` of `from` to `at..` of `to`.
    fn copy<T: Elem>(
        &self,
        from: &Self::Buf<T>,
        range: Range<usize>,
        to: &mut Self::Buf<T>,
        at: usize,
    ) -> Result<()>;

    /// Sets the elements `range` of `buf` to zero.
    fn clear<T: Elem>(&self, buf: &mut Self::Buf<T>, range: Range<usize>) -> Result<()>;
}
