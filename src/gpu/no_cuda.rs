//! Stands in for `cuda.rs` where the crate is built without it.

use std::convert::Infallible;

use super::launch::{Launch, Launcher, Product};
use crate::error::{Error, Result};

/// Not in this build.
pub struct Cuda(Infallible);

impl Cuda {
    /// False: built without CUDA.
    pub fn driver_present() -> bool {
        false
    }

    /// # Errors
    ///
    /// [`Error::Device`] always.
    pub fn open(index: usize) -> Result<Self> {
        Err(Error::Device {
            device: format!("cuda:{index}"),
            reason: "this program was built without the feature `cuda`".into(),
        })
    }

    /// # Errors
    ///
    /// [`Error::Device`] always.
    ///
    /// # Safety
    ///
    /// Any.
    pub unsafe fn with_images(index: usize, _: &[(&str, &[u8])]) -> Result<Self> {
        Self::open(index)
    }

    /// # Errors
    ///
    /// Never returns one: no device can be opened.
    pub fn time(&self, _: impl FnOnce() -> Result<()>) -> Result<f64> {
        match self.0 {}
    }

    /// # Errors
    ///
    /// Never returns one: no device can be opened.
    pub fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<Recording> {
        match self.0 {}
    }

    /// # Errors
    ///
    /// Never returns one: no device can be opened.
    ///
    /// # Safety
    ///
    /// Any.
    pub unsafe fn replay(&self, _: &Recording) -> Result<()> {
        match self.0 {}
    }

    /// `None`: no device can be opened.
    ///
    /// # Safety
    ///
    /// Any.
    pub unsafe fn product_by_library(&self, _: &Product) -> Option<Result<()>> {
        match self.0 {}
    }

    /// Bytes of the last cache before memory.
    pub fn cache(&self) -> usize {
        match self.0 {}
    }
}

/// Not in this build.
pub struct Recording(#[allow(dead_code)] Infallible);

#[allow(unused_variables)]
impl Launcher for Cuda {
    type Memory = Infallible;
    type Graph = Infallible;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<Infallible> {
        match self.0 {}
    }

    fn address(&self, memory: &Infallible) -> u64 {
        match self.0 {}
    }

    fn write(&self, memory: &mut Infallible, at: usize, from: &[u8]) -> Result<()> {
        match self.0 {}
    }

    fn read(&self, memory: &Infallible, at: usize, to: &mut [u8]) -> Result<()> {
        match self.0 {}
    }

    fn copy(
        &self,
        from: &Infallible,
        from_at: usize,
        to: &mut Infallible,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        match self.0 {}
    }

    unsafe fn submit(&self, launch: Launch) -> Result<Launch> {
        match self.0 {}
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Infallible> {
        match self.0 {}
    }

    unsafe fn replay(&self, graph: &Infallible) -> Result<()> {
        match self.0 {}
    }

    fn processors(&self) -> u32 {
        match self.0 {}
    }

    fn describe(&self) -> String {
        match self.0 {}
    }
}
