//! The original prompt with a mark on every stretch: kept or dropped, and its surprisal.

use std::ops::Range;

use super::result::Piece;

/// A token of a text that was scored, with the decision on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub id: u32,
    /// Bytes of the text that it stands for.
    pub span: Range<usize>,
    /// Its nll (nats) when it was decided on, where it was scored.
    pub nll: Option<f32>,
    pub kept: bool,
}

/// What is left of one context after the coarse levels.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    pub context: usize,
    /// Byte ranges of the context that stay, ascending.
    pub ranges: Vec<Range<usize>>,
}

impl Unit {
    /// The text that is left.
    pub fn text(&self, contexts: &[String]) -> String {
        self.ranges
            .iter()
            .map(|r| &contexts[self.context][r.clone()])
            .collect()
    }
}

#[derive(Debug)]
struct Mark {
    range: Range<usize>,
    kept: bool,
    nll: Option<f32>,
}

/// Instruction, contexts and question joined by blank lines, as the reference counts a prompt.
#[derive(Debug)]
pub(crate) struct Source {
    text: String,
    /// Where each context lies.
    contexts: Vec<Range<usize>>,
    instruction: Range<usize>,
    question: Range<usize>,
    question_kept: bool,
    marks: Vec<Mark>,
}

impl Source {
    /// The whole prompt, nothing decided yet.
    pub fn new(instruction: &str, contexts: &[String], question: &str) -> Self {
        let mut text = instruction.to_string();
        let mut append = |part: &str| {
            text.push_str("\n\n");
            let start = text.len();
            text.push_str(part);
            start..text.len()
        };
        let contexts = contexts.iter().map(|c| append(c)).collect();
        let question = append(question);
        Source {
            contexts,
            instruction: 0..instruction.len(),
            question,
            question_kept: true,
            marks: Vec::new(),
            text,
        }
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Says whether the question stays in the result.
    pub fn keep_question(&mut self, kept: bool) {
        self.question_kept = kept;
    }

    /// Keeps these units whole.
    pub fn keep_units(&mut self, units: &[Unit]) {
        for unit in units {
            let start = self.contexts[unit.context].start;
            for range in &unit.ranges {
                self.mark(start + range.start..start + range.end, true, None);
            }
        }
    }

    /// Takes over the decisions on the tokens of the units' texts joined by blank lines.
    pub fn keep_tokens(&mut self, units: &[Unit], tokens: &[Token]) {
        // Where each stretch of the joined text lies in the source: (start there, start here, bytes).
        let mut table = Vec::new();
        let mut joined = 0;
        for unit in units {
            let context = self.contexts[unit.context].clone();
            let own = unit
                .ranges
                .iter()
                .map(|r| (context.start + r.start, r.len()));
            // A blank line follows every context in the source too.
            for (here, bytes) in own.chain([(context.end, 2)]) {
                table.push((joined, here, bytes));
                joined += bytes;
            }
        }
        let mut first = 0;
        for token in tokens {
            while first + 1 < table.len() && table[first + 1].0 <= token.span.start {
                first += 1;
            }
            for &(there, here, bytes) in &table[first..] {
                let start = token.span.start.max(there);
                let end = token.span.end.min(there + bytes);
                if there >= token.span.end {
                    break;
                }
                if start < end {
                    self.mark(
                        here + start - there..here + end - there,
                        token.kept,
                        token.nll,
                    );
                }
            }
        }
    }

    /// Decides on bytes of a context.
    pub fn mark_in_context(
        &mut self,
        context: usize,
        range: Range<usize>,
        kept: bool,
        nll: Option<f32>,
    ) {
        let start = self.contexts[context].start;
        self.mark(start + range.start..start + range.end, kept, nll);
    }

    /// Keeps every context whole.
    pub fn keep_all(&mut self) {
        for context in self.contexts.clone() {
            self.mark(context, true, None);
        }
    }

    fn mark(&mut self, range: Range<usize>, kept: bool, nll: Option<f32>) {
        self.marks.push(Mark { range, kept, nll });
    }

    /// The bytes of each context that are kept, ascending, neighbours joined.
    pub fn kept_spans(&self) -> Vec<Vec<Range<usize>>> {
        let mut kept: Vec<&Range<usize>> = self
            .marks
            .iter()
            .filter(|mark| mark.kept)
            .map(|mark| &mark.range)
            .collect();
        kept.sort_by_key(|range| range.start);
        let within = |context: &Range<usize>| {
            let mut spans: Vec<Range<usize>> = Vec::new();
            for range in &kept {
                let start = range.start.max(context.start);
                let end = range.end.min(context.end);
                if start < end {
                    push_span(&mut spans, start - context.start..end - context.start);
                }
            }
            spans
        };
        self.contexts.iter().map(within).collect()
    }

    /// The source as pieces in order; what was not decided on is dropped, except for the instruction
    /// and the question.
    pub fn into_pieces(mut self) -> Vec<Piece> {
        self.marks.sort_by_key(|m| m.range.start);
        let first = self.contexts.first().map_or(0, |c| c.start);
        let last = self.contexts.last().map_or(0, |c| c.end);
        let head = if self.instruction.is_empty() {
            first
        } else {
            0
        };
        let tail = if self.question.is_empty() {
            last
        } else {
            self.question.end
        };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = head;
        let mut push = |range: Range<usize>, kept: bool, nll: Option<f32>| {
            // A token may end inside a character; the piece then continues to its end.
            let mut end = range.end.min(tail);
            while !self.text.is_char_boundary(end) {
                end += 1;
            }
            if at < end {
                pieces.push(Piece {
                    text: self.text[at..end].to_string(),
                    kept,
                    nll,
                });
                at = end;
            }
            at
        };
        let mut done = push(head..first.min(tail), true, None);
        for mark in &self.marks {
            if mark.range.start > done {
                push(done..mark.range.start, false, None);
            }
            done = push(mark.range.clone(), mark.kept, mark.nll);
        }
        push(done..last, false, None);
        push(last..tail, self.question_kept, None);
        pieces
    }
}

/// Appends a range, joined to the last one where they touch; an empty one adds nothing.
pub(crate) fn push_span(spans: &mut Vec<Range<usize>>, span: Range<usize>) {
    match spans.last_mut() {
        _ if span.is_empty() => {}
        Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
        _ => spans.push(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(pieces: Vec<Piece>) -> Vec<(String, bool)> {
        pieces.into_iter().map(|p| (p.text, p.kept)).collect()
    }

    #[test]
    fn pieces_give_back_the_prompt() {
        let contexts = ["one two".to_string(), "drei €".to_string()];
        let mut source = Source::new("Do:", &contexts, "Why?");
        let units = [
            Unit {
                context: 1,
                ranges: vec![0..8],
            },
            Unit {
                context: 0,
                ranges: vec![4..7],
            },
        ];
        // Joined: "drei €\n\ntwo"; a token may end inside of '€' and another may cover "\n\ntwo".
        let token = |span: Range<usize>, kept| Token {
            id: 0,
            span,
            nll: Some(1.0),
            kept,
        };
        source.keep_tokens(
            &units,
            &[token(0..6, true), token(6..8, false), token(8..13, true)],
        );
        source.keep_question(false);
        assert_eq!(source.kept_spans(), [vec![4..7], vec![0..6]]);
        let pieces = flat(source.into_pieces());
        let text: String = pieces.iter().map(|(t, _)| t.as_str()).collect();
        assert_eq!(text, "Do:\n\none two\n\ndrei €\n\nWhy?");
        let kept: String = pieces
            .iter()
            .filter(|p| p.1)
            .map(|(t, _)| t.as_str())
            .collect();
        assert_eq!(kept, "Do:\n\ntwodrei €\n\n");
    }

    #[test]
    fn absent_parts_leave_no_blank_lines() {
        let mut source = Source::new("", &["ab".to_string()], "");
        source.keep_units(&[Unit {
            context: 0,
            ranges: vec![0..1],
        }]);
        assert_eq!(
            flat(source.into_pieces()),
            [("a".to_string(), true), ("b".to_string(), false)]
        );
    }
}
