//! What an open model says of itself.

use serde::Serialize;

use crate::gpu::Precision;

/// Shape and origin of an open model, for display.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// Name of its file or folder.
    pub name: String,
    /// `llama`, `qwen2`, `qwen3`, `gpt2`, `bert`, `xlm-roberta`, `modernbert`.
    pub architecture: String,
    /// Number of weights; a tied head counts once.
    pub parameters: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// Id of the token that begins a text, if the model names one.
    pub bos: Option<u32>,
    /// Id of the token that ends a text, if the model names one.
    pub eos: Option<u32>,
    /// Identifies weights and configuration.
    pub fingerprint: String,
    /// Where it runs, in words.
    pub device: String,
    /// What it multiplies in: f32 on a CPU.
    pub precision: Precision,
}
