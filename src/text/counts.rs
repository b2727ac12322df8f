//! Token counts in OpenAI's cl100k_base, the unit in which the reference states its results, and in
//! o200k_base, which later models take.
//!
//! The vocabularies are those of the crate `tiktoken-rs`; the encoding is our own, because theirs runs
//! on a backtracking regular expression that panics on a megabyte of spaces.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

use super::encoding::Encoding;
use super::merge::{Part, merge};
use super::pretokenize::PreTokenizer;

/// Number of cl100k_base tokens of `text`; names of special tokens are plain text.
pub fn count_cl100k(text: &str) -> usize {
    let mut count = 0;
    cl100k().encode(text, |_, _| count += 1);
    count
}

/// Number of o200k_base tokens of `text`; names of special tokens are plain text.
pub fn count_o200k(text: &str) -> usize {
    let mut count = 0;
    o200k().encode(text, |_, _| count += 1);
    count
}

/// The cl100k_base tokens of `text` with gapless byte spans; names of special tokens are plain text.
pub fn encode_cl100k(text: &str) -> Encoding {
    let mut out = Encoding::default();
    cl100k().encode(text, |id, span| out.push(id, span));
    out
}

/// The o200k_base tokens of `text` with gapless byte spans; names of special tokens are plain text.
pub fn encode_o200k(text: &str) -> Encoding {
    let mut out = Encoding::default();
    o200k().encode(text, |id, span| out.push(id, span));
    out
}

/// Reads the vocabulary of cl100k_base on a thread of its own, which takes a tenth of a second or two: for a
/// program that will count and has something else to do first. A count meanwhile waits for it.
pub fn prepare_cl100k() {
    // Without a thread the first count does it.
    let _ = std::thread::Builder::new().spawn(|| {
        cl100k();
    });
}

/// A byte-level BPE where any two neighbours merge that are a token together, the lowest id first.
struct Ranks {
    ids: HashMap<Vec<u8>, u32>,
    /// The tokens of single bytes.
    bytes: [Option<u32>; 256],
    /// Length of the longest token.
    longest: usize,
    pre: PreTokenizer,
}

fn cl100k() -> &'static Ranks {
    static CL100K: OnceLock<Ranks> = OnceLock::new();
    CL100K.get_or_init(|| Ranks::of(tiktoken_rs::cl100k_base(), 100_256, PreTokenizer::Cl100k))
}

fn o200k() -> &'static Ranks {
    static O200K: OnceLock<Ranks> = OnceLock::new();
    O200K.get_or_init(|| Ranks::of(tiktoken_rs::o200k_base(), 199_998, PreTokenizer::Gpt4o))
}

impl Ranks {
    /// The tokens of an embedded vocabulary below its special ones, whose ids begin at `ordinary`.
    fn of<E: std::fmt::Debug>(
        table: Result<tiktoken_rs::CoreBPE, E>,
        ordinary: u32,
        pre: PreTokenizer,
    ) -> Self {
        // Not their singleton: that would keep hundreds of compiled expressions alive.
        let table = table.expect("the embedded vocabulary is well-formed");
        let ids: HashMap<Vec<u8>, u32> = (0..ordinary)
            .filter_map(|id| table.decode_bytes(&[id]).ok().map(|bytes| (bytes, id)))
            .collect();
        Ranks {
            pre,
            bytes: std::array::from_fn(|b| ids.get(&[b as u8][..]).copied()),
            longest: ids.keys().map(Vec::len).max().unwrap_or(0),
            ids,
        }
    }

    /// Calls `token` with every id and its byte span.
    fn encode(&self, text: &str, mut token: impl FnMut(u32, Range<usize>)) {
        let mut parts = Vec::new();
        self.pre.split(text, |word| {
            let (start, bytes) = (word.start, &text.as_bytes()[word.clone()]);
            if let Some(id) = self.id(bytes) {
                return token(id, word);
            }
            parts.clear();
            parts.extend(bytes.iter().enumerate().map(|(i, &byte)| Part {
                id: self.bytes[usize::from(byte)],
                start: i,
                end: i + 1,
            }));
            merge(&mut parts, |left, right| {
                let id = self.id(&bytes[left.start..right.end])?;
                Some((id, id))
            });
            for part in &parts {
                // Every byte is a token of cl100k_base, so none is lost.
                if let Some(id) = part.id {
                    token(id, start + part.start..start + part.end);
                }
            }
        });
    }

    fn id(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        self.ids.get(bytes).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_token() {
        assert!(cl100k().bytes.iter().all(Option::is_some));
        assert_eq!(cl100k().ids.len(), 100_256);
        assert!(o200k().bytes.iter().all(Option::is_some));
        assert_eq!(o200k().ids.len(), 199_998);
    }
}
