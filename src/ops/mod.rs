//! One file per op: shape struct, trait, and the CPU's forward.
//!
//! An op says what it computes in a trait; a backend is whatever implements all of them. Outputs
//! are allocated by the caller, matrices are row-major, and every op checks its operands before it
//! touches them.

// Loops over tiles count by index: LLVM unrolls them into registers, which it does not do for zips.
// Constants are written as they are derived, not as f32 rounds them.
#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    clippy::excessive_precision
)]

pub mod attention;
pub mod cpu;
pub mod gemm;
mod gemm_int;
mod isa;
pub mod layer;
pub mod lora;
pub mod nll;
mod pages;
mod panels;
pub mod prune;
mod simd;
pub mod storage;
pub mod topk;

pub use attention::{Attended, Attention, AttentionOp};
pub use cpu::Cpu;
pub use gemm::{GemmOp, Linear, Outer, Span};
pub use isa::Isa;
pub use layer::{Dropout, LayerOp, Norm, NormKind, Pairing, Rotate};
pub use lora::{LoraFactors, LoraOp, LoraPart, LoraUpdate};
pub use nll::{NllOp, Pick};
pub use panels::{Panels, RowSource};
pub use prune::{Capacity, Limits, PruneBatch, PruneOp, PrunedTokens, Staged, TokenPruning};
pub use storage::{Elem, Storage};
pub use topk::{Keep, Select, Selection, TopKOp};

/// A device that has every op: a missing one is a compile error, and two devices cannot be mixed.
pub trait Backend: GemmOp + LayerOp + LoraOp + AttentionOp + NllOp + TopKOp + PruneOp {}

impl<B: GemmOp + LayerOp + LoraOp + AttentionOp + NllOp + TopKOp + PruneOp> Backend for B {}

/// The error for an operand of the wrong length.
pub(crate) fn expect_len(
    op: &'static str,
    what: &str,
    want: usize,
    got: usize,
) -> crate::Result<()> {
    if got >= want {
        return Ok(());
    }
    Err(crate::Error::Shape {
        op,
        want: format!("{want} elements of {what}"),
        got: got.to_string(),
    })
}
