//! Byte-level BPE, as GPT-2 introduced it, from a GGUF's vocabulary and merges.

use std::collections::HashMap;

use super::encoding::Encoding;
use super::merge::{Part, merge};
use super::pretokenize::PreTokenizer;
use super::vocab::{GgufVocab, Stretch, TokenType, Vocab};
use crate::error::{Error, Result};

/// A byte-level BPE tokenizer.
pub(super) struct ByteBpe {
    vocab: Vocab,
    pre: PreTokenizer,
    /// Raw bytes of every token.
    bytes: Vec<Box<[u8]>>,
    /// The token of each single byte. Some vocabularies lack bytes that no training text had; those
    /// vanish, as in llama.cpp.
    byte_ids: [Option<u32>; 256],
    /// Pair of tokens to rank and merged token.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// Llama 3 and Tekken: a word that is a token needs no merges.
    whole_words: Option<HashMap<Box<[u8]>, u32>>,
}

impl ByteBpe {
    pub(super) fn new(mut raw: GgufVocab) -> Result<Self> {
        if raw.pre.is_empty() {
            log::warn!(
                "the model does not say how its tokenizer cuts words (tokenizer.ggml.pre); taking llama.cpp's \
                 default, which may not be what it was trained with"
            );
        }
        let pre = PreTokenizer::from_name(&raw.pre)?;
        let vocab = Vocab::new(&mut raw, pre == PreTokenizer::Llama3)?;
        let merges = read_merges(&raw.merges, &vocab)?;
        let bytes: Vec<Box<[u8]>> = vocab.iter().map(|(name, t)| raw_bytes(name, t)).collect();
        let mut byte_ids = [None; 256];
        let mut whole_words = pre.whole_words().then(HashMap::new);
        for ((id, bytes), (_, t)) in (0u32..).zip(&bytes).zip(vocab.iter()) {
            if t != TokenType::Normal {
                continue;
            }
            if let [byte] = bytes[..] {
                byte_ids[usize::from(byte)] = Some(id);
            }
            if let Some(words) = &mut whole_words {
                words.insert(bytes.clone(), id);
            }
        }
        Ok(ByteBpe {
            vocab,
            pre,
            bytes,
            byte_ids,
            merges,
            whole_words,
        })
    }

    pub(super) fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    pub(super) fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Encoding {
        let mut out = Encoding::default();
        if let Some(bos) = self.vocab.bos.filter(|_| add_special && self.vocab.add_bos) {
            out.push(bos, 0..0);
        }
        let own = out.ids.len();
        let mut parts = Vec::new();
        for stretch in self.vocab.stretches(text, parse_special) {
            match stretch {
                Stretch::Special(id, span) => out.push(id, span),
                Stretch::Text(range) => {
                    let offset = range.start;
                    let stretch = &text[range];
                    self.pre.split(stretch, |word| {
                        let start = offset + word.start;
                        self.encode_word(&stretch.as_bytes()[word], start, &mut parts, &mut out);
                    });
                }
            }
        }
        close_gaps(&mut out.spans[own..], text.len());
        if let Some(eos) = self.vocab.eos.filter(|_| add_special && self.vocab.add_eos) {
            out.push(eos, text.len()..text.len());
        }
        out
    }

    /// Appends the tokens of one word that begins at byte `start` of the text. `parts` is scratch.
    fn encode_word(&self, word: &[u8], start: usize, parts: &mut Vec<Part>, out: &mut Encoding) {
        if let Some(&id) = self.whole_words.as_ref().and_then(|w| w.get(word)) {
            out.push(id, start..start + word.len());
            return;
        }
        parts.clear();
        parts.extend(word.iter().enumerate().map(|(i, &byte)| Part {
            id: self.byte_ids[usize::from(byte)],
            start: i,
            end: i + 1,
        }));
        merge(parts, |left, right| {
            self.merges.get(&(left.id?, right.id?)).copied()
        });
        for part in parts.iter() {
            if let Some(id) = part.id {
                out.push(id, start + part.start..start + part.end);
            }
        }
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(super) fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |b| b)
    }
}

/// Gives what no token stands for (bytes that the vocabulary lacks) to the token before it, or at
/// the start to the first.
fn close_gaps(spans: &mut [std::ops::Range<usize>], len: usize) {
    let mut next = len;
    for span in spans.iter_mut().rev() {
        span.end = next;
        next = span.start;
    }
    if let Some(first) = spans.first_mut() {
        first.start = 0;
    }
}

fn read_merges(merges: &[String], vocab: &Vocab) -> Result<HashMap<(u32, u32), (u32, u32)>> {
    if merges.is_empty() {
        return Err(Error::format("tokenizer.ggml.merges", "is empty"));
    }
    let mut out = HashMap::with_capacity(merges.len());
    for (rank, line) in (0u32..).zip(merges) {
        let bad = |reason: String| {
            Error::format("tokenizer.ggml.merges", format!("merge {rank} {reason}"))
        };
        let (left, right) = line
            .split_once(' ')
            .ok_or_else(|| bad(format!("is {line:?}, not two tokens")))?;
        let id = |name: &str| {
            vocab
                .id(name)
                .ok_or_else(|| bad(format!("needs the token {name:?}, which there is not")))
        };
        let pair = (id(left)?, id(right)?);
        let merged = id(&format!("{left}{right}"))?;
        out.entry(pair).or_insert((rank, merged));
    }
    Ok(out)
}

/// The bytes that a token's name stands for. Names of ordinary tokens spell one byte per character;
/// those of special tokens (and of what is spelled otherwise) are plain text.
fn raw_bytes(name: &str, t: TokenType) -> Box<[u8]> {
    let spelled = match t {
        TokenType::Normal | TokenType::Byte | TokenType::Unused => bytes_of_name(name),
        TokenType::Control | TokenType::Unknown | TokenType::UserDefined => None,
    };
    spelled
        .unwrap_or_else(|| name.as_bytes().to_vec())
        .into_boxed_slice()
}

/// The bytes that a name in GPT-2's alphabet spells; `None` if it is not all of that alphabet.
pub(super) fn bytes_of_name(name: &str) -> Option<Vec<u8>> {
    name.chars().map(byte_of_char).collect()
}

/// GPT-2's alphabet: printable Latin-1 stands for itself; the other 68 bytes, in order, for the
/// characters from U+0100 on.
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(), // 0x00 to 0x20
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(), // 0x7f to 0xa0
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::byte_of_char;

    #[test]
    fn the_alphabet_has_one_character_per_byte() {
        let mut seen: Vec<u8> = (0..0x200u32)
            .filter_map(char::from_u32)
            .filter_map(byte_of_char)
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }
}
