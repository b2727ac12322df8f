//! The vocabulary of a GGUF, checked once, so that the tokenizers need not mistrust it.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::{Error, Result};

/// The `tokenizer.ggml.*` keys of a GGUF as they stand in the file; nothing is checked yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `bert` (WordPiece) or `t5` (Unigram).
    pub model: String,
    /// The pre-tokenizer of byte-level BPE: `smollm`, `gpt-2`, `llama-bpe`, `qwen2`, `gpt-4o`, `tekken`,
    /// `deepseek-llm`; empty or `default`: llama.cpp's default.
    pub pre: String,
    /// Every token's name; its index is its id.
    pub tokens: Vec<String>,
    /// `llama` and `t5`: log-probabilities, one per token; of `llama`'s the higher merges first.
    pub scores: Vec<f32>,
    /// One per token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. May be
    /// empty: then all are normal.
    pub token_types: Vec<i32>,
    /// `gpt2`: pairs of tokens (`"Ġ t"`), the first merges first.
    pub merges: Vec<String>,
    /// The token in front of a text. Absent for `llama`: 1, as `eos` is 2 and `unk` 0.
    pub bos: Option<u32>,
    /// The token after a text.
    pub eos: Option<u32>,
    /// The token of what has no other.
    pub unk: Option<u32>,
    /// Put `bos` in front of a text; absent: what the model kind does by default.
    pub add_bos: Option<bool>,
    /// Put `eos` after a text; absent: no.
    pub add_eos: Option<bool>,
    /// `llama` and `t5`: put a space in front of a text; absent: yes.
    pub add_space_prefix: Option<bool>,
    /// `bert`: lower-case a text; absent: where few tokens have capital letters.
    pub lowercase: Option<bool>,
    /// `bert`: take the accents off letters; absent: as `lowercase`.
    pub strip_accents: Option<bool>,
    /// `t5`: SentencePiece's compiled map of characters, which normalises a text; empty: none.
    pub char_map: Vec<u8>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// A checked vocabulary.
pub(super) struct Vocab {
    tokens: Vec<String>,
    types: Vec<TokenType>,
    ids: HashMap<String, u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    /// Finds all tokens that are not ordinary text.
    special: Matcher,
    /// Finds those that are tokens even in plain text.
    user_defined: Matcher,
}

/// A stretch of text on its way to the tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stretch {
    /// Ordinary text, never empty.
    Text(Range<usize>),
    /// One special token.
    Special(u32, Range<usize>),
}

impl Vocab {
    /// Checks names, types and special ids. `default_bos`: whether a text gets a BOS where the file
    /// does not say.
    pub(super) fn new(vocab: &mut GgufVocab, default_bos: bool) -> Result<Self> {
        let tokens = std::mem::take(&mut vocab.tokens);
        if tokens.is_empty() {
            return Err(Error::format("tokenizer.ggml.tokens", "is empty"));
        }
        let count = u32::try_from(tokens.len())
            .map_err(|_| Error::format("tokenizer.ggml.tokens", "has more than 2^32 tokens"))?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0u32..).zip(&tokens) {
            // Some files pad with nameless tokens; no text becomes those.
            if token.is_empty() {
                continue;
            }
            if let Some(first) = ids.insert(token.clone(), id) {
                return Err(twice(token, first, id));
            }
        }
        let types = token_types(&vocab.token_types, tokens.len())?;
        for (key, id) in [
            ("bos_token_id", vocab.bos),
            ("eos_token_id", vocab.eos),
            ("unknown_token_id", vocab.unk),
        ] {
            if let Some(id) = id.filter(|&id| id >= count) {
                return Err(Error::format(
                    format!("tokenizer.ggml.{key}"),
                    format!("is {id}, but there are {count} tokens"),
                ));
            }
        }
        let add_bos = vocab.add_bos.unwrap_or(default_bos) && vocab.bos.is_some();
        let add_eos = vocab.add_eos.unwrap_or(false) && vocab.eos.is_some();
        let special = |name: &str, t| {
            matches!(
                t,
                TokenType::Control | TokenType::Unknown | TokenType::UserDefined
            ) || is_control_by_name(name)
        };
        let user_defined = |name: &str, t| t == TokenType::UserDefined && !is_control_by_name(name);
        Ok(Vocab {
            special: Matcher::new(&tokens, &types, special)?,
            user_defined: Matcher::new(&tokens, &types, user_defined)?,
            tokens,
            types,
            ids,
            bos: vocab.bos,
            eos: vocab.eos,
            unk: vocab.unk,
            add_bos,
            add_eos,
        })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The id of a token by name.
    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    /// Names and types by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, TokenType)> {
        let types = self.types.iter().copied();
        self.tokens.iter().map(String::as_str).zip(types)
    }

    /// A token's name; `None` outside the vocabulary.
    pub(super) fn name(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// A token's type; `None` outside the vocabulary.
    pub(super) fn token_type(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    /// Cuts `text` at its special tokens: all if `parse_special`, else only the user-defined ones,
    /// which are tokens even in plain text. Of those that match at one place the longest wins.
    pub(super) fn stretches(&self, text: &str, parse_special: bool) -> Vec<Stretch> {
        let matcher = if parse_special {
            &self.special
        } else {
            &self.user_defined
        };
        matcher.stretches(text)
    }
}

/// Two ids have one name.
pub(super) fn twice(name: &str, first: impl Display, second: impl Display) -> Error {
    Error::format(
        "tokenizer.ggml.tokens",
        format!("ids {first} and {second} are both {name:?}"),
    )
}

pub(super) fn token_types(types: &[i32], tokens: usize) -> Result<Vec<TokenType>> {
    if types.is_empty() {
        return Ok(vec![TokenType::Normal; tokens]);
    }
    if types.len() != tokens {
        return Err(Error::format(
            "tokenizer.ggml.token_type",
            format!("has {} entries for {tokens} tokens", types.len()),
        ));
    }
    types
        .iter()
        .enumerate()
        .map(|(id, t)| match t {
            // 0 is "undefined" and stands in some files for tokens that only pad the table.
            1 => Ok(TokenType::Normal),
            2 => Ok(TokenType::Unknown),
            3 => Ok(TokenType::Control),
            4 => Ok(TokenType::UserDefined),
            0 | 5 => Ok(TokenType::Unused),
            6 => Ok(TokenType::Byte),
            other => Err(Error::format(
                "tokenizer.ggml.token_type",
                format!("token {id} has type {other}; types are 0 to 6"),
            )),
        })
        .collect()
}

/// Whether llama.cpp takes a token of this name for a control token, whatever type the file gives it:
/// names that end a generation or mark the holes of fill-in-the-middle. Many files have wrong types
/// there.
pub(super) fn is_control_by_name(name: &str) -> bool {
    const END: [&str; 22] = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    ];
    const FILL: [&str; 35] = [
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    ];
    END.contains(&name) || FILL.contains(&name)
}

/// Finds given tokens in a text.
struct Matcher {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Matcher {
    fn new(
        tokens: &[String],
        types: &[TokenType],
        wanted: impl Fn(&str, TokenType) -> bool,
    ) -> Result<Self> {
        let ids: Vec<u32> = (0u32..)
            .zip(tokens.iter().zip(types))
            .filter(|(_, (name, t))| !name.is_empty() && wanted(name, **t))
            .map(|(id, _)| id)
            .collect();
        let automaton = if ids.is_empty() {
            None
        } else {
            let names = ids.iter().map(|&id| &tokens[id as usize]);
            let built = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(names)
                .map_err(|e| Error::format("special tokens", e.to_string()))?;
            Some(built)
        };
        Ok(Matcher { automaton, ids })
    }

    fn stretches(&self, text: &str) -> Vec<Stretch> {
        let mut out = Vec::new();
        let mut done = 0;
        for found in self.automaton.iter().flat_map(|a| a.find_iter(text)) {
            if done < found.start() {
                out.push(Stretch::Text(done..found.start()));
            }
            let id = self.ids[found.pattern().as_usize()];
            out.push(Stretch::Special(id, found.range()));
            done = found.end();
        }
        if done < text.len() {
            out.push(Stretch::Text(done..text.len()));
        }
        out
    }
}
