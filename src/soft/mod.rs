//! Soft compression: KV prefixes made from text, and generation after them.
//!
//! [`encode`](encode()) is 500xCompressor's encoder (arXiv 2408.03094, section 3) or, after one
//! switch, ICAE's or one that pools; [`prefill`](prefill()) is the model's own cache, whole or pruned;
//! [`generate`](generate()) is the frozen decoder after any of them.

mod adapter;
mod encode;
mod generate;
mod prefill;
mod prune;

pub(crate) use adapter::SETTINGS;
pub use adapter::{Adapter, Cut, NextPosition, Settings};
pub(crate) use adapter::{read_memory, untrained_rows};
pub use encode::{EncodeOptions, encode, encoded_id, pieces};
pub(crate) use encode::{means, parts};
pub use generate::{Completion, Finish, Generated, Query, Sampling, answer, generate};
pub use prefill::{PrefillOptions, prefill};
pub use prune::KeepBy;

use crate::control;
use crate::error::{Error, Result};
use crate::kv_prefix::{Rope, sha256};
use crate::model::decoder::{Hidden, Input, Model};
use crate::model::kv::Kv;
use crate::model::lora::Lora;
use crate::ops::Backend;

/// Rows of a forward pass: enough to keep all cores busy, few enough for buffers of some megabytes.
const PASS: usize = 1024;

/// A text as token ids, with the hash that a prefix of it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Token ids, at least one.
    pub ids: Vec<u32>,
    /// SHA-256, hexadecimal: see [`crate::kv_prefix::Origin::source_sha256`].
    pub sha256: String,
}

impl Source {
    /// A text that a tokenizer made `ids` of.
    pub fn text(text: &str, ids: Vec<u32>) -> Self {
        Source {
            ids,
            sha256: sha256(text.as_bytes()),
        }
    }

    /// Ids without a text.
    pub fn ids(ids: Vec<u32>) -> Self {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Source {
            ids,
            sha256: sha256(&bytes),
        }
    }

    fn check(&self) -> Result<()> {
        match self.ids.is_empty() {
            true => Err(Error::input("text", "it has no tokens")),
            false => Ok(()),
        }
    }
}

/// Runs `ids` after what `kv` holds and counts them in; gives the states of the last pass.
fn advance<'a, B: Backend>(
    model: &'a Model<B>,
    ids: &[u32],
    lora: Option<&Lora<B>>,
    kv: &mut Kv<B>,
) -> Result<Option<Hidden<'a, B>>> {
    model.check_positions(kv.position(), ids.len())?;
    let mut last = None;
    let mut done = 0;
    for pass in ids.chunks(PASS) {
        // Its buffers go back before the next pass asks for some.
        drop(last.take());
        last = Some(model.forward_adapted(Input::Ids(pass), lora, kv)?);
        kv.commit(pass.len())?;
        done += pass.len();
        control::report(done, ids.len());
    }
    Ok(last)
}

/// How a model's keys are rotated.
fn rope<B: Backend>(model: &Model<B>) -> Option<Rope> {
    model.config().rope()
}
