//! What hard compression returns.

use serde::Serialize;

use crate::text::counts::count_cl100k;

/// A stretch of the original prompt: kept or dropped, and how surprising it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Piece {
    /// The stretch itself; the pieces in order give back the original prompt.
    pub text: String,
    /// In the result or not.
    pub kept: bool,
    /// Mean negative log-likelihood (nats) per token, where it was scored.
    pub nll: Option<f32>,
}

/// A compressed prompt; the first six keys are the reference's own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compressed {
    /// The shorter prompt.
    pub compressed_prompt: String,
    /// cl100k_base tokens of the whole prompt before.
    pub origin_tokens: usize,
    /// cl100k_base tokens of the whole prompt after.
    pub compressed_tokens: usize,
    /// `2.0x`: before over after.
    pub ratio: String,
    /// `50.0%`: after over before.
    pub rate: String,
    /// The reference's estimate of GPT-4 prices in 2023.
    pub saving: String,
    /// The original in order, for display.
    #[serde(skip)]
    pub pieces: Vec<Piece>,
}

impl Compressed {
    /// Puts the reference's figures to a result. Counts are cl100k_base tokens.
    pub(crate) fn new(origin_tokens: usize, compressed_prompt: String, pieces: Vec<Piece>) -> Self {
        let compressed_tokens = count_cl100k(&compressed_prompt);
        let (origin, compressed) = (origin_tokens as f64, compressed_tokens as f64);
        let ratio = if compressed_tokens == 0 {
            1.0
        } else {
            origin / compressed
        };
        let rate = if ratio == 0.0 { 1.0 } else { 1.0 / ratio };
        Compressed {
            compressed_prompt,
            origin_tokens,
            compressed_tokens,
            ratio: format!("{ratio:.1}x"),
            rate: format!("{:.1}%", rate * 100.0),
            saving: format!(
                ", Saving ${:.1} in GPT-4.",
                (origin - compressed) * 0.06 / 1000.0
            ),
            pieces,
        }
    }
}
