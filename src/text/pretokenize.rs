//! Where byte-level BPE cuts a text into words: the published regular expressions, scanned by hand
//! so that every text takes linear time.

use std::ops::Range;

use super::unicode::CharSet;
use crate::error::{Error, Result};

/// A pre-tokenizer, under llama.cpp's name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every digit alone, and between digits as GPT-2.
    SmolLm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// As Llama 3, but every digit alone.
    Qwen2,
    /// OpenAI's cl100k_base: as Llama 3, but white space at the end is one word, line breaks or not.
    Cl100k,
}

impl PreTokenizer {
    /// By the value of `tokenizer.ggml.pre`.
    pub(super) fn from_name(name: &str) -> Result<Self> {
        match name {
            "gpt-2" => Ok(PreTokenizer::Gpt2),
            "smollm" => Ok(PreTokenizer::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(PreTokenizer::Llama3),
            "qwen2" | "deepseek-r1-qwen" => Ok(PreTokenizer::Qwen2),
            other => Err(Error::Unsupported {
                what: format!("pre-tokenizer `{other}`"),
                have: "smollm, gpt-2, llama-bpe, qwen2".into(),
            }),
        }
    }

    /// Calls `word` with the byte range of every word of `text`: ascending, gapless, never empty.
    pub(super) fn split(self, text: &str, mut word: impl FnMut(Range<usize>)) {
        let classes = Classes {
            letters: CharSet::letters(),
        };
        let mut at = 0;
        if self == PreTokenizer::SmolLm {
            // A digit ends the stretch before it, as the end of the text would.
            for (digit, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                scan(&text[..digit], at, |s| gpt2_word(s, &classes), &mut word);
                at = digit + c.len_utf8();
                word(digit..at);
            }
        }
        let next = |s: &str| match self {
            PreTokenizer::Gpt2 | PreTokenizer::SmolLm => gpt2_word(s, &classes),
            PreTokenizer::Llama3 => llama3_word(s, 3, &classes),
            PreTokenizer::Cl100k => cl100k_word(s, &classes),
            PreTokenizer::Qwen2 => llama3_word(s, 1, &classes),
        };
        scan(text, at, next, &mut word);
    }
}

/// Cuts `text[at..]` into words of the lengths that `next` gives.
fn scan(
    text: &str,
    mut at: usize,
    next: impl Fn(&str) -> usize,
    word: &mut impl FnMut(Range<usize>),
) {
    while at < text.len() {
        let end = at + next(&text[at..]);
        word(at..end);
        at = end;
    }
}

/// Length in bytes of the first word of a text that is not empty.
fn gpt2_word(text: &str, classes: &Classes) -> usize {
    let contraction = contraction(text, false);
    if contraction > 0 {
        return contraction;
    }
    let lead = usize::from(text.starts_with(' '));
    let body = &text[lead..];
    let len = match classes.of_first(body) {
        Class::Space | Class::End => return white_space(text),
        class => run(body, |c| classes.of(c) == class),
    };
    lead + len
}

/// Length in bytes of the first word of a text that is not empty.
fn llama3_word(text: &str, max_digits: usize, classes: &Classes) -> usize {
    let contraction = contraction(text, true);
    if contraction > 0 {
        return contraction;
    }
    let letter = |c| classes.of(c) == Class::Letter;
    let first = text.chars().next().unwrap_or('\n');
    if letter(first) {
        return run(text, letter);
    }
    if classes.of(first) == Class::Number {
        let number = |c| classes.of(c) == Class::Number;
        let digits = text.chars().take_while(|&c| number(c));
        return digits.take(max_digits).map(char::len_utf8).sum();
    }
    if !matches!(first, '\r' | '\n') {
        let lead = first.len_utf8();
        let len = run(&text[lead..], letter);
        if len > 0 {
            return lead + len;
        }
    }
    let lead = usize::from(first == ' ');
    let marks = run(&text[lead..], |c| classes.of(c) == Class::Other);
    if marks > 0 {
        let end = lead + marks;
        return end + run(&text[end..], |c| matches!(c, '\r' | '\n'));
    }
    let spaces = &text[..run(text, char::is_whitespace)];
    match spaces.rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => white_space(text),
    }
}

/// Length in bytes of the first word of a text that is not empty.
fn cl100k_word(text: &str, classes: &Classes) -> usize {
    // Here `(?i:s)` matches U+017F too, a long s.
    if text.starts_with("'\u{17f}") {
        return "'\u{17f}".len();
    }
    let first_is_space = text.starts_with(char::is_whitespace);
    if first_is_space && run(text, char::is_whitespace) == text.len() {
        return text.len();
    }
    llama3_word(text, 3, classes)
}

/// `\s+(?!\S)|\s+`: leaves the last white space to the word that follows, unless it is alone.
fn white_space(text: &str) -> usize {
    let len = run(text, char::is_whitespace);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len < text.len() && len > last {
        len - last
    } else {
        len
    }
}

/// Length of an English contraction at the start (`'s`, `'re`), else 0.
fn contraction(text: &str, any_case: bool) -> usize {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'\'') {
        return 0;
    }
    let fold = |i: usize| match bytes.get(i) {
        Some(b) if any_case => b.to_ascii_lowercase(),
        Some(b) => *b,
        None => 0,
    };
    match (fold(1), fold(2)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r', b'e') | (b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

/// Length in bytes of the run of characters at the start that satisfy `wanted`.
fn run(text: &str, wanted: impl Fn(char) -> bool) -> usize {
    text.find(|c| !wanted(c)).unwrap_or(text.len())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
    /// No character at all.
    End,
}

/// Tells letters, numbers and white space apart.
struct Classes {
    letters: &'static CharSet,
}

impl Classes {
    fn of(&self, c: char) -> Class {
        if c.is_ascii_alphabetic() {
            Class::Letter
        } else if c.is_whitespace() {
            Class::Space
        } else if c.is_numeric() {
            Class::Number
        } else if !c.is_ascii() && self.letters.has(c) {
            Class::Letter
        } else {
            Class::Other
        }
    }

    fn of_first(&self, text: &str) -> Class {
        text.chars().next().map_or(Class::End, |c| self.of(c))
    }
}
