//! Does a period end a sentence? The decisions of Punkt (Kiss and Strunk 2006), for English.
//!
//! Numbers in brackets are sections of the paper.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use super::unicode::CharSet;

/// What a trained Punkt knows of a language; see `punkt_english/README.md`.
pub(super) struct Parameters {
    abbreviations: HashSet<&'static str>,
    collocations: HashSet<(&'static str, &'static str)>,
    starters: HashSet<&'static str>,
    contexts: HashMap<&'static str, u8>,
}

/// How a word was seen: flags of [`Parameters::contexts`].
mod seen {
    /// Upper case inside a sentence.
    pub const MID_UPPER: u8 = 4;
    /// Upper case anywhere.
    pub const UPPER: u8 = 2 | 4 | 8;
    /// Lower case at the start of a sentence.
    pub const BEGIN_LOWER: u8 = 16;
    /// Lower case anywhere.
    pub const LOWER: u8 = 16 | 32 | 64;
}

impl Parameters {
    /// NLTK's, for English.
    pub(super) fn english() -> &'static Parameters {
        static ENGLISH: OnceLock<Parameters> = OnceLock::new();
        ENGLISH.get_or_init(|| Parameters {
            abbreviations: include_str!("punkt_english/abbrev_types.txt")
                .lines()
                .collect(),
            collocations: include_str!("punkt_english/collocations.tab")
                .lines()
                .filter_map(|line| line.split_once('\t'))
                .collect(),
            starters: include_str!("punkt_english/sent_starters.txt")
                .lines()
                .collect(),
            contexts: include_str!("punkt_english/ortho_context.tab")
                .lines()
                .filter_map(|line| line.split_once('\t'))
                .filter_map(|(word, flags)| Some((word, flags.parse().ok()?)))
                .collect(),
        })
    }

    /// Whether a sentence ends inside `text`: at a token that another one follows.
    pub(super) fn breaks(&self, text: &str) -> bool {
        // Lines are parted before words: a word never goes over a line break.
        let lines = text
            .split('\n')
            .filter(|line| !line.chars().all(is_python_space));
        let words = lines.flat_map(|line| Words { rest: line });
        let mut tokens = words.map(|word| Token::new(word, self)).peekable();
        while let Some(mut token) = tokens.next() {
            let Some(next) = tokens.peek() else {
                return false;
            };
            self.reconsider(&mut token, next);
            if token.ends_sentence {
                return true;
            }
        }
        false
    }

    /// Token-based classification [4]: revises what the word alone suggested.
    fn reconsider(&self, token: &mut Token, next: &Token) {
        if !token.word.ends_with('.') {
            return;
        }
        let kind = token.kind_without_period();
        let next_kind = next.kind_in_sentence();
        // [4.1.2] "S." and "Bach" belong together.
        if self.collocations.contains(&(kind, next_kind)) {
            token.ends_sentence = false;
            return;
        }
        // [4.2] An abbreviation or an ellipsis may end a sentence too.
        if (token.abbreviation || token.ellipsis) && !token.initial {
            let frequent = next.is_upper() && self.starters.contains(next_kind);
            if self.starts_sentence(next) == Some(true) || frequent {
                token.ends_sentence = true;
                return;
            }
        }
        // [4.3] Initials and ordinals.
        if token.initial || kind == NUMBER {
            let never_lower = self.seen(next_kind) & seen::LOWER == 0;
            match self.starts_sentence(next) {
                Some(false) => token.ends_sentence = false,
                None if token.initial && next.is_upper() && never_lower => {
                    token.ends_sentence = false;
                }
                _ => {}
            }
        }
    }

    /// The orthographic heuristic [4.1.1]; `None`: it cannot tell.
    fn starts_sentence(&self, token: &Token) -> Option<bool> {
        if matches!(token.word, ";" | ":" | "," | "." | "!" | "?") {
            return Some(false);
        }
        let seen = self.seen(token.kind_in_sentence());
        if token.is_upper() && seen & seen::LOWER != 0 && seen & seen::MID_UPPER == 0 {
            return Some(true);
        }
        let never_begins_lower = seen & seen::BEGIN_LOWER == 0;
        if token.is_lower() && (seen & seen::UPPER != 0 || never_begins_lower) {
            return Some(false);
        }
        None
    }

    fn seen(&self, kind: &str) -> u8 {
        self.contexts.get(kind).copied().unwrap_or(0)
    }
}

/// The kind of every number.
const NUMBER: &str = "##number##";

/// A word and what is thought of it.
struct Token<'a> {
    word: &'a str,
    /// In lower case, and all numbers alike.
    kind: String,
    ends_sentence: bool,
    abbreviation: bool,
    ellipsis: bool,
    /// One letter and a period.
    initial: bool,
}

impl<'a> Token<'a> {
    /// Type-based classification [3]: what the word alone suggests.
    fn new(word: &'a str, parameters: &Parameters) -> Self {
        let lower = word.to_lowercase();
        let mut token = Token {
            word,
            kind: String::new(),
            ends_sentence: false,
            abbreviation: false,
            ellipsis: false,
            initial: is_initial(word),
        };
        if matches!(word, "." | "?" | "!") {
            token.ends_sentence = true;
        } else if word.len() > 1 && word.bytes().all(|b| b == b'.') {
            token.ellipsis = true;
        } else if word.ends_with('.') && !word.ends_with("..") {
            let stem = lower.strip_suffix('.').unwrap_or(&lower);
            let last = stem.rsplit('-').next().unwrap_or(stem);
            let known = |word| parameters.abbreviations.contains(word);
            token.abbreviation = known(stem) || known(last);
            token.ends_sentence = !token.abbreviation;
        }
        token.kind = if is_number(&lower) {
            NUMBER.into()
        } else {
            lower
        };
        token
    }

    /// The kind less its period, if that is not all of it.
    fn kind_without_period(&self) -> &str {
        match self.kind.strip_suffix('.') {
            Some(stem) if !stem.is_empty() => stem,
            _ => &self.kind,
        }
    }

    /// The kind less a period that ends the sentence.
    fn kind_in_sentence(&self) -> &str {
        if self.ends_sentence {
            self.kind_without_period()
        } else {
            &self.kind
        }
    }

    fn is_upper(&self) -> bool {
        self.word.chars().next().is_some_and(char::is_uppercase)
    }

    fn is_lower(&self) -> bool {
        self.word.chars().next().is_some_and(char::is_lowercase)
    }
}

/// `[^\W\d]\.`
fn is_initial(word: &str) -> bool {
    let mut chars = word.chars();
    let letter = chars
        .next()
        .is_some_and(|c| CharSet::word_but_digits().has(c));
    letter && chars.as_str() == "."
}

/// `-?[.,]?\d[\d,.-]*`
fn is_number(word: &str) -> bool {
    let word = word.strip_prefix('-').unwrap_or(word);
    let word = word.strip_prefix(['.', ',']).unwrap_or(word);
    let digit = |c| CharSet::digits().has(c);
    word.starts_with(digit)
        && word
            .chars()
            .all(|c| matches!(c, ',' | '.' | '-') || digit(c))
}

/// The words of a line: punctuation stands alone, except that a period belongs to its word.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let first = text.chars().next()?;
        let marks = marks(text);
        let len = if marks > 0 {
            marks
        } else if may_start_word(first) {
            let ends = |(at, c): &(usize, char)| *at > 0 && ends_word(*c, &text[*at..]);
            let end = text.char_indices().find(ends);
            end.map_or(text.len(), |(at, _)| at)
        } else {
            first.len_utf8()
        };
        let (word, rest) = text.split_at(len);
        self.rest = rest;
        Some(word)
    }
}

fn may_start_word(c: char) -> bool {
    !"(\"`{[:;&#*@)}]-,".contains(c)
}

/// Whether a word ends before `text`, which begins with `first`.
fn ends_word(first: char, text: &str) -> bool {
    let ends = |c: char, text: &str| c.is_whitespace() || is_not_word_char(c) || marks(text) > 0;
    if first == ',' {
        // A comma ends a word if it ends it itself.
        let after = &text[1..];
        return after.chars().next().is_none_or(|c| ends(c, after));
    }
    ends(first, text)
}

/// Characters that stand in no word and may stand after the period of a sentence.
pub(super) fn is_not_word_char(c: char) -> bool {
    matches!(
        c,
        ')' | '"'
            | ';'
            | '}'
            | ']'
            | '*'
            | ':'
            | '@'
            | '\''
            | '('
            | '{'
            | '['
            | '\u{2018}'
            | '\u{2019}'
            | '\u{201c}'
            | '\u{201d}'
            | '\u{ab}'
            | '\u{bb}'
            | '?'
            | '!'
    )
}

/// Python's `str.isspace`: four separators more than Unicode's white space, which is `\s` here.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Length of the dash (`--`) or ellipsis (`...`, `. . .`) at the start of `text`, else 0.
fn marks(text: &str) -> usize {
    let Some(first) = text.chars().next().filter(|&c| matches!(c, '-' | '.')) else {
        return 0;
    };
    let run = text.len() - text.trim_start_matches(first).len();
    if run > 1 {
        return run;
    }
    if first == '-' {
        return 0;
    }
    // Periods with one white space between: three at least.
    let (mut periods, mut end, mut rest) = (1, 1, &text[1..]);
    while let Some(after) = rest.strip_prefix(char::is_whitespace) {
        let Some(after) = after.strip_prefix('.') else {
            break;
        };
        periods += 1;
        end = text.len() - after.len();
        rest = after;
    }
    if periods > 2 { end } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::{Parameters, Words, is_initial, is_number, seen};

    #[test]
    fn words_part_from_punctuation_but_not_from_periods() {
        let words = |line| Words { rest: line }.collect::<Vec<_>>();
        assert_eq!(
            words("He said (Mr. X, e.g., 3.5%)."),
            [
                "He", "said", "(", "Mr.", "X", ",", "e.g.", ",", "3.5%", ")", "."
            ]
        );
        assert_eq!(
            words(" a--b ... . . . . c?! - "),
            ["a", "--", "b", "...", ". . . .", "c", "?", "!", "-"]
        );
        assert_eq!(words(". . x"), [".", ".", "x"]);
        assert_eq!(words("1,000,x,"), ["1,000,x", ","]);
        assert!(words(" \t ").is_empty());
    }

    #[test]
    fn numbers_and_initials() {
        for yes in ["5", "5.", "-5", ".5", "-,5", "1,000.5-6", "४."] {
            assert!(is_number(yes), "{yes}");
        }
        for no in ["", "-", ".", "--5", "5a", "²", ".,5"] {
            assert!(!is_number(no), "{no}");
        }
        for yes in ["J.", "é.", "_.", "日."] {
            assert!(is_initial(yes), "{yes}");
        }
        for no in ["J", "JJ.", "5.", "..", ".", "J.."] {
            assert!(!is_initial(no), "{no}");
        }
    }

    #[test]
    fn parameters_are_read_whole() {
        let p = Parameters::english();
        assert_eq!(p.abbreviations.len(), 156);
        assert!(p.abbreviations.contains(". . "), "a trailing space is lost");
        assert_eq!(p.seen("coverage") & seen::LOWER, 32);
    }
}
