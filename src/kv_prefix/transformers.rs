//! A prefix for transformers: a safetensors file with rotated keys, which `python/` reads as a cache.

use std::path::Path;

use serde::Serialize;

use super::{Dtype, KRope, KvPrefix, Placeholder};
use crate::error::Result;

/// What a program that uses transformers must know of an exported prefix.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// Ids that stand for the prefix in a prompt.
    pub tokens: Vec<u32>,
    /// Position of the first token after the prefix.
    pub next_pos: usize,
}

/// Writes a prefix; placeholders stand for memory tokens in a prompt.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), and [`Error::Input`](crate::Error::Input) for a value beyond the range of
/// `dtype` or keys whose rotation is not known.
pub fn export(
    prefix: KvPrefix,
    dtype: Dtype,
    placeholder: Placeholder,
    path: &Path,
) -> Result<Exported> {
    let prefix = prefix.with_k_rope(KRope::Applied)?;
    prefix.write(path, dtype)?;
    Ok(Exported {
        tokens: prefix.prompt_ids(placeholder),
        next_pos: prefix.next_pos(),
    })
}
