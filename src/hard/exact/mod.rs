//! prefold's own mode: coarse to fine under one exact budget.
//!
//! The paper's budget controller (LLMLingua, section 4.1) drops whole demonstrations, then whole
//! sentences, and leaves the rest to the token level, each with a budget of its own. Here there is one
//! budget and one order. Each context is taken apart by its kind into units with what they need
//! ([`kinds`]); every unit has a place in the order ([`order`]), by its context, its passage and itself
//! as far down as `granularity` says. The longest beginning of that order that fits is kept, then what
//! else fits whole, then the beginning of one sentence ([`select`]). The budget is never passed.

pub(super) mod budget_search;
mod copies;
mod finish;
mod inputs;
pub(crate) mod kinds;
pub(crate) mod lexical;
mod meaning;
mod order;
pub(crate) mod rank;
mod relevance;
mod render;
mod salience;
mod select;
mod units;
mod words;

use crate::control;
use crate::error::{Error, Result};

use super::json_text::Tree;
use super::python::strip;
use super::request::{Budget, Request};
use super::result::Compressed;
use super::source::Source;
use super::structured::{self, Segment};
use finish::{Rendered, whole_contexts};
pub(crate) use inputs::Exact;
use inputs::Frame;
use kinds::{ContentKind, Layout};
use relevance::Relevance;
use render::{Style, render};
use select::{Chosen, Selection};
use units::Parsed;

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

    /// A shorter prompt whose contexts are cut into segments with rates of their own.
    pub fn compress_segments(
        &self,
        prompt: &Request,
        segments: &[Vec<Segment>],
    ) -> Result<Compressed> {
        self.run(prompt, &prompt.contexts, Some(segments))
    }

    fn run(
        &self,
        prompt: &Request,
        contexts: &[String],
        segments: Option<&[Vec<Segment>]>,
    ) -> Result<Compressed> {
        if self.options.as_kind == Some(ContentKind::Json) {
            for (index, context) in contexts.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
                Tree::parse(context).map_err(|error| {
                    let reason = format!("context {index} is not JSON: {error}");
                    Error::input("as_kind json", reason)
                })?;
            }
        }
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
        // A rate leaves room for what must be kept; a target is held to.
        let (tokens, rated) = match (prompt.budget, segments) {
            (Budget::Tokens(target), _) => (target, false),
            (Budget::Rate(rate), None) => ((origin as f64 * rate).round() as usize, true),
            (Budget::Rate(_), Some(segments)) => (self.target_of(&everything, segments)?, true),
        };
        if tokens >= origin
            && !self.options.enough
            && self.options.keep_question
            && let Some(text) = self.fitting(&everything, tokens, segments)?
        {
            let kept = whole_contexts(&frame, contexts, &everything, text);
            let mut source = source;
            source.keep_all();
            return self.finish(source, text.into(), tokens, kept, segments);
        }
        let mut target = Target {
            tokens,
            rated,
            warnings: Vec::new(),
        };
        let fixed = self.count(&frame.around([]))?;
        target.must_hold(fixed, "instruction and question alone are", "shorten them")?;

        let parsed = contexts
            .iter()
            .enumerate()
            .map(|(c, text)| {
                control::check()?;
                Parsed::new(
                    self.tokenizer,
                    text,
                    self.layout(text, segments.map(|s| &s[c][..])),
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let budget = target.tokens.saturating_sub(fixed);
        let relevance = self.relevance(prompt, contexts, &parsed, budget)?;
        let plan = self.order(contexts, &parsed, &relevance, segments, &prompt.question);

        // One mask over the atoms of all contexts.
        let bases: Vec<usize> = parsed
            .iter()
            .scan(0, |base, p| {
                Some(std::mem::replace(base, *base + p.atoms.len()))
            })
            .collect();
        let style = Style {
            mark: self.options.mark.as_deref(),
            omission: self.options.omitted_items,
            sole: contexts.len() == 1,
        };
        let render_each = |chosen: &Chosen| -> Vec<(usize, Rendered)> {
            let of = |&c: &usize| {
                let atoms = bases[c]..bases[c] + parsed[c].atoms.len();
                let partial = chosen.partial.filter(|(atom, _)| atoms.contains(atom));
                let partial = partial.map(|(atom, end)| (atom - bases[c], end));
                let own = &chosen.mask[atoms];
                (
                    c,
                    render(
                        &contexts[c],
                        &parsed[c],
                        own,
                        partial,
                        &plan.verbatim[c],
                        style,
                    ),
                )
            };
            plan.contexts.iter().map(of).collect()
        };
        let text_of = |kept: &[(usize, Rendered)]| {
            frame.around(kept.iter().map(|(_, rendered)| rendered.text.as_str()))
        };
        let mut failed = None;
        let mut count = |chosen: &Chosen| {
            self.count(&text_of(&render_each(chosen)))
                .unwrap_or_else(|error| {
                    failed.get_or_insert(error);
                    0
                })
        };
        let ids = parsed.iter().map(|p| p.ids.len()).sum::<usize>();
        let mut selection = Selection {
            contexts,
            parsed: &parsed,
            bases: &bases,
            plan: &plan,
            target: target.tokens,
            ratio: origin as f64 / ids.max(1) as f64,
            fill: self.options.fill,
        };
        let forced = selection.forced();
        let needed = count(&forced);
        target.must_hold(needed, "what must be kept is", "force less")?;
        selection.target = target.tokens;
        let chosen = selection.run(&forced, needed, &mut count);
        if let Some(error) = failed {
            return Err(error);
        }

        let kept = render_each(&chosen);
        let given = contexts.iter().any(|context| !context.trim().is_empty());
        if given && kept.iter().all(|(_, rendered)| rendered.text.is_empty()) {
            target.warnings.push(format!(
                "nothing of the contexts fits into {} tokens; raise the rate or the target",
                target.tokens
            ));
        }
        let mut marked = source;
        marked.keep_question(self.options.keep_question);
        for (c, parsed) in parsed.iter().enumerate() {
            mark_pieces(&mut marked, c, parsed, &relevance, &chosen, bases[c]);
        }
        let text = text_of(&kept);
        let result = self.finish(marked, text, target.tokens, kept, segments)?;
        Ok(Compressed {
            warnings: target.warnings,
            ..result
        })
    }

    /// A context by its kind; where it has segments each is a text of its own.
    fn layout(&self, context: &str, segments: Option<&[Segment]>) -> Layout {
        let kind = self.options.as_kind;
        let json = kind.unwrap_or_else(|| ContentKind::of(context)) == ContentKind::Json;
        // A part of a JSON text is not JSON.
        let Some(segments) = segments.filter(|_| !json) else {
            return kinds::layout(context, kind);
        };
        let mut layout = Layout::default();
        let mut at = 0;
        for segment in segments {
            layout.append(kinds::layout(&segment.text, kind), at);
            at += segment.text.len();
        }
        layout
    }

    /// The whole text, or the text without the white space around it, if that fits the target. White
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

/// Marks every token of a context as kept or dropped.
fn mark_pieces(
    source: &mut Source,
    context: usize,
    parsed: &Parsed,
    relevance: &Relevance,
    chosen: &Chosen,
    base: usize,
) {
    for (a, atom) in parsed.atoms.iter().enumerate() {
        let partial = chosen
            .partial
            .filter(|&(at, _)| at == base + a)
            .map(|(_, end)| end);
        let kept_to = match (chosen.mask[base + a], partial) {
            (true, _) => atom.range.end,
            (false, Some(end)) => end,
            (false, None) => atom.range.start,
        };
        let nll = &relevance.nll[context];
        let mut at = atom.range.start;
        let mut mark = |end: usize, nll: Option<f32>| {
            for (to, kept) in [(end.min(kept_to), true), (end, false)] {
                if at < to {
                    source.mark_in_context(context, at..to, kept, nll);
                    at = to;
                }
            }
        };
        // Token by token only where there is something to tell of each.
        for token in atom.tokens.clone().filter(|&t| nll[t].is_some()) {
            mark(parsed.spans[token].end.min(atom.range.end), nll[token]);
        }
        mark(atom.range.end, relevance.nll_of(context, atom));
    }
}

/// The budget of a call.
struct Target {
    tokens: usize,
    /// By a rate: what must stay stays, whatever it takes.
    rated: bool,
    warnings: Vec<String>,
}

impl Target {
    /// Makes room for what must stay, or refuses a target that has none for it.
    fn must_hold(&mut self, tokens: usize, what: &str, remedy: &str) -> Result<()> {
        if tokens <= self.tokens {
            return Ok(());
        }
        if !self.rated {
            return Err(Error::Budget {
                target: self.tokens,
                reason: format!("{what} {tokens} tokens; raise the target or {remedy}"),
            });
        }
        self.warnings.push(format!(
            "{what} {tokens} tokens, more than the {} of the rate; kept all the same",
            self.tokens
        ));
        self.tokens = tokens;
        Ok(())
    }
}
