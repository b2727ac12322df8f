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
use super::encoding::Encoding;
use super::hf_file::{self, guard};
use super::spm::byte_of_name;
use crate::error::{Error, Result};

/// The crate holds about 145 bytes for each of a text while it reads it, so a long text is read in pieces of so many.
const PIECE: usize = 1 << 18;
/// Where a piece ends is judged by the tokens of so many bytes more.
const BEYOND: usize = 1 << 10;

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
    /// Whether what a word becomes does not depend on how far it is from the text's ends.
    local: bool,
}

/// What the crate makes of a text or of a piece of one.
struct Read {
    ids: Vec<u32>,
    /// Where the tokens' bytes spell the text: what each spells.
    spelled: Option<Vec<Range<usize>>>,
    /// False for what the tokenizer puts around a text.
    from_text: Vec<bool>,
    encoded: tokenizers::Encoding,
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
        let path = Path::new(name);
        hf_file::bounded("normalizer", &json["normalizer"])
            .map_err(|reason| Error::format(path, reason))?;
        let json = json.to_string();
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
            local: hf_file::is_local(&parsing),
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
        self.in_pieces(tokenizer, text, add_special, PIECE)
    }

    /// Token ids of a text that is read so many bytes at a time.
    ///
    /// A piece ends before a space between two letters where the pre-tokenizer parts the text, and the next begins
    /// there. Pre-tokenizers go from left to right and look ahead by less than `BEYOND`, so the parts are
    /// those of the whole text. Without such a place the piece grows, at last to the rest.
    fn in_pieces(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
        piece: usize,
    ) -> Result<Encoding> {
        let mut ids = Vec::new();
        let mut given = Vec::new();
        let mut spelled = Some(Vec::new());
        let beyond = BEYOND.min(piece);
        let (mut start, mut len) = (0, piece);
        loop {
            let rest = &text[start..];
            let whole = !self.local || rest.len() <= len + beyond;
            let end = if whole {
                rest.len()
            } else {
                rest.floor_char_boundary(len + beyond)
            };
            let read = self.read(tokenizer, &rest[..end], add_special)?;
            // Another piece may not spell its text, and then all have these.
            let own = match whole && spelled.is_some() && read.spelled.is_some() {
                true => Vec::new(),
                false => self.given_spans(end, &read),
            };
            let (used, cut) = match whole {
                true => (read.ids.len(), end),
                false => match read.last_cut(&own, rest, len) {
                    Some(found) => found,
                    None => {
                        len *= 8;
                        continue;
                    }
                },
            };
            let first = match start {
                0 => 0,
                _ => read.from_text.iter().position(|&of| of).unwrap_or(used),
            };
            ids.extend(&read.ids[first..used]);
            let moved = |span: &Range<usize>| span.start + start..span.end + start;
            match (&mut spelled, &read.spelled) {
                (Some(all), Some(own)) => all.extend(own[first..used].iter().map(moved)),
                _ => spelled = None,
            }
            given.extend(own.get(first..used).into_iter().flatten().map(moved));
            if whole {
                let spans = spelled.unwrap_or(given);
                return Ok(Encoding { ids, spans });
            }
            start += cut;
            len = piece;
        }
    }

    fn read(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Result<Read> {
        let encoded = guard(&self.path, || tokenizer.encode(text, add_special))?;
        let ids = encoded.get_ids().to_vec();
        let from_text: Vec<bool> = encoded
            .get_special_tokens_mask()
            .iter()
            .map(|&added| added == 0)
            .collect();
        let spelled = self.spelled_spans(text, &ids, &from_text)?;
        Ok(Read {
            ids,
            spelled,
            from_text,
            encoded,
        })
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
    /// character, and may leave white space out.
    fn given_spans(&self, len: usize, read: &Read) -> Vec<Range<usize>> {
        let (ids, from_text, offsets) = (&read.ids, &read.from_text, read.encoded.get_offsets());
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
        // Where the file's decoder fails the text is empty.
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

impl Read {
    /// How many tokens stand before the last place where a piece of at most `len` bytes of `text` may end, and
    /// that place. `None`: nowhere.
    fn last_cut(&self, given: &[Range<usize>], text: &str, len: usize) -> Option<(usize, usize)> {
        let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
        let spans = self.spelled.as_deref().unwrap_or(given);
        let words = self.encoded.get_word_ids();
        let tokens = (1..self.ids.len()).rev();
        tokens
            .filter(|&i| self.from_text[i] && self.from_text[i - 1] && words[i] != words[i - 1])
            .find_map(|i| {
                let at = spans[i].start;
                let (before, after) = text.split_at_checked(at)?;
                let cut = match (before.strip_suffix(' '), after.starts_with(' ')) {
                    // Some pre-tokenizers leave the space out; where it is the last token's the place is before that.
                    (Some(before), false) if spans[i - 1].end <= before.len() => before.len(),
                    (None, true) => at,
                    _ => return None,
                };
                let (before, after) = text.split_at(cut);
                let parts =
                    is_letter(before.chars().next_back()) && is_letter(after.chars().nth(1));
                (parts && (1..=len).contains(&cut)).then_some((i, cut))
            })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// All that the gallery has, some of it in one line, and one word longer than a piece.
    fn text() -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut names: Vec<_> = std::fs::read_dir(folder.join("gallery"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        names.push(folder.join("languages.json"));
        names.sort();
        let mut text = String::from("  ");
        for name in names {
            text += &std::fs::read_to_string(name).unwrap_or_default();
        }
        text += &"x".repeat(5000);
        text += &text.replace('\n', " ");
        text
    }

    /// A tokenizer of letters, with a step of its own.
    fn small(pre_tokenizer: Value, added: &[Value]) -> HfTokenizer {
        let letters = ('a'..='z').chain([' ', '\n', '\u{2581}', 'Ġ', 'Ċ', '1', 'Ⅷ', '〇']);
        let mut vocab = serde_json::Map::new();
        for letter in letters {
            vocab.insert(letter.into(), vocab.len().into());
        }
        for merged in ["ab", "xx"] {
            vocab.insert(merged.into(), vocab.len().into());
        }
        // Bytes of what is not a letter of ASCII.
        for byte in 0x80..=0xff_u32 {
            // As GPT-2 names them.
            let name = match byte {
                0x80..=0xa0 => 0x100 + 34 + (byte - 0x80),
                0xad => 0x143,
                byte => byte,
            };
            let name = char::from_u32(name).unwrap().to_string();
            let next = vocab.len();
            vocab.entry(name).or_insert(next.into());
        }
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": pre_tokenizer,
            "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["x", "x"]], "unk_token": "a"},
        });
        HfTokenizer::from_json("small", &json).unwrap()
    }

    #[test]
    fn a_space_is_of_one_piece() {
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let split = |pattern: Value, behavior: &str| serde_json::json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": false});
        let bytes = |use_regex: bool| {
            serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": use_regex})
        };
        let both = |one: Value, other: Value| serde_json::json!({"type": "Sequence", "pretokenizers": [one, other]});
        let metaspace = |scheme: &str, split: bool| {
            serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme,
                "split": split})
        };
        let word = |lstrip: bool, rstrip: bool| {
            serde_json::json!({"id": 500, "content": "covid", "single_word": false, "lstrip": lstrip,
                "rstrip": rstrip, "normalized": false, "special": false})
        };
        let text =
            "xx covid ab\nab chapter Ⅷ of a 〇 ab  covid covid\nxxxx 1 ab 11 xx\n\nab é covid "
                .repeat(9);
        let mut local = 0;
        for pre_tokenizer in [
            both(
                split(serde_json::json!({"Regex": llama3}), "Isolated"),
                bytes(false),
            ),
            split(serde_json::json!({"String": " "}), "Isolated"),
            split(serde_json::json!({"String": " "}), "MergedWithPrevious"),
            split(serde_json::json!({"Regex": r"\s+"}), "Isolated"),
            serde_json::json!({"type": "Digits", "individual_digits": false}),
            serde_json::json!({"type": "Whitespace"}),
            bytes(true),
            metaspace("always", true),
            metaspace("first", true),
            metaspace("never", false),
            metaspace("first", false),
        ] {
            for added in [
                vec![],
                vec![word(false, false)],
                vec![word(true, false)],
                vec![word(false, true)],
            ] {
                let mut tokenizer = small(pre_tokenizer.clone(), &added);
                local += usize::from(tokenizer.local);
                let given = std::mem::replace(&mut tokenizer.local, false);
                let read = |tokenizer: &HfTokenizer, piece| {
                    tokenizer
                        .in_pieces(&tokenizer.parsing, &text, false, piece)
                        .unwrap()
                };
                let whole = read(&tokenizer, 1);
                tokenizer.local = given;
                for piece in [16, 40, 50, 64, 100] {
                    let pieces = read(&tokenizer, piece);
                    assert!(pieces == whole, "{pre_tokenizer}, {added:?}, {piece}");
                }
            }
        }
        assert!(local >= 24, "{local}");
    }

    #[test]
    fn a_text_read_in_pieces_has_the_tokens_of_the_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/encoders");
        if !folder.exists() {
            eprintln!("skipped: no golden values in a packed crate");
            return;
        }
        let text = text();
        for name in ["bert", "mbert-tokens", "xlmr-tokens", "modernbert"] {
            let tokenizer = HfTokenizer::from_file(&folder.join(name).join("tokenizer.json"));
            let mut tokenizer = tokenizer.unwrap();
            assert!(tokenizer.local, "{name}");
            for special in [false, true] {
                let read = |tokenizer: &HfTokenizer, piece| {
                    let crate_tokenizer = &tokenizer.parsing;
                    tokenizer
                        .in_pieces(crate_tokenizer, &text, special, piece)
                        .unwrap()
                };
                tokenizer.local = false;
                let whole = read(&tokenizer, 1);
                tokenizer.local = true;
                for piece in [300, 1000, 4096, 50_000] {
                    let pieces = read(&tokenizer, piece);
                    let differs = std::iter::zip(&whole.ids, &pieces.ids).position(|(a, b)| a != b);
                    assert_eq!(differs, None, "{name}, {piece}");
                    assert!(whole == pieces, "{name}, {piece}: spans");
                }
            }
        }
    }
}
