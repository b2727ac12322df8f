//! Whose tokens a budget counts.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Result;
use crate::text::Tokenizer;
use crate::text::counts::{count_cl100k, count_o200k};

/// Whose tokens the exact budget counts.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Count {
    /// OpenAI's cl100k_base (GPT-4, GPT-3.5), as the reference's results count.
    #[default]
    Cl100k,
    /// OpenAI's o200k_base (GPT-4o and later).
    O200k,
    /// The scoring model's own.
    Scorer,
    /// Another model's: see [`Count::from_file`].
    Tokenizer(Arc<Tokenizer>),
}

impl Count {
    /// The names of those that need no file.
    pub const NAMES: [&str; 3] = ["cl100k", "o200k", "scorer"];

    /// Counts the tokens of a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be read, [`Error::Format`](crate::Error::Format) if
    /// it is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        Ok(Count::Tokenizer(Arc::new(Tokenizer::from_file(path)?)))
    }

    /// One that needs no file, by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "cl100k" => Some(Count::Cl100k),
            "o200k" => Some(Count::O200k),
            "scorer" => Some(Count::Scorer),
            _ => None,
        }
    }

    /// Its name; `tokenizer` for a file's.
    pub fn name(&self) -> &'static str {
        match self {
            Count::Cl100k => "cl100k",
            Count::O200k => "o200k",
            Count::Scorer => "scorer",
            Count::Tokenizer(_) => "tokenizer",
        }
    }

    /// Tokens of `text`, special tokens read as plain text; `scorer` is the scoring model's tokenizer.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for a `tokenizer.json` whose parts do not fit together.
    pub fn tokens(&self, text: &str, scorer: &Tokenizer) -> Result<usize> {
        match self {
            Count::Cl100k => Ok(count_cl100k(text)),
            Count::O200k => Ok(count_o200k(text)),
            Count::Scorer => Ok(scorer.encode(text, false, false)?.ids.len()),
            Count::Tokenizer(own) => Ok(own.encode(text, false, false)?.ids.len()),
        }
    }
}

/// Files are equal where they were read once.
impl PartialEq for Count {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Count::Tokenizer(one), Count::Tokenizer(two)) => Arc::ptr_eq(one, two),
            _ => self.name() == other.name(),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// By its name; a file is not read because a request names it.
impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(from)?;
        Count::from_name(&name).ok_or_else(|| de::Error::unknown_variant(&name, &Count::NAMES))
    }
}
