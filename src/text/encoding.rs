//! What a tokenizer makes of a text.

use std::ops::Range;

/// Token ids and where each came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, in order.
    pub ids: Vec<u32>,
    /// For each id the byte range of the source text that it stands for. Ranges are ascending and
    /// gapless for byte-level tokenizers, and may split a multi-byte character. What the tokenizer
    /// itself adds (BOS, the dummy space of Llama 2) covers nothing.
    pub spans: Vec<Range<usize>>,
}

impl Encoding {
    /// Appends one token.
    pub(super) fn push(&mut self, id: u32, span: Range<usize>) {
        self.ids.push(id);
        self.spans.push(span);
    }
}
