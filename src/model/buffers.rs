//! Buffers that are used again: a training step needs hundreds, and the next one the same.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::ops::Storage;

/// Buffers of f32 that are not in use, with their lengths.
pub(crate) struct Buffers<S: Storage>(Mutex<Vec<(usize, S::Buf<f32>)>>);

impl<S: Storage> Buffers<S> {
    pub fn new() -> Self {
        Buffers(Mutex::default())
    }

    /// A buffer of at least `len` elements with any content; it comes back when it is dropped.
    pub fn take(&self, storage: &S, len: usize) -> Result<PooledBuffer<'_, S>> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that fits and is not far too large; else one that was outgrown makes room.
        let of_size = |low: usize, high: usize| {
            let sizes = spare.iter().map(|(held, _)| *held).enumerate();
            let fits = sizes.filter(|&(_, held)| held >= low && held <= high);
            fits.min_by_key(|&(_, held)| held).map(|(i, _)| i)
        };
        let fit = of_size(len, len.saturating_mul(2).max(4096));
        let outgrown = of_size(len / 2, len);
        if let Some(i) = fit {
            let (len, buf) = spare.swap_remove(i);
            return Ok(self.lend(len, buf));
        }
        if let Some(i) = outgrown {
            spare.swap_remove(i);
        }
        drop(spare);
        let len = len.saturating_add(len / 8).max(64);
        Ok(self.lend(len, storage.zeros(len)?))
    }

    fn lend(&self, len: usize, buf: S::Buf<f32>) -> PooledBuffer<'_, S> {
        PooledBuffer {
            from: self,
            len,
            buf: Some(buf),
        }
    }
}

/// A buffer of [`Buffers`].
pub(crate) struct PooledBuffer<'a, S: Storage> {
    from: &'a Buffers<S>,
    len: usize,
    /// Until it is dropped.
    buf: Option<S::Buf<f32>>,
}

impl<S: Storage> Deref for PooledBuffer<'_, S> {
    type Target = S::Buf<f32>;

    fn deref(&self) -> &S::Buf<f32> {
        match &self.buf {
            Some(buf) => buf,
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

impl<S: Storage> DerefMut for PooledBuffer<'_, S> {
    fn deref_mut(&mut self) -> &mut S::Buf<f32> {
        match &mut self.buf {
            Some(buf) => buf,
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

impl<S: Storage> Drop for PooledBuffer<'_, S> {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            let mut spare = self.from.0.lock().unwrap_or_else(PoisonError::into_inner);
            spare.push((self.len, buf));
        }
    }
}
