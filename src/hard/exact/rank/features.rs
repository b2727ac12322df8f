//! Features of passages beside each other: words and heads alone, no model.
//!
//! All are relative to the prompt: scores by standard deviations or ranks among its passages, words
//! weighed by their rarity in it. Sums run in a fixed order, and no function of the system's
//! mathematical library is used, so that the same prompt gives the same bits on every machine.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::lexical::{
    Bag, Term, bm25, each_gram, each_word, idf, mean_len, saturated, term, terms,
};
use super::passage::{Passage, Question, Words, names};

/// A feature's values, one for each passage.
pub(super) type Column = Vec<f64>;

/// Features that do not depend on which passages are best, in the order of [`Lexical::columns`].
pub(super) const LEXICAL: [&str; 25] = [
    "bm25",
    "bm25_rank",
    "bm25_share",
    "tf",
    "cover",
    "cover_z",
    "bigrams",
    "grams",
    "sentence",
    "first_sentence",
    "head_in_question",
    "head_whole",
    "mentioned",
    "mentions",
    "union",
    "names",
    "length",
    "rare",
    "window",
    "run",
    "fuzzy",
    "figures",
    "kind",
    "named",
    "named_alone",
];

/// Features by the passages that are best so far, in the order of [`Lexical::steps`].
pub(super) const STEPS: [&str; 25] = [
    "base",
    "like_1",
    "best_mentions_1",
    "mentions_best_1",
    "lacking_1",
    "lacking_rank_1",
    "is_1",
    "best_bridges_1",
    "bridges_best_1",
    "shared_rare_1",
    "like_2",
    "best_mentions_2",
    "mentions_best_2",
    "lacking_2",
    "lacking_rank_2",
    "is_2",
    "best_bridges_2",
    "bridges_best_2",
    "shared_rare_2",
    "best_mention",
    "best_mentioned",
    "pair",
    "shared_names",
    "compares_head",
    "compares_lacking",
];

/// A deviation of an earlier stage's scores, in units of the base by words alone: that spreads about as far.
const SCORED: f64 = 3.0;

/// What the features of all steps are made of.
pub(super) struct Lexical<'w> {
    words: Vec<&'w Words>,
    /// Weights of the question's different words, and which of them each passage has.
    weights: Vec<f64>,
    has: Vec<Vec<bool>>,
    /// For each passage those whose head it mentions.
    mentions: Vec<Vec<bool>>,
    names: Vec<BTreeSet<Term>>,
    /// How rare the words of the passages are that the question has not.
    rarities: HashMap<Term, f64>,
    compares: f64,
    columns: Vec<Column>,
    /// From which the first best passages are taken.
    base: Column,
}

/// Scores over all passages of a prompt, of which the features see a choice.
pub(super) struct Overall {
    /// Okapi BM25, and the same with all words equally rare.
    pub bm25: Column,
    pub tf: Column,
    /// Weights of the question's different words by their rarity, and its logarithm.
    pub weights: Vec<f64>,
    pub rarities: Vec<f64>,
}

impl Overall {
    pub fn new(question: &Question, all: &[Words]) -> Self {
        let n = all.len();
        let mean = mean_len(all.iter().map(|w| &w.bag));
        let (mut bm25, mut tf, mut weights) = (vec![0.0; n], vec![0.0; n], Vec::new());
        let mut rarities = Vec::new();
        for term in question.bag.terms() {
            let counts: Vec<u32> = all.iter().map(|words| words.bag.count(term)).collect();
            let holding = counts.iter().filter(|&&count| count > 0).count();
            let rarity = idf(holding, n);
            for (i, &count) in counts.iter().enumerate() {
                let share = saturated(count, all[i].bag.len, mean);
                bm25[i] += rarity * share;
                tf[i] += share;
            }
            rarities.push(rarity);
            weights.push(1.0 - holding as f64 / n.max(1) as f64 + 0.3);
        }
        Overall {
            bm25,
            tf,
            weights,
            rarities,
        }
    }

    /// How much of the question a passage covers, from 0 to 1.
    pub fn cover(&self, question: &Question, words: &Words) -> f64 {
        covered(
            &self.weights,
            question.bag.terms().map(|t| words.bag.has(t)),
        )
    }
}

/// Share of the weights whose flag is set.
fn covered(weights: &[f64], has: impl Iterator<Item = bool>) -> f64 {
    let (mut sum, mut total) = (0.0, 0.0);
    for (&weight, has) in weights.iter().zip(has) {
        total += weight;
        if has {
            sum += weight;
        }
    }
    if total > 0.0 { sum / total } else { 0.0 }
}

impl<'w> Lexical<'w> {
    /// The features of `chosen` passages.
    pub fn new(
        question: &Question,
        passages: &[Passage<'_>],
        all: &'w [Words],
        overall: &Overall,
        chosen: &[usize],
    ) -> Self {
        let words: Vec<&Words> = chosen.iter().map(|&i| &all[i]).collect();
        let n = words.len();
        let weights = overall.weights.clone();
        let has: Vec<Vec<bool>> = words
            .iter()
            .map(|w| question.bag.terms().map(|t| w.bag.has(t)).collect())
            .collect();
        let bm25: Column = chosen.iter().map(|&i| overall.bm25[i]).collect();
        let top = bm25.iter().copied().fold(0.0, f64::max);
        let cover: Column = has
            .iter()
            .map(|has| covered(&weights, has.iter().copied()))
            .collect();
        let texts: Vec<&str> = chosen.iter().map(|&i| passages[i].text).collect();
        let sentences = sentence_covers(question, passages, chosen, &weights);
        let in_question: Vec<(f64, f64)> = words
            .iter()
            .map(|w| {
                let found = |head: &[Term]| head.iter().filter(|&&t| question.bag.has(t)).count();
                (
                    w.by_head(|head| found(head) as f64 / head.len() as f64),
                    w.by_head(|head| f64::from(found(head) == head.len())),
                )
            })
            .collect();
        let whole: Column = in_question.iter().map(|&(_, whole)| whole).collect();
        let mentions = mentions(&words);
        let share_of = |count: usize| count as f64 / n.max(1) as f64;
        let names: Vec<_> = texts.iter().map(|text| names(text)).collect();

        let bm25_z = standardised(&bm25);
        let cover_z = standardised(&cover);
        let base = (0..n)
            .map(|i| bm25_z[i] + 0.5 * cover_z[i] + 2.0 * whole[i])
            .collect();
        let gram_lists = texts
            .iter()
            .map(|text| word_grams(question, text))
            .collect::<Vec<_>>();
        let mut columns = vec![
            bm25_z,
            inverse_ranks(&bm25),
            bm25.iter()
                .map(|x| if top > 0.0 { x / top } else { 0.0 })
                .collect(),
            standardised(&chosen.iter().map(|&i| overall.tf[i]).collect::<Column>()),
            cover.clone(),
            cover_z,
            standardised(&bigrams(question, &words)),
            standardised(&grams(question, &texts, &words)),
            standardised(&sentences.iter().map(|s| s.0).collect::<Column>()),
            standardised(&sentences.iter().map(|s| s.1).collect::<Column>()),
            in_question.iter().map(|&(share, _)| share).collect(),
            whole,
            (0..n)
                .map(|j| share_of(mentions.iter().filter(|row| row[j]).count()))
                .collect(),
            mentions
                .iter()
                .map(|row| share_of(row.iter().filter(|&&m| m).count()))
                .collect(),
            standardised(&unions(&weights, &has)),
            texts
                .iter()
                .map(|text| {
                    let found = question.names.iter().filter(|n| text.contains(n.as_str()));
                    found.count() as f64 / question.names.len().max(1) as f64
                })
                .collect(),
            standardised(&words.iter().map(|w| w.bag.len as f64).collect::<Column>()),
        ];
        let rarities: Vec<f64> = overall.rarities.iter().map(|r| r * r).collect();
        let rare: Column = has
            .iter()
            .map(|has| covered(&rarities, has.iter().copied()))
            .collect();
        columns.push(standardised(&rare));
        columns.push(standardised(
            &sentences.iter().map(|s| s.2).collect::<Column>(),
        ));
        columns.push(
            words
                .iter()
                .map(|w| run(&question.terms, &w.terms))
                .collect(),
        );
        columns.push(standardised(&fuzzy(&gram_lists, &weights)));
        columns.push(words.iter().map(|w| figures(question, w)).collect());
        columns.push(sentences.iter().map(|s| s.3).collect());
        columns.extend(named(question, &words, &weights));
        debug_assert_eq!(columns.len(), LEXICAL.len());
        let rarities = unasked(question, &words);
        Lexical {
            words,
            weights,
            has,
            mentions,
            names,
            rarities,
            compares: f64::from(question.compares),
            columns,
            base,
        }
    }

    /// The columns of [`LEXICAL`].
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The columns of [`STEPS`]: what the best two passages, by words alone or by the scores of an
    /// earlier stage, lead to.
    pub fn steps(&self, scores: Option<&[f64]>) -> Vec<Column> {
        let n = self.words.len();
        let base = match scores {
            None => self.base.clone(),
            Some(scores) => {
                let deviations = standardised(scores).into_iter();
                deviations.map(|z| SCORED * z).collect()
            }
        };
        let order = descending(&base);
        let mut columns = vec![base.iter().map(|b| b / 3.0).collect()];
        for step in 0..2 {
            match order.get(step.min(n.saturating_sub(1))) {
                Some(&best) => columns.extend(self.after(best)),
                None => columns.extend(vec![Vec::new(); 9]),
            }
        }
        let linked = |from: &dyn Fn(usize, usize) -> bool, j: usize| {
            (0..n)
                .filter(|&i| from(i, j))
                .fold(-2.0, |max, i| f64::max(max, base[i]))
        };
        let lacking = columns[4].clone();
        columns.push(
            (0..n)
                .map(|j| linked(&|i, j| self.mentions[i][j], j))
                .collect(),
        );
        columns.push(
            (0..n)
                .map(|j| linked(&|i, j| self.mentions[j][i], j))
                .collect(),
        );
        columns.push(standardised(&self.pairs(&base)));
        columns.push(self.shared_names(order.first().copied()));
        columns.push(self.columns[11].iter().map(|x| x * self.compares).collect());
        columns.push(lacking.iter().map(|x| x * self.compares).collect());
        debug_assert_eq!(columns.len(), STEPS.len());
        columns
    }

    /// What follows from one passage: likeness to it, mentions of and by it, what the question still
    /// lacks after it, and whether it is that one.
    fn after(&self, best: usize) -> Vec<Column> {
        let n = self.words.len();
        let bags = self.words.iter().map(|w| &w.bag);
        let mut like = bm25(bags, &self.words[best].bag);
        like[best] = 0.0;
        let top = like.iter().copied().fold(0.0, f64::max);
        like[best] = top;
        if top > 0.0 {
            like.iter_mut().for_each(|x| *x /= top);
        }
        let lacked: Vec<f64> = self
            .weights
            .iter()
            .zip(&self.has[best])
            .map(|(&weight, &has)| if has { 0.0 } else { weight })
            .collect();
        let lacking: Column = (0..n)
            .map(|i| match i == best {
                true => 0.5,
                false => covered(&lacked, self.has[i].iter().copied()),
            })
            .collect();
        let flag = |is: &dyn Fn(usize) -> bool| (0..n).map(|i| f64::from(is(i))).collect();
        vec![
            like,
            flag(&|i| self.mentions[best][i]),
            flag(&|i| self.mentions[i][best]),
            lacking.clone(),
            inverse_ranks(&lacking),
            flag(&|i| i == best),
            (0..n).map(|i| self.bridge(best, i)).collect(),
            (0..n).map(|i| self.bridge(i, best)).collect(),
            (0..n).map(|i| self.rare_in_common(best, i)).collect(),
        ]
    }

    /// Share of a passage's head, by rarity, that another one's text has and the question has not.
    fn bridge(&self, from: usize, to: usize) -> f64 {
        if from == to {
            return 1.0;
        }
        let rarity = |term: &Term| self.rarities.get(term).copied().unwrap_or(0.0);
        let bag = &self.words[from].bag;
        self.words[to].by_head(|head| {
            let found = head.iter().filter(|&&term| bag.has(term)).map(rarity);
            found.sum::<f64>() / head.len() as f64
        })
    }

    /// Rarity of the words that two passages share and the question has not.
    fn rare_in_common(&self, one: usize, other: usize) -> f64 {
        let (one, other) = (&self.words[one].bag, &self.words[other].bag);
        let shared = one.terms().filter(|&term| other.has(term));
        let sum: f64 = shared
            .map(|term| self.rarities.get(&term).map_or(0.0, |r| r * r))
            .sum();
        sum / ((one.len as f64 + 20.0) * (other.len as f64 + 20.0)).sqrt()
    }

    /// The best pair that each passage is half of: what both cover, a link between them, their worth.
    fn pairs(&self, base: &[f64]) -> Column {
        let n = self.words.len();
        let total: f64 = self.weights.iter().sum();
        let mut best = vec![-9.0; n];
        for i in 0..n {
            for j in i + 1..n {
                let union = union(&self.weights, &self.has[i], &self.has[j]);
                let union = if total > 0.0 { union / total } else { 0.0 };
                let link = self.mentions[i][j] || self.mentions[j][i];
                let worth = union + 0.3 * f64::from(link) + 0.1 * (base[i] + base[j]);
                best[i] = f64::max(best[i], worth);
                best[j] = f64::max(best[j], worth);
            }
        }
        best
    }

    /// Names that a passage shares with the best one, rare ones more.
    fn shared_names(&self, best: Option<usize>) -> Column {
        let Some(best) = best else { return Vec::new() };
        let holding: HashMap<Term, usize> = self.names[best]
            .iter()
            .map(|name| {
                let holding = self.names.iter().filter(|names| names.contains(name));
                (*name, holding.count())
            })
            .collect();
        (0..self.names.len())
            .map(|i| match i == best {
                true => 1.0,
                false => self.names[best]
                    .iter()
                    .filter(|name| self.names[i].contains(name))
                    .map(|name| 1.0 / holding[name] as f64)
                    .sum(),
            })
            .collect()
    }
}

/// The sum of the weights that one of two has.
fn union(weights: &[f64], a: &[bool], b: &[bool]) -> f64 {
    let mut sum = 0.0;
    for (i, weight) in weights.iter().enumerate() {
        if a[i] || b[i] {
            sum += weight;
        }
    }
    sum
}

/// The most that each passage covers together with another.
fn unions(weights: &[f64], has: &[Vec<bool>]) -> Column {
    let n = has.len();
    let mut best = vec![-9.0; n];
    for i in 0..n {
        for j in i + 1..n {
            let union = union(weights, &has[i], &has[j]);
            best[i] = f64::max(best[i], union);
            best[j] = f64::max(best[j], union);
        }
    }
    best
}

/// Neighbouring words of the question that are neighbours in a passage too.
fn bigrams(question: &Question, words: &[&Words]) -> Column {
    let pairs = |terms: &[Term]| {
        let mut pairs: Vec<(Term, Term)> = terms.windows(2).map(|w| (w[0], w[1])).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    };
    let wanted = pairs(&question.terms);
    words
        .iter()
        .map(|w| {
            let own = pairs(&w.terms);
            let found = wanted.iter().filter(|pair| own.binary_search(pair).is_ok());
            found.count() as f64
        })
        .collect()
}

/// Runs of four characters in common, rare ones more.
fn grams(question: &Question, texts: &[&str], words: &[&Words]) -> Column {
    let wanted: Vec<Term> = question.grams.iter().copied().collect();
    let found: Vec<Vec<bool>> = texts
        .iter()
        .map(|text| {
            let mut found = vec![false; wanted.len()];
            each_word(text, |word| {
                each_gram(word, |gram| {
                    if let Ok(at) = wanted.binary_search(&gram) {
                        found[at] = true;
                    }
                });
            });
            found
        })
        .collect();
    let n = texts.len() as f64;
    let rarity: Vec<f64> = (0..wanted.len())
        .map(|at| {
            let holding = found.iter().filter(|found| found[at]).count();
            libm::log(1.0 + n / holding.max(1) as f64)
        })
        .collect();
    found
        .iter()
        .zip(words)
        .map(|(found, words)| {
            let mut sum = 0.0;
            for (rarity, &found) in rarity.iter().zip(found) {
                if found {
                    sum += rarity;
                }
            }
            sum / libm::pow(words.bag.len as f64 + 40.0, 0.3)
        })
        .collect()
}

/// For each passage what its best sentence covers, its first one, its best two neighbours, and whether
/// the best one has what the question asks for: a figure, a year, a name.
fn sentence_covers(
    question: &Question,
    passages: &[Passage<'_>],
    chosen: &[usize],
    weights: &[f64],
) -> Vec<(f64, f64, f64, f64)> {
    let total: f64 = weights.iter().sum();
    let cover = |passage: &Passage<'_>| {
        let (mut best, mut first, mut window, mut kind) = (0.0, 0.0, 0.0, 0.0);
        let mut before: Option<(Vec<bool>, usize)> = None;
        for (s, range) in passage.sentences.iter().enumerate() {
            let text = &passage.text[range.clone()];
            let terms = terms(text);
            let bag = Bag::new(&terms);
            let has: Vec<bool> = question.bag.terms().map(|t| bag.has(t)).collect();
            let share = covered(weights, has.iter().copied());
            let density = share * total / libm::pow(bag.len as f64 + 8.0, 0.4);
            if density > best {
                kind = f64::from(question.kind.is_some_and(|kind| kind.found(question, text)));
                best = density;
            }
            if s == 0 {
                first = share;
            }
            let (earlier, length) = before.take().unwrap_or((vec![false; has.len()], 0));
            let both = covered(weights, has.iter().zip(&earlier).map(|(a, b)| *a || *b));
            window = f64::max(
                window,
                both / libm::pow((bag.len + length) as f64 + 8.0, 0.2),
            );
            before = Some((has, bag.len));
        }
        (best, first, window, kind)
    };
    chosen.iter().map(|&i| cover(&passages[i])).collect()
}

/// Share of the question's weights that a passage's head names word for word, the longest one; and the
/// same where no other passage is named by a longer run around it.
fn named(question: &Question, words: &[&Words], weights: &[f64]) -> [Column; 2] {
    let weight: HashMap<Term, f64> = question.bag.terms().zip(weights.iter().copied()).collect();
    let total: f64 = weights.iter().sum();
    let found: Vec<Option<(usize, usize)>> = words
        .iter()
        .map(|words| {
            let run = |head: &Vec<Term>| {
                let at = question
                    .terms
                    .windows(head.len())
                    .position(|run| run == head)?;
                Some((at, at + head.len()))
            };
            words
                .heads
                .iter()
                .filter_map(run)
                .max_by_key(|&(from, to)| to - from)
        })
        .collect();
    let share = |(from, to): (usize, usize)| {
        let sum: f64 = question.terms[from..to]
            .iter()
            .map(|term| weight[term])
            .sum();
        if total > 0.0 { sum / total } else { 0.0 }
    };
    let inside = |(from, to): (usize, usize)| {
        let mut others = found.iter().flatten();
        others.any(|&(start, end)| start <= from && to <= end && to - from < end - start)
    };
    let all = found.iter().map(|run| run.map_or(0.0, share)).collect();
    let alone = found
        .iter()
        .map(|run| run.filter(|&run| !inside(run)).map_or(0.0, share))
        .collect();
    [all, alone]
}

/// The longest run of the question's words that a passage has in the same order, as a share.
fn run(question: &[Term], passage: &[Term]) -> f64 {
    let mut lengths = vec![0usize; question.len() + 1];
    let mut longest = 0;
    for term in passage {
        for q in (0..question.len()).rev() {
            lengths[q + 1] = if question[q] == *term {
                lengths[q] + 1
            } else {
                0
            };
            longest = longest.max(lengths[q + 1]);
        }
    }
    longest as f64 / question.len().max(1) as f64
}

/// For each of the question's different words the largest share of its runs of four characters that one
/// word of a text has.
fn word_grams(question: &Question, text: &str) -> Vec<f64> {
    let mut best = vec![0.0; question.word_grams.len()];
    let mut seen = HashSet::new();
    each_word(text, |word| {
        let mut own = Vec::new();
        each_gram(word, |gram| own.push(gram));
        if own.iter().any(|gram| question.grams.contains(gram)) && seen.insert(term(word)) {
            for (best, grams) in best.iter_mut().zip(&question.word_grams) {
                let shared = grams.iter().filter(|gram| own.contains(gram)).count();
                let share = 2.0 * shared as f64 / (grams.len() + own.len()).max(1) as f64;
                *best = f64::max(*best, share);
            }
        }
    });
    best
}

/// Coverage of the question where words that are alike count in part.
fn fuzzy(lists: &[Vec<f64>], weights: &[f64]) -> Column {
    lists
        .iter()
        .map(|shares| {
            shares
                .iter()
                .zip(weights)
                .map(|(share, weight)| share * weight)
                .sum()
        })
        .collect()
}

/// Share of the question's figures that a passage has.
fn figures(question: &Question, words: &Words) -> f64 {
    let found = question
        .figures
        .iter()
        .filter(|&&figure| words.bag.has(figure));
    found.count() as f64 / question.figures.len().max(1) as f64
}

/// Rarity within the prompt, from 0 to 1, of the chosen passages' words that the question has not.
fn unasked(question: &Question, chosen: &[&Words]) -> HashMap<Term, f64> {
    let mut holding: HashMap<Term, usize> = HashMap::new();
    for term in chosen.iter().flat_map(|words| words.bag.terms()) {
        if !question.bag.has(term) {
            *holding.entry(term).or_default() += 1;
        }
    }
    let n = chosen.len().max(1) as f64;
    holding
        .into_iter()
        .map(|(term, count)| (term, 1.0 - (count as f64 - 1.0) / n))
        .collect()
}

/// For each passage whether it mentions the head of another one.
fn mentions(words: &[&Words]) -> Vec<Vec<bool>> {
    let n = words.len();
    // A head that most passages share names none of them.
    let mut shared: HashMap<&[Term], usize> = HashMap::new();
    for head in words.iter().flat_map(|words| &words.heads) {
        *shared.entry(head).or_default() += 1;
    }
    let mut by_first: HashMap<Term, Vec<(usize, &[Term])>> = HashMap::new();
    for (j, words) in words.iter().enumerate().filter(|(_, words)| words.own_head) {
        for head in &words.heads {
            if shared[head.as_slice()] * 2 <= n.max(4) {
                by_first.entry(head[0]).or_default().push((j, head));
            }
        }
    }
    words
        .iter()
        .enumerate()
        .map(|(i, own)| {
            let mut row = vec![false; n];
            for (at, term) in own.terms.iter().enumerate() {
                for &(j, head) in by_first.get(term).into_iter().flatten() {
                    row[j] |= i != j && own.terms[at..].starts_with(head);
                }
            }
            row
        })
        .collect()
}

/// Places from high to low; ties go to the first.
pub(crate) fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}

/// One by the place when sorted from high to low; equal values share theirs.
pub(super) fn inverse_ranks(values: &[f64]) -> Column {
    let mut ranks = vec![0.0; values.len()];
    let order = descending(values);
    let mut shared = 0;
    for (place, &i) in order.iter().enumerate() {
        if values[i] < values[order[shared]] {
            shared = place;
        }
        ranks[i] = 1.0 / (1.0 + shared as f64);
    }
    ranks
}

/// To mean 0 and standard deviation 1; equal values become 0.
pub(crate) fn standardised(values: &[f64]) -> Column {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let deviation = variance.sqrt();
    // Equal values leave rounding errors.
    let spread = deviation > 1e-12 * (1.0 + mean.abs());
    values
        .iter()
        .map(|v| if spread { (v - mean) / deviation } else { 0.0 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Prompt, stage_names};
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        question: String,
        docs: Vec<String>,
        scores: Vec<f64>,
        first: HashMap<String, Vec<f64>>,
        second: HashMap<String, Vec<f64>>,
    }

    #[test]
    fn features_are_those_of_the_python_reference() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../../../tests/data/rank_features.json"))
                .unwrap();
        for case in &cases {
            let passages = case.docs.iter().map(|doc| Passage::of(doc)).collect();
            let prompt = Prompt::new(&case.question, passages);
            let candidates = prompt.candidates(0);
            let compare =
                |names: &[String], columns: &[Column], want: &HashMap<String, Vec<f64>>| {
                    for (name, column) in names.iter().zip(columns) {
                        let Some(want) = want.get(name) else {
                            continue;
                        };
                        for (a, b) in column.iter().zip(want) {
                            assert!(
                                (a - b).abs() < 1e-9,
                                "{}: {name}: {column:?}, {want:?}",
                                case.question
                            );
                        }
                    }
                };
            compare(&stage_names(0), &candidates.first, &case.first);
            let later = candidates.later(&case.scores);
            let steps = later.len() - STEPS.len();
            compare(&STEPS.map(String::from), &later[steps..], &case.second);
            let known = stage_names(0)
                .iter()
                .filter(|name| case.first.contains_key(*name))
                .count();
            assert_eq!(known, 44);
        }
    }

    #[test]
    fn the_longest_run_is_a_share_of_the_question() {
        assert_eq!(run(&[1, 2, 3, 4], &[9, 2, 3, 9, 3, 4, 1]), 0.5);
        assert_eq!(run(&[1, 2], &[1, 2]), 1.0);
        assert_eq!(run(&[], &[1]), 0.0);
    }

    #[test]
    fn equal_values_have_no_deviation() {
        assert_eq!(standardised(&[0.1, 0.1, 0.1]), [0.0; 3]);
        assert_eq!(standardised(&[1.0, 3.0]), [-1.0, 1.0]);
        assert!(standardised(&[]).is_empty());
        assert_eq!(inverse_ranks(&[2.0, 5.0, 2.0, 1.0]), [0.5, 1.0, 0.5, 0.25]);
    }
}
