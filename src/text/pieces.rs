//! A `tokenizer.json` by its pieces: what a text is cut into, by name, and how pieces are joined again.
//! LLMLingua-2 works on these, not on ids.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tokenizers::{AddedToken, Decoder};

use super::hf_file::{self, guard};
use crate::error::Result;

/// A tokenizer of Hugging Face's crate, with tokens of ours added.
pub(crate) struct Pieces {
    /// For messages.
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    /// By name: ids of the file may have holes, so that none tells them apart.
    added: HashSet<String>,
}

impl Pieces {
    /// Reads a file; `added` become special tokens after its own.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be read, [`Error::Format`](crate::Error::Format) if it
    /// is not a tokenizer.
    pub(crate) fn from_file(path: &Path, added: &[String]) -> Result<Self> {
        let mut tokenizer = hf_file::open(path)?;
        let tokens: Vec<AddedToken> = added
            .iter()
            .map(|name| AddedToken::from(name.as_str(), true))
            .collect();
        guard(path, || tokenizer.add_special_tokens(tokens))?;
        Ok(Pieces {
            path: path.to_owned(),
            tokenizer,
            added: added.iter().cloned().collect(),
        })
    }

    /// The pieces of a text, without special tokens around it.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for a file that does not work on this text.
    pub(crate) fn split(&self, text: &str) -> Result<Vec<String>> {
        let encoded = guard(&self.path, || self.tokenizer.encode(text, false))?;
        Ok(encoded.get_tokens().to_vec())
    }

    /// The id of a piece of the file; added ones and what it does not know have none.
    pub(crate) fn id(&self, piece: &str) -> Option<u32> {
        let id = self.tokenizer.token_to_id(piece);
        id.filter(|_| !self.is_added(piece))
    }

    /// Whether a piece is one of those that were added.
    pub(crate) fn is_added(&self, piece: &str) -> bool {
        self.added.contains(piece)
    }

    /// The text of pieces, as the file's decoder joins them.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for a file that does not work on this text.
    pub(crate) fn join(&self, pieces: Vec<String>) -> Result<String> {
        match self.tokenizer.get_decoder() {
            Some(decoder) => guard(&self.path, || decoder.decode(pieces)),
            None => Ok(pieces.join(" ")),
        }
    }
}
