//! SentencePiece's BPE (Llama 1 and 2, Mistral, Gemma) from a GGUF's vocabulary and scores.

use super::encoding::Encoding;
use super::merge::{Part, merge};
use super::vocab::{GgufVocab, Stretch, TokenType, Vocab};
use crate::error::{Error, Result};

/// SentencePiece writes a space as U+2581.
const SPACE: &str = "\u{2581}";

/// A SentencePiece BPE tokenizer.
pub(super) struct Spm {
    vocab: Vocab,
    /// For each token the rank among merges (the highest score first), if text can become it.
    ranks: Vec<Option<u32>>,
    /// Length in bytes of the longest token that text can become.
    longest: usize,
    /// The token `<0xNN>` of each byte.
    byte_ids: [Option<u32>; 256],
    space_prefix: bool,
}

impl Spm {
    pub(super) fn new(mut raw: GgufVocab) -> Result<Self> {
        // What SentencePiece always has, where the file does not say.
        let known = |id: u32| Some(id).filter(|&id| (id as usize) < raw.tokens.len());
        raw.unk = raw.unk.or(known(0));
        raw.bos = raw.bos.or(known(1));
        raw.eos = raw.eos.or(known(2));
        let vocab = Vocab::new(&mut raw, true)?;
        if raw.scores.len() != vocab.len() {
            return Err(Error::format(
                "tokenizer.ggml.scores",
                format!(
                    "has {} entries for {} tokens",
                    raw.scores.len(),
                    vocab.len()
                ),
            ));
        }
        let mut ranks = Vec::with_capacity(vocab.len());
        let mut longest = 0;
        let mut byte_ids = [None; 256];
        for ((id, &score), (name, t)) in (0u32..).zip(&raw.scores).zip(vocab.iter()) {
            if score.is_nan() {
                return Err(Error::format(
                    "tokenizer.ggml.scores",
                    format!("the score of token {id} is not a number"),
                ));
            }
            // Text must not spell a control token or `<0x41>` by merges: SentencePiece forbids it.
            let text = matches!(
                t,
                TokenType::Normal | TokenType::UserDefined | TokenType::Unused
            );
            if let Some(byte) = byte_of_name(name).filter(|_| t == TokenType::Byte) {
                byte_ids[usize::from(byte)] = Some(id);
            }
            if text {
                longest = longest.max(name.len());
            }
            ranks.push(text.then(|| descending(score)));
        }
        Ok(Spm {
            vocab,
            ranks,
            longest,
            byte_ids,
            space_prefix: raw.add_space_prefix.unwrap_or(true),
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
        // As in llama.cpp, the dummy space stands at the start and after every special token.
        let mut prefix = self.space_prefix;
        for stretch in self.vocab.stretches(text, parse_special) {
            match stretch {
                Stretch::Special(id, span) => {
                    out.push(id, span);
                    prefix = self.space_prefix;
                }
                Stretch::Text(range) => {
                    self.encode_text(&text[range.clone()], range.start, prefix, &mut out);
                    prefix = false;
                }
            }
        }
        if let Some(eos) = self.vocab.eos.filter(|_| add_special && self.vocab.add_eos) {
            out.push(eos, text.len()..text.len());
        }
        out
    }

    /// Appends the tokens of a stretch that begins at byte `start` of the text.
    fn encode_text(&self, text: &str, start: usize, prefix: bool, out: &mut Encoding) {
        let escaped = Escaped::new(text, start, prefix);
        let mut parts: Vec<Part> = escaped
            .text
            .char_indices()
            .map(|(at, c)| {
                let end = at + c.len_utf8();
                Part {
                    id: self.piece(&escaped.text[at..end]).map(|(_, id)| id),
                    start: at,
                    end,
                }
            })
            .collect();
        merge(&mut parts, |left, right| {
            self.piece(&escaped.text[left.start..right.end])
        });
        let mut unknown_before = false;
        for part in parts {
            let mut unknown = false;
            if let Some(id) = part.id {
                out.push(id, escaped.source[part.start]..escaped.source[part.end]);
            } else if let Some(ids) = self.byte_tokens(&escaped.text[part.start..part.end]) {
                for (at, id) in (part.start..part.end).zip(ids) {
                    out.push(id, escaped.source[at]..escaped.source[at + 1]);
                }
            } else if let Some(id) = self.vocab.unk {
                // SentencePiece makes one unknown token of a whole run.
                unknown = true;
                let end = escaped.source[part.end];
                match out.spans.last_mut() {
                    Some(span) if unknown_before => span.end = end,
                    _ => out.push(id, escaped.source[part.start]..end),
                }
            }
            unknown_before = unknown;
        }
    }

    /// Rank and id of the token that spells `text`, if text can become it.
    fn piece(&self, text: &str) -> Option<(u32, u32)> {
        if text.len() > self.longest {
            return None;
        }
        let id = self.vocab.id(text)?;
        Some((self.ranks[id as usize]?, id))
    }

    /// One token per byte; `None` if any byte lacks one.
    fn byte_tokens(&self, text: &str) -> Option<Vec<u32>> {
        text.bytes()
            .map(|b| self.byte_ids[usize::from(b)])
            .collect()
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let mut out = String::new();
        let mut bytes = Vec::new();
        for name in ids.iter().filter_map(|&id| self.vocab.name(id)) {
            if let Some(byte) = byte_of_name(name) {
                bytes.push(byte);
            } else {
                flush_bytes(&mut bytes, &mut out);
                out.push_str(&name.replace(SPACE, " "));
            }
        }
        flush_bytes(&mut bytes, &mut out);
        if self.space_prefix && out.starts_with(' ') {
            out.remove(0);
        }
        out
    }

    pub(super) fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some((name, t)) = self.vocab.name(id).zip(self.vocab.token_type(id)) else {
            return Vec::new();
        };
        match t {
            TokenType::Normal | TokenType::Unused => name.replace(SPACE, " ").into_bytes(),
            TokenType::Byte => {
                byte_of_name(name).map_or_else(|| name.as_bytes().to_vec(), |b| vec![b])
            }
            TokenType::Control | TokenType::Unknown | TokenType::UserDefined => {
                name.as_bytes().to_vec()
            }
        }
    }
}

/// A stretch as SentencePiece sees it, and for each of its bytes (and its end) the byte of the
/// source text where that begins.
struct Escaped {
    text: String,
    source: Vec<usize>,
}

impl Escaped {
    fn new(text: &str, start: usize, prefix: bool) -> Self {
        let mut escaped = Escaped {
            text: String::with_capacity(text.len() + text.len() / 4 + SPACE.len()),
            source: Vec::with_capacity(text.len() + text.len() / 4 + SPACE.len() + 1),
        };
        if prefix {
            escaped.text.push_str(SPACE);
            escaped.source.extend([start; SPACE.len()]);
        }
        for (at, c) in text.char_indices() {
            let at = start + at;
            if c == ' ' {
                escaped.text.push_str(SPACE);
                escaped.source.extend([at, at + 1, at + 1]);
            } else {
                escaped.text.push(c);
                escaped.source.extend(at..at + c.len_utf8());
            }
        }
        escaped.source.push(start + text.len());
        escaped
    }
}

/// Turns a run of byte tokens to text as Hugging Face does: all of it, or one U+FFFD per byte.
fn flush_bytes(bytes: &mut Vec<u8>, out: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => out.push_str(text),
        Err(_) => out.extend(bytes.iter().map(|_| '\u{fffd}')),
    }
    bytes.clear();
}

/// The byte of a name like `<0x0A>`.
pub(super) fn byte_of_name(name: &str) -> Option<u8> {
    let hex = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// A key that sorts ascending where the score sorts descending.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0.0 + 0.0 is 0.0
    let ascending = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::descending;

    #[test]
    fn higher_scores_rank_first() {
        let scores = [
            f32::INFINITY,
            2.5,
            1e-30,
            0.0,
            -1e-30,
            -7.0,
            f32::NEG_INFINITY,
        ];
        let keys = scores.map(descending);
        assert!(keys.windows(2).all(|w| w[0] < w[1]), "{keys:?}");
        assert_eq!(descending(0.0), descending(-0.0));
    }
}
