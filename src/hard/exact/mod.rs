//! prefold's own mode: coarse to fine under one exact budget.
//!
//! The paper's budget controller (LLMLingua, section 4.1) drops whole demonstrations, then whole
//! sentences, and leaves the rest to the token level, each with a budget of its own. Here there is one
//! budget and one order: every atom of the prompt (a token that does not split a character) has a
//! place in it, by its context, its sentence and itself as far down as `granularity` says, and the
//! longest beginning of that order that fits the budget is the result.

mod fit;
mod lexical;
mod order;
mod relevance;
mod units;

use crate::error::{Error, Result};
use crate::model::Scorer;
use crate::text::{Tokenizer, counts::count_cl100k};

use super::options::{Count, Options, Prompt};
use super::python::strip;
use super::result::Compressed;
use super::source::Source;
use super::structured::{self, Segment};
use units::Parsed;

/// What every step needs.
pub(crate) struct Exact<'a> {
    pub lm: &'a dyn Scorer,
    pub tokenizer: &'a Tokenizer,
    pub options: &'a Options,
}

impl Exact<'_> {
    /// A shorter prompt.
    pub fn compress(&self, prompt: &Prompt) -> Result<Compressed> {
        self.run(prompt, &prompt.context, None)
    }

    /// A shorter prompt whose contexts carry tags: what is not to be compressed stays, and segments
    /// with a rate of their own get their share of the budget.
    pub fn compress_structured(&self, prompt: &Prompt) -> Result<Compressed> {
        let segments = prompt
            .context
            .iter()
            .map(|context| structured::segments(context, self.options.rate))
            .collect::<Result<Vec<_>>>()?;
        let stripped: Vec<String> = segments
            .iter()
            .map(|s| s.iter().map(|s| s.text.as_str()).collect())
            .collect();
        self.run(prompt, &stripped, Some(&segments))
    }

    fn run(
        &self,
        prompt: &Prompt,
        contexts: &[String],
        segments: Option<&[Vec<Segment>]>,
    ) -> Result<Compressed> {
        let source = Source::new(&prompt.instruction, contexts, &prompt.question);
        let whole = strip(source.text());
        let origin = self.count(whole)?;
        let target = match self.options.target_token {
            Some(target) => target.round() as usize,
            None => (origin as f64 * self.rate_of(segments)).round() as usize,
        };
        let frame = Frame {
            instruction: &prompt.instruction,
            question: if self.options.concate_question {
                &prompt.question
            } else {
                ""
            },
        };
        if target >= origin && self.options.concate_question {
            let kept = frame.around(contexts.iter().map(String::as_str));
            return Ok(self.keep_all(source, kept));
        }
        let fixed = self.count(&frame.around([]))?;
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
            .map(|text| Parsed::new(self.tokenizer, text))
            .collect::<Result<Vec<_>>>()?;
        let relevance = self.relevance(prompt, contexts, &parsed)?;
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
        let render = |mask: &[bool]| {
            let texts = plan.contexts.iter().map(|&c| {
                let own = &mask[bases[c]..bases[c] + parsed[c].atoms.len()];
                text_of(&contexts[c], &parsed[c], own)
            });
            frame.around(texts.collect::<Vec<_>>().iter().map(String::as_str))
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
        marked.keep_question(self.options.concate_question);
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
        let origin = count_cl100k(strip(marked.text()));
        Ok(Compressed::new(origin, compressed, marked.into_pieces()))
    }

    /// Everything fits. White space round the text counts neither before nor after.
    fn keep_all(&self, mut source: Source, text: String) -> Compressed {
        source.keep_all();
        let origin = count_cl100k(strip(source.text()));
        let tokens = count_cl100k(strip(&text));
        Compressed::counted(origin, text, tokens, source.into_pieces())
    }

    /// The share of the whole that its segments' own rates add up to, or the one rate.
    fn rate_of(&self, segments: Option<&[Vec<Segment>]>) -> f64 {
        let Some(segments) = segments else {
            return self.options.rate;
        };
        let (mut kept, mut all) = (0.0, 0.0);
        for segment in segments.iter().flatten() {
            let length = segment.text.len() as f64;
            all += length;
            kept += length * if segment.compress { segment.rate } else { 1.0 };
        }
        if all == 0.0 {
            self.options.rate
        } else {
            kept / all
        }
    }

    /// Tokens of a text by whom the options name.
    fn count(&self, text: &str) -> Result<usize> {
        match self.options.count {
            Count::Cl100k => Ok(count_cl100k(text)),
            Count::Scorer => Ok(self.tokenizer.encode(text, false, false)?.ids.len()),
        }
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
/// gap becomes one, and words that had some between them do not run together.
fn text_of(context: &str, parsed: &Parsed, mask: &[bool]) -> String {
    if mask.iter().all(|&kept| kept) {
        return context.to_string();
    }
    let mut text = String::new();
    let mut gap = true;
    for (atom, &kept) in parsed.atoms.iter().zip(mask) {
        if !kept {
            gap = true;
            continue;
        }
        let mut piece = &context[atom.range.clone()];
        if gap {
            let before = &context[..atom.range.start];
            if text.is_empty() || text.ends_with(char::is_whitespace) {
                piece = piece.trim_start();
            } else if !piece.starts_with(char::is_whitespace)
                && before.ends_with(char::is_whitespace)
            {
                text.push(if before.ends_with('\n') { '\n' } else { ' ' });
            }
        }
        text.push_str(piece);
        gap = false;
    }
    text.truncate(text.trim_end().len());
    text
}
