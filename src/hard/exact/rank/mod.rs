//! Ranks passages by a question without a forward pass: words, heads and names, in stages.
//!
//! The first stage scores passages by what they share with the question and with those that answer it
//! best by words; each further one takes the scores of the one before to find the best anew, so that a passage
//! which a question of two steps needs, but does not name, is found through the one that names it.
//!
//! The weights are few and shipped as text; `CARD.md` says what they were trained on and what they
//! reach. `prefold train rank` makes others.

mod features;
mod meaning;
mod net;
mod passage;

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use features::{Column, LEXICAL, Lexical, Overall, STEPS, inverse_ranks};
pub(crate) use features::{descending, standardised};
use meaning::Judged;
pub(crate) use meaning::names as meaning_names;
pub(crate) use net::{Input, Net, activation, slope};
pub(crate) use passage::{Passage, frequent_name, head, title};
use passage::{Question, Words};

use super::lexical::{Bag, Term, bm25, terms};
use super::units::unspaced;
use crate::error::Error;
use crate::files::read_bounded;
use crate::model::config::{Config, EncoderHead};
use crate::text::sentences::sentences;

/// A learned ranker of passages: small networks over words, heads and names.
///
/// ```
/// use prefold::hard::Ranker;
///
/// let worth = Ranker::shipped().rank(
///     "Who built the lighthouse?",
///     &["The lighthouse was built by Ada Roy.", "The town has a market."],
/// );
/// assert!(worth[0] > worth[1]);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Ranker {
    /// The first over the features of a prompt, each further one over those and the scores of the one before:
    /// [`stage_names`].
    pub(crate) stages: Vec<Net>,
    /// What corrects the sum of the last stage's scores and an encoder's similarity, where it was trained.
    pub(crate) meaning: Option<Net>,
}

impl From<Ranker> for String {
    fn from(ranker: Ranker) -> String {
        ranker.to_text("")
    }
}

impl TryFrom<String> for Ranker {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ranker::parse(&text)
    }
}

/// The features of a stage, counted from 0: the first sees what words, heads and names say; every later one
/// also the scores of the stage before, and again the steps, from the passages that it found best.
pub(crate) fn stage_names(stage: usize) -> Vec<String> {
    let mut names: Vec<String> = LEXICAL
        .iter()
        .chain(&STEPS)
        .map(|name| name.to_string())
        .collect();
    if stage > 0 {
        names.extend(["score", "score_rank"].map(String::from));
        names.extend(STEPS.map(|name| format!("scored_{name}")));
    }
    names
}

/// Passages that are looked at closely where a caller does not ask for more.
pub(crate) const CHOSEN: usize = 64;
/// The most that are: pairs of them are compared.
const MAX_CHOSEN: usize = 512;
/// The weights that ship take 140 KB.
const LONGEST_FILE: u64 = 64 << 20;
/// Passages from which a large prompt's second steps are sought.
const SEEDS: usize = 4;

/// How much a sentence's passage counts against the sentence's own words.
pub(crate) const PASSAGE_WEIGHT: f64 = 2.0;

/// Log-odds that a cosine of 1 is worth beside the ranker's: of 1/0.05 and 1/0.08, two usual temperatures of
/// such encoders, the one that lost least on questions of two steps.
pub(crate) const COSINE: f64 = 12.5;

/// What a unit of an encoder's similarity is worth in log-odds: a reranker's score is that already.
pub(crate) fn similarity_unit(encoder: &Config) -> f64 {
    match encoder.encoder.as_ref().map(|encoder| encoder.head) {
        Some(EncoderHead::Text(_)) => 1.0,
        _ => COSINE,
    }
}

/// What an encoder says of passages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meaning<'a> {
    /// The passages that it read, and how alike each is to the question.
    pub read: &'a [usize],
    pub similarity: &'a [f64],
    /// What a unit of that is worth in log-odds: [`similarity_unit`].
    pub unit: f64,
}

/// A prompt's passages, ready to be scored.
pub(crate) struct Candidates<'p> {
    question: &'p Question,
    words: &'p [Words],
    lexical: Lexical<'p>,
    /// Feature columns of the first stage.
    pub first: Vec<Column>,
    /// The passages that were chosen, and by words alone the worth of all.
    pub chosen: Vec<usize>,
    pub worth: Vec<f64>,
}

/// The words of a prompt's passages.
pub(crate) struct Prompt<'t> {
    question: Question,
    passages: Vec<Passage<'t>>,
    words: Vec<Words>,
}

impl<'t> Prompt<'t> {
    /// Reads the words of all passages.
    pub fn new(question: &str, passages: Vec<Passage<'t>>) -> Self {
        Prompt {
            question: Question::new(question),
            words: passages.par_iter().map(Words::new).collect(),
            passages,
        }
    }

    /// Chooses at most `most` passages (64 at least, 512 at most) to look at closely: those that share
    /// most with the question, and those that the best of them lead to.
    pub fn candidates(&self, max: usize) -> Candidates<'_> {
        let overall = Overall::new(&self.question, &self.words);
        let cover: Column = self
            .words
            .par_iter()
            .map(|words| overall.cover(&self.question, words))
            .collect();
        let mut worth = standardised(&overall.bm25);
        for ((worth, cover), words) in worth.iter_mut().zip(standardised(&cover)).zip(&self.words) {
            let named = |head: &Vec<Term>| head.iter().all(|&term| self.question.bag.has(term));
            *worth += 0.5 * cover + 2.0 * f64::from(words.heads.iter().any(named));
        }
        let max = max.clamp(CHOSEN, MAX_CHOSEN);
        let chosen = match self.words.len() <= max {
            true => (0..self.words.len()).collect(),
            false => self.choose(&worth, max),
        };
        let (question, passages) = (&self.question, &self.passages);
        let lexical = Lexical::new(question, passages, &self.words, &overall, &chosen);
        let mut first = lexical.columns().to_vec();
        first.extend(lexical.steps(None));
        Candidates {
            question,
            lexical,
            first,
            words: &self.words,
            chosen,
            worth,
        }
    }

    /// The worth of each passage's sentences: by the worth of their passage and by their own words.
    pub fn sentences(&self, worth: &[f64]) -> Vec<Vec<f64>> {
        let bags: Vec<Vec<Bag>> = self
            .passages
            .par_iter()
            .map(|passage| {
                let sentences = passage.sentences.iter();
                sentences
                    .map(|range| Bag::new(&terms(&passage.text[range.clone()])))
                    .collect()
            })
            .collect();
        let all: Vec<&Bag> = bags.iter().flatten().collect();
        let own = standardised(&bm25(all.iter().copied(), &self.question.bag));
        let mut own = own.into_iter();
        standardised(worth)
            .into_iter()
            .zip(&bags)
            .map(|(passage, bags)| {
                let own = own.by_ref().take(bags.len());
                own.map(|own| PASSAGE_WEIGHT * passage + own).collect()
            })
            .collect()
    }

    /// Whether most of it is in scripts that put no space between words: heads, names and links are not
    /// seen there.
    pub fn unspaced(&self) -> bool {
        let (mut dense, mut letters) = (0, 0);
        for c in self.passages.iter().flat_map(|p| p.text.chars().take(400)) {
            letters += usize::from(c.is_alphabetic());
            dense += usize::from(unspaced(c));
        }
        2 * dense > letters
    }

    fn choose(&self, worth: &[f64], max: usize) -> Vec<usize> {
        let order = descending(worth);
        // A passage stands by its own words or by its likeness to one of the best.
        let mut by_step = worth.to_vec();
        for &seed in order.iter().take(SEEDS) {
            let mut like = bm25(self.words.iter().map(|w| &w.bag), &self.words[seed].bag);
            like[seed] = 0.0;
            for (step, (like, own)) in by_step.iter_mut().zip(like.into_iter().zip(worth)) {
                *step = f64::max(*step, own + like);
            }
        }
        let mut chosen = order[..max / 2].to_vec();
        let mut taken = vec![false; worth.len()];
        chosen.iter().for_each(|&i| taken[i] = true);
        let further = descending(&by_step).into_iter().filter(|&i| !taken[i]);
        chosen.extend(further.take(max - max / 2));
        chosen.sort_unstable();
        chosen
    }
}

impl Candidates<'_> {
    /// Feature columns of a later stage, given the scores of the one before.
    pub fn later(&self, scores: &[f64]) -> Vec<Column> {
        let mut columns = self.first.clone();
        columns.push(standardised(scores));
        columns.push(inverse_ranks(scores));
        columns.extend(self.lexical.steps(Some(scores)));
        columns
    }

    /// Of the chosen passages that an encoder read, which they are, the sum of score and similarity, and the
    /// features of the network that corrects it.
    pub fn judged(
        &self,
        scores: &[f64],
        meaning: Meaning<'_>,
    ) -> (Vec<usize>, Column, Vec<Column>) {
        let similar: HashMap<usize, f64> = meaning
            .read
            .iter()
            .copied()
            .zip(meaning.similarity.iter().copied())
            .collect();
        let places: Vec<usize> = (0..self.chosen.len())
            .filter(|&place| similar.contains_key(&self.chosen[place]))
            .collect();
        let scores: Column = places.iter().map(|&place| scores[place]).collect();
        let similarity: Column = places
            .iter()
            .map(|&place| similar[&self.chosen[place]])
            .collect();
        let sum: Column = scores
            .iter()
            .zip(&similarity)
            .map(|(score, similarity)| score + meaning.unit * similarity)
            .collect();
        let names = stage_names(0);
        let judged = Judged {
            scores: &scores,
            similarity: &similarity,
            sum: &sum,
            question: self.question.terms.len(),
        };
        let columns = judged.columns(|name| {
            let column = names.iter().position(|n| n == name);
            let column = column.map(|at| &self.first[at]);
            let value = |&place: &usize| column.map_or(0.0, |column| column[place]);
            places.iter().map(value).collect()
        });
        let read = places.iter().map(|&place| self.chosen[place]).collect();
        (read, sum, columns)
    }

    /// The worth of every passage from the scores of those that were chosen: the others follow, by
    /// words alone.
    pub fn spread(&self, scores: &[f64]) -> Vec<f64> {
        let min = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let max = self.worth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut all: Vec<f64> = match self.chosen.len() == self.words.len() {
            true => vec![0.0; self.words.len()],
            false => self.worth.iter().map(|w| min - 1.0 + (w - max)).collect(),
        };
        for (&i, &score) in self.chosen.iter().zip(scores) {
            all[i] = score;
        }
        all
    }
}

impl<'t> Passage<'t> {
    /// A text with its sentences.
    pub fn of(text: &'t str) -> Self {
        Passage {
            text,
            sentences: sentences(text),
            heading: None,
        }
    }
}

impl Ranker {
    /// Gives the weights that are embedded in the library.
    pub fn shipped() -> &'static Ranker {
        static SHIPPED: LazyLock<Ranker> = LazyLock::new(|| {
            Ranker::parse(include_str!("ranker.txt")).expect("the embedded weights are well-formed")
        });
        &SHIPPED
    }

    /// Scores of the chosen passages: differences of them are log-odds that one answers rather than
    /// the other.
    pub(crate) fn scores(&self, candidates: &Candidates<'_>) -> Vec<f64> {
        let mut stages = self.stages.iter();
        let first = stages.next().map(|net| net.scores(&candidates.first));
        let mut scores = first.unwrap_or_default();
        for net in stages {
            scores = net.scores(&candidates.later(&scores));
        }
        scores
    }

    /// Adds what an encoder says to the worth of passages, given the scores of those that were chosen. What it
    /// has not read is taken to be as unlike the question as the least like that it has.
    pub(crate) fn add_meaning(
        &self,
        candidates: &Candidates<'_>,
        scores: &[f64],
        meaning: Meaning<'_>,
        worth: &mut [f64],
    ) {
        let similarity = meaning.similarity.iter().copied();
        let least = similarity.clone().fold(f64::INFINITY, f64::min);
        let mut all = vec![least; worth.len()];
        for (&i, similarity) in meaning.read.iter().zip(similarity) {
            all[i] = similarity;
        }
        for (worth, similarity) in worth.iter_mut().zip(all) {
            *worth += meaning.unit * similarity;
        }
        // Trained on cosines, which a reranker's scores are not.
        if let Some(net) = self.meaning.as_ref().filter(|_| meaning.unit == COSINE) {
            let (read, _, columns) = candidates.judged(scores, meaning);
            let corrections = net.scores(&columns);
            let mean = corrections.iter().sum::<f64>() / corrections.len().max(1) as f64;
            for (i, correction) in read.into_iter().zip(corrections) {
                worth[i] += correction - mean;
            }
        }
    }

    /// Reads the weights that `prefold train rank` wrote.
    ///
    /// # Errors
    /// [`Error::Format`] that names the line that is malformed; [`Error::Io`].
    pub fn open(path: &Path) -> crate::Result<Ranker> {
        let bytes = read_bounded(path, LONGEST_FILE)?;
        let text =
            std::str::from_utf8(&bytes).map_err(|error| Error::format(path, error.to_string()))?;
        Ranker::parse(text).map_err(|reason| Error::format(path, reason))
    }

    /// Scores passages by a question, the best highest; a title may stand in front (`Title: text`).
    ///
    /// A difference of scores is about the log-odds that one answers rather than the other. Of many
    /// passages 64 are compared closely; the others follow, by their words in common.
    pub fn rank(&self, question: &str, passages: &[&str]) -> Vec<f64> {
        let passages = passages.iter().map(|text| Passage::of(text));
        let prompt = Prompt::new(question, passages.collect());
        let candidates = prompt.candidates(0);
        candidates.spread(&self.scores(&candidates))
    }

    /// Writes the weights as text, the lines of `card` in front as comments.
    pub fn to_text(&self, card: &str) -> String {
        let mut text = String::from("prefold-ranker 2\n");
        for line in card.lines() {
            text += format!("# {line}").trim_end();
            text.push('\n');
        }
        for (stage, net) in self.stages.iter().enumerate() {
            text += &format!("stage {}\n{}", stage + 1, net.to_text());
        }
        if let Some(net) = &self.meaning {
            text += &format!("meaning\n{}", net.to_text());
        }
        text
    }

    /// Numbers that training found.
    pub fn weights(&self) -> usize {
        let all = self.stages.iter().chain(&self.meaning);
        all.map(Net::weights).sum()
    }

    /// Reads what [`Ranker::to_text`] wrote.
    ///
    /// # Errors
    /// What is wrong with which line.
    pub fn parse(text: &str) -> Result<Ranker, String> {
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(i, line)| (i + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        match lines.next() {
            Some((_, "prefold-ranker 2")) => {}
            Some((number, line)) => {
                return Err(format!(
                    "line {number}: expected `prefold-ranker 2`, got `{line}`"
                ));
            }
            None => return Err("it is empty".into()),
        }
        let (mut stages, mut meaning) = (Vec::new(), None);
        while let Some((number, line)) = lines.next() {
            if meaning.is_some() {
                return Err(format!(
                    "line {number}: expected nothing more, got `{line}`"
                ));
            }
            if line == "meaning" && !stages.is_empty() {
                meaning = Some(Net::parse(&mut lines, &meaning_names())?);
                continue;
            }
            let want = format!("stage {}", stages.len() + 1);
            if line != want {
                return Err(format!("line {number}: expected `{want}`, got `{line}`"));
            }
            stages.push(Net::parse(&mut lines, &stage_names(stages.len()))?);
        }
        match stages.is_empty() {
            true => Err("it ends before `stage 1`".into()),
            false => Ok(Ranker { stages, meaning }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCS: [&str; 4] = [
        "Ada Roy: Ada Roy is a novelist. She was born in Lyon in 1950.",
        "The Lighthouse is a novel by Ada Roy. It won a prize in 1990.",
        "Lyon is a city in France. It has a river.",
        "Bread is baked from flour. It is old.",
    ];

    #[test]
    fn the_shipped_weights_survive_text() {
        let shipped = Ranker::shipped();
        let text = shipped.to_text("A card\n\nof two lines");
        assert_eq!(Ranker::parse(&text).as_ref(), Ok(shipped));
        assert_eq!(
            Ranker::try_from(String::from(shipped.clone())).as_ref(),
            Ok(shipped)
        );
        assert!(Ranker::parse("").unwrap_err().contains("it is empty"));
        assert!(Ranker::parse(&(text + "\nmore")).is_err());
    }

    #[test]
    fn a_second_step_is_found_through_the_first() {
        let worth = Ranker::shipped().rank(
            "Where was the author of the novel The Lighthouse born?",
            &DOCS,
        );
        let order = descending(&worth);
        let mut two = order[..2].to_vec();
        two.sort_unstable();
        assert_eq!(two, [0, 1], "{worth:?}");
    }

    #[test]
    fn the_order_of_passages_changes_no_score() {
        let question = "Where was the author of the novel The Lighthouse born?";
        let worth = Ranker::shipped().rank(question, &DOCS);
        let reversed: Vec<&str> = DOCS.iter().rev().copied().collect();
        let mut again = Ranker::shipped().rank(question, &reversed);
        again.reverse();
        for (a, b) in worth.iter().zip(&again) {
            assert!((a - b).abs() < 1e-9, "{worth:?} {again:?}");
        }
    }

    #[test]
    fn anything_can_be_ranked() {
        let ranker = Ranker::shipped();
        assert!(ranker.rank("Who?", &[]).is_empty());
        let long = "word ".repeat(5000);
        let texts = [
            "",
            " ",
            "x",
            "x",
            "\u{0}",
            "東京タワーは赤い。",
            long.as_str(),
            "#",
            ": :",
            "A: ",
        ];
        for question in ["", " ", "Who?", "東京タワーは何色？", "\"", &long] {
            for n in 0..=texts.len() {
                let worth = ranker.rank(question, &texts[..n]);
                assert_eq!(worth.len(), n);
                assert!(
                    worth.iter().all(|w| w.is_finite()),
                    "{question:.20} {worth:?}"
                );
            }
        }
    }

    /// In German, French, Spanish, Russian, Arabic, Hindi, Chinese and Japanese.
    #[test]
    fn other_languages_rank_no_worse_than_by_their_characters() {
        #[derive(Deserialize)]
        struct Language {
            passages: Vec<String>,
            questions: Vec<(String, usize)>,
        }
        let languages: std::collections::BTreeMap<String, Language> =
            serde_json::from_str(include_str!("../../../../tests/data/languages.json")).unwrap();
        assert_eq!(languages.len(), 8);
        for (name, language) in languages {
            let texts: Vec<&str> = language.passages.iter().map(String::as_str).collect();
            let grams: Vec<Bag> = texts
                .iter()
                .map(|text| Bag::new(&super::super::lexical::grams(text)))
                .collect();
            let (mut ours, mut theirs) = (0, 0);
            for (question, right) in &language.questions {
                let worth = Ranker::shipped().rank(question, &texts);
                ours += usize::from(descending(&worth)[0] == *right);
                let query = Bag::new(&super::super::lexical::grams(question));
                theirs += usize::from(descending(&bm25(grams.iter(), &query))[0] == *right);
            }
            assert!(ours >= theirs && ours >= 4, "{name}: {ours}, {theirs}");
        }
    }

    #[test]
    fn of_many_passages_the_right_ones_are_looked_at() {
        let mut texts: Vec<String> = (0..3000)
            .map(|i| {
                format!(
                    "Village {i} is a village near river {}. It has a church.",
                    i % 7
                )
            })
            .collect();
        texts[1234] = DOCS[0].into();
        texts[2345] = DOCS[1].into();
        let passages: Vec<&str> = texts.iter().map(String::as_str).collect();
        let question = "Where was the author of the novel The Lighthouse born?";
        let worth = Ranker::shipped().rank(question, &passages);
        let order = descending(&worth);
        let mut two = order[..2].to_vec();
        two.sort_unstable();
        assert_eq!(two, [1234, 2345]);
        let prompt = Prompt::new(question, passages.iter().map(|t| Passage::of(t)).collect());
        assert_eq!(prompt.candidates(0).chosen.len(), CHOSEN);
        assert_eq!(prompt.candidates(usize::MAX).chosen.len(), MAX_CHOSEN);
    }
}
