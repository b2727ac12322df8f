//! The one order of all atoms: what goes into the budget first.

use crate::hard::options::{Granularity, Reorder};
use crate::hard::structured::Segment;

use super::Exact;
use super::relevance::Relevance;
use super::units::{Atom, Parsed};

/// The order, and what it rests on.
pub(super) struct Plan {
    /// (context, atom), the most wanted first.
    pub atoms: Vec<(usize, usize)>,
    /// How many of them must be kept.
    pub forced: usize,
    /// For each atom of each context whether the white space in it must be kept too.
    pub verbatim: Vec<Vec<bool>>,
    /// The contexts in their order in the result.
    pub contexts: Vec<usize>,
}

/// Where an atom stands: smaller goes first. Compared from left to right.
struct Key {
    /// Must be kept.
    forced: bool,
    /// Share of its group's budget that is used up when this atom is in.
    share: f64,
}

impl Exact<'_> {
    /// Orders all atoms.
    pub(super) fn order(
        &self,
        contexts: &[String],
        parsed: &[Parsed],
        relevance: &Relevance,
        segments: Option<&[Vec<Segment>]>,
        question: bool,
    ) -> Plan {
        let by_rank = ranks(&relevance.contexts);
        let mut ranked: Vec<usize> = (0..contexts.len()).collect();
        ranked.sort_by_key(|&c| by_rank[c]);

        // A small host reads best what stands next to the question.
        let default = if question {
            Reorder::Reverse
        } else {
            Reorder::Original
        };
        let reorder = self.options.reorder.unwrap_or(default);

        // By preference alone, coarse to fine.
        let mut atoms: Vec<(usize, usize)> = (0..parsed.len())
            .flat_map(|c| (0..parsed[c].atoms.len()).map(move |a| (c, a)))
            .collect();
        let bonus = self.sentence_bonus(parsed, relevance);
        let words = relevance.word_surprise(parsed);
        let granularity = self.options.granularity;
        let preference = |&(c, a): &(usize, usize)| {
            let atom = &parsed[c].atoms[a];
            let context = by_rank[c] as f64;
            let bonus = bonus[c][atom.sentence];
            let passage = -relevance.passages[c][atom.sentence];
            let sentence = -(relevance.sentences[c][atom.sentence] + bonus);
            let (coarse, fine) = match granularity {
                Granularity::Context => ([-bonus, context, passage], atom.sentence),
                Granularity::Passage => ([-bonus, passage, 0.0], atom.sentence),
                Granularity::Sentence => ([sentence, 0.0, 0.0], atom.sentence),
                Granularity::Token => ([-bonus, -words[c][atom.word], 0.0], atom.word),
            };
            (coarse, (c, fine, a))
        };
        atoms.sort_by(|x, y| {
            let (x, y) = (preference(x), preference(y));
            let coarse = x.0.iter().zip(&y.0).map(|(x, y)| x.total_cmp(y));
            coarse
                .fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
                .then(x.1.cmp(&y.1))
        });

        let groups = self.groups(contexts, parsed, segments);
        atoms.retain(|&(c, a)| {
            groups.forced[c][a] || !relevance.dispensable[c][parsed[c].atoms[a].sentence]
        });

        // Forced atoms first; then groups with budgets of their own are dealt out evenly.
        let mut used = vec![0.0; groups.rates.len()];
        let mut keyed: Vec<(Key, (usize, usize))> = atoms
            .into_iter()
            .map(|(c, a)| {
                let group = groups.of[c][a];
                used[group] += 1.0;
                let quota = groups.rates[group].1 * groups.sizes[group];
                let key = Key {
                    forced: groups.forced[c][a],
                    share: if groups.rates.len() == 1 {
                        0.0
                    } else {
                        used[group] / quota.max(1e-9)
                    },
                };
                (key, (c, a))
            })
            .collect();
        keyed.sort_by(|(x, _), (y, _)| y.forced.cmp(&x.forced).then(x.share.total_cmp(&y.share)));
        let forced = keyed.iter().filter(|(key, _)| key.forced).count();
        Plan {
            atoms: keyed.into_iter().map(|(_, atom)| atom).collect(),
            forced,
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
            of: parsed.iter().map(|p| vec![0; p.atoms.len()]).collect(),
            forced: parsed.iter().map(|p| vec![false; p.atoms.len()]).collect(),
            verbatim: parsed.iter().map(|p| vec![false; p.atoms.len()]).collect(),
            rates: Vec::new(),
            sizes: Vec::new(),
        };
        for (c, parsed) in parsed.iter().enumerate() {
            let text = &contexts[c];
            let mut spans = wanted_spans(text, &options.force_tokens);
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
            for (a, Atom { range, .. }) in parsed.atoms.iter().enumerate() {
                let digit =
                    options.force_digits && text[range.clone()].contains(|c: char| c.is_numeric());
                // An atom on the border belongs to the one that must stay, if one must.
                let mut touching = spans
                    .iter()
                    .filter(|s| s.start < range.end && range.start < s.end)
                    .peekable();
                groups.forced[c][a] = digit || touching.peek().is_some();
                groups.verbatim[c][a] = touching.any(|s| {
                    text[s.start.max(range.start)..s.end.min(range.end)]
                        .contains(char::is_whitespace)
                });
                let rate = ends
                    .get(ends.partition_point(|&(end, _)| end <= range.start))
                    .map_or(1.0, |&(_, rate)| rate);
                // Every context keeps the same share where that is asked for.
                let own = if options.per_context { c + 1 } else { 0 };
                groups.of[c][a] = groups.join(own, rate);
            }
        }
        groups
    }
}

/// Atoms by group.
struct Groups {
    of: Vec<Vec<usize>>,
    forced: Vec<Vec<bool>>,
    /// Forced with white space of its own.
    verbatim: Vec<Vec<bool>>,
    /// The context that a group is confined to (0: none) and its rate.
    rates: Vec<(usize, f64)>,
    /// Atoms in each.
    sizes: Vec<f64>,
}

impl Groups {
    /// The group of a context and a rate, with one more atom in it.
    fn join(&mut self, own: usize, rate: f64) -> usize {
        let group = match self.rates.iter().position(|&r| r == (own, rate)) {
            Some(group) => group,
            None => {
                self.rates.push((own, rate));
                self.sizes.push(0.0);
                self.rates.len() - 1
            }
        };
        self.sizes[group] += 1.0;
        group
    }
}

/// Where the strings stand in a text.
fn wanted_spans(text: &str, wanted: &[String]) -> Vec<std::ops::Range<usize>> {
    wanted
        .iter()
        .filter(|w| !w.is_empty())
        .flat_map(|w| {
            text.match_indices(w.as_str())
                .map(|(at, w)| at..at + w.len())
        })
        .collect()
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
