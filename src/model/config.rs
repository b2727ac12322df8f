//! Shapes and constants of a decoder, read from `config.json` or from GGUF metadata.

/// The decoder families whose forward is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama and its kin: SmolLM2, Mistral.
    Llama,
    /// Qwen2 and 2.5: a bias on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on each head of q and k.
    Qwen3,
    /// GPT-2: LayerNorm, learned positions, GELU, biases everywhere.
    Gpt2,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All positions divided by `factor`.
    Linear {
        factor: f32,
    },
    /// Llama 3's: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_max_positions: usize,
    },
    /// Frequencies divided one by one, as GGUF's `rope_freqs.weight` stores them.
    Factors(Vec<f32>),
}

/// Shapes and constants of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub family: Family,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width of the MLP's inner layer.
    pub ffn: usize,
    pub max_positions: usize,
    pub norm_eps: f32,
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    /// Keys further back than this are not seen (Mistral v0.1); `None`: all are.
    pub sliding_window: Option<usize>,
    /// The LM head is the embedding matrix.
    pub tied: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}
