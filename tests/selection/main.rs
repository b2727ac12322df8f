//! Text to tokens, scores to a keep mask: tokenizers, sentences, both modes of hard compression.

#[path = "../common/mod.rs"]
mod common;

mod counts;
mod exact;
mod forms;
mod json;
mod llmlingua2;
mod parity;
mod rank;
mod sentences;
mod tokenizer;
mod windows;
