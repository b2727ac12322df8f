//! Text before and after the model: token ids with byte spans, sentences, token counts.

mod byte_bpe;
pub mod counts;
mod encoding;
mod export;
#[cfg(feature = "tokenizer-json")]
mod hf;
#[cfg(not(feature = "tokenizer-json"))]
#[path = "no_hf.rs"]
mod hf;
#[cfg(feature = "tokenizer-json")]
mod hf_file;
#[cfg(feature = "cli")]
pub(crate) use hf_file::is_guarded;
mod merge;
#[cfg(feature = "tokenizer-json")]
mod pieces;
mod pretokenize;
mod punkt;
pub mod sentences;
mod spm;
pub mod tokenizer;
mod unicode;
mod unigram;
mod vocab;
mod word_piece;

pub use counts::{count_cl100k, count_o200k, encode_cl100k, encode_o200k, prepare_cl100k};
pub use encoding::Encoding;
pub use export::tokenizer_json;
#[cfg(not(feature = "tokenizer-json"))]
pub(crate) use hf::Pieces;
#[cfg(feature = "tokenizer-json")]
pub(crate) use pieces::Pieces;
pub use sentences::sentences;
pub use tokenizer::Tokenizer;
pub use vocab::GgufVocab;
