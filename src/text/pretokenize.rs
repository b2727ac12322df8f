//! Where byte-level BPE cuts a text into words: the published regular expressions, scanned by hand
//! so that every text takes linear time.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

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
    /// OpenAI's o200k_base: words begin anew where an upper-case letter follows a lower-case one, marks
    /// are letters, a contraction ends its word, and slashes follow other marks.
    /// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Gpt4o,
    /// Mistral's Tekken: as GPT-4o, but every digit alone and no contractions.
    Tekken,
    /// DeepSeek's: line breaks, cased letters, marks, white space at the end, Chinese, Japanese and Korean,
    /// numbers, each of them cut out of what those before it left.
    DeepSeekLlm,
    /// What llama.cpp takes where a file names none: marks alone, between them as GPT-2, and numbers by
    /// three digits.
    Default,
}

impl PreTokenizer {
    /// By the value of `tokenizer.ggml.pre`.
    pub(super) fn from_name(name: &str) -> Result<Self> {
        match name {
            "gpt-2" => Ok(PreTokenizer::Gpt2),
            "smollm" => Ok(PreTokenizer::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(PreTokenizer::Llama3),
            "qwen2" | "deepseek-r1-qwen" => Ok(PreTokenizer::Qwen2),
            "gpt-4o" | "llama4" => Ok(PreTokenizer::Gpt4o),
            "tekken" => Ok(PreTokenizer::Tekken),
            "deepseek-llm" => Ok(PreTokenizer::DeepSeekLlm),
            "" | "default" => Ok(PreTokenizer::Default),
            other => Err(Error::Unsupported {
                what: format!("pre-tokenizer `{other}`"),
                have: "smollm, gpt-2, llama-bpe, qwen2, gpt-4o, tekken, deepseek-llm, default; a \
                       tokenizer.json beside the GGUF can stand for it"
                    .into(),
            }),
        }
    }

    /// Calls `word` with the byte range of every word of `text`: ascending, gapless, never empty.
    pub(super) fn split(self, text: &str, mut word: impl FnMut(Range<usize>)) {
        let classes = Classes {
            letters: CharSet::letters(),
            upper: CharSet::upper_or_caseless(),
            lower: CharSet::lower_or_caseless(),
        };
        let gpt2 = |text: &str, word: &mut dyn FnMut(Range<usize>)| {
            scan(text, 0, |s| gpt2_word(s, &classes), &mut |range| {
                word(range)
            });
        };
        match self {
            PreTokenizer::DeepSeekLlm => {
                let stages: Vec<Stage> = DEEPSEEK_LLM.iter().map(isolate).collect();
                return staged(text, &stages, &mut word);
            }
            PreTokenizer::Default => {
                let [marks, numbers, threes] = &*DEFAULT;
                let stages = [
                    isolate(marks),
                    Box::new(gpt2),
                    isolate(numbers),
                    isolate(threes),
                ];
                return staged(text, &stages, &mut word);
            }
            _ => {}
        }
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
            PreTokenizer::Gpt4o => gpt4o_word(s, 3, true, &classes),
            PreTokenizer::Tekken => gpt4o_word(s, 1, false, &classes),
            // Done above.
            PreTokenizer::DeepSeekLlm | PreTokenizer::Default => s.len(),
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
    if !matches!(first, '\r' | '\n') && classes.of(first) != Class::Number {
        let lead = first.len_utf8();
        let len = run(&text[lead..], letter);
        if len > 0 {
            return lead + len;
        }
    }
    wordless(text, max_digits, &['\r', '\n'], classes)
}

/// What is no word of letters: numbers of so many digits, marks with the characters that may follow
/// them, and white space.
fn wordless(text: &str, max_digits: usize, after_marks: &[char], classes: &Classes) -> usize {
    let first = text.chars().next().unwrap_or('\n');
    if classes.of(first) == Class::Number {
        let digits = text.chars().take_while(|&c| classes.of(c) == Class::Number);
        return digits.take(max_digits).map(char::len_utf8).sum();
    }
    let lead = usize::from(first == ' ');
    let marks = run(&text[lead..], |c| classes.of(c) == Class::Other);
    if marks > 0 {
        let end = lead + marks;
        return end + run(&text[end..], |c| after_marks.contains(&c));
    }
    let spaces = &text[..run(text, char::is_whitespace)];
    match spaces.rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => white_space(text),
    }
}

/// Length in bytes of the first word of a text that is not empty.
fn gpt4o_word(text: &str, max_digits: usize, contractions: bool, classes: &Classes) -> usize {
    let first = text.chars().next().unwrap_or('\n');
    // What may stand in front of letters. A mark may be that, or a letter itself.
    let lead = match classes.of(first) {
        Class::Space | Class::Other if !matches!(first, '\r' | '\n') => first.len_utf8(),
        _ => 0,
    };
    let leads = if lead > 0 { &[lead, 0][..] } else { &[0] };
    // Upper case, then at least one of lower case; else upper case, then any of lower case.
    let found = [true, false].into_iter().find_map(|lower| {
        let cased = |&lead: &usize| Some(lead + cased_run(&text[lead..], lower, classes)?);
        leads.iter().find_map(cased)
    });
    match found {
        Some(end) if contractions => end + contraction_of_any_case(&text[end..]),
        Some(end) => end,
        None => wordless(text, max_digits, &['\r', '\n', '/'], classes),
    }
}

/// `U*L+`, or `U+L*` where none of lower case is needed: U is upper case, L lower case, and letters
/// without case and marks are both. None where the text begins with no such run.
fn cased_run(text: &str, needs_lower: bool, classes: &Classes) -> Option<usize> {
    let upper = run(text, |c| classes.is_upper(c));
    let lower = run(&text[upper..], |c| classes.is_lower(c));
    if lower > 0 || (upper > 0 && !needs_lower) {
        return Some(upper + lower);
    }
    // The last of U that is L too is given back.
    let both = text[..upper]
        .char_indices()
        .rfind(|&(_, c)| classes.is_lower(c));
    both.map(|(at, c)| at + c.len_utf8())
}

/// As [`contraction`] in any case, where a long s is an s.
fn contraction_of_any_case(text: &str) -> usize {
    match text.starts_with("'\u{17f}") {
        true => "'\u{17f}".len(),
        false => contraction(text, true),
    }
}

/// Cuts a fragment into gapless ranges.
type Stage<'a> = Box<dyn Fn(&str, &mut dyn FnMut(Range<usize>)) + 'a>;

/// Cuts a text by the first stage, what that leaves by the second, and so on.
fn staged(text: &str, stages: &[Stage], word: &mut dyn FnMut(Range<usize>)) {
    let Some((stage, rest)) = stages.split_first() else {
        if !text.is_empty() {
            word(0..text.len());
        }
        return;
    };
    stage(text, &mut |range| {
        let start = range.start;
        staged(&text[range], rest, &mut |inner| {
            word(start + inner.start..start + inner.end);
        });
    });
}

/// Cuts out what a regular expression finds.
fn isolate(found: &Regex) -> Stage<'_> {
    Box::new(|text, word| {
        let mut at = 0;
        for found in found.find_iter(text) {
            for range in [at..found.start(), found.range()] {
                if !range.is_empty() {
                    word(range);
                }
            }
            at = found.end();
        }
        if at < text.len() {
            word(at..text.len());
        }
    })
}

/// Letters that have a case, as DeepSeek lists them.
const CASED: &str = concat!(
    r"A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}",
    r"\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}",
    r"\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}",
    r"\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}",
    r"\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}",
    r"\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}",
    r"\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}",
    r"\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}",
    r"\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}",
    r"\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}",
    r"\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}",
    r"\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}",
    r"\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}",
    r"\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}",
    r"\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}",
    r"\u{1e900}-\u{1e943}",
);

/// Chinese, Japanese and Korean, as DeepSeek lists them.
const CJK: &str = r"[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";

static DEEPSEEK_LLM: LazyLock<[Regex; 6]> = LazyLock::new(|| {
    let marks = r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
    [
        r"[\r\n]",
        &format!(r"\s?[{CASED}]+"),
        marks,
        r"\s+$",
        CJK,
        r"\p{N}+",
    ]
    .map(|pattern| Regex::new(pattern).expect("a constant pattern"))
});

static DEFAULT: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    [r"[\p{P}$+<=>^~|]+", r"\p{N}+", "[0-9]{3}"]
        .map(|pattern| Regex::new(pattern).expect("a constant pattern"))
});

/// Length in bytes of the first word of a text that is not empty.
fn cl100k_word(text: &str, classes: &Classes) -> usize {
    let contraction = contraction_of_any_case(text);
    if contraction > 0 {
        return contraction;
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
    /// Upper and title case, letters without case, marks.
    upper: &'static CharSet,
    /// Lower case, letters without case, marks.
    lower: &'static CharSet,
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

    fn is_upper(&self, c: char) -> bool {
        c.is_ascii_uppercase() || (!c.is_ascii() && self.upper.has(c))
    }

    fn is_lower(&self, c: char) -> bool {
        c.is_ascii_lowercase() || (!c.is_ascii() && self.lower.has(c))
    }

    fn of_first(&self, text: &str) -> Class {
        text.chars().next().map_or(Class::End, |c| self.of(c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with Hugging Face's `tokenizers` by `tests/data/make_pretokenize.py`.
    const CASES: &str = include_str!("../../tests/data/pretokenize.json");

    #[test]
    fn words_end_where_the_published_expressions_end_them() {
        let rows: Vec<serde_json::Value> = serde_json::from_str(CASES).unwrap();
        assert!(rows.len() > 200);
        for row in rows {
            let text = row["text"].as_str().unwrap();
            for name in ["gpt-4o", "tekken", "deepseek-llm", "default"] {
                let mut words = Vec::new();
                let pre = PreTokenizer::from_name(name).unwrap();
                pre.split(text, |range| words.push(&text[range]));
                assert_eq!(serde_json::json!(words), row[name], "{name}: {text:?}");
            }
        }
    }
}
