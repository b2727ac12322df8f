//! Training of the ranker: prompts out of rows and a corpus, and a listwise loss over their passages.
//!
//! Everything is drawn from one seed and summed in a fixed order, so that the same rows and options give
//! the same weights to the bit.

mod fit;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;

use super::rows::{LONGEST_LINE, Lines, json_error};
use crate::error::{Error, Result};
use crate::hard::lexical::{Bag, Term, idf, mean_len, saturated, terms, without};
use crate::hard::rank::{
    COSINE, Candidates, Meaning, Net, Passage, Prompt, Ranker, frequent_name, head, meaning_names,
    stage_names, title,
};
use crate::random::Random;
use fit::fit_all;

/// A question and passages, of which some answer it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The question.
    pub question: String,
    /// Right answers; may be empty.
    pub answers: Vec<String>,
    /// The passages, each with its title in front (`Title: text`) where it has one.
    pub docs: Vec<String>,
    /// Which of them are needed for the answer.
    pub gold: Vec<bool>,
}

/// A row as it stands in a file.
#[derive(Deserialize)]
struct Row {
    question: String,
    #[serde(default)]
    answers: Vec<String>,
    #[serde(default)]
    docs: Vec<String>,
    #[serde(default)]
    gold: Option<Gold>,
    #[serde(default)]
    context: String,
}

/// Indices of the right documents.
#[derive(Deserialize)]
#[serde(untagged)]
enum Gold {
    One(usize),
    All(Vec<usize>),
}

/// Reads examples: rows with `question` and either `docs` and `gold` (an index, or several), or `docs` and
/// `context` (those documents are right that `context` holds), or `context` alone.
///
/// # Errors
/// [`Error::Format`] that names the line of a row without a question or a right passage; [`Error::Io`].
pub fn read(paths: &[PathBuf]) -> Result<Vec<Example>> {
    let mut lines = Lines::new(paths);
    let mut examples = Vec::new();
    while let Some(line) = lines.next_line()? {
        let example = match line.bytes.len() <= LONGEST_LINE {
            true => serde_json::from_slice::<Row>(&line.bytes)
                .map_err(|error| json_error(&error))
                .and_then(Row::example),
            false => Err(format!("longer than {LONGEST_LINE} bytes")),
        };
        examples.push(example.map_err(|reason| {
            Error::format(&paths[line.file], format!("line {}: {reason}", line.number))
        })?);
    }
    Ok(examples)
}

impl Row {
    fn example(self) -> Result<Example, String> {
        let Row {
            question,
            answers,
            mut docs,
            gold,
            context,
        } = self;
        if question.trim().is_empty() {
            return Err("`question` is empty".into());
        }
        if docs.is_empty() && !context.trim().is_empty() {
            docs.push(context.clone());
        }
        let flags: Vec<bool> = match gold {
            Some(gold) => {
                let gold = match gold {
                    Gold::One(one) => vec![one],
                    Gold::All(all) => all,
                };
                if let Some(index) = gold.iter().find(|&&index| index >= docs.len()) {
                    return Err(format!("`gold` {index} of {} documents", docs.len()));
                }
                (0..docs.len()).map(|i| gold.contains(&i)).collect()
            }
            None => docs
                .iter()
                .map(|doc| {
                    let body = title(doc).map_or(doc.as_str(), |(_, body)| body);
                    context.contains(doc.as_str()) || context.contains(body)
                })
                .collect(),
        };
        match flags.contains(&true) {
            true => Ok(Example {
                question,
                answers,
                docs,
                gold: flags,
            }),
            false => {
                Err("no document is right; give `gold`, or `context` with the right ones".into())
            }
        }
    }
}

/// The texts of a corpus: `text` of each row.
///
/// # Errors
/// [`Error::Format`] that names the line of a row without a passage; [`Error::Io`].
pub fn read_corpus(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Text {
        text: String,
    }
    let mut lines = Lines::new(&[path.to_owned()]);
    let mut texts = Vec::new();
    while let Some(line) = lines.next_line()? {
        let text: Text = serde_json::from_slice(&line.bytes).map_err(|error| {
            Error::format(
                path,
                format!("line {}: {}", line.number, json_error(&error)),
            )
        })?;
        texts.push(text.text);
    }
    Ok(texts)
}

/// What training does.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Hidden units of each network.
    pub hidden: usize,
    /// Networks on top of each other; each sees what the one before found best.
    pub stages: usize,
    /// Networks of each stage, which are averaged; all stages but the last have as many for each half of the
    /// rows.
    pub seeds: u64,
    /// Passes over the rows.
    pub epochs: usize,
    /// Prompts of a step.
    pub batch: usize,
    /// Learning rate of the first step; it falls to zero.
    pub lr: f64,
    /// Decay of AdamW.
    pub weight_decay: f64,
    /// Share of features that a step does not see.
    pub dropout: f64,
    /// Share of prompts whose passages have their titles in front.
    pub titled: f64,
    /// All draws come from it.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            hidden: 16,
            stages: 3,
            seeds: 2,
            epochs: 30,
            batch: 32,
            lr: 8e-3,
            weight_decay: 0.05,
            dropout: 0.1,
            titled: 0.6,
            seed: 1,
        }
    }
}

/// An inverted index of a corpus.
struct Index<'t> {
    texts: &'t [String],
    /// For each word the texts that hold it, and what it adds to their scores but for its rarity.
    postings: HashMap<Term, Vec<(u32, f32)>>,
}

/// Words that more of the corpus holds say too little to be looked up.
const COMMON: f64 = 0.05;

impl<'t> Index<'t> {
    fn new(texts: &'t [String]) -> Self {
        let bags: Vec<Bag> = texts
            .par_iter()
            .map(|text| Bag::new(&terms(text)))
            .collect();
        let mean = mean_len(bags.iter());
        let mut postings: HashMap<Term, Vec<(u32, f32)>> = HashMap::new();
        for (i, bag) in bags.iter().enumerate() {
            for term in bag.terms() {
                let share = saturated(bag.count(term), bag.len, mean);
                postings
                    .entry(term)
                    .or_default()
                    .push((i as u32, share as f32));
            }
        }
        Index { texts, postings }
    }

    /// The texts that answer best to a query, best first.
    fn top(&self, query: &str, count: usize) -> Vec<usize> {
        let n = self.texts.len();
        let mut scores = vec![0.0_f32; n];
        for term in Bag::new(&terms(query)).terms() {
            let Some(postings) = self.postings.get(&term) else {
                continue;
            };
            if postings.len() as f64 > n as f64 * COMMON {
                continue;
            }
            let rarity = idf(postings.len(), n) as f32;
            for &(i, share) in postings {
                scores[i as usize] += rarity * share;
            }
        }
        let mut order: Vec<usize> = (0..n).filter(|&i| scores[i] > 0.0).collect();
        let better = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]).then(a.cmp(&b));
        if order.len() > count {
            order.select_nth_unstable_by(count, better);
            order.truncate(count);
        }
        order.sort_unstable_by(better);
        order
    }
}

/// Sizes of prompts, in passages: as many draws each.
const SIZES: [usize; 10] = [8, 9, 10, 10, 10, 11, 12, 16, 20, 32];
/// A prompt of fewer passages gets others from the corpus.
const FEWEST: usize = 6;
/// Bytes of a right passage that are its query.
const QUERY: usize = 300;
/// Shorter answers stand in many texts by chance.
const SHORTEST_ANSWER: usize = 4;

/// Prompts to train on: rows that bring few passages get those of the corpus and of other rows that
/// answer best to the question, and to the right passages, by BM25; the passages' titles are there in a
/// share of the prompts.
pub fn prompts(examples: &[Example], corpus: &[String], options: &Options) -> Vec<Example> {
    let mut texts: Vec<String> = corpus.to_vec();
    let lacking = |example: &Example| example.docs.len() < FEWEST;
    let own = examples.iter().filter(|e| lacking(e)).flat_map(|e| &e.docs);
    texts.extend(own.map(|doc| {
        title(doc)
            .map_or(doc.as_str(), |(_, body)| body)
            .to_string()
    }));
    texts.sort_unstable();
    texts.dedup();
    let index = match examples.iter().any(lacking) {
        true => Some(Index::new(&texts)),
        false => None,
    };
    examples
        .par_iter()
        .enumerate()
        .map(|(i, example)| {
            let mut random = Random::of(options.seed, &[1, i as u64]);
            let mut example = example.clone();
            if let Some(index) = index.as_ref().filter(|_| lacking(&example)) {
                add_negatives(&mut example, index, &mut random);
            }
            let titled = random.unit() < options.titled;
            for doc in &mut example.docs {
                *doc = with_title(doc, titled);
            }
            example
        })
        .collect()
}

/// Fills a prompt up with passages that are like the right ones and are not right.
fn add_negatives(example: &mut Example, index: &Index<'_>, random: &mut Random) {
    let size = SIZES[random.below(SIZES.len())];
    let right: Vec<String> = (0..example.docs.len())
        .filter(|&i| example.gold[i])
        .map(|i| example.docs[i].clone())
        .collect();
    // In a question of one step what holds the answer may be right too.
    let answers: Vec<&str> = match right.len() {
        1 => example.answers.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    let answered = |text: &str| {
        let mut long = answers.iter().filter(|a| a.len() >= SHORTEST_ANSWER);
        long.any(|answer| text.contains(answer))
    };
    let start = |text: &str| text.chars().take(60).collect::<String>();
    let wanted = size.saturating_sub(example.docs.len());
    let mut queries = vec![(example.question.clone(), wanted)];
    queries.extend(right.iter().map(|text| {
        let end = text.floor_char_boundary(QUERY);
        (text[..end].to_string(), wanted / 2)
    }));
    let mut found: Vec<&str> = Vec::new();
    for (query, count) in queries {
        let mut left = count;
        for i in index.top(&query, 2 * count + 8) {
            let text = index.texts[i].as_str();
            let known = right
                .iter()
                .any(|r| r.contains(&start(text)) || text.contains(&start(r)));
            if left > 0 && !known && !answered(text) && !found.contains(&text) {
                found.push(text);
                left -= 1;
            }
        }
    }
    random.shuffle(&mut found);
    for text in found.into_iter().take(wanted) {
        example.docs.push(text.to_string());
        example.gold.push(false);
    }
    let mut order: Vec<usize> = (0..example.docs.len()).collect();
    random.shuffle(&mut order);
    example.docs = order
        .iter()
        .map(|&i| std::mem::take(&mut example.docs[i]))
        .collect();
    example.gold = order.iter().map(|&i| example.gold[i]).collect();
}

/// Takes the titles off an example's passages.
pub fn without_titles(example: &mut Example) {
    for doc in &mut example.docs {
        *doc = with_title(doc, false);
    }
}

/// A passage with its title in front, or without it. A passage that has none gets what stands before its
/// first verb, or the name that it repeats.
fn with_title(doc: &str, titled: bool) -> String {
    match (titled, title(doc)) {
        (true, Some(_)) => doc.to_string(),
        (false, Some((_, body))) => body.to_string(),
        (false, None) => doc.to_string(),
        (true, None) => match head(doc).or_else(|| frequent_name(doc)) {
            Some(head) => format!("{head}: {doc}"),
            None => doc.to_string(),
        },
    }
}

/// A prompt's passages with their sentences.
pub(crate) fn passages(docs: &[String]) -> Vec<Passage<'_>> {
    docs.iter().map(|doc| Passage::of(doc)).collect()
}

/// What a step learns from: rows of features by passage, and which are right.
struct Sample {
    rows: Vec<Vec<f32>>,
    gold: Vec<bool>,
    /// What is added to the network's score of each; none: nothing is.
    offsets: Vec<f64>,
}

impl Sample {
    fn new(columns: &[Vec<f64>], gold: &[bool]) -> Self {
        let row = |row| columns.iter().map(|column| column[row] as f32).collect();
        Sample {
            rows: (0..gold.len()).map(row).collect(),
            gold: gold.to_vec(),
            offsets: Vec::new(),
        }
    }

    /// For the network that corrects the sum of scores and an encoder's cosines.
    fn of_meaning(ranker: &Ranker, prompt: &Prompt<'_>, gold: &[bool], cosines: &[f64]) -> Self {
        let candidates = prompt.candidates(usize::MAX);
        let all: Vec<usize> = (0..gold.len()).collect();
        let meaning = Meaning {
            read: &all,
            similarity: cosines,
            unit: COSINE,
        };
        let (read, sum, columns) = candidates.judged(&ranker.scores(&candidates), meaning);
        let gold: Vec<bool> = read.into_iter().map(|i| gold[i]).collect();
        Sample {
            offsets: sum,
            ..Sample::new(&columns, &gold)
        }
    }
}

/// The largest share of a question's words that right passages lose in a copy of their prompt.
const MOST_LOST: f64 = 0.5;

/// A prompt's passages, the right ones without a share of the question's words: questions in other words than the
/// text has, of which the rows hold few.
fn reworded(example: &Example, mut random: Random) -> Vec<String> {
    let share = random.unit() * MOST_LOST;
    let question = Bag::new(&terms(&example.question));
    let lost: HashSet<Term> = question.terms().filter(|_| random.unit() < share).collect();
    let docs = example.docs.iter().zip(&example.gold);
    docs.map(|(doc, gold)| match gold {
        true => without(doc, &lost),
        false => doc.clone(),
    })
    .collect()
}

/// What training found, and how it went.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Its weights.
    pub ranker: Ranker,
    /// Mean loss of the last pass of each stage.
    pub loss: Vec<f64>,
    /// Of the network that weighs an encoder's cosines, and the prompts that it was trained on.
    pub meaning: Option<(f64, usize)>,
    /// Prompts that were trained on.
    pub prompts: usize,
}

/// Trains a ranker on prompts. `cosines` are an encoder's, of each prompt's question and its documents; a prompt
/// that was not read has none. Without any the ranker adds cosines by a fixed weight.
///
/// # Errors
/// [`Error::Input`] where there are fewer than two prompts that hold both right and other passages, where
/// cosines do not fit their prompts, or for an option out of its range.
pub fn train(
    examples: &[Example],
    cosines: Option<&[Vec<f64>]>,
    options: &Options,
) -> Result<Trained> {
    options.check()?;
    let of = |i: usize| cosines.map_or(&[][..], |all| all.get(i).map_or(&[], Vec::as_slice));
    if let Some(wrong) = (0..examples.len())
        .find(|&i| !matches!(of(i).len(), n if n == 0 || n == examples[i].docs.len()))
    {
        return Err(Error::input(
            format!("{} cosines", of(wrong).len()),
            format!(
                "expected one for each of {} documents",
                examples[wrong].docs.len()
            ),
        ));
    }
    let (usable, cosines): (Vec<&Example>, Vec<&[f64]>) = examples
        .iter()
        .enumerate()
        .filter(|(_, e)| e.gold.contains(&true) && e.gold.contains(&false))
        .map(|(i, example)| (example, of(i)))
        .unzip();
    if usable.len() < 2 {
        return Err(Error::input(
            format!("{} prompts", usable.len()),
            "expected two or more that hold right and other passages; give more rows, or a corpus",
        ));
    }
    let prompts: Vec<Prompt<'_>> = usable
        .par_iter()
        .map(|example| Prompt::new(&example.question, passages(&example.docs)))
        .collect();
    let candidates: Vec<Candidates<'_>> = prompts
        .par_iter()
        .map(|prompt| prompt.candidates(usize::MAX))
        .collect();
    let gold: Vec<Vec<bool>> = candidates
        .iter()
        .zip(&usable)
        .map(|(candidates, example)| candidates.chosen.iter().map(|&i| example.gold[i]).collect())
        .collect();
    let fit = |parts: &[Sample], stage: usize, part: u64| {
        let draws = |seed| Random::of(options.seed, &[2, 3 * stage as u64 + part, seed]);
        fit_all(parts, &stage_names(stage), options, draws)
    };
    let (mut stages, mut losses) = (Vec::new(), Vec::new());
    let mut scores: Vec<Vec<f64>> = Vec::new();
    let half = candidates.len() / 2;
    for stage in 0..options.stages {
        let features: Vec<Cow<'_, [Vec<f64>]>> = candidates
            .par_iter()
            .enumerate()
            .map(|(i, candidates)| match scores.get(i) {
                None => Cow::Borrowed(candidates.first.as_slice()),
                Some(scores) => Cow::Owned(candidates.later(scores)),
            })
            .collect();
        let samples: Vec<Sample> = features
            .iter()
            .zip(&gold)
            .map(|(columns, gold)| Sample::new(columns, gold))
            .collect();
        if stage + 1 == options.stages {
            let (net, loss) = fit(&samples, stage, 2)?;
            stages.push(net);
            losses.push(loss);
            break;
        }
        // Each half is scored by networks that never saw it: the next stage learns from scores as they are on
        // new prompts.
        let (front, back) = samples.split_at(half);
        let (front, back) = rayon::join(|| fit(front, stage, 0), || fit(back, stage, 1));
        let ((front, front_loss), (back, back_loss)) = (front?, back?);
        scores = features
            .par_iter()
            .enumerate()
            .map(|(i, columns)| if i < half { &back } else { &front }.scores(columns))
            .collect();
        stages.extend(Net::mean_of(&[front, back]));
        losses.push((front_loss + back_loss) / 2.0);
    }
    let read = usable.iter().zip(&prompts).zip(&cosines);
    let read: Vec<_> = read.filter(|(_, cosines)| !cosines.is_empty()).collect();
    let meaning = match read.is_empty() {
        true => None,
        false => {
            let others = usable.iter().zip(&cosines).filter(|(_, c)| c.is_empty());
            let others: Vec<Example> = others.map(|(&example, _)| example.clone()).collect();
            let samples = meaning_samples(&others, &read, options)?;
            // Half as many features, a fifth of the prompts: half the units and passes.
            let options = Options {
                hidden: options.hidden.div_ceil(2),
                epochs: options.epochs.div_ceil(2),
                ..options.clone()
            };
            let draws = |seed| Random::of(options.seed, &[4, seed]);
            Some(fit_all(&samples, &meaning_names(), &options, draws)?)
        }
    };
    Ok(Trained {
        meaning: meaning.as_ref().map(|(_, loss)| (*loss, read.len())),
        ranker: Ranker {
            stages,
            meaning: meaning.map(|(net, _)| net),
        },
        loss: losses,
        prompts: usable.len(),
    })
}

/// A prompt that an encoder read, and its cosines.
type ReadPrompt<'a> = ((&'a &'a Example, &'a Prompt<'a>), &'a &'a [f64]);

/// What the network over scores and cosines learns from: each prompt that was read, and a copy in other words.
/// Scores are those of a ranker that was trained on the other prompts, as they are on new ones.
fn meaning_samples(
    others: &[Example],
    read: &[ReadPrompt<'_>],
    options: &Options,
) -> Result<Vec<Sample>> {
    if others.len() < 2 {
        return Err(Error::input(
            format!("cosines for all but {} prompts", others.len()),
            "expected two or more without, whose ranker scores the others",
        ));
    }
    let ranker = train(others, None, options)?.ranker;
    let samples = read
        .par_iter()
        .enumerate()
        .flat_map_iter(|(i, ((example, prompt), cosines))| {
            let Example { question, gold, .. } = example;
            let docs = reworded(example, Random::of(options.seed, &[3, i as u64]));
            let copy = Prompt::new(question, passages(&docs));
            [prompt, &copy].map(|prompt| Sample::of_meaning(&ranker, prompt, gold, cosines))
        });
    Ok(samples.collect())
}

impl Options {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option, its value and the range.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String, reason: &str| Err(Error::input(what, reason));
        for (name, value, max) in [
            ("hidden", self.hidden, 4096),
            ("stages", self.stages, 8),
            ("seeds", self.seeds as usize, 64),
            ("epochs", self.epochs, 100_000),
            ("batch", self.batch, 1 << 20),
        ] {
            if value == 0 || value > max {
                return refuse(format!("{name} {value}"), &format!("expected 1 to {max}"));
            }
        }
        for (name, value) in [("dropout", self.dropout), ("titled", self.titled)] {
            if !(0.0..=1.0).contains(&value) || (name == "dropout" && value == 1.0) {
                return refuse(format!("{name} {value}"), "expected a share");
            }
        }
        for (name, value) in [("lr", self.lr), ("weight_decay", self.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(
                    format!("{name} {value}"),
                    "expected a finite number, 0 or more",
                );
            }
        }
        Ok(())
    }
}
