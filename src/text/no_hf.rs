//! Stands in for `hf.rs` where the crate is built without the feature `tokenizer-json`.

use std::path::Path;

use serde_json::Value;

use super::encoding::Encoding;
use crate::error::{Error, Result};

/// A tokenizer that cannot be had: without a value there is nothing to call.
pub(super) enum HfTokenizer {}

impl HfTokenizer {
    pub(super) fn from_file(path: &Path) -> Result<Self> {
        Err(unsupported(path))
    }

    pub(super) fn from_json(name: &str, _: &Value) -> Result<Self> {
        Err(unsupported(Path::new(name)))
    }

    pub(super) fn vocab_size(&self) -> usize {
        match *self {}
    }

    pub(super) fn token_id(&self, _: &str) -> Option<u32> {
        match *self {}
    }

    pub(super) fn encode(&self, _: &str, _: bool, _: bool) -> Result<Encoding> {
        match *self {}
    }

    pub(super) fn decode(&self, _: &[u32]) -> String {
        match *self {}
    }

    pub(super) fn token_bytes(&self, _: u32) -> Vec<u8> {
        match *self {}
    }
}

/// Pieces that cannot be had.
pub(crate) enum Pieces {}

impl Pieces {
    pub(crate) fn from_file(path: &Path, _: &[String]) -> Result<Self> {
        Err(unsupported(path))
    }

    pub(crate) fn split(&self, _: &str) -> Result<Vec<String>> {
        match *self {}
    }

    pub(crate) fn id(&self, _: &str) -> Option<u32> {
        match *self {}
    }

    pub(crate) fn is_added(&self, _: &str) -> bool {
        match *self {}
    }

    pub(crate) fn join(&self, _: Vec<String>) -> Result<String> {
        match *self {}
    }
}

fn unsupported(path: &Path) -> Error {
    Error::Unsupported {
        what: path.display().to_string(),
        have: "byte-level and SentencePiece BPE of GGUF files; this one needs the feature `tokenizer-json`".into(),
    }
}
