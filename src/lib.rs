//! Folds a long prompt before a language model reads it.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod error;
pub mod hard;
pub mod model;
pub mod ops;
pub mod text;

pub use error::{Error, Result};

use std::path::Path;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The CPU, all cores.
    Cpu,
}

/// Shape and origin of an open model, for display.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ModelInfo {
    /// `llama`, `qwen2`, `qwen3`, `gpt2`.
    pub architecture: String,
    pub parameters: usize,
    pub vocab: usize,
    pub layers: usize,
    pub hidden: usize,
    pub max_positions: usize,
    /// Where it runs, in words.
    pub device: String,
}

/// An open model: the whole library behind one object. Any number of threads may call it at once.
pub trait Engine: Send + Sync {
    /// Shape and origin.
    fn info(&self) -> &ModelInfo;
    /// The model's tokenizer; a folder may come without one.
    fn tokenizer(&self) -> Result<&text::Tokenizer>;
    /// Nll (nats) of `ids[1..]`, each given all before it.
    fn score(&self, ids: &[u32]) -> Result<Vec<f32>>;
    /// A shorter prompt.
    fn compress(&self, prompt: &hard::Prompt, options: &hard::Options) -> Result<hard::Compressed>;
    /// A shorter prompt whose contexts carry `<llmlingua, rate=…, compress=…>` tags.
    fn compress_structured(
        &self,
        prompt: &hard::Prompt,
        options: &hard::Options,
    ) -> Result<hard::Compressed>;
}

/// Opens a GGUF file or a Hugging Face folder.
pub fn open(_model: &Path, _device: Device) -> Result<Box<dyn Engine>> {
    Err(Error::Unsupported {
        what: "opening a model".into(),
        have: "nothing yet".into(),
    })
}
