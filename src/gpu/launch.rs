//! What can run a kernel: a device's memory, and launches by name.

use super::Precision;
use crate::error::{Error, Result};

/// An operand of a [`Product`]: a row-major matrix at an address of the device, in the product's
/// precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Its address.
    pub at: u64,
    /// Elements from one row to the next.
    pub ld: usize,
}

/// `y = x · wᵀ + bias (+ y)`, for a device's own library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// `[rows, inner]`.
    pub x: Operand,
    /// `[columns, inner]`.
    pub w: Operand,
    /// f32 `[columns]`, or 0 for none.
    pub bias: u64,
    /// f32 `[rows, columns]`.
    pub y: u64,
    /// Rows of y.
    pub rows: usize,
    /// Columns of y.
    pub columns: usize,
    /// Products in a sum.
    pub inner: usize,
    /// Adds to what y holds.
    pub add: bool,
    /// Of x and w; sums are f32.
    pub precision: Precision,
}

/// One launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Launch {
    /// See [`Launcher::launch`].
    Kernel {
        /// Its name.
        kernel: &'static str,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of a block.
        threads: u32,
        /// Bytes of dynamic shared memory of a block.
        shared: usize,
        /// Its parameter struct.
        params: Vec<u8>,
    },
    /// See [`Launcher::product`].
    Product(Product),
}

impl Launch {
    /// Launches it.
    ///
    /// # Errors
    ///
    /// Those of the launcher, and [`Error::Launch`] for a product that it does not have.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::launch`].
    #[allow(unsafe_code)]
    pub unsafe fn on<L: Launcher>(&self, launcher: &L) -> Result<()> {
        match self {
            Launch::Kernel {
                kernel,
                grid,
                threads,
                shared,
                params,
            } => {
                // SAFETY: the caller's promise.
                unsafe { launcher.launch(kernel, *grid, *threads, *shared, params) }
            }
            Launch::Product(product) => {
                // SAFETY: the caller's promise.
                let done = unsafe { launcher.product(product) };
                done.unwrap_or(Err(Error::Launch {
                    kernel: "product",
                    reason: "the device's library no longer has it".into(),
                }))
            }
        }
    }
}

/// Runs kernels with parameters as `kernels/abi.h` lays them out.
///
/// Calls take effect in the order in which they are made, by whatever thread: there is one queue. A
/// launch may return before the kernel has run; `read` waits for all before it.
pub trait Launcher: Send + Sync + Sized + 'static {
    /// A piece of the device's memory, free again when dropped, after what was launched before.
    type Memory: Send + Sync;
    /// A list of launches that the device has been told once.
    type Graph: Send + Sync;

    /// `bytes` bytes, aligned to 256. Those not `zeroed` have any content.
    fn alloc(&self, bytes: usize, zeroed: bool) -> Result<Self::Memory>;

    /// Its address on the device.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Copies to the device from byte `at` on. `from` may change as soon as this returns.
    fn write(&self, memory: &mut Self::Memory, at: usize, from: &[u8]) -> Result<()>;

    /// Copies from the device from byte `at` on.
    fn read(&self, memory: &Self::Memory, at: usize, to: &mut [u8]) -> Result<()>;

    /// Copies `bytes` bytes within the device.
    fn copy(
        &self,
        from: &Self::Memory,
        from_at: usize,
        to: &mut Self::Memory,
        to_at: usize,
        bytes: usize,
    ) -> Result<()>;

    /// Starts `kernel` on a grid of blocks of `threads` threads with `shared` bytes of dynamic shared
    /// memory each. `params` holds its parameter struct.
    ///
    /// # Safety
    ///
    /// The parameters are the kernel's, and every address in them points to memory of this launcher
    /// that is as large as the kernel's shapes demand; what it writes is not in other use meanwhile.
    #[allow(unsafe_code)]
    unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        params: &[u8],
    ) -> Result<()>;

    /// Queues a product by the device's own library. `None`: it has none for this one, and a kernel of
    /// ours must do it.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::launch`]: the addresses point to memory as large as the shapes say.
    #[allow(unsafe_code)]
    unsafe fn product(&self, product: &Product) -> Option<Result<()>> {
        let _ = product;
        None
    }

    /// Makes a graph of launches, which have all been launched before; does nothing else. A launcher that
    /// does not hand its memory's work on to one of this crate's cannot know whether these were all that
    /// was done, and refuses.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::launch`], for all of them.
    #[allow(unsafe_code)]
    unsafe fn graph(&self, launches: &[Launch]) -> Result<Self::Graph>;

    /// Launches what a graph holds, in its order.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::launch`]: all memory that it uses is still there.
    #[allow(unsafe_code)]
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Multiprocessors: blocks that run at once are about twice as many.
    fn processors(&self) -> u32;

    /// The device in words.
    fn describe(&self) -> String;
}
