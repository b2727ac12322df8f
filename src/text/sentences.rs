//! English sentences as NLTK's Punkt splits them.

use std::ops::Range;

use super::punkt::{Parameters, is_not_word_char, is_python_space};

/// Byte ranges of the sentences of `text`, as `nltk.sent_tokenize` returns them: without the white
/// space between (what stands before the first belongs to it). Takes linear time; a text of white space alone has no sentence.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let english = Parameters::english();
    let mut cuts = Vec::new();
    let mut start = 0;
    for candidate in candidates(text) {
        if english.breaks(&text[candidate.context(text)]) {
            let next = candidate.next.unwrap_or(candidate.end);
            cuts.push(start..candidate.end);
            start = next;
        }
    }
    cuts.push(start..text.trim_end_matches(is_python_space).len());
    realign(text, &cuts)
}

/// A period, question or exclamation mark that may end a sentence.
#[derive(Clone)]
struct Candidate {
    /// Where the word before it begins.
    word: usize,
    /// Just after it.
    end: usize,
    /// Where the next word begins, if white space parts it; else punctuation follows at `end`.
    next: Option<usize>,
}

impl Candidate {
    /// The word before, the mark, and the token after it.
    fn context(&self, text: &str) -> Range<usize> {
        let end = match self.next {
            Some(next) => {
                let rest = &text[next..];
                next + rest.find(char::is_whitespace).unwrap_or(rest.len())
            }
            None => self.end + text[self.end..].chars().next().map_or(0, char::len_utf8),
        };
        self.word..end
    }
}

/// The places where a sentence may end; of several in one word only the last.
fn candidates(text: &str) -> Vec<Candidate> {
    let mut out = Vec::new();
    let mut last: Option<Candidate> = None;
    // The word before the last mark, also of one that is not a candidate any more.
    let mut word = 0..0;
    for (mark, _) in text.match_indices(['.', '?', '!']) {
        let end = mark + 1;
        let rest = &text[end..];
        let next = match rest.chars().next() {
            Some(c) if is_not_word_char(c) => None,
            Some(c) if c.is_whitespace() => {
                let after = rest.trim_start();
                if after.is_empty() {
                    break; // and so it is for all that follow
                }
                Some(text.len() - after.len())
            }
            _ => continue,
        };
        // NLTK takes white space at the very start for none at all.
        let start = match text[word.end..mark].rfind(is_ascii_space) {
            None | Some(0) => word.start,
            Some(space) => word.end + space + 1,
        };
        if let Some(last) = last.take_if(|_| word.end <= start) {
            out.push(last);
        }
        last = Some(Candidate {
            word: start,
            end,
            next,
        });
        word = start..mark;
    }
    out.extend(last);
    out
}

/// Gives closing quotes and brackets at the start of a sentence to the one before.
fn realign(text: &str, cuts: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut out = Vec::with_capacity(cuts.len());
    let mut taken = 0;
    for (i, cut) in cuts.iter().enumerate() {
        let start = cut.start + taken;
        taken = 0;
        let mut end = cut.end;
        if let Some(following) = cuts.get(i + 1).and_then(|next| text.get(next.clone()))
            && let Some((closing, whole)) = closing(following)
        {
            end = cuts[i + 1].start + closing;
            taken = whole;
        }
        if start < end {
            out.push(start..end);
        }
    }
    out
}

/// Length of the closing quotes and brackets at the start, without and with the white space after
/// them; `None` without any, or if a word follows directly.
fn closing(text: &str) -> Option<(usize, usize)> {
    let rest = text.trim_start_matches([
        '"', '\'', ')', ']', '}', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\u{ab}',
        '\u{bb}',
    ]);
    let closing = text.len() - rest.len();
    let after = rest.trim_start();
    let ends = rest.is_empty() || rest.starts_with("--") || after.len() < rest.len();
    (closing > 0 && ends).then(|| (closing, text.len() - after.len()))
}

/// Python's `string.whitespace`.
fn is_ascii_space(c: char) -> bool {
    matches!(c, '\t'..='\r' | ' ')
}
