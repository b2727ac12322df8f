//! A prefix for vLLM: a safetensors file with rotated keys, which the connector `prefold.vllm` reads.

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
    /// File name in the connector's folder, or the prefix's name in its store.
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
    let made = request(&prefix, placeholder, name.to_string_lossy().into_owned());
    prefix.with_k_rope(KRope::Applied)?.write(path, dtype)?;
    Ok(made)
}

/// What a request says that asks for the prefix of this name.
pub(crate) fn request(prefix: &KvPrefix, placeholder: Placeholder, name: String) -> Exported {
    Exported {
        tokens: prefix.prompt_ids(placeholder),
        cache_salt: prefix.content_id(),
        kv_transfer_params: KvTransferParams { prefix: name },
    }
}
