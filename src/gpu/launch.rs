//! What can run a kernel: a device's memory, and launches as values.

use super::Precision;
use crate::error::Result;

/// With more bytes than this in a block, L1 serves better as shared memory than as cache.
const CACHED: usize = 24 * 1024;

/// How a kernel's blocks are laid out, and what each of them gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Blocks of a cluster, of which the grid must be a multiple; ones for none. From sm_90 on.
    pub cluster: [u32; 3],
    /// Programmatic dependent launch: the kernel may start before the one launched before it has
    /// ended, and waits for its results itself (`griddepcontrol.wait`). From sm_90 on.
    pub pdl: bool,
    /// Percent of a multiprocessor's L1 that the kernel prefers as shared memory; `None` leaves it to
    /// the driver.
    pub carveout: Option<u8>,
}

impl LaunchConfig {
    /// A grid of blocks of so many threads, and nothing else. Sizes beyond 32 bits saturate, and the
    /// device refuses them.
    pub fn new(grid: [usize; 3], block: u32) -> Self {
        LaunchConfig {
            grid: grid.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX)),
            block,
            shared_bytes: 0,
            cluster: [1; 3],
            pdl: false,
            carveout: None,
        }
    }

    /// The same with dynamic shared memory. Of much of it all of L1 becomes shared memory: left to itself
    /// the driver may reserve what one block needs, where several would fit.
    pub fn shared(self, shared_bytes: usize) -> Self {
        LaunchConfig {
            shared_bytes,
            carveout: (shared_bytes > CACHED).then_some(100),
            ..self
        }
    }
}

/// A kernel's parameter struct (`kernels/abi.h`), aligned as kernels read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    words: Vec<u64>,
    bytes: usize,
}

impl Params {
    /// A copy of a struct's bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Params {
            words,
            bytes: bytes.len(),
        }
    }

    /// Its bytes; they begin at a multiple of 8.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }
}

/// A launch of a kernel of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// Its grid.
    pub config: LaunchConfig,
    /// Its parameter struct.
    pub params: Params,
}

/// An operand of a [`Product`]: a row-major matrix at an address of the device, in the product's
/// precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Its address.
    pub at: u64,
    /// Elements from one row to the next.
    pub ld: usize,
}

/// `y = x · wᵀ + bias (+ y)`, by a device's own library or by a kernel of ours.
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

/// A matrix of bf16 in the device's memory, to be copied in boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boxed {
    /// Row-major.
    pub matrix: Operand,
    /// Rows of the matrix; of a box that begins before its end the rest is zeros.
    pub rows: usize,
    /// Elements of a row, likewise.
    pub columns: usize,
    /// Rows and columns of a box.
    pub size: [u32; 2],
}

/// The 128 bytes by which a device's copies know a [`Boxed`] matrix: a `CUtensorMap`.
pub type BoxMap = [u64; 16];

/// One launch: what ops submit, what a recording holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// Of a kernel of ours.
    Kernel(Kernel),
    /// By the device's library where it has this product, and otherwise by [`Product::kernel`].
    Product(Product),
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

    /// Starts a kernel, or a product by the device's library or, where that has none for it, by a kernel
    /// of ours. Gives what was started: a graph is made of that.
    ///
    /// # Safety
    ///
    /// The parameters are the kernel's, and every address in them or in the product points to memory
    /// of this launcher that is as large as the shapes demand; what is written is not in other use
    /// meanwhile.
    #[allow(unsafe_code)]
    unsafe fn submit(&self, launch: Launch) -> Result<Launch>;

    /// Makes a graph of launches, which have all been launched before; does nothing else.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::submit`], for all of them.
    #[allow(unsafe_code)]
    unsafe fn graph(&self, launches: &[Launch]) -> Result<Self::Graph>;

    /// Launches what a graph holds, in its order.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::submit`]: all memory that it uses is still there.
    #[allow(unsafe_code)]
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Describes a matrix to copies in boxes, of which kernels for compute capability 9.0 are made. `None`
    /// where such kernels do not run, or the matrix is not one that can be copied so.
    fn box_map(&self, boxed: &Boxed) -> Option<BoxMap> {
        let _ = boxed;
        None
    }

    /// Multiprocessors: blocks that run at once are about twice as many.
    fn processors(&self) -> u32;

    /// The device in words.
    fn describe(&self) -> String;
}
