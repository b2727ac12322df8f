//! English sentences as NLTK's Punkt splits them.
use std::ops::Range;

/// Byte ranges of the sentences of `text`, as `nltk.sent_tokenize` returns them: without the white
/// space between.
pub fn sentences(_text: &str) -> Vec<Range<usize>> {
    unimplemented!()
}
