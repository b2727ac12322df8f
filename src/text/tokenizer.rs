//! Text to token ids and back: one face for a GGUF's vocabulary and a Hugging Face `tokenizer.json`.

use std::path::Path;

use super::byte_bpe::ByteBpe;
use super::encoding::Encoding;
use super::hf::HfTokenizer;
use super::spm::Spm;
use super::vocab::{GgufVocab, Vocab};
use super::{unigram, word_piece};
use crate::error::{Error, Result};

/// A tokenizer rebuilt from a GGUF's metadata or read from a `tokenizer.json`.
///
/// It is immutable: any number of threads may use one.
pub struct Tokenizer {
    kind: Kind,
}

enum Kind {
    ByteBpe(ByteBpe),
    Spm(Spm),
    Hf(Box<HfTokenizer>),
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        Ok(Tokenizer {
            kind: Kind::Hf(Box::new(HfTokenizer::from_file(path)?)),
        })
    }

    /// Rebuilds the tokenizer that a GGUF's metadata describes, with the ids of llama.cpp.
    ///
    /// # Errors
    /// [`Error::Format`] if the vocabulary contradicts itself, [`Error::Unsupported`] if its kind
    /// (`tokenizer.ggml.model`) or its pre-tokenizer (`tokenizer.ggml.pre`) is not built; WordPiece and Unigram need
    /// the feature `tokenizer-json`.
    pub fn from_vocab(vocab: GgufVocab) -> Result<Self> {
        let kind = match vocab.model.as_str() {
            "gpt2" => Kind::ByteBpe(ByteBpe::new(vocab)?),
            "llama" => Kind::Spm(Spm::new(vocab)?),
            "bert" => {
                let json = word_piece::tokenizer_json(&vocab)?;
                Kind::Hf(Box::new(HfTokenizer::from_json("WordPiece", &json)?))
            }
            "t5" => {
                let json = unigram::tokenizer_json(&vocab)?;
                Kind::Hf(Box::new(HfTokenizer::from_json("Unigram", &json)?))
            }
            other => {
                return Err(Error::Unsupported {
                    what: format!("tokenizer model `{other}`"),
                    have: "gpt2 (byte-level BPE), llama (SentencePiece BPE), bert (WordPiece), t5 (Unigram)"
                        .into(),
                });
            }
        };
        Ok(Tokenizer { kind })
    }

    /// Token ids of `text` with byte spans.
    ///
    /// `add_special` adds what the tokenizer puts around a text (BOS for Llama 2; nothing for
    /// SmolLM2 or Qwen); `parse_special` reads `<|im_start|>` and its like as one token.
    ///
    /// # Errors
    /// [`Error::Format`] for a `tokenizer.json` whose parts do not fit together.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Encoding> {
        match &self.kind {
            Kind::ByteBpe(t) => Ok(t.encode(text, add_special, parse_special)),
            Kind::Spm(t) => Ok(t.encode(text, add_special, parse_special)),
            Kind::Hf(t) => t.encode(text, add_special, parse_special),
        }
    }

    /// The text of `ids`, as Hugging Face's `decode` gives it: special tokens stay, bytes that are
    /// not UTF-8 become U+FFFD. An id outside the vocabulary stands for nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::ByteBpe(t) => t.decode(ids),
            Kind::Spm(t) => t.decode(ids),
            Kind::Hf(t) => t.decode(ids),
        }
    }

    /// The raw bytes of one token (special tokens: the bytes of their name); empty for an id
    /// outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.kind {
            Kind::ByteBpe(t) => t.token_bytes(id).to_vec(),
            Kind::Spm(t) => t.token_bytes(id),
            Kind::Hf(t) => t.token_bytes(id),
        }
    }

    /// The id of a token by its name in the vocabulary, as `<|im_end|>` or `</s>`.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        match &self.kind {
            Kind::Hf(t) => t.token_id(name),
            _ => self.vocab()?.id(name),
        }
    }

    /// The token in front of a text, where a GGUF's BPE names one (a `tokenizer.json`, WordPiece and Unigram do not).
    pub fn bos(&self) -> Option<u32> {
        self.vocab()?.bos
    }

    /// The token after a text, where a GGUF's BPE names one (a `tokenizer.json`, WordPiece and Unigram do not).
    pub fn eos(&self) -> Option<u32> {
        self.vocab()?.eos
    }

    /// Number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Hf(t) => t.vocab_size(),
            _ => self.vocab().map_or(0, Vocab::len),
        }
    }

    fn vocab(&self) -> Option<&Vocab> {
        match &self.kind {
            Kind::ByteBpe(t) => Some(t.vocab()),
            Kind::Spm(t) => Some(t.vocab()),
            Kind::Hf(_) => None,
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.kind {
            Kind::ByteBpe(_) => "byte-level BPE",
            Kind::Spm(_) => "SentencePiece BPE",
            Kind::Hf(_) => "Hugging Face",
        };
        write!(f, "Tokenizer({kind}, {} ids)", self.vocab_size())
    }
}
