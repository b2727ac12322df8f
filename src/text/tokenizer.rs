//! Text to token ids and back.

use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// Token ids and where each came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, in order.
    pub ids: Vec<u32>,
    /// For each id the byte range of the source text that it stands for. Ranges are ascending and
    /// gapless for byte-level tokenizers, and may split a multi-byte character.
    pub spans: Vec<Range<usize>>,
}

/// A tokenizer rebuilt from a GGUF's metadata or read from a `tokenizer.json`.
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        Err(Error::format(path, "not built yet"))
    }

    /// Token ids of `text` with byte spans.
    ///
    /// `add_special` adds what the tokenizer puts round a text (BOS for Llama 2; nothing for
    /// SmolLM2 or Qwen); `parse_special` reads `<|im_start|>` and its like as one token.
    pub fn encode(
        &self,
        _text: &str,
        _add_special: bool,
        _parse_special: bool,
    ) -> Result<Encoding> {
        unimplemented!()
    }

    /// The text of `ids`, as Hugging Face's `decode` gives it: special tokens stay, bytes that are
    /// no UTF-8 become U+FFFD.
    pub fn decode(&self, _ids: &[u32]) -> String {
        unimplemented!()
    }

    /// The raw bytes of one token (special tokens: the bytes of their name).
    pub fn token_bytes(&self, _id: u32) -> Vec<u8> {
        unimplemented!()
    }

    /// Number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        0
    }
}
