//! prefold's own mode: coarse to fine under one exact budget.
//!
//! The paper's budget controller (LLMLingua, section 4.1) drops whole demonstrations, then whole
//! sentences, and leaves the rest to the token level, each with a budget of its own. Here there is one
//! budget and one order: every atom of the prompt (a token that does not split a character) has a
//! place in it, by its context, its sentence and itself as far down as `granularity` says, and the
//! longest beginning of that order that fits the budget is the result.

mod finish;
pub(super) mod fit;
pub(crate) mod lexical;
mod meaning;
mod order;
pub(crate) mod rank;
mod relevance;
mod salience;
mod units;

use crate::control;
use crate::error::{Error, Result};
use crate::model::Scorer;
use crate::text::Tokenizer;

use super::options::Exact as Options;
use super::python::strip;
use super::request::{Budget, Request};
use super::result::Compressed;
use super::source::{Source, push_span};
use super::structured::{self, Segment};
use finish::{Rendered, whole_contexts};
use units::Parsed;

/// What every step needs.
pub(crate) struct Exact<'a> {
    pub lm: &'a dyn Scorer,
    pub tokenizer: &'a Tokenizer,
    pub options: &'a Options,
}

impl Exact<'_> {
    /// A shorter prompt.
    pub fn compress(&self, prompt: &Request) -> Result<Compressed> {
        match prompt.structured {
            true => self.compress_structured(prompt),
            false => self.run(prompt, &prompt.contexts, None),
        }
    }

    /// A shorter prompt whose contexts carry tags: what is not to be compressed stays, and segments
    /// with a rate of their own get their share of the budget.
    fn compress_structured(&self, prompt: &Request) -> Result<Compressed> {
        // What names no rate gets that of the whole.
        let rate = match prompt.budget {
            Budget::Rate(rate) => rate,
            Budget::Tokens(target) => {
                let contexts = prompt.contexts.iter();
                let counts = contexts.map(|context| self.count(context));
                let tokens: usize = counts.sum::<Result<_>>()?;
                (target as f64 / tokens.max(1) as f64).min(1.0)
            }
        };
        let segments = prompt
            .contexts
            .iter()
            .map(|context| structured::gapless_segments(context, rate))
            .collect::<Result<Vec<_>>>()?;
        let stripped: Vec<String> = segments
            .iter()
            .map(|s| s.iter().map(|s| s.text.as_str()).collect())
            .collect();
        self.run(prompt, &stripped, Some(&segments))
    }

    fn run(
        &self,
        prompt: &Request,
        contexts: &[String],
        segments: Option<&[Vec<Segment>]>,
    ) -> Result<Compressed> {
        let source = Source::new(&prompt.instruction, contexts, &prompt.question);
        let whole = strip(source.text());
        let origin = self.count(whole)?;
        let frame = Frame {
            instruction: &prompt.instruction,
            question: if self.options.keep_question {
                &prompt.question
            } else {
                ""
            },
        };
        let everything = frame.around(contexts.iter().map(String::as_str));
        // The rates of segments leave room for what must be kept; other targets are held to.
        let (mut target, yields) = match (prompt.budget, segments) {
            (Budget::Tokens(target), _) => (target, false),
            (Budget::Rate(rate), None) => ((origin as f64 * rate).round() as usize, false),
            (Budget::Rate(_), Some(segments)) => (self.target_of(&everything, segments)?, true),
        };
        if target >= origin
            && !self.options.enough
            && self.options.keep_question
            && let Some(text) = self.fitting(&everything, target, segments)?
        {
            let kept = whole_contexts(&frame, contexts, &everything, text);
            let mut source = source;
            source.keep_all();
            return self.finish(source, text.into(), target, kept, segments);
        }
        let fixed = self.count(&frame.around([]))?;
        if yields {
            target = target.max(fixed);
        }
        if fixed > target {
            return Err(Error::Budget {
                target,
                reason: format!(
                    "instruction and question alone are {fixed} tokens; raise the target or shorten \
                     them"
                ),
            });
        }
        let parsed = contexts
            .iter()
            .map(|text| {
                control::check()?;
                Parsed::new(self.tokenizer, text)
            })
            .collect::<Result<Vec<_>>>()?;
        let relevance = self.relevance(prompt, contexts, &parsed, target.saturating_sub(fixed))?;
        let plan = self.order(
            contexts,
            &parsed,
            &relevance,
            segments,
            !prompt.question.is_empty(),
        );

        // One mask over the atoms of all contexts.
        let bases: Vec<usize> = parsed
            .iter()
            .scan(0, |base, p| {
                Some(std::mem::replace(base, *base + p.atoms.len()))
            })
            .collect();
        let atoms: usize = parsed.iter().map(|p| p.atoms.len()).sum();
        let render_each = |mask: &[bool]| -> Vec<(usize, Rendered)> {
            let render = |&c: &usize| {
                let own = &mask[bases[c]..bases[c] + parsed[c].atoms.len()];
                let text = text_of(&contexts[c], &parsed[c], own, &plan.verbatim[c]);
                (c, text)
            };
            plan.contexts.iter().map(render).collect()
        };
        let render = |mask: &[bool]| {
            let texts = render_each(mask);
            frame.around(texts.iter().map(|(_, kept)| kept.text.as_str()))
        };
        let flat: Vec<usize> = plan.atoms.iter().map(|&(c, a)| bases[c] + a).collect();
        let mut failed = None;
        let mut count = |mask: &[bool]| {
            self.count(&render(mask)).unwrap_or_else(|error| {
                failed.get_or_insert(error);
                0
            })
        };
        let mut forced = vec![false; atoms];
        for &atom in &flat[..plan.forced] {
            forced[atom] = true;
        }
        let needed = count(&forced);
        if yields {
            target = target.max(needed);
        }
        if plan.forced > 0 && needed > target {
            return Err(Error::Budget {
                target,
                reason: format!(
                    "what must be kept is {needed} tokens; raise the target or force less"
                ),
            });
        }
        let mask = fit::fit(atoms, &flat, target, count);
        if let Some(error) = failed {
            return Err(error);
        }

        let compressed = render(&mask);
        let mut marked = source;
        marked.keep_question(self.options.keep_question);
        for (c, parsed) in parsed.iter().enumerate() {
            for (a, atom) in parsed.atoms.iter().enumerate() {
                marked.mark_in_context(
                    c,
                    atom.range.clone(),
                    mask[bases[c] + a],
                    relevance.nll_of(c, atom),
                );
            }
        }
        self.finish(marked, compressed, target, render_each(&mask), segments)
    }

    /// The whole text, or the text without the white space round it, if that fits the target. White
    /// space gives way only where nothing says that it must be kept.
    fn fitting<'t>(
        &self,
        text: &'t str,
        target: usize,
        segments: Option<&[Vec<Segment>]>,
    ) -> Result<Option<&'t str>> {
        if self.count(text)? <= target {
            return Ok(Some(text));
        }
        let marked = segments.is_some_and(|s| s.iter().flatten().any(|s| !s.compress));
        let forced =
            !self.options.force_tokens.is_empty() || !self.options.force_contexts.is_empty();
        let stripped = strip(text);
        let fits = !marked && !forced && self.count(stripped)? <= target;
        Ok(fits.then_some(stripped))
    }

    /// Tokens that are left of everything when each segment has given up its share.
    fn target_of(&self, everything: &str, segments: &[Vec<Segment>]) -> Result<usize> {
        let mut left = self.count(everything)? as f64;
        for segment in segments.iter().flatten().filter(|s| s.compress) {
            left -= self.count(&segment.text)? as f64 * (1.0 - segment.rate);
        }
        Ok(left.round() as usize)
    }

    /// Tokens of a text by whom the options name.
    fn count(&self, text: &str) -> Result<usize> {
        control::check()?;
        self.options.count.tokens(text, self.tokenizer)
    }
}

/// The parts that always stay, round the contexts.
struct Frame<'a> {
    instruction: &'a str,
    question: &'a str,
}

impl Frame<'_> {
    /// Instruction, what is left of the contexts, question: joined by blank lines, empty ones left out.
    fn around<'t>(&'t self, contexts: impl IntoIterator<Item = &'t str>) -> String {
        let parts: Vec<&str> = std::iter::once(self.instruction)
            .chain(contexts)
            .chain([self.question])
            .filter(|part| !part.is_empty())
            .collect();
        parts.join("\n\n")
    }
}

/// The kept atoms of a context as text. Where something was dropped, white space on both sides of the
/// gap becomes one, and words that had some between them do not run together; `verbatim` names the
/// atoms whose white space must stay.
fn text_of(context: &str, parsed: &Parsed, mask: &[bool], verbatim: &[bool]) -> Rendered {
    if mask.iter().all(|&kept| kept) {
        return Rendered::verbatim(context, 0..context.len());
    }
    let mut text = String::new();
    let mut spans = Vec::new();
    let mut gap = true;
    // Bytes of the text that must stay, white space at their end included.
    let mut fixed = 0;
    for ((atom, &kept), &verbatim) in parsed.atoms.iter().zip(mask).zip(verbatim) {
        if !kept {
            gap = true;
            continue;
        }
        let mut piece = &context[atom.range.clone()];
        if gap {
            let before = &context[..atom.range.start];
            if text.is_empty() || text.ends_with(char::is_whitespace) {
                if !verbatim {
                    piece = piece.trim_start();
                }
            } else if !piece.starts_with(char::is_whitespace)
                && before.ends_with(char::is_whitespace)
            {
                text.push(if before.ends_with('\n') { '\n' } else { ' ' });
            }
        }
        text.push_str(piece);
        push_span(&mut spans, atom.range.end - piece.len()..atom.range.end);
        gap = false;
        if verbatim {
            fixed = text.len();
        }
    }
    Rendered { text, spans }.truncated(fixed)
}
