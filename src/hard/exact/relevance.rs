//! What each context and sentence is worth: by what it tells about the question, or without one by
//! surprisal per token.

use std::ops::Range;

use crate::control;
use crate::error::Result;
use crate::hard::options::{Effort, Granularity, RankMethod};
use crate::hard::rank_text;
use crate::hard::request::Request;

use super::Exact;
use super::lexical::{Bag, bm25, terms};
use super::rank::{self, Prompt, Ranker, descending, standardised};
use super::salience::{lateness, salience};
use super::units::{Atom, Parsed};

/// Worth by unit: the higher, the rather it is kept.
pub(super) struct Relevance {
    pub contexts: Vec<f64>,
    /// For each sentence of each context the worth of the passage that it stands in.
    pub passages: Vec<Vec<f64>>,
    pub sentences: Vec<Vec<f64>>,
    /// For each sentence of each context whether the ones before it in the order are enough.
    pub dispensable: Vec<Vec<bool>>,
    /// Nll of each token of each context, where it was scored.
    pub nll: Vec<Vec<Option<f32>>>,
}

impl Relevance {
    /// Mean nll of an atom's tokens.
    pub fn nll_of(&self, context: usize, atom: &Atom) -> Option<f32> {
        mean(&self.nll[context][atom.tokens.clone()]).map(|mean| mean as f32)
    }

    /// Mean nll of each word's tokens.
    pub fn word_surprisal(&self, parsed: &[Parsed]) -> Vec<Vec<f64>> {
        parsed
            .iter()
            .zip(&self.nll)
            .map(|(parsed, nll)| {
                parsed
                    .atoms
                    .chunk_by(|a, b| a.word == b.word)
                    .map(|word| {
                        let tokens = word[0].tokens.start..word[word.len() - 1].tokens.end;
                        mean(&nll[tokens]).unwrap_or(f64::INFINITY)
                    })
                    .collect()
            })
            .collect()
    }
}

/// The mean of what is there.
fn mean(values: &[Option<f32>]) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0);
    for value in values.iter().flatten() {
        sum += f64::from(*value);
        n += 1;
    }
    (n > 0).then(|| sum / f64::from(n))
}

/// Tokens of a passage, the unit that the question is put to: a context of up to twice that is one
/// passage, a longer one is cut at sentence ends.
const PASSAGE: usize = 160;
/// How much the likeness to the best passage counts where the model ranks: what a question of two
/// steps needs next is often named there and not in the question. (In standard deviations of the
/// passages' scores.)
const SECOND_STEP: f64 = 1.0;
/// Tokens that the model reads of a prompt without a question, whatever the budget.
const READ: usize = 2048;
/// What a sentence that the model has not read is at least below those that it has read.
const UNREAD: f64 = 100.0;
/// Log-odds that a nat of the question's nll is worth beside the ranker's.
const NAT: f64 = 1.0;
/// Passages within so many log-odds of the cut could be on its other side; where the first outside is
/// so much below the best as `DOUBT`, neither side is likely to be needed.
const UNSURE: f64 = 1.0;
const DOUBT: f64 = 4.0;
/// Passages that the model reads at a cut where little may be spent, and where more may be.
const READ_UNSURE: usize = 6;
const READ_BEST: usize = 48;
/// Passages that an encoder reads, unless all effort is wanted.
const ENCODED: usize = 64;
/// What is so many log-odds below the best is not needed, where [`Options::enough`] asks.
///
/// [`Options::enough`]: crate::hard::Exact::enough
const FAR_BELOW: f64 = 7.5;

/// A run of sentences of one context.
pub(super) struct Passage {
    pub context: usize,
    pub sentences: Range<usize>,
}

impl Passage {
    /// Its bytes of its context.
    fn range(&self, parsed: &[Parsed]) -> Range<usize> {
        let sentences = &parsed[self.context].sentences[self.sentences.clone()];
        let start = sentences.first().map_or(0, |s| s.start);
        start..sentences.last().map_or(start, |s| s.end)
    }

    fn text<'t>(&self, contexts: &'t [String], parsed: &[Parsed]) -> &'t str {
        &contexts[self.context][self.range(parsed)]
    }

    /// Its tokens in its context.
    pub fn tokens(&self, parsed: &[Parsed]) -> Range<usize> {
        let parsed = &parsed[self.context];
        let start = parsed.sentence_tokens(self.sentences.start).start;
        let end = parsed.sentence_tokens(self.sentences.end - 1).end;
        start..end.max(start)
    }
}

/// The worth of passages, and that of the sentences of each context.
type Worth = (Vec<f64>, Vec<Vec<f64>>);

impl Exact<'_> {
    /// How well each text answers to a question.
    pub fn rank(&self, question: &str, texts: &[String]) -> Result<Vec<f64>> {
        let parsed = texts
            .iter()
            .map(|text| Parsed::new(self.tokenizer, text, self.layout(text, None)))
            .collect::<Result<Vec<_>>>()?;
        let request = Request::default().with_question(question);
        Ok(self
            .relevance(&request, texts, &parsed, usize::MAX)?
            .contexts)
    }

    /// Scores contexts and sentences by the rank method; `budget` is what there is for them.
    pub(super) fn relevance(
        &self,
        prompt: &Request,
        contexts: &[String],
        parsed: &[Parsed],
        budget: usize,
    ) -> Result<Relevance> {
        let mut relevance = self.own_relevance(prompt, contexts, parsed, budget)?;
        if !self.options.context_scores.is_empty() {
            relevance.contexts.clone_from(&self.options.context_scores);
        }
        Ok(relevance)
    }

    /// The same, whatever scores the caller gave.
    fn own_relevance(
        &self,
        prompt: &Request,
        contexts: &[String],
        parsed: &[Parsed],
        budget: usize,
    ) -> Result<Relevance> {
        let question = prompt.question.as_str();
        let mut nll: Vec<Vec<Option<f32>>> =
            parsed.iter().map(|p| vec![None; p.ids.len()]).collect();
        let method = self.options.rank_method;
        if method == Some(RankMethod::Llmlingua)
            || self.options.granularity == Granularity::Token
            || self.options.trace
        {
            nll = self.surprisal(parsed)?;
        }
        let passages = passages(parsed);
        let (by_passage, sentences) = match method {
            None if question.is_empty() => {
                let sentences = self.by_salience(contexts, parsed, &passages, budget, &mut nll)?;
                return Ok(Relevance::of_sentences(sentences, nll));
            }
            None => self.by_ranker(question, contexts, parsed, &passages, budget)?,
            Some(RankMethod::Llmlingua) => by_surprisal(parsed, &passages, &nll),
            Some(RankMethod::Longllmlingua) => {
                self.by_question(question, contexts, parsed, &passages)?
            }
            Some(RankMethod::Bm25) => by_rank(contexts, parsed, &passages, |texts| {
                rank_text::bm25(texts, question)
            }),
            Some(RankMethod::Sentbert) => self.by_meaning(question, contexts, parsed, &passages)?,
            #[cfg(feature = "gzip")]
            Some(RankMethod::Gzip) => by_rank(contexts, parsed, &passages, |texts| {
                rank_text::gzip(texts, question)
            }),
        };
        // A context is as good as its best passage.
        let mut by_context = vec![f64::NEG_INFINITY; parsed.len()];
        let mut by_sentence: Vec<Vec<f64>> = parsed
            .iter()
            .map(|p| vec![0.0; p.sentences.len()])
            .collect();
        for (passage, &worth) in passages.iter().zip(&by_passage) {
            let own = &mut by_context[passage.context];
            *own = own.max(worth);
            by_sentence[passage.context][passage.sentences.clone()].fill(worth);
        }
        let best = by_passage.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let enough = self.options.enough && method.is_none();
        let dispensable = by_sentence
            .iter()
            .map(|own| {
                own.iter()
                    .map(|worth| enough && *worth < best - FAR_BELOW)
                    .collect()
            })
            .collect();
        Ok(Relevance {
            contexts: by_context,
            passages: by_sentence,
            sentences,
            dispensable,
            nll,
        })
    }

    /// By the learned ranker; the model reads only where the effort lets it.
    fn by_ranker(
        &self,
        question: &str,
        contexts: &[String],
        parsed: &[Parsed],
        passages: &[Passage],
        budget: usize,
    ) -> Result<Worth> {
        let texts = passages.iter().map(|p| {
            let range = p.range(parsed);
            let sentences = &parsed[p.context].sentences[p.sentences.clone()];
            let text = &contexts[p.context];
            rank::Passage {
                text: &text[range.clone()],
                sentences: sentences
                    .iter()
                    .map(|s| s.start - range.start..s.end - range.start)
                    .collect(),
                heading: match p.sentences.start {
                    0 => None,
                    _ => rank::title(text).map(|(title, _)| title),
                },
            }
        });
        let texts: Vec<_> = texts.collect();
        let prompt = control::step(|| Ok(Prompt::new(question, texts)))?;
        let candidates = control::step(|| Ok(prompt.candidates(2 * budget / PASSAGE)))?;
        let ranker = self
            .options
            .ranker
            .as_ref()
            .unwrap_or_else(|| Ranker::shipped());
        let scores = control::step(|| Ok(ranker.scores(&candidates)))?;
        let mut worth = candidates.spread(&scores);
        if let Some(unit) = self.lm.similarity_unit()
            && self.options.effort != Effort::Fast
        {
            let mut read = descending(&worth);
            if self.options.effort == Effort::Balanced {
                read.truncate(ENCODED);
            }
            let texts: Vec<&str> = read
                .iter()
                .map(|&i| passages[i].text(contexts, parsed))
                .collect();
            let meaning = rank::Meaning {
                read: &read,
                similarity: &self.lm.similarity(question, &texts)?,
                unit,
            };
            ranker.add_meaning(&candidates, &scores, meaning, &mut worth);
        }
        let read = self.to_read(
            &worth,
            &candidates.chosen,
            parsed,
            passages,
            budget,
            prompt.unspaced(),
        );
        if !read.is_empty() {
            let chosen: Vec<&Passage> = read.iter().map(|&i| &passages[i]).collect();
            let nll = self.question_nll(question, parsed, &chosen)?;
            let mean = nll.iter().sum::<f64>() / nll.len() as f64;
            for (&i, nll) in read.iter().zip(nll) {
                worth[i] += NAT * (mean - nll);
            }
        }
        let mut sentences: Vec<Vec<f64>> = parsed
            .iter()
            .map(|p| vec![0.0; p.sentences.len()])
            .collect();
        let own = control::step(|| Ok(prompt.sentences(&worth)))?;
        for (passage, own) in passages.iter().zip(own) {
            sentences[passage.context][passage.sentences.clone()].copy_from_slice(&own);
        }
        Ok((worth, sentences))
    }

    /// The passages that the model is to read: those close to where the budget ends, which the ranker
    /// may have put on the wrong side of it.
    fn to_read(
        &self,
        worth: &[f64],
        chosen: &[usize],
        parsed: &[Parsed],
        passages: &[Passage],
        budget: usize,
        unspaced: bool,
    ) -> Vec<usize> {
        let max = match (self.options.effort, unspaced) {
            (Effort::Fast, _) => return Vec::new(),
            (Effort::Balanced, false) => READ_UNSURE,
            (Effort::Balanced, true) => 2 * READ_UNSURE,
            (Effort::Best, _) => READ_BEST,
        };
        let order = descending(worth);
        let mut left = budget;
        let fits = |&i: &usize| {
            let tokens = passages[i].tokens(parsed).len();
            let fits = tokens <= left;
            left = left.saturating_sub(tokens);
            fits
        };
        let kept = order.iter().copied().take_while(fits).count();
        let (Some(inside), Some(outside)) = (kept.checked_sub(1), order.get(kept)) else {
            return Vec::new();
        };
        let cut = (worth[order[inside]] + worth[*outside]) / 2.0;
        let everywhere = self.options.effort == Effort::Best || unspaced;
        if !everywhere && worth[*outside] < worth[order[0]] - DOUBT {
            return Vec::new();
        }
        let reach = if everywhere { f64::INFINITY } else { UNSURE };
        let mut near: Vec<usize> = chosen
            .iter()
            .copied()
            .filter(|&i| (worth[i] - cut).abs() <= reach)
            .collect();
        near.sort_by(|&a, &b| (worth[a] - cut).abs().total_cmp(&(worth[b] - cut).abs()));
        near.truncate(max);
        // One passage alone has nothing to be compared with.
        if near.len() < 2 { Vec::new() } else { near }
    }

    /// Without a question: sentences by their surprisal, less a little for each that stands before them
    /// in their paragraph. What the model does not read goes by the rarity of its words.
    fn by_salience(
        &self,
        contexts: &[String],
        parsed: &[Parsed],
        passages: &[Passage],
        budget: usize,
        nll: &mut Vec<Vec<Option<f32>>>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut sentences = salience(contexts, parsed);
        let max = match self.options.effort {
            Effort::Fast => return Ok(sentences),
            Effort::Balanced => READ.max(3 * budget / 2),
            Effort::Best => usize::MAX,
        };
        let total: usize = parsed.iter().map(|p| p.ids.len()).sum();
        if nll.iter().flatten().all(Option::is_none) {
            if total <= max {
                *nll = self.surprisal(parsed)?;
            } else {
                let worth = |p: &Passage| {
                    let own = &sentences[p.context][p.sentences.clone()];
                    own.iter().copied().fold(f64::NEG_INFINITY, f64::max)
                };
                let order = descending(&passages.iter().map(worth).collect::<Vec<_>>());
                let mut left = max;
                let chosen = order
                    .into_iter()
                    .map(|i| &passages[i])
                    .take_while(|passage| {
                        let tokens = passage.tokens(parsed).len();
                        let fits = tokens <= left;
                        left = left.saturating_sub(tokens);
                        fits
                    });
                self.surprisal_of(parsed, &chosen.collect::<Vec<_>>(), nll)?;
            }
        }
        // What was read comes first, by what the model says of it.
        let floor = sentences
            .iter()
            .flatten()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        for (c, own) in sentences.iter_mut().enumerate() {
            let late = lateness(&contexts[c], &parsed[c].sentences);
            for (s, worth) in own.iter_mut().enumerate() {
                *worth = match mean(&nll[c][parsed[c].sentence_tokens(s)]) {
                    Some(mean) => mean - late[s],
                    None => *worth - floor - UNREAD,
                };
            }
        }
        Ok(sentences)
    }

    /// By an encoder, passages and sentences alike.
    fn by_meaning(
        &self,
        question: &str,
        contexts: &[String],
        parsed: &[Parsed],
        passages: &[Passage],
    ) -> Result<Worth> {
        let texts = sentence_texts(contexts, parsed);
        let mut own = self.lm.similarity(question, &texts)?.into_iter();
        let sentences = parsed
            .iter()
            .map(|p| own.by_ref().take(p.sentences.len()).collect())
            .collect();
        let texts: Vec<&str> = passages.iter().map(|p| p.text(contexts, parsed)).collect();
        Ok((self.lm.similarity(question, &texts)?, sentences))
    }

    /// By what the model says: how much lower the question's surprisal is after a text (LongLLMLingua, eq.
    /// 2), the words they share, and for the second step of a question the words shared with the passage
    /// that answers it best.
    fn by_question(
        &self,
        question: &str,
        contexts: &[String],
        parsed: &[Parsed],
        passages: &[Passage],
    ) -> Result<Worth> {
        let query = Bag::new(&terms(question));
        let bag = |text: &str| Bag::new(&terms(text));
        let words: Vec<Bag> = passages
            .iter()
            .map(|p| bag(p.text(contexts, parsed)))
            .collect();
        let all: Vec<&Passage> = passages.iter().collect();
        let mut score = self.question_nll(question, parsed, &all)?;
        score.iter_mut().for_each(|nll| *nll = -*nll);
        let mut score = standardised(&score);
        add(&mut score, &standardised(&bm25(words.iter(), &query)), 1.0);
        if let Some(&best) = descending(&score).first() {
            let mut likeness = bm25(words.iter(), &words[best]);
            likeness[best] = 0.0;
            let top = likeness.iter().copied().fold(0.0, f64::max);
            likeness[best] = top;
            if top > 0.0 {
                add(&mut score, &likeness, SECOND_STEP / top);
            }
        }

        // A sentence stands by its passage and its own words.
        let by_passage = standardised(&score);
        let mut places = Vec::new();
        let mut sentence_words = Vec::new();
        for (p, passage) in passages.iter().enumerate() {
            for s in passage.sentences.clone() {
                let range = parsed[passage.context].sentences[s].clone();
                places.push((p, passage.context, s));
                sentence_words.push(bag(&contexts[passage.context][range]));
            }
        }
        let own = standardised(&bm25(sentence_words.iter(), &query));
        let mut sentences: Vec<Vec<f64>> = parsed
            .iter()
            .map(|p| vec![0.0; p.sentences.len()])
            .collect();
        for ((p, c, s), own) in places.into_iter().zip(own) {
            sentences[c][s] = rank::PASSAGE_WEIGHT * by_passage[p] + own;
        }
        Ok((score, sentences))
    }
}

impl Relevance {
    /// Where each sentence is a passage of its own.
    fn of_sentences(sentences: Vec<Vec<f64>>, nll: Vec<Vec<Option<f32>>>) -> Self {
        let max = |own: &Vec<f64>| own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Relevance {
            contexts: sentences.iter().map(max).collect(),
            passages: sentences.clone(),
            dispensable: sentences.iter().map(|own| vec![false; own.len()]).collect(),
            sentences,
            nll,
        }
    }
}

/// Cuts contexts into passages at sentence ends.
fn passages(parsed: &[Parsed]) -> Vec<Passage> {
    let mut passages = Vec::new();
    for (context, p) in parsed.iter().enumerate() {
        let whole = p.ids.len() <= 2 * PASSAGE;
        let (mut first, mut tokens) = (0, 0);
        for s in 0..p.sentences.len() {
            tokens += p.sentence_tokens(s).len();
            let last = s + 1 == p.sentences.len();
            if last || (!whole && tokens >= PASSAGE) {
                passages.push(Passage {
                    context,
                    sentences: first..s + 1,
                });
                (first, tokens) = (s + 1, 0);
            }
        }
    }
    passages
}

/// The highest surprisal per token first.
fn by_surprisal(
    parsed: &[Parsed],
    passages: &[Passage],
    nll: &[Vec<Option<f32>>],
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let worth = |c: usize, tokens: Range<usize>| mean(&nll[c][tokens]).unwrap_or(0.0);
    let by_passage = passages
        .iter()
        .map(|p| worth(p.context, p.tokens(parsed)))
        .collect();
    let sentences = parsed
        .iter()
        .enumerate()
        .map(|(c, p)| {
            (0..p.sentences.len())
                .map(|s| worth(c, p.sentence_tokens(s)))
                .collect()
        })
        .collect();
    (by_passage, sentences)
}

/// Worth by a ranking of texts, best first.
fn by_rank(
    contexts: &[String],
    parsed: &[Parsed],
    passages: &[Passage],
    rank: impl Fn(&[&str]) -> Vec<usize>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let worth = |texts: &[&str]| {
        let mut worth = vec![0.0; texts.len()];
        for (place, i) in rank(texts).into_iter().enumerate() {
            worth[i] = -(place as f64);
        }
        worth
    };
    let mut flat = worth(&sentence_texts(contexts, parsed)).into_iter();
    let passages: Vec<&str> = passages.iter().map(|p| p.text(contexts, parsed)).collect();
    let sentences = parsed
        .iter()
        .map(|p| flat.by_ref().take(p.sentences.len()).collect())
        .collect();
    (worth(&passages), sentences)
}

/// The sentences of all contexts.
fn sentence_texts<'t>(contexts: &'t [String], parsed: &[Parsed]) -> Vec<&'t str> {
    contexts
        .iter()
        .zip(parsed)
        .flat_map(|(text, p)| p.sentences.iter().map(|r| &text[r.clone()]))
        .collect()
}

fn add(to: &mut [f64], values: &[f64], weight: f64) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += weight * value;
    }
}
