//! Prose: sentences in any language; lines that are records or code stay whole.

use std::ops::Range;

use crate::text::sentences::sentences;

use super::detect::{self, LONG_SENTENCE};
use super::{LONG_SPACE, Layout, Unit, lines};

/// Takes prose apart.
pub(super) fn layout(text: &str) -> Layout {
    let wrap = Wrap::of(text);
    let mut units = Vec::new();
    for block in blocks(text) {
        let own = &text[block.clone()];
        let lines: Vec<Range<usize>> = lines(own).collect();
        let shown: Vec<&str> = lines.iter().map(|r| own[r.clone()].trim_end()).collect();
        let records = detect::are_records(&shown);
        if records || detect::are_code(&shown) {
            let shown = lines
                .into_iter()
                .filter(|line| !own[line.clone()].trim().is_empty());
            for line in shown {
                record(
                    text,
                    block.start + line.start..block.start + line.end,
                    records,
                    &mut units,
                );
            }
        } else {
            units.extend(prose(text, block, &wrap).into_iter().map(sentence));
        }
    }
    Layout {
        units,
        ..Layout::default()
    }
}

fn sentence(range: Range<usize>) -> Unit {
    Unit {
        range,
        ..Unit::default()
    }
}

/// Adds a line as one unit; a long one by its sentences, of which the first says whose line it is.
fn record(text: &str, line: Range<usize>, record: bool, units: &mut Vec<Unit>) {
    if line.len() <= LONG_SENTENCE {
        units.push(Unit {
            range: line,
            whole: true,
            record,
            ..Unit::default()
        });
        return;
    }
    let first = units.len();
    for (i, range) in prose(text, line, &Wrap { width: None })
        .into_iter()
        .enumerate()
    {
        let needs = if i == 0 { Vec::new() } else { vec![first] };
        units.push(Unit {
            range,
            needs,
            ..Unit::default()
        });
    }
}

/// Stretches without a blank line or long white space inside; what parts them belongs to the one
/// before.
fn blocks(text: &str) -> Vec<Range<usize>> {
    let mut starts = vec![0];
    let mut at = 0;
    let mut shown = false;
    while at < text.len() {
        let rest = &text[at..];
        let visible = rest.len() - rest.trim_start().len();
        let space = &rest[..visible];
        let blank = space.bytes().filter(|&b| b == b'\n').count() > 1;
        if shown && visible < rest.len() && (blank || visible >= LONG_SPACE) {
            // The line's own indentation stays with it.
            let line = space.rfind('\n').map_or(visible, |i| i + 1);
            starts.push(at + line);
        }
        at += visible;
        let rest = &text[at..];
        at += rest.find(char::is_whitespace).unwrap_or(rest.len());
        shown = true;
    }
    starts.push(text.len());
    starts
        .windows(2)
        .map(|w| w[0]..w[1])
        .filter(|r| !r.is_empty())
        .collect()
}

/// Lines wider than this (characters) are not wrapped; a text of longer ones has a line a paragraph.
const WIDEST_WRAP: usize = 120;
/// Lines narrower than this are not wrapped, but a list or a poem.
const NARROWEST_WRAP: usize = 30;

/// How the lines of a text are wrapped.
pub(super) struct Wrap {
    /// The width in characters: one line in ten may be longer. None where lines are not wrapped.
    width: Option<usize>,
}

impl Wrap {
    /// Finds the width to which lines are wrapped, if they are.
    pub(super) fn of(text: &str) -> Wrap {
        let shown: Vec<&str> = text.lines().map(str::trim_end).collect();
        let mut lengths: Vec<usize> = shown
            .iter()
            .map(|line| line.chars().count())
            .filter(|&length| length > 0)
            .collect();
        lengths.sort_unstable();
        let width = lengths
            .get(lengths.len() * 9 / 10)
            .copied()
            .filter(|width| (NARROWEST_WRAP..=WIDEST_WRAP).contains(width));
        let wrap = Wrap { width };
        // Records of one width look wrapped too, but prose continues in the middle of a sentence.
        let (mut inside, mut cased) = (0, 0);
        for pair in shown.windows(2) {
            let word = pair[1].split_whitespace().next().unwrap_or_default();
            if !word.is_empty() && !starts_item(word) && wrap.overflows(pair[0], word) {
                let first = word.chars().next().unwrap_or(' ');
                inside += usize::from(first.is_lowercase());
                cased +=
                    usize::from(first.is_lowercase() || first.is_uppercase() || first.is_ascii());
            }
        }
        Wrap {
            width: width.filter(|_| inside * 3 >= cased),
        }
    }

    /// Whether the first word of the next line did not fit into `line` any more.
    fn overflows(&self, line: &str, word: &str) -> bool {
        let length = line.trim_end().chars().count();
        self.width
            .is_some_and(|width| length + 1 + word.chars().count() > width)
    }

    /// True where the break after `line` is only there because the next word did not fit any more:
    /// then it ends no sentence.
    pub(super) fn continues(&self, line: &str, next: &str) -> bool {
        let mut words = next.split_whitespace();
        let (Some(width), Some(word)) = (self.width, words.next()) else {
            return false;
        };
        // One line in ten tells the width, so that a word may seem to fit that did not.
        let line = line.trim_end();
        let inside = line.chars().count() * 2 > width
            && word.starts_with(char::is_lowercase)
            && line.ends_with(|c: char| c.is_alphanumeric() || matches!(c, ',' | '’' | '\''));
        !starts_item(word) && (inside || self.overflows(line, word))
    }
}

/// Whether a word in front of a line makes it an item, a heading or a quotation.
fn starts_item(word: &str) -> bool {
    let number = word.strip_suffix(['.', ')']).unwrap_or("");
    matches!(word, "-" | "*" | "+" | "•" | "–" | ">" | "|")
        || word.starts_with('#')
        || (!number.is_empty() && number.len() <= 3 && number.bytes().all(|b| b.is_ascii_digit()))
}

/// A full stop that needs no space after it.
fn full_stop(c: char) -> bool {
    matches!(c, '。' | '！' | '？' | '।' | '۔' | '؟' | '።' | '។' | '။')
}

/// The sentences of a block, gapless: Punkt's for English, cut again at the ends of lines that were
/// not just wrapped, and at the full stops of other scripts.
pub(super) fn prose(text: &str, block: Range<usize>, wrap: &Wrap) -> Vec<Range<usize>> {
    let own = &text[block.clone()];
    let mut cuts = vec![0];
    for sentence in sentences(own) {
        cuts.push(sentence.start);
        let body = &own[sentence.clone()];
        let long = body.len() > LONG_SENTENCE;
        let mut last = sentence.start;
        let mut line = own[..sentence.start].rfind('\n').map_or(0, |at| at + 1);
        for (at, c) in body.char_indices() {
            let end = sentence.start + at + c.len_utf8();
            let after = own[end..].chars().next();
            let stop = match c {
                '\n' => {
                    let next = own[end..].split('\n').next().unwrap_or_default();
                    let wraps = wrap.continues(&own[line..end - 1], next);
                    line = end;
                    !wraps
                }
                // Closing quotes and brackets belong to the sentence.
                c => full_stop(c) && after.is_none_or(|a| !full_stop(a) && !closes_quote(a)),
            };
            let quoted = closes_quote(c) && body[..at].chars().next_back().is_some_and(full_stop);
            // A mark inside a figure or a name ends no clause.
            let spaced = after.is_some_and(char::is_whitespace);
            let clause = long
                && end - last > LONG_SENTENCE / if c == ' ' { 1 } else { 2 }
                && match c {
                    ';' | ':' | '—' | ',' => spaced,
                    '；' | '、' | '，' | '：' => true,
                    c => c == ' ',
                };
            if stop || quoted || clause {
                cuts.push(end);
                last = end;
            }
        }
    }
    // White space belongs to what stands before it, the indentation of a line to the line.
    for cut in &mut cuts {
        let space = &own[*cut..][..own[*cut..].len() - own[*cut..].trim_start().len()];
        if *cut > 0 && !space.is_empty() {
            *cut += space.rfind('\n').map_or(space.len(), |at| at + 1);
        }
    }
    cuts.push(own.len());
    cuts.sort_unstable();
    cuts.dedup();
    let ranges: Vec<Range<usize>> = cuts
        .windows(2)
        .map(|w| block.start + w[0]..block.start + w[1])
        .collect();
    join_blank(text, ranges)
}

/// The sentences of a block, gapless, none of which ends inside of one of the `glued` stretches.
#[cfg(feature = "formats")]
pub(super) fn prose_around(
    text: &str,
    block: Range<usize>,
    wrap: &Wrap,
    glued: &[Range<usize>],
) -> Vec<Range<usize>> {
    let mut glued = glued.iter().peekable();
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut open = false;
    for sentence in prose(text, block, wrap) {
        while glued.next_if(|g| g.end <= sentence.end).is_some() {}
        match out.last_mut() {
            Some(last) if open => last.end = sentence.end,
            _ => out.push(sentence.clone()),
        }
        open = glued.peek().is_some_and(|g| g.start < sentence.end);
    }
    out
}

/// Gives stretches of white space alone to what stands before them.
fn join_blank(text: &str, ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if text[range.clone()].trim().is_empty() => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

fn closes_quote(c: char) -> bool {
    matches!(c, '」' | '』' | '”' | '’' | '）' | ')' | '"' | '»')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        layout(text)
            .finish(text)
            .units
            .into_iter()
            .map(|u| &text[u.range])
            .collect()
    }

    #[test]
    fn sentences_cover_the_text_in_any_language() {
        assert_eq!(
            texts("One. Two!\n\n* a\n* b"),
            ["One. ", "Two!\n\n", "* a\n", "* b"]
        );
        assert_eq!(texts("東京です。晴れ！"), ["東京です。", "晴れ！"]);
        assert_eq!(texts("「東京です。」晴れ！"), ["「東京です。」", "晴れ！"]);
        assert_eq!(texts("  "), ["  "]);
        assert!(texts("").is_empty());
        let long = "word ".repeat(500);
        assert!(texts(&long).iter().all(|r| r.len() <= LONG_SENTENCE + 8));
        assert_eq!(texts(&long).concat(), long);
        // No clause ends inside of a figure.
        let figures = "at 10:00:07 it was 1,234.5, then ".repeat(40);
        for part in texts(&figures) {
            assert!(
                part.ends_with(' ') && !part.starts_with(|c: char| c.is_numeric() && c != '1'),
                "{part}"
            );
        }
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
        // A line that is a little short of the width continues too, where its sentence does.
        let short = "The lines of this text are wrapped at a\nwidth of forty characters. He\nwas, I take it, the most perfect\nreasoning and observing machine of his\n";
        assert_eq!(texts(short).len(), 2, "{:?}", texts(short));
        // A line a paragraph: every break is meant.
        let paragraphs = format!("{0}\n{0}\nb c\n", "a word ".repeat(30));
        assert_eq!(texts(&paragraphs).len(), 3);
    }

    #[test]
    fn records_inside_prose_are_lines() {
        let text = "The server wrote this.\n\n\
            2024-03-01T10:00:00Z INFO worker-1 served request 100 in 00 ms\n\
            2024-03-01T10:00:01Z INFO worker-1 served request 101 in 01 ms\n\
            2024-03-01T10:00:02Z INFO worker-1 served request 102 in 02 ms\n\nThen it stopped.";
        assert_eq!(texts(text).len(), 5, "{:?}", texts(text));
    }

    #[test]
    fn long_white_space_is_a_unit_of_its_own() {
        let text = format!("a{}b", " ".repeat(3000));
        assert_eq!(texts(&text), ["a", &" ".repeat(3000), "b"]);
        let text = format!("a.\n{}    b", "\n".repeat(900));
        assert_eq!(texts(&text), ["a.\n", &"\n".repeat(900), "    b"]);
    }
}
