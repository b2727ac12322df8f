//! A Hugging Face `tokenizer.json`: their crate encodes and decodes, we make byte spans exact.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizer::Range as NormalizedRange;
use tokenizers::{NormalizedString, Normalizer};

use super::byte_bpe::bytes_of_name;
use super::hf_file::{self, guard};
use super::spm::byte_of_name;
use super::tokenizer::Encoding;
use crate::error::Result;

/// A tokenizer of Hugging Face's crate.
pub(super) struct HfTokenizer {
    /// For messages.
    path: PathBuf,
    /// Reads special tokens in a text as such.
    parsing: tokenizers::Tokenizer,
    /// Reads them as plain text; a copy, made when first asked for.
    plain: OnceLock<Box<tokenizers::Tokenizer>>,
    /// Ids whose name is their text.
    added: HashSet<u32>,
    spelling: Spelling,
    vocab_size: usize,
}

/// How an ordinary token's name spells its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's alphabet, a character per byte.
    ByteLevel,
    /// SentencePiece: U+2581 for a space, `<0xNN>` for a byte.
    Metaspace,
    /// The name is the text.
    Plain,
}

impl HfTokenizer {
    pub(super) fn from_file(path: &Path) -> Result<Self> {
        Ok(Self::new(path, hf_file::open(path)?))
    }

    /// Of a `tokenizer.json` that was made here; `name` stands for its path in messages.
    pub(super) fn from_json(name: &str, json: &Value) -> Result<Self> {
        let (path, json) = (Path::new(name), json.to_string());
        let parsing = guard(path, || tokenizers::Tokenizer::from_bytes(&json))?;
        Ok(Self::new(path, parsing))
    }

    fn new(path: &Path, parsing: tokenizers::Tokenizer) -> Self {
        let added = parsing.get_added_tokens_decoder().into_keys().collect();
        let spelling = parsing.get_decoder().map_or(Spelling::Plain, spelling);
        // Ids may have holes, so the size is the highest id, not the count.
        let highest = parsing.get_vocab(true).into_values().max();
        HfTokenizer {
            path: path.to_owned(),
            vocab_size: highest.map_or(0, |id| id as usize + 1),
            parsing,
            plain: OnceLock::new(),
            added,
            spelling,
        }
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn token_id(&self, name: &str) -> Option<u32> {
        self.parsing.token_to_id(name)
    }

    pub(super) fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Encoding> {
        let tokenizer = if parse_special {
            &self.parsing
        } else {
            self.plain.get_or_init(|| {
                let mut plain = Box::new(self.parsing.clone());
                plain.set_encode_special_tokens(true);
                plain
            })
        };
        let encoded = guard(&self.path, || tokenizer.encode(text, add_special))?;
        let ids = encoded.get_ids().to_vec();
        let from_text: Vec<bool> = encoded
            .get_special_tokens_mask()
            .iter()
            .map(|&added| added == 0)
            .collect();
        let spans = match self.spelled_spans(text, &ids, &from_text)? {
            Some(spans) => spans,
            None => self.given_spans(text.len(), &ids, &from_text, encoded.get_offsets()),
        };
        Ok(Encoding { ids, spans })
    }

    /// Exact spans, if the tokens' bytes spell the text or what the normalizer makes of it.
    fn spelled_spans(
        &self,
        text: &str,
        ids: &[u32],
        from_text: &[bool],
    ) -> Result<Option<Vec<Range<usize>>>> {
        let mut spelled = Vec::with_capacity(text.len());
        let mut spans = Vec::with_capacity(ids.len());
        for (&id, &from_text) in ids.iter().zip(from_text) {
            let start = spelled.len();
            if from_text {
                spelled.extend_from_slice(&self.token_bytes(id));
            }
            spans.push(start..spelled.len());
        }
        if spelled == text.as_bytes() {
            return Ok(Some(spans));
        }
        let Some(normalizer) = self.parsing.get_normalizer() else {
            return Ok(None);
        };
        let mut normalized = NormalizedString::from(text);
        guard(&self.path, || normalizer.normalize(&mut normalized))?;
        if spelled != normalized.get().as_bytes() {
            return Ok(None);
        }
        let source = source_bytes(text, &normalized);
        for span in &mut spans {
            *span = source[span.start]..source[span.end];
        }
        Ok(Some(spans))
    }

    /// The crate's own offsets, made ascending: it gives every token of a split character that whole
    /// character, and may leave white space to nobody.
    fn given_spans(
        &self,
        len: usize,
        ids: &[u32],
        from_text: &[bool],
        offsets: &[(usize, usize)],
    ) -> Vec<Range<usize>> {
        let mut spans = Vec::with_capacity(ids.len());
        let mut done = 0;
        for i in 0..ids.len() {
            if !from_text[i] {
                spans.push(done..done);
                continue;
            }
            let (given_start, given_end) = offsets[i];
            let mut start = given_start.clamp(done, len);
            let mut end = given_end.clamp(start, len);
            if self.spelling == Spelling::ByteLevel {
                start = done;
            }
            // Byte tokens that share a character take a byte each; the last takes the rest.
            let shares = offsets.get(i + 1) == Some(&offsets[i]);
            if self.is_byte(ids[i]) && shares && self.is_byte(ids[i + 1]) {
                end = end.min(start + 1);
            }
            spans.push(start..end);
            done = end;
        }
        if self.spelling == Spelling::ByteLevel
            && let Some(last) = from_text.iter().rposition(|&t| t)
        {
            spans[last].end = len;
            spans[last + 1..].fill(len..len);
        }
        spans
    }

    fn is_byte(&self, id: u32) -> bool {
        self.spelling == Spelling::Metaspace
            && self
                .parsing
                .id_to_token(id)
                .is_some_and(|name| byte_of_name(&name).is_some())
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        // Where the file's decoder fails there is no text.
        guard(&self.path, || self.parsing.decode(ids, false)).unwrap_or_default()
    }

    pub(super) fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(name) = self.parsing.id_to_token(id) else {
            return Vec::new();
        };
        if self.added.contains(&id) {
            return name.into_bytes();
        }
        match self.spelling {
            Spelling::ByteLevel => bytes_of_name(&name).unwrap_or_else(|| name.into_bytes()),
            Spelling::Metaspace => match byte_of_name(&name) {
                Some(byte) => vec![byte],
                None => name.replace('\u{2581}', " ").into_bytes(),
            },
            Spelling::Plain => name.into_bytes(),
        }
    }
}

/// For each byte of the normalized text (and its end) the byte of the source where that begins.
/// Characters that the normalizer left alone map byte for byte; a changed one begins where its
/// source does, and its other bytes stand at that source's end.
fn source_bytes(text: &str, normalized: &NormalizedString) -> Vec<usize> {
    let target = normalized.get();
    let mut source = Vec::with_capacity(target.len() + 1);
    let mut done = 0;
    for (at, c) in target.char_indices() {
        let len = c.len_utf8();
        let range = normalized
            .convert_offsets(NormalizedRange::Normalized(at..at + len))
            .unwrap_or(done..done);
        let start = range.start.clamp(done, text.len());
        let end = range.end.clamp(start, text.len());
        if text.get(start..end) == target.get(at..at + len) {
            source.extend(start..end);
        } else {
            source.push(start);
            source.extend(std::iter::repeat_n(end, len - 1));
        }
        done = end;
    }
    source.push(text.len());
    source
}

fn spelling(decoder: &DecoderWrapper) -> Spelling {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Spelling::ByteLevel,
        DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) => Spelling::Metaspace,
        DecoderWrapper::Sequence(sequence) => sequence
            .get_decoders()
            .iter()
            .map(spelling)
            .find(|&s| s != Spelling::Plain)
            .unwrap_or(Spelling::Plain),
        _ => Spelling::Plain,
    }
}
