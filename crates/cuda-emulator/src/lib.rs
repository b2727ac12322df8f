//! Executes CUDA kernels on a CPU, for tests without a GPU.
//!
//! [`compile`] makes a library of kernels by the host's C++ compiler; [`Emulator`] runs them under a
//! [`Schedule`] that takes every liberty which CUDA leaves open. On Linux [`StandIn`] replaces libcuda
//! and libcublasLt, so that the code which launches kernels runs unchanged too. The README says how a
//! kernel is written for it, what it finds, and what only a GPU shows.
#![warn(missing_docs)]

mod compile;
mod driver;
mod emulator;

pub use compile::compile;
pub use driver::{StandIn, StandInDevice};
pub use emulator::{Emulator, EncodeTiled, Launch, Memory, Order, Schedule};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no C++ compiler.
    #[error("no C++ compiler ({0}); set CXX")]
    NoCompiler(String),
    /// The compiler refused the kernels.
    #[error("{0}")]
    Compile(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A library could not be loaded, or is not one of [`compile`].
    #[error("{0}")]
    Load(#[from] libloading::Error),
    /// A library without kernels.
    #[error("{0} is not a library of kernels; make it by `compile`")]
    NoKernels(std::path::PathBuf),
    /// A launch that a device would refuse, or a fault of the kernel with its file and line.
    #[error("{kernel}: {reason}")]
    Launch {
        /// Which kernel.
        kernel: String,
        /// What was found.
        reason: String,
    },
    /// Memory that cannot be had, or bytes outside of a piece.
    #[error("{0}")]
    Memory(String),
    /// Kernels and the stand-in driver are built on Linux.
    #[error("CUDA kernels are executed by the CPU on Linux alone")]
    Platform,
}
