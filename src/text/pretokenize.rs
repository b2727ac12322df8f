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

    /// The expressions that cut a text, each what those before it left, in the words of Hugging Face.
    pub(super) fn expressions(self) -> Vec<String> {
        const GPT2: &str =
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        const CONTRACTION: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
        let llama3 = |digits: &str| {
            format!(
                r"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )
        };
        let gpt4o = |end: &str, digits: &str| {
            let lead = r"[^\r\n\p{L}\p{N}]?";
            let (upper, lower) = (
                r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
            );
            format!(
                r"{lead}{upper}*{lower}+{end}|{lead}{upper}+{lower}*{end}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )
        };
        match self {
            PreTokenizer::Gpt2 => vec![GPT2.into()],
            PreTokenizer::SmolLm => vec![r"\p{N}".into(), GPT2.into()],
            PreTokenizer::Llama3 => vec![llama3("{1,3}")],
            PreTokenizer::Qwen2 => vec![llama3("")],
            // White space at the end is the one difference.
            PreTokenizer::Cl100k => {
                vec![llama3("{1,3}").replace(r"|\s*[\r\n]+", r"|\s+$|\s*[\r\n]+")]
            }
            PreTokenizer::Gpt4o => vec![gpt4o(&format!("{CONTRACTION}?"), "{1,3}")],
            PreTokenizer::Tekken => vec![gpt4o("", "")],
            PreTokenizer::DeepSeekLlm => deepseek_llm().into(),
            PreTokenizer::Default => {
                let [marks, numbers, threes] = DEFAULT.map(String::from);
                vec![marks, GPT2.into(), numbers, threes]
            }
        }
    }

    /// Whether a word that is a token is read as that, whatever its merges.
    pub(super) fn whole_words(self) -> bool {
        matches!(self, PreTokenizer::Llama3 | PreTokenizer::Tekken)
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
                let stages: Vec<Stage> = DEEPSEEK_LLM_STAGES.iter().map(isolate).collect();
                return staged(text, &stages, &mut word);
            }
            PreTokenizer::Default => {
                let [marks, numbers, threes] = &*DEFAULT_STAGES;
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

/// What is not a word of letters: numbers of so many digits, marks with the characters that may follow
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
    // The last of U that is L too is left to what follows.
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
    r"A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}",
    r"\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}",
    r"\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}",
    r"\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}",
    r"\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}",
    r"\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}",
    r"\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}",
    r"\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}",
    r"\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}",
    r"\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}",
    r"\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}",
    r"\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}",
    r"\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}",
    r"\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}",
    r"\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}",
    r"\x{1e900}-\x{1e943}",
);

/// What DeepSeek cuts out, in order; `{}` is [`CASED`].
const DEEPSEEK_LLM: [&str; 6] = [
    r"[\r\n]",
    r"\s?[{}]+",
    r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
    r"\s+$",
    r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
    r"\p{N}+",
];

/// What llama.cpp's default cuts out, in order, GPT-2's words between the first and the second.
const DEFAULT: [&str; 3] = [r"[\p{P}$+<=>^~|]+", r"\p{N}+", "[0-9]{3}"];

fn deepseek_llm() -> [String; 6] {
    DEEPSEEK_LLM.map(|pattern| pattern.replace("{}", CASED))
}

static DEEPSEEK_LLM_STAGES: LazyLock<[Regex; 6]> = LazyLock::new(|| {
    deepseek_llm().map(|pattern| Regex::new(&pattern).expect("a constant pattern"))
});

static DEFAULT_STAGES: LazyLock<[Regex; 3]> =
    LazyLock::new(|| DEFAULT.map(|pattern| Regex::new(pattern).expect("a constant pattern")));

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
