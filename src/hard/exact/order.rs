//! The one order of all units: what goes into the budget first.

use std::collections::HashMap;
use std::ops::Range;

use crate::hard::options::{Granularity, Reorder};
use crate::hard::structured::Segment;

use super::Exact;
use super::copies;
use super::kinds::Class;
use super::relevance::Relevance;
use super::units::Parsed;

/// What is taken at once: a unit, or a word of one at token granularity.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub context: usize,
    pub unit: usize,
    /// Its atoms in its context.
    pub atoms: Range<usize>,
    pub class: Class,
    /// The worth of its passage.
    pub passage: f64,
    /// Its own.
    pub worth: f64,
}

/// The order, and what it rests on.
pub(super) struct Plan {
    /// The most wanted first. What is not in it is only taken where something else needs it.
    pub steps: Vec<Step>,
    /// For each atom of each context whether it must be kept.
    pub forced: Vec<Vec<bool>>,
    /// For each atom of each context whether the white space in it must be kept.
    pub verbatim: Vec<Vec<bool>>,
    /// The contexts in their order in the result.
    pub contexts: Vec<usize>,
}

impl Exact<'_> {
    /// Orders all units.
    pub(super) fn order(
        &self,
        contexts: &[String],
        parsed: &[Parsed],
        relevance: &Relevance,
        segments: Option<&[Vec<Segment>]>,
        question: &str,
    ) -> Plan {
        let by_rank = ranks(&relevance.contexts);
        let mut ranked: Vec<usize> = (0..contexts.len()).collect();
        ranked.sort_by_key(|&c| by_rank[c]);

        // A small model reads best what stands next to the question.
        let default = if question.is_empty() {
            Reorder::Original
        } else {
            Reorder::Reverse
        };
        let reorder = self.options.reorder.unwrap_or(default);

        let groups = self.groups(contexts, parsed, segments);
        let copies = copies::find(contexts, parsed, &ranked, question, self.options.dedupe);
        let bonus = self.sentence_bonus(parsed, relevance);
        let words = relevance.word_surprisal(parsed);
        let granularity = self.options.granularity;
        let mut steps = Vec::new();
        for (c, parsed) in parsed.iter().enumerate() {
            let passages = passage_worth(parsed, &relevance.passages[c], &relevance.sentences[c]);
            for (u, unit) in parsed.units.iter().enumerate() {
                if copies.exact[c][u] || relevance.dispensable[c][u] {
                    continue;
                }
                let step = |atoms: Range<usize>, worth: f64| Step {
                    context: c,
                    unit: u,
                    atoms,
                    class: match copies.near[c][u] {
                        true => unit.class.max(Class::Copy),
                        false => unit.class,
                    },
                    passage: passages[u],
                    worth,
                };
                let atoms = parsed.atoms_of[u].clone();
                if granularity == Granularity::Token {
                    steps.extend(atoms.map(|a| step(a..a + 1, words[c][parsed.atoms[a].word])));
                } else {
                    steps.push(step(atoms, relevance.sentences[c][u]));
                }
            }
        }

        // By preference alone, coarse to fine: smaller goes first, compared from left to right.
        let scored = !self.options.context_scores.is_empty();
        let key = |step: &Step| {
            let bonus = bonus[step.context][step.unit];
            let class = f64::from(step.class as u8);
            let context = by_rank[step.context] as f64;
            match granularity {
                Granularity::Context => [-bonus, context, class, -step.passage, -step.worth],
                Granularity::Passage if scored => {
                    [-bonus, class, context, -step.passage, -step.worth]
                }
                Granularity::Passage => [-bonus, class, -step.passage, context, -step.worth],
                Granularity::Sentence if scored => [class, -bonus, context, -step.worth, 0.0],
                Granularity::Sentence => [class, -(step.worth + bonus), 0.0, 0.0, 0.0],
                Granularity::Token => [-bonus, class, -step.worth, 0.0, 0.0],
            }
        };
        let mut keyed: Vec<([f64; 5], Step)> = steps.into_iter().map(|s| (key(&s), s)).collect();
        keyed.sort_by(|(x, a), (y, b)| {
            let coarse = x.iter().zip(y).map(|(x, y)| x.total_cmp(y));
            coarse
                .fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
                .then(a.context.cmp(&b.context))
                .then(a.atoms.start.cmp(&b.atoms.start))
        });
        let mut steps: Vec<Step> = keyed.into_iter().map(|(_, step)| step).collect();

        // Groups with budgets of their own are dealt out evenly.
        if groups.sizes.len() > 1 {
            let mut used = vec![0.0; groups.sizes.len()];
            let mut shared: Vec<(f64, Step)> = steps
                .into_iter()
                .map(|step| {
                    let group = groups.of[step.context][step.unit];
                    used[group] += step.atoms.len() as f64;
                    let quota = groups.rates[group] * groups.sizes[group];
                    (used[group] / quota.max(1e-9), step)
                })
                .collect();
            shared.sort_by(|(x, _), (y, _)| x.total_cmp(y));
            steps = shared.into_iter().map(|(_, step)| step).collect();
        }
        Plan {
            steps,
            forced: groups.forced,
            verbatim: groups.verbatim,
            contexts: reorder.arrange(ranked, |&c| c),
        }
    }

    /// What `keep_first_sentence`, `keep_last_sentence` and `keep_sentence_number` add: enough to come
    /// before all others.
    fn sentence_bonus(&self, parsed: &[Parsed], relevance: &Relevance) -> Vec<Vec<f64>> {
        let options = self.options;
        let mut bonus: Vec<Vec<f64>> = parsed
            .iter()
            .map(|p| vec![0.0; p.sentences.len()])
            .collect();
        let mut flat: Vec<&mut f64> = bonus.iter_mut().flatten().collect();
        let n = flat.len();
        for (i, value) in flat.iter_mut().enumerate() {
            if i < options.keep_first_sentence || i + options.keep_last_sentence >= n {
                **value += options.high_priority_bonus;
            }
        }
        if options.keep_sentence_number > 0 {
            for (own, values) in relevance.sentences.iter().zip(&mut bonus) {
                let by_rank = ranks(own);
                for (value, rank) in values.iter_mut().zip(by_rank) {
                    if rank < options.keep_sentence_number {
                        *value += options.high_priority_bonus;
                    }
                }
            }
        }
        bonus
    }

    /// Forced atoms, and the groups that share the budget by their own rates.
    fn groups(
        &self,
        contexts: &[String],
        parsed: &[Parsed],
        segments: Option<&[Vec<Segment>]>,
    ) -> Groups {
        let options = self.options;
        let mut groups = Groups {
            of: parsed.iter().map(|p| vec![0; p.units.len()]).collect(),
            forced: parsed.iter().map(|p| vec![false; p.atoms.len()]).collect(),
            verbatim: parsed.iter().map(|p| vec![false; p.atoms.len()]).collect(),
            ..Groups::default()
        };
        let mut known = HashMap::new();
        for (c, parsed) in parsed.iter().enumerate() {
            let text = &contexts[c];
            let (mut spans, spaces) = wanted_spans(text, &options.force_tokens);
            if options.force_contexts.contains(&c) {
                spans.push(0..text.len());
            }
            let mut ends: Vec<(usize, f64)> = Vec::new();
            let mut end = 0;
            for segment in segments.map_or(&[][..], |s| &s[c]) {
                let start = end;
                end += segment.text.len();
                ends.push((end, segment.rate));
                if !segment.compress {
                    spans.push(start..end);
                }
            }
            let (spans, spaces) = (joined(spans), joined(spaces));
            let (mut at_span, mut at_space) = (0, 0);
            for (a, atom) in parsed.atoms.iter().enumerate() {
                let digit = options.force_digits
                    && text[atom.range.clone()].contains(|c: char| c.is_numeric());
                // An atom on the border belongs to the one that must stay, if one must.
                let mut kept = digit;
                for span in touching(&spans, &mut at_span, &atom.range) {
                    kept = true;
                    groups.verbatim[c][a] |= text[span].contains(char::is_whitespace);
                }
                groups.forced[c][a] = kept;
                let space = atom.visible_end..atom.range.end;
                let lead =
                    text[atom.range.clone()].len() - text[atom.range.clone()].trim_start().len();
                for span in touching(&spaces, &mut at_space, &atom.range) {
                    let in_lead = span.start < atom.range.start + lead;
                    groups.verbatim[c][a] |= in_lead || span.end > space.start;
                }
            }
            for (u, unit) in parsed.units.iter().enumerate() {
                let atoms = parsed.atoms_of[u].clone();
                // What is never cut is kept whole if a part of it must be.
                if unit.whole {
                    let forced = &mut groups.forced[c][atoms.clone()];
                    let any = forced.contains(&true);
                    forced.fill(any);
                }
                let rate = ends
                    .get(ends.partition_point(|&(end, _)| end <= unit.range.start))
                    .map_or(1.0, |&(_, rate)| rate);
                // Every context keeps the same share where that is asked for.
                let own = if options.per_context { c + 1 } else { 0 };
                let group = *known.entry((own, rate.to_bits())).or_insert_with(|| {
                    groups.rates.push(rate);
                    groups.sizes.push(0.0);
                    groups.rates.len() - 1
                });
                groups.of[c][u] = group;
                groups.sizes[group] += atoms.len() as f64;
            }
        }
        groups
    }
}

/// Units by the share of the budget that they have, and what must be kept.
#[derive(Default)]
struct Groups {
    /// The group of each unit of each context.
    of: Vec<Vec<usize>>,
    forced: Vec<Vec<bool>>,
    /// White space that must be kept.
    verbatim: Vec<Vec<bool>>,
    rates: Vec<f64>,
    /// Atoms in each.
    sizes: Vec<f64>,
}

/// The worth of the passage of each unit. A record has none but its own: its neighbours say nothing
/// about it, so the worths of the passages are dealt out to the records in the order of theirs.
fn passage_worth(parsed: &Parsed, passages: &[f64], sentences: &[f64]) -> Vec<f64> {
    let mut worth = passages.to_vec();
    let records: Vec<usize> = (0..worth.len())
        .filter(|&u| parsed.units[u].record)
        .collect();
    let mut values: Vec<f64> = records.iter().map(|&u| passages[u]).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    let mut by_worth = records;
    by_worth.sort_by(|&a, &b| sentences[b].total_cmp(&sentences[a]));
    for (value, u) in values.into_iter().zip(by_worth) {
        worth[u] = value;
    }
    worth
}

/// Where the strings stand in a text: those with something to see, and those of white space alone.
fn wanted_spans(text: &str, wanted: &[String]) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let (mut spans, mut spaces) = (Vec::new(), Vec::new());
    for wanted in wanted.iter().filter(|w| !w.is_empty()) {
        let found = text
            .match_indices(wanted.as_str())
            .map(|(at, w)| at..at + w.len());
        match wanted.trim().is_empty() {
            true => spaces.extend(found),
            false => spans.extend(found),
        }
    }
    (spans, spaces)
}

/// The same bytes as ascending spans that do not overlap.
fn joined(mut spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    spans.sort_by_key(|s| s.start);
    let mut out: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for span in spans {
        match out.last_mut() {
            Some(last) if span.start < last.end => last.end = last.end.max(span.end),
            _ => out.push(span),
        }
    }
    out
}

/// The parts of `range` that spans cover; `at` remembers the first span that reaches to it, for
/// ranges that ascend.
fn touching<'a>(
    spans: &'a [Range<usize>],
    at: &mut usize,
    range: &'a Range<usize>,
) -> impl Iterator<Item = Range<usize>> + 'a {
    while spans.get(*at).is_some_and(|s| s.end <= range.start) {
        *at += 1;
    }
    spans[*at..]
        .iter()
        .take_while(|s| s.start < range.end)
        .map(|s| s.start.max(range.start)..s.end.min(range.end))
}

/// For each value its place when sorted from high to low; ties go to the first.
fn ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let mut ranks = vec![0; values.len()];
    for (rank, i) in order.into_iter().enumerate() {
        ranks[i] = rank;
    }
    ranks
}
