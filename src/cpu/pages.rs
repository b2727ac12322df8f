//! Memory for matrices: zeros that begin at a page, in pages as large as the system gives. With small
//! ones a model's weights are more pages than the processor can find quickly.

use std::marker::PhantomData;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// So many elements, zero at first. `T` is aligned to less than a page.
#[derive(Debug)]
pub(super) struct Pages<T> {
    map: MmapMut,
    bytes: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// `len` elements.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] without memory.
    pub fn zeros(len: usize) -> Result<Self> {
        let none = |reason: String| Error::Device {
            device: "cpu".into(),
            reason: format!("no memory for {len} elements of a matrix: {reason}"),
        };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| none("more than there are addresses".into()))?;
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|error| none(error.to_string()))?;
        // Where the system has none there are only more of the small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Pages {
            map,
            bytes,
            elements: PhantomData,
        })
    }

    pub fn get(&self) -> &[T] {
        cast_slice(&self.map[..self.bytes])
    }

    pub fn get_mut(&mut self) -> &mut [T] {
        cast_slice_mut(&mut self.map[..self.bytes])
    }
}
