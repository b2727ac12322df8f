//! A `tokenizer.json` by its pieces: what a text is cut into, by name, and how pieces are joined again.
//! LLMLingua-2 works on these, not on ids.

use std::path::{Path, PathBuf};

use tokenizers::{AddedToken, Decoder};

use super::hf_file::{self, guard};
use crate::error::{Error, Result};

/// A tokenizer of Hugging Face's crate, with tokens of ours added.
pub(crate) struct Pieces {
    /// For messages.
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    /// Ids of the file itself.
    own: u32,
}

impl Pieces {
    /// Reads a file; `added` become special tokens after its own.
    ///
    /// # Errors
    /// As [`super::Tokenizer::from_file`].
    pub(crate) fn from_file(path: &Path, added: &[String]) -> Result<Self> {
        let json = hf_file::read(path)?;
        let mut tokenizer = guard(path, || tokenizers::Tokenizer::from_bytes(&json))?;
        tokenizer
            .with_truncation(None)
            .map_err(|e| Error::format(path, e.to_string()))?;
        tokenizer.with_padding(None);
        let own = tokenizer.get_vocab_size(true) as u32;
        let added: Vec<AddedToken> = added
            .iter()
            .map(|name| AddedToken::from(name.as_str(), true))
            .collect();
        guard(path, || tokenizer.add_special_tokens(added))?;
        Ok(Pieces {
            path: path.to_owned(),
            tokenizer,
            own,
        })
    }

    /// The pieces of a text, without special tokens around it.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that does not work on this text.
    pub(crate) fn split(&self, text: &str) -> Result<Vec<String>> {
        let encoded = guard(&self.path, || self.tokenizer.encode(text, false))?;
        Ok(encoded.get_tokens().to_vec())
    }

    /// The id of a piece of the file; added ones and what it does not know have none.
    pub(crate) fn id(&self, piece: &str) -> Option<u32> {
        self.tokenizer
            .token_to_id(piece)
            .filter(|&id| id < self.own)
    }

    /// Whether a piece is one of those that were added.
    pub(crate) fn is_added(&self, piece: &str) -> bool {
        self.tokenizer
            .token_to_id(piece)
            .is_some_and(|id| id >= self.own)
    }

    /// The text of pieces, as the file's decoder joins them.
    ///
    /// # Errors
    /// As [`Pieces::split`].
    pub(crate) fn join(&self, pieces: Vec<String>) -> Result<String> {
        match self.tokenizer.get_decoder() {
            Some(decoder) => guard(&self.path, || decoder.decode(pieces)),
            None => Ok(pieces.join(" ")),
        }
    }
}
