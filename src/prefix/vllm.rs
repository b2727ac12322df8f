//! A prefix for vLLM: a safetensors file with rotated keys, which the connector in `python/` reads.

use std::path::Path;

use serde::Serialize;

use super::{Dtype, KRope, KvPrefix, Placeholder};
use crate::error::{Error, Result};

/// What a request to vLLM must say, so that the connector reads a prefix.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// Ids that a prompt begins with in place of the prefix.
    pub tokens: Vec<u32>,
    /// Keeps vLLM's prefix cache from mixing prefixes up that have the same ids.
    pub cache_salt: String,
    /// Names the prefix for the connector.
    pub kv_transfer_params: KvTransferParams,
}

/// What the connector reads of a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KvTransferParams {
    /// File name in the connector's folder.
    pub prefix: String,
}

/// Writes a prefix; placeholders stand for memory tokens in a prompt.
///
/// # Errors
/// [`Error::Io`], and [`Error::Input`] for a path without a file name, a value beyond the range of `dtype`
/// or keys whose rotation is not known.
pub fn export(
    prefix: KvPrefix,
    dtype: Dtype,
    placeholder: Placeholder,
    path: &Path,
) -> Result<Exported> {
    let Some(name) = path.file_name() else {
        let what = format!("output {}", path.display());
        return Err(Error::input(what, "expected the name of a file"));
    };
    let cache_salt = prefix.content_id();
    let tokens = prefix.prompt_ids(placeholder);
    let prefix = prefix.with_k_rope(KRope::Applied)?;
    prefix.write(path, dtype)?;
    Ok(Exported {
        tokens,
        cache_salt,
        kv_transfer_params: KvTransferParams {
            prefix: name.to_string_lossy().into_owned(),
        },
    })
}
