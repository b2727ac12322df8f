//! What stays: units in their order with what they need, under one budget that is never passed.

use unicode_segmentation::UnicodeSegmentation;

use super::budget_search::longest;
use super::kinds::Class;
use super::order::{Plan, Step};
use super::units::Parsed;

/// Counts that are spent on units after the first that does not fit.
const FILL_TRIES: usize = 24;
/// Words that a sentence must have left after a cut, if there is anything else to read.
const MIN_WORDS: usize = 5;
/// Share of a sentence that must fit for it to be cut before others are tried whole.
const MIN_CUT: f64 = 0.75;

/// Atoms of all contexts, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chosen {
    pub mask: Vec<bool>,
    /// An atom of which only the beginning stays, and the end of that in its context.
    pub partial: Option<(usize, usize)>,
}

/// A choice to be made.
pub(super) struct Selection<'a> {
    pub contexts: &'a [String],
    pub parsed: &'a [Parsed],
    /// The first atom of each context.
    pub bases: &'a [usize],
    pub plan: &'a Plan,
    pub target: usize,
    /// Counted tokens for each of the scorer's.
    pub ratio: f64,
    /// Spend the last token too, at the price of half a word.
    pub fill: bool,
}

impl Selection<'_> {
    /// What must stay, with what it needs.
    pub fn forced(&self) -> Chosen {
        let mut chosen = Chosen {
            mask: self.plan.forced.concat(),
            partial: None,
        };
        for (c, parsed) in self.parsed.iter().enumerate() {
            for (u, atoms) in parsed.atoms_of.iter().enumerate() {
                let own = self.bases[c] + atoms.start..self.bases[c] + atoms.end;
                if !parsed.units[u].needs.is_empty() && chosen.mask[own].contains(&true) {
                    self.add_needs(&mut chosen.mask, c, u);
                }
            }
        }
        chosen
    }

    /// Chooses: the longest beginning of the order that fits, then whole units after it, then the
    /// beginning of one sentence.
    ///
    /// `forced` counts `at_none` tokens, at most the target; `count` gives the tokens of a choice.
    pub fn run(
        &self,
        forced: &Chosen,
        at_none: usize,
        count: &mut dyn FnMut(&Chosen) -> usize,
    ) -> Chosen {
        let steps = &self.plan.steps;
        let (order, ends) = self.closure(&forced.mask);
        let of = |n: usize| {
            let mut chosen = forced.clone();
            let end = n.checked_sub(1).map_or(0, |last| ends[last]);
            order[..end]
                .iter()
                .for_each(|&atom| chosen.mask[atom] = true);
            chosen
        };
        let (n, mut tokens) = longest(steps.len(), self.target, at_none, |n| count(&of(n)));
        let mut chosen = of(n);
        if n == steps.len() {
            return chosen;
        }
        // What is left of the passage that does not fit whole, then all others by their own worth.
        let first = &steps[n];
        let mut rest: Vec<&Step> = steps[n..].iter().collect();
        rest.sort_by(|a, b| {
            let here = |s: &Step| s.context == first.context && s.passage == first.passage;
            (here(b).cmp(&here(a)))
                .then(a.class.cmp(&b.class))
                .then(b.worth.total_cmp(&a.worth))
        });
        let cut = self.cut(&chosen, tokens, first, count);
        let cut_is_large = cut.as_ref().is_some_and(|(_, _, share)| *share >= MIN_CUT);
        match cut.filter(|_| cut_is_large) {
            Some((cut, after, _)) => (chosen, tokens) = (cut, after),
            None => {
                self.add_whole(&mut chosen, &mut tokens, &rest, count);
                let cuttable = rest.iter().filter(|s| self.words(&chosen, s) > 1).take(2);
                for step in cuttable.copied().collect::<Vec<_>>() {
                    if let Some((cut, after, _)) = self.cut(&chosen, tokens, step, count) {
                        (chosen, tokens) = (cut, after);
                        break;
                    }
                }
            }
        }
        if self.fill {
            self.fill(&mut chosen, &mut tokens, &rest, count);
        }
        chosen
    }

    /// Every atom in the order in which the steps take it, and how many there are after each step.
    fn closure(&self, forced: &[bool]) -> (Vec<usize>, Vec<usize>) {
        let mut mask = forced.to_vec();
        let mut order = Vec::new();
        let mut ends = Vec::with_capacity(self.plan.steps.len());
        let mut needed = Vec::new();
        for step in &self.plan.steps {
            self.needs(&mask, step.context, step.unit, &mut needed);
            let base = self.bases[step.context];
            needed.extend(base + step.atoms.start..base + step.atoms.end);
            for &atom in &needed {
                if !std::mem::replace(&mut mask[atom], true) {
                    order.push(atom);
                }
            }
            ends.push(order.len());
        }
        (order, ends)
    }

    /// The atoms of what a unit needs and does not have yet.
    fn needs(&self, mask: &[bool], context: usize, unit: usize, atoms: &mut Vec<usize>) {
        atoms.clear();
        let parsed = &self.parsed[context];
        if parsed.units[unit].needs.is_empty() {
            return;
        }
        let mut seen = vec![unit];
        let mut stack = parsed.units[unit].needs.clone();
        while let Some(need) = stack.pop() {
            let own = parsed.atoms_of[need].clone();
            let base = self.bases[context];
            let own = base + own.start..base + own.end;
            if seen.contains(&need) || mask[own.clone()].iter().all(|&kept| kept) && !own.is_empty()
            {
                continue;
            }
            seen.push(need);
            atoms.extend(own);
            stack.extend(&parsed.units[need].needs);
        }
    }

    fn add_needs(&self, mask: &mut [bool], context: usize, unit: usize) {
        let mut atoms = Vec::new();
        self.needs(mask, context, unit, &mut atoms);
        atoms.into_iter().for_each(|atom| mask[atom] = true);
    }

    /// Adds a step and what it needs.
    fn add(&self, chosen: &mut Chosen, step: &Step) {
        self.add_needs(&mut chosen.mask, step.context, step.unit);
        let base = self.bases[step.context];
        chosen.mask[base + step.atoms.start..base + step.atoms.end].fill(true);
    }

    /// The scorer's tokens that a step would add: an estimate of what it counts.
    fn estimate(&self, chosen: &Chosen, step: &Step, atoms: &mut Vec<usize>) -> usize {
        let base = self.bases[step.context];
        self.needs(&chosen.mask, step.context, step.unit, atoms);
        atoms.extend(base + step.atoms.start..base + step.atoms.end);
        let own = atoms.iter().filter(|&&atom| !chosen.mask[atom]);
        own.map(|&atom| self.parsed[step.context].atoms[atom - base].tokens.len())
            .sum()
    }

    /// Adds whole units that fit into what is left, in their order.
    fn add_whole(
        &self,
        chosen: &mut Chosen,
        tokens: &mut usize,
        rest: &[&Step],
        count: &mut dyn FnMut(&Chosen) -> usize,
    ) {
        let mut tries = 0;
        let mut atoms = Vec::new();
        for step in rest {
            let left = self.target - *tokens;
            if left < 2 || tries == FILL_TRIES {
                return;
            }
            // Form and white space alone say nothing.
            if matches!(step.class, Class::Form | Class::Blank) {
                continue;
            }
            // The scorer's tokens are not the counted ones, but not far from them.
            let estimate = self.estimate(chosen, step, &mut atoms);
            if estimate == 0 || estimate as f64 * self.ratio * 0.6 > left as f64 {
                continue;
            }
            tries += 1;
            let mut more = chosen.clone();
            self.add(&mut more, step);
            let after = count(&more);
            if after <= self.target && after >= *tokens {
                (*chosen, *tokens) = (more, after);
            }
        }
    }

    /// How many words of a step may still be taken one by one.
    fn words(&self, chosen: &Chosen, step: &Step) -> usize {
        let unit = &self.parsed[step.context].units[step.unit];
        let base = self.bases[step.context];
        let open = step
            .atoms
            .clone()
            .filter(|&a| !chosen.mask[base + a])
            .count();
        match unit.whole || open < step.atoms.len() {
            true => 0,
            false => open,
        }
    }

    /// Takes as many words from the beginning of a sentence as fit; gives the choice, its tokens and the
    /// share of the sentence. `None` where too little of it would be left to be read.
    fn cut(
        &self,
        chosen: &Chosen,
        tokens: usize,
        step: &Step,
        count: &mut dyn FnMut(&Chosen) -> usize,
    ) -> Option<(Chosen, usize, f64)> {
        let words = self.words(chosen, step);
        if words < 2 || chosen.partial.is_some() || step.class == Class::Blank {
            return None;
        }
        let base = self.bases[step.context];
        let of = |n: usize| {
            let mut more = chosen.clone();
            if n > 0 {
                self.add_needs(&mut more.mask, step.context, step.unit);
                let start = base + step.atoms.start;
                more.mask[start..start + n].fill(true);
            }
            more
        };
        let (n, after) = longest(words, self.target, tokens, |n| count(&of(n)));
        let alone = !chosen.mask.contains(&true);
        (n >= MIN_WORDS.min(words) || alone && n > 0)
            .then(|| (of(n), after, n as f64 / words as f64))
    }

    /// Spends what is left on words, and on the beginning of one, in the order of the sentences.
    fn fill(
        &self,
        chosen: &mut Chosen,
        tokens: &mut usize,
        rest: &[&Step],
        count: &mut dyn FnMut(&Chosen) -> usize,
    ) {
        let open = rest.iter().filter(|step| {
            let parsed = &self.parsed[step.context];
            let base = self.bases[step.context];
            step.class < Class::Form
                && !parsed.units[step.unit].whole
                && step.atoms.clone().any(|a| !chosen.mask[base + a])
        });
        let open: Vec<&Step> = open.take(8).copied().collect();
        for step in open {
            let base = self.bases[step.context];
            let missing: Vec<usize> = step
                .atoms
                .clone()
                .filter(|&a| !chosen.mask[base + a])
                .collect();
            let with = |n: usize, partial: Option<(usize, usize)>| {
                let mut more = chosen.clone();
                self.add_needs(&mut more.mask, step.context, step.unit);
                missing[..n]
                    .iter()
                    .for_each(|&a| more.mask[base + a] = true);
                more.partial = partial.or(more.partial);
                more
            };
            let none = count(&with(0, None));
            let (n, after) = longest(missing.len(), self.target, none, |n| count(&with(n, None)));
            if after > self.target {
                continue;
            }
            let mut best = (with(n, None), after);
            if let Some(&next) = missing.get(n).filter(|_| chosen.partial.is_none()) {
                let atom = &self.parsed[step.context].atoms[next];
                let shown = &self.contexts[step.context][atom.range.start..atom.visible_end];
                let ends: Vec<usize> = shown
                    .grapheme_indices(true)
                    .map(|(at, g)| at + g.len())
                    .collect();
                let part = |k: usize| {
                    with(
                        n,
                        k.checked_sub(1)
                            .map(|k| (base + next, atom.range.start + ends[k])),
                    )
                };
                let (k, after) = longest(ends.len(), self.target, best.1, |k| count(&part(k)));
                best = (part(k), after);
            }
            if best.1 >= *tokens {
                (*chosen, *tokens) = best;
            }
            if *tokens == self.target {
                return;
            }
        }
    }
}
