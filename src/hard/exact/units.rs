//! A context taken apart: sentences, words, and atoms that never split what a reader sees as one
//! character (a grapheme cluster: a letter with its marks, a flag, a family).

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use crate::error::Result;
use crate::text::{Tokenizer, sentences::sentences};

/// Sentences longer than this are cut at their clauses, so that one that never ends cannot take
/// the whole budget.
const LONG_SENTENCE: usize = 400;

/// The smallest stretch that is kept or dropped: one token of the scorer, or several that share a
/// grapheme cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Atom {
    /// Bytes of the context.
    pub range: Range<usize>,
    /// Tokens of the context.
    pub tokens: Range<usize>,
    /// Index of its sentence in the context.
    pub sentence: usize,
    /// Index of its word in the context.
    pub word: usize,
}

/// A context, taken apart.
#[derive(Debug)]
pub(super) struct Parsed {
    pub ids: Vec<u32>,
    pub atoms: Vec<Atom>,
    /// Byte ranges, gapless: white space belongs to the sentence before it.
    pub sentences: Vec<Range<usize>>,
}

impl Parsed {
    /// Takes `text` apart by the scorer's tokens.
    pub fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let encoding = tokenizer.encode(text, false, false)?;
        let sentences = split(text);
        let mut atoms: Vec<Atom> = Vec::new();
        let (mut start, mut first, mut sentence, mut word) = (0, 0, 0, 0);
        let mut clusters = text.grapheme_indices(true).map(|(at, _)| at).peekable();
        for (i, span) in encoding.spans.iter().enumerate() {
            let last = i + 1 == encoding.spans.len();
            let end = if last { text.len() } else { span.end };
            while clusters.next_if(|&at| at < end).is_some() {}
            let whole = end == text.len() || clusters.peek() == Some(&end);
            if end == start || !whole {
                continue;
            }
            // A token that starts with the space before a sentence is that sentence's first word.
            let shown = text[start..end].trim_start();
            let at = if shown.is_empty() {
                start
            } else {
                end - shown.len()
            };
            while sentence + 1 < sentences.len() && sentences[sentence + 1].start <= at {
                sentence += 1;
            }
            if atoms
                .last()
                .is_some_and(|a| starts_word(text, start) || a.sentence != sentence)
            {
                word += 1;
            }
            atoms.push(Atom {
                range: start..end,
                tokens: first..i + 1,
                sentence,
                word,
            });
            start = end;
            first = i + 1;
        }
        Ok(Parsed {
            ids: encoding.ids,
            atoms,
            sentences,
        })
    }
}

impl Parsed {
    /// The tokens of a sentence; a token on the border belongs to the sentence in which its first
    /// visible character stands.
    pub fn sentence_tokens(&self, sentence: usize) -> Range<usize> {
        let first = self.atoms.partition_point(|a| a.sentence < sentence);
        let last = self.atoms.partition_point(|a| a.sentence <= sentence);
        match (
            self.atoms.get(first),
            last.checked_sub(1).map(|i| &self.atoms[i]),
        ) {
            (Some(first), Some(last)) if first.sentence == sentence => {
                first.tokens.start..last.tokens.end
            }
            _ => 0..0,
        }
    }
}

/// Whether a word starts at `at`: at white space, after it, and at scripts that write without it.
fn starts_word(text: &str, at: usize) -> bool {
    let here = text[at..].chars().next().unwrap_or(' ');
    let before = text[..at].chars().next_back().unwrap_or(' ');
    !here.is_alphanumeric() || !before.is_alphanumeric() || unspaced(here) || unspaced(before)
}

/// Scripts that put no space between words: Thai to Khmer, kana, Han, Hangul syllables are spaced.
pub(super) fn unspaced(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// Nobody wraps lines wider than this (in characters); a text of longer ones has a line a paragraph.
const WIDEST_WRAP: usize = 120;

/// The width in characters to which the lines of `text` are wrapped, as nearly as one can tell: one
/// line in ten may be longer. None where lines are too long to be wrapped at all.
fn wrap_width(text: &str) -> Option<usize> {
    let mut lengths: Vec<usize> = text
        .lines()
        .map(|line| line.trim_end().chars().count())
        .filter(|&length| length > 0)
        .collect();
    lengths.sort_unstable();
    let width = *lengths.get(lengths.len() * 9 / 10)?;
    (width <= WIDEST_WRAP).then_some(width)
}

/// True where the line break at `at` is only there because the next word did not fit the line any
/// more: then it ends no sentence.
fn wraps(text: &str, at: usize, width: Option<usize>) -> bool {
    let line = text[..at].rsplit('\n').next().unwrap_or_default();
    let next = text[at + 1..].split('\n').next().unwrap_or_default();
    let mut words = next.split_whitespace();
    let (Some(width), Some(word)) = (width, words.next()) else {
        return false;
    };
    let item = matches!(word, "-" | "*" | "+" | "•" | ">" | "|") || word.starts_with('#');
    !item && line.trim_end().chars().count() + 1 + word.chars().count() > width
}

/// Sentences in any language: Punkt's for English, cut again at the ends of lines that were not just
/// wrapped, and at full stops that need no space after them.
fn split(text: &str) -> Vec<Range<usize>> {
    let width = wrap_width(text);
    let mut cuts = vec![0];
    for sentence in sentences(text) {
        cuts.push(sentence.start);
        let body = &text[sentence.clone()];
        let long = body.len() > LONG_SENTENCE;
        let mut last = sentence.start;
        for (at, c) in body.char_indices() {
            let end = sentence.start + at + c.len_utf8();
            let full_stop = match c {
                '\n' => !wraps(text, end - 1, width),
                c => matches!(c, '。' | '！' | '？' | '।' | '۔' | '؟' | '።'),
            };
            let clause = long
                && matches!(c, ';' | ':' | '—' | '；' | '、' | '，' | ',' | ' ')
                && end - last > LONG_SENTENCE / if c == ' ' { 1 } else { 2 };
            if full_stop || clause {
                cuts.push(end);
                last = end;
            }
        }
    }
    // White space belongs to what stands before it.
    for cut in &mut cuts {
        if *cut > 0 {
            *cut += text[*cut..].len() - text[*cut..].trim_start().len();
        }
    }
    cuts.push(text.len());
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|w| w[0]..w[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        split(text).into_iter().map(|r| &text[r]).collect()
    }

    #[test]
    fn sentences_cover_the_text_in_any_language() {
        assert_eq!(
            texts("One. Two!\n\n* a\n* b"),
            ["One. ", "Two!\n\n", "* a\n", "* b"]
        );
        assert_eq!(texts("東京です。晴れ！"), ["東京です。", "晴れ！"]);
        assert_eq!(texts("  "), ["  "]);
        assert!(texts("").is_empty());
        let long = "word ".repeat(500);
        assert!(split(&long).iter().all(|r| r.len() <= LONG_SENTENCE + 8));
        assert_eq!(texts(&long).concat(), long);
    }

    #[test]
    fn a_wrapped_line_ends_no_sentence_and_a_short_one_does() {
        let wrapped = "The lines of this text are wrapped at a\nwidth of forty characters or so, as was\n\
                       the custom. A heading\n\nThen a list of things\n- one that is rather long, but not\n- two\n";
        assert_eq!(
            texts(wrapped),
            [
                "The lines of this text are wrapped at a\nwidth of forty characters or so, as was\nthe custom. ",
                "A heading\n\n",
                "Then a list of things\n",
                "- one that is rather long, but not\n",
                "- two\n"
            ]
        );
        // A line a paragraph: every break is meant.
        let paragraphs = format!("{0}\n{0}\nb c\n", "a word ".repeat(30));
        assert_eq!(texts(&paragraphs).len(), 3);
    }

    #[test]
    fn words_start_where_a_reader_sees_them() {
        let starts = |text: &str| -> Vec<usize> {
            (0..text.len())
                .filter(|&i| text.is_char_boundary(i) && starts_word(text, i))
                .collect()
        };
        assert_eq!(starts("ab cd"), [0, 2, 3]);
        assert_eq!(starts("東京"), [0, 3]);
    }
}
