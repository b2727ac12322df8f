//! Counts in cl100k_base.

/// Tokens.
pub fn count_cl100k(text: &str) -> usize {
    tiktoken_rs::cl100k_base_singleton().encode_ordinary(text).len()
}
