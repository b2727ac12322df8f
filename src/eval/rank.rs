//! What a ranking of passages keeps at a budget, without a model: whether the right passages are still
//! there whole, and whether an answer's words are.

use rayon::prelude::*;
use serde::Serialize;

use super::bootstrap::{Interval, interval};
use crate::error::Result;
use crate::hard::check_rate;
use crate::hard::lexical::{Bag, bm25, grams, terms};
use crate::hard::rank::{Meaning, Prompt, Ranker};
use crate::random::Random;
use crate::text::counts::count_cl100k;
use crate::train::rank::{Example, passages};

/// A way to rank passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    /// The learned ranker.
    Ranker,
    /// An encoder: meaning alone.
    Encoder,
    /// Both, as the mode exact weighs them.
    Both,
    /// Okapi BM25 over words.
    Bm25,
    /// Okapi BM25 over runs of four characters.
    Grams,
    /// At random.
    Random,
    /// The right passages first: the most that fits.
    Oracle,
}

impl Ranking {
    /// All of them.
    pub const ALL: [Ranking; 7] = [
        Ranking::Ranker,
        Ranking::Encoder,
        Ranking::Both,
        Ranking::Bm25,
        Ranking::Grams,
        Ranking::Random,
        Ranking::Oracle,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Ranking::Ranker => "ranker",
            Ranking::Encoder => "encoder",
            Ranking::Both => "ranker and encoder",
            Ranking::Bm25 => "bm25",
            Ranking::Grams => "grams",
            Ranking::Random => "random",
            Ranking::Oracle => "most that fits",
        }
    }
}

/// What a ranking keeps of the examples at one budget.
#[derive(Debug, Clone, Serialize)]
pub struct Recall {
    /// Who ranked.
    pub ranking: Ranking,
    /// Share of the documents' tokens.
    pub rate: f64,
    /// Share of examples whose right passages are all there, whole.
    pub whole: Option<Interval>,
    /// Share of examples that have an answer of text and still show one of its forms. Passages are kept
    /// whole while they fit; then sentences by their own worth and that of their passage.
    pub answered: Option<Interval>,
}

/// Recall of each ranking at each rate. `meaning` is the similarity of each document of each
/// example to its question, by an encoder, and what a unit of it is worth in log-odds; without it the rankings
/// that ask for it are left out.
///
/// # Errors
/// [`crate::Error::Input`] for a rate outside (0, 1].
pub fn recall(
    examples: &[Example],
    ranker: &Ranker,
    meaning: Option<(&[Vec<f64>], f64)>,
    rates: &[f64],
    seed: u64,
) -> Result<Vec<Recall>> {
    let needs = |ranking: &Ranking| matches!(ranking, Ranking::Encoder | Ranking::Both);
    let rankings: Vec<Ranking> = Ranking::ALL
        .into_iter()
        .filter(|ranking| meaning.is_some() || !needs(ranking))
        .collect();
    rates
        .iter()
        .try_for_each(|&rate| check_rate("rates", rate))?;
    let kept: Vec<Vec<Vec<Kept>>> = examples
        .par_iter()
        .enumerate()
        .map(|(i, example)| {
            let sized = Sized::new(example);
            rankings
                .iter()
                .map(|&ranking| {
                    let meaning = meaning.map_or((&[][..], 0.0), |(all, unit)| (&all[i], unit));
                    let random = Random::of(seed, &[i as u64]);
                    let worth = worth(example, ranking, ranker, meaning, random);
                    rates.iter().map(|&rate| sized.keep(&worth, rate)).collect()
                })
                .collect()
        })
        .collect();
    let mut rows = Vec::new();
    for (r, &ranking) in rankings.iter().enumerate() {
        for (b, &rate) in rates.iter().enumerate() {
            let of = |value: &dyn Fn(&Kept) -> Option<bool>| -> Vec<f64> {
                let all = kept.iter().filter_map(|kept| value(&kept[r][b]));
                all.map(f64::from).collect()
            };
            rows.push(Recall {
                ranking,
                rate,
                whole: interval(&of(&|kept| Some(kept.whole)), seed),
                answered: interval(&of(&|kept| kept.answered), seed),
            });
        }
    }
    Ok(rows)
}

/// The worth of passages, and of their sentences.
struct Worth {
    passages: Vec<f64>,
    sentences: Vec<Vec<f64>>,
}

fn worth(
    example: &Example,
    ranking: Ranking,
    ranker: &Ranker,
    (meaning, unit): (&[f64], f64),
    mut random: Random,
) -> Worth {
    let prompt = Prompt::new(&example.question, passages(&example.docs));
    let by = |words: &dyn Fn(&str) -> Bag| {
        let bags: Vec<Bag> = example.docs.iter().map(|doc| words(doc)).collect();
        bm25(bags.iter(), &words(&example.question))
    };
    let passages = match ranking {
        Ranking::Ranker => {
            let candidates = prompt.candidates(0);
            candidates.spread(&ranker.scores(&candidates))
        }
        Ranking::Encoder => meaning.to_vec(),
        Ranking::Both => {
            let candidates = prompt.candidates(0);
            let scores = ranker.scores(&candidates);
            let mut worth = candidates.spread(&scores);
            let read: Vec<usize> = (0..meaning.len()).collect();
            let meaning = Meaning {
                read: &read,
                similarity: meaning,
                unit,
            };
            ranker.add_meaning(&candidates, &scores, meaning, &mut worth);
            worth
        }
        Ranking::Bm25 => by(&|text| Bag::new(&terms(text))),
        Ranking::Grams => by(&|text| Bag::new(&grams(text))),
        Ranking::Random => example.docs.iter().map(|_| random.unit()).collect(),
        Ranking::Oracle => example.gold.iter().map(|&gold| f64::from(gold)).collect(),
    };
    Worth {
        sentences: prompt.sentences(&passages),
        passages,
    }
}

/// What is left of an example.
struct Kept {
    whole: bool,
    answered: Option<bool>,
}

/// An example and the lengths of its parts in tokens.
struct Sized<'e> {
    example: &'e Example,
    docs: Vec<usize>,
    sentences: Vec<Vec<(std::ops::Range<usize>, usize)>>,
}

impl<'e> Sized<'e> {
    fn new(example: &'e Example) -> Self {
        let sentences = passages(&example.docs)
            .into_iter()
            .map(|passage| {
                let sized = passage.sentences.into_iter().map(|range| {
                    let tokens = count_cl100k(&passage.text[range.clone()]);
                    (range, tokens)
                });
                sized.collect()
            })
            .collect();
        Sized {
            example,
            // One for the blank line between passages.
            docs: example
                .docs
                .iter()
                .map(|doc| count_cl100k(doc) + 1)
                .collect(),
            sentences,
        }
    }

    fn keep(&self, worth: &Worth, rate: f64) -> Kept {
        let budget = rate * self.docs.iter().sum::<usize>() as f64;
        let mut order: Vec<usize> = (0..self.docs.len()).collect();
        order.sort_by(|&a, &b| worth.passages[b].total_cmp(&worth.passages[a]));
        let mut used = 0;
        let mut whole = vec![false; self.docs.len()];
        for &doc in &order {
            if (used + self.docs[doc]) as f64 > budget {
                break;
            }
            used += self.docs[doc];
            whole[doc] = true;
        }
        let gold = &self.example.gold;
        Kept {
            whole: gold
                .iter()
                .zip(&whole)
                .all(|(&gold, &whole)| whole || !gold),
            answered: self.answered(worth, &whole, used, budget),
        }
    }

    fn answered(
        &self,
        worth: &Worth,
        whole: &[bool],
        mut used: usize,
        budget: f64,
    ) -> Option<bool> {
        let example = self.example;
        let said: Vec<&str> = example
            .answers
            .iter()
            .map(|answer| answer.trim())
            .filter(|answer| example.docs.iter().any(|doc| doc.contains(answer)))
            .collect();
        let choice = |answer: &str| matches!(answer.to_lowercase().as_str(), "yes" | "no" | "");
        if said.is_empty() || said.iter().any(|answer| choice(answer)) {
            return None;
        }
        let mut places: Vec<(usize, usize)> = (0..example.docs.len())
            .filter(|&doc| !whole[doc])
            .flat_map(|doc| (0..self.sentences[doc].len()).map(move |s| (doc, s)))
            .collect();
        let of = |&(doc, s): &(usize, usize)| worth.sentences[doc][s];
        places.sort_by(|a, b| of(b).total_cmp(&of(a)));
        let mut taken: Vec<Vec<bool>> = self
            .sentences
            .iter()
            .map(|all| vec![false; all.len()])
            .collect();
        for (doc, s) in places {
            let tokens = self.sentences[doc][s].1;
            if (used + tokens) as f64 <= budget {
                used += tokens;
                taken[doc][s] = true;
            }
        }
        let text = |doc: usize| match whole[doc] {
            true => example.docs[doc].clone(),
            false => {
                let kept = self.sentences[doc]
                    .iter()
                    .zip(&taken[doc])
                    .filter(|(_, taken)| **taken);
                let parts = kept.map(|((range, _), _)| &example.docs[doc][range.clone()]);
                parts.collect::<Vec<_>>().join(" ")
            }
        };
        let text: Vec<String> = (0..example.docs.len()).map(text).collect();
        Some(
            said.iter()
                .any(|answer| text.iter().any(|text| text.contains(answer))),
        )
    }
}
