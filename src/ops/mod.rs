//! What every backend computes: each op's shape struct, its trait and its checks.
//!
//! A backend ([`crate::cpu`], [`crate::gpu`]) is whatever implements all traits. A caller calls `norm`:
//! the trait's own method checks the operands and calls the backend's `norm_checked`, so that a check
//! is written once and no backend can leave it out. Outputs are allocated by the caller, matrices are
//! row-major.

pub mod attention;
pub mod gemm;
pub mod layer;
pub mod lora;
pub mod nll;
pub mod prune;
pub mod storage;
pub mod topk;

pub use attention::{Attended, Attention, AttentionOp};
pub use gemm::{GemmOp, Linear, Outer, RowSource, Shaped, Span};
pub use layer::{Dropout, LayerOp, Norm, NormKind, Pairing, Rotate};
pub use lora::{LoraFactors, LoraOp, LoraPart, LoraUpdate};
pub use nll::{NllOp, NllTarget};
pub use prune::{Capacity, Limits, PruneBatch, PruneOp, PrunedTokens, Staged, TokenPruning};
pub use storage::{Buffer, Elem, Storage};
pub use topk::{Keep, Select, TopKOp, TopKOutput};

use crate::error::{Error, Result};

/// A device that has every op: a missing one is a compile error, and two devices cannot be mixed.
pub trait Backend: GemmOp + LayerOp + LoraOp + AttentionOp + NllOp + TopKOp + PruneOp {}

impl<B: GemmOp + LayerOp + LoraOp + AttentionOp + NllOp + TopKOp + PruneOp> Backend for B {}

/// Proof that an op's operands were checked. The methods named `…_checked` take one, and only the
/// traits' own methods can make it: what a backend does with addresses relies on that.
#[derive(Debug, Clone, Copy)]
pub struct Checked(());

/// The error for an operand of the wrong length.
pub(crate) fn expect_len(op: &'static str, what: &str, want: usize, got: usize) -> Result<()> {
    if got >= want {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        want: format!("{want} elements of {what}"),
        got: got.to_string(),
    })
}

/// The error for a token id that is not in a vocabulary of that size.
pub(crate) fn expect_ids(mut ids: impl Iterator<Item = u32>, vocab: usize) -> Result<()> {
    match ids.find(|&id| id as usize >= vocab) {
        Some(id) => Err(Error::input(
            format!("token id {id}"),
            format!("the model has {vocab} ids"),
        )),
        None => Ok(()),
    }
}
