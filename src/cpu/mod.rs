//! The ops on a CPU: buffers are vectors, threads are rayon's.

// Loops over tiles count by index: LLVM unrolls them into registers, which it does not do for zips.
// Constants are written as they are derived, not as f32 rounds them.
#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    clippy::excessive_precision
)]

mod attention;
mod device;
mod gemm;
mod gemm_int;
mod isa;
mod layer;
mod lora;
mod nll;
mod pages;
mod panels;
mod prune;
mod simd;
mod topk;

pub use device::Cpu;
pub use isa::Isa;
pub use panels::Panels;
