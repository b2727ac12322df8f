//! Text before and after the model: token ids with byte spans, sentences, token counts.

pub mod counts;
pub mod sentences;
pub mod tokenizer;

pub use tokenizer::{Encoding, Tokenizer};
