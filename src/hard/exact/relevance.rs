//! What each context and sentence is worth: by what it tells about the question, or without one by
//! surprise per token.

use std::ops::Range;

use crate::error::Result;
use crate::hard::options::{Granularity, RankMethod};
use crate::hard::rank_text;
use crate::hard::request::Request;

use super::Exact;
use super::lexical;
use super::units::{Atom, Parsed};

/// Worth by unit: the higher, the rather it is kept.
pub(super) struct Relevance {
    pub contexts: Vec<f64>,
    /// For each sentence of each context the worth of the passage that it stands in.
    pub passages: Vec<Vec<f64>>,
    pub sentences: Vec<Vec<f64>>,
    /// Nll of each token of each context, where it was scored.
    pub nll: Vec<Vec<Option<f32>>>,
}

impl Relevance {
    /// Mean nll of an atom's tokens.
    pub fn nll_of(&self, context: usize, atom: &Atom) -> Option<f32> {
        mean(&self.nll[context][atom.tokens.clone()]).map(|mean| mean as f32)
    }

    /// Mean nll of each word's tokens.
    pub fn word_surprise(&self, parsed: &[Parsed]) -> Vec<Vec<f64>> {
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

/// Tokens that are read together where a text is scored for itself.
const WINDOW: usize = 1024;
/// Tokens of a window that the next one reads again, to know what came before.
const OVERLAP: usize = 128;
/// Tokens of a passage, the unit that the question is put to: a context of up to twice that is one
/// passage, a longer one is cut at sentence ends.
const PASSAGE: usize = 160;
/// How much the likeness to the best passage counts: what a question of two steps needs next is
/// often named there and not in the question. (In standard deviations of the passages' scores.)
const SECOND_STEP: f64 = 1.0;
/// How much a sentence's passage counts against the sentence's own words.
const PASSAGE_WEIGHT: f64 = 2.0;

/// A run of sentences of one context.
struct Passage {
    context: usize,
    sentences: Range<usize>,
}

impl Passage {
    fn text<'t>(&self, contexts: &'t [String], parsed: &[Parsed]) -> &'t str {
        let sentences = &parsed[self.context].sentences[self.sentences.clone()];
        let start = sentences.first().map_or(0, |s| s.start);
        let end = sentences.last().map_or(start, |s| s.end);
        &contexts[self.context][start..end]
    }

    /// Its tokens in its context.
    fn tokens(&self, parsed: &[Parsed]) -> Range<usize> {
        let parsed = &parsed[self.context];
        let start = parsed.sentence_tokens(self.sentences.start).start;
        let end = parsed.sentence_tokens(self.sentences.end - 1).end;
        start..end.max(start)
    }
}

impl Exact<'_> {
    /// Scores contexts and sentences by the rank method.
    pub(super) fn relevance(
        &self,
        prompt: &Request,
        contexts: &[String],
        parsed: &[Parsed],
    ) -> Result<Relevance> {
        let default = if prompt.question.is_empty() {
            RankMethod::Llmlingua
        } else {
            RankMethod::Longllmlingua
        };
        let method = self.options.rank_method.unwrap_or(default);
        let by_itself = method == RankMethod::Llmlingua
            || self.options.granularity == Granularity::Token
            || self.options.trace;
        let nll = if by_itself {
            self.surprise(parsed)?
        } else {
            parsed.iter().map(|p| vec![None; p.ids.len()]).collect()
        };
        let passages = passages(parsed);
        let (by_passage, sentences) = match method {
            RankMethod::Llmlingua => by_surprise(parsed, &passages, &nll),
            RankMethod::Longllmlingua => {
                self.by_question(&prompt.question, contexts, parsed, &passages)?
            }
            RankMethod::Bm25 => by_rank(contexts, parsed, &passages, |texts| {
                rank_text::bm25(texts, &prompt.question)
            }),
            RankMethod::Gzip => by_rank(contexts, parsed, &passages, |texts| {
                rank_text::gzip(texts, &prompt.question)
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
        Ok(Relevance {
            contexts: by_context,
            passages: by_sentence,
            sentences,
            nll,
        })
    }

    /// By what a text tells about the question: how much less surprising the question is after it
    /// (LongLLMLingua, eq. 2), the words they share, and for the second step of a question the words
    /// shared with the passage that answers to it best.
    fn by_question(
        &self,
        question: &str,
        contexts: &[String],
        parsed: &[Parsed],
        passages: &[Passage],
    ) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        let query = lexical::words(question);
        let words: Vec<Vec<String>> = passages
            .iter()
            .map(|p| lexical::words(p.text(contexts, parsed)))
            .collect();
        let mut score = self.question_nll(question, parsed, passages)?;
        score.iter_mut().for_each(|nll| *nll = -*nll);
        standardise(&mut score);
        let mut shared = lexical::bm25(&words, &query);
        standardise(&mut shared);
        add(&mut score, &shared, 1.0);
        if let Some(best) = (0..score.len()).max_by(|&a, &b| score[a].total_cmp(&score[b])) {
            let mut likeness = lexical::bm25(&words, &words[best]);
            likeness[best] = 0.0;
            let top = likeness.iter().copied().fold(0.0, f64::max);
            likeness[best] = top;
            if top > 0.0 {
                add(&mut score, &likeness, SECOND_STEP / top);
            }
        }

        // A sentence stands by its passage and its own words.
        let by_passage = score.clone();
        standardise(&mut score);
        let mut places = Vec::new();
        let mut sentence_words = Vec::new();
        for (p, passage) in passages.iter().enumerate() {
            for s in passage.sentences.clone() {
                let range = parsed[passage.context].sentences[s].clone();
                places.push((p, passage.context, s));
                sentence_words.push(lexical::words(&contexts[passage.context][range]));
            }
        }
        let mut own = lexical::bm25(&sentence_words, &query);
        standardise(&mut own);
        let mut sentences: Vec<Vec<f64>> = parsed
            .iter()
            .map(|p| vec![0.0; p.sentences.len()])
            .collect();
        for ((p, c, s), own) in places.into_iter().zip(own) {
            sentences[c][s] = PASSAGE_WEIGHT * score[p] + own;
        }
        Ok((by_passage, sentences))
    }

    /// Mean nll of the question after each passage.
    fn question_nll(
        &self,
        question: &str,
        parsed: &[Parsed],
        passages: &[Passage],
    ) -> Result<Vec<f64>> {
        let question = self
            .tokenizer
            .encode(&format!("\n{question}"), false, false)?
            .ids;
        let positions = self.lm.max_positions();
        let question = &question[question.len().saturating_sub(positions / 2)..];
        let sequences: Vec<Vec<u32>> = passages
            .iter()
            .map(|passage| {
                let own = &parsed[passage.context].ids[passage.tokens(parsed)];
                let own = &own[own.len().saturating_sub(positions - question.len())..];
                [own, question].concat()
            })
            .collect();
        let tails: Vec<(&[u32], usize)> = sequences
            .iter()
            .map(|ids| (ids.as_slice(), ids.len() - question.len()))
            .collect();
        let nlls = self.lm.estimate_tails(&tails)?;
        let mean = |nll: Vec<f32>| {
            nll.iter().map(|&x| f64::from(x)).sum::<f64>() / nll.len().max(1) as f64
        };
        Ok(nlls.into_iter().map(mean).collect())
    }

    /// Nll of every token, each context for itself, in overlapping windows.
    fn surprise(&self, parsed: &[Parsed]) -> Result<Vec<Vec<Option<f32>>>> {
        let longest = WINDOW.min(self.lm.max_positions());
        let overlap = OVERLAP.min(longest / 2);
        let mut windows: Vec<(usize, usize, &[u32])> = Vec::new();
        for (c, p) in parsed.iter().enumerate() {
            windows.extend(
                windows_of(p.ids.len(), longest, overlap)
                    .map(|range| (c, range.start, &p.ids[range])),
            );
        }
        // Only the first window of a context needs its beginning scored: the window before knew more.
        let tails: Vec<(&[u32], usize)> = windows
            .iter()
            .map(|&(_, start, ids)| (ids, if start == 0 { 1 } else { overlap.max(1) }))
            .collect();
        let nlls = self.lm.estimate_tails(&tails)?;
        let mut all: Vec<Vec<Option<f32>>> =
            parsed.iter().map(|p| vec![None; p.ids.len()]).collect();
        for (((c, start, _), (_, from)), nll) in windows.iter().zip(&tails).zip(nlls) {
            for (slot, value) in all[*c][start + from..].iter_mut().zip(nll) {
                *slot = Some(value);
            }
        }
        Ok(all)
    }
}

/// As few windows of at most `longest` tokens as cover so many, each with `overlap` of the one before, and
/// all about as long: attention costs the square of a length.
fn windows_of(tokens: usize, longest: usize, overlap: usize) -> impl Iterator<Item = Range<usize>> {
    let fresh = longest.saturating_sub(overlap).max(1);
    let count = tokens.saturating_sub(overlap).div_ceil(fresh).max(1);
    let length = (tokens + (count - 1) * overlap).div_ceil(count);
    (0..count).filter_map(move |i| {
        let start = i * (length - overlap.min(length));
        let end = tokens.min(start + length);
        (start < end).then_some(start..end)
    })
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

/// The most surprising per token first.
fn by_surprise(
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
    let sentences: Vec<&str> = contexts
        .iter()
        .zip(parsed)
        .flat_map(|(text, p)| p.sentences.iter().map(|r| &text[r.clone()]))
        .collect();
    let mut flat = worth(&sentences).into_iter();
    let passages: Vec<&str> = passages.iter().map(|p| p.text(contexts, parsed)).collect();
    let sentences = parsed
        .iter()
        .map(|p| flat.by_ref().take(p.sentences.len()).collect())
        .collect();
    (worth(&passages), sentences)
}

/// To mean 0 and standard deviation 1; equal values become 0.
fn standardise(values: &mut [f64]) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    for value in values {
        *value = if deviation > 0.0 {
            (*value - mean) / deviation
        } else {
            0.0
        };
    }
}

fn add(to: &mut [f64], values: &[f64], weight: f64) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += weight * value;
    }
}

#[cfg(test)]
mod tests {
    use super::windows_of;

    #[test]
    fn windows_cover_everything_and_are_about_as_long() {
        for tokens in [0, 1, 127, 128, 129, 1023, 1024, 1025, 1213, 5000] {
            let windows: Vec<_> = windows_of(tokens, 1024, 128).collect();
            assert_eq!(windows.is_empty(), tokens == 0);
            let (mut end, mut lengths) = (0, Vec::new());
            for window in &windows {
                assert!(
                    window.start == 0 || window.start + 128 == end,
                    "{windows:?}"
                );
                assert!(window.end > end && window.len() <= 1024, "{windows:?}");
                end = window.end;
                lengths.push(window.len());
            }
            assert_eq!(end, tokens);
            let shortest = lengths.iter().min().copied().unwrap_or(0);
            let longest = lengths.iter().max().copied().unwrap_or(0);
            assert!(longest - shortest <= windows.len(), "{windows:?}");
        }
        assert_eq!(windows_of(1213, 1024, 128).count(), 2);
        // A model of one position, and one of two.
        for longest in [1, 2] {
            assert!(windows_of(7, longest, longest / 2).all(|w| w.len() <= longest));
        }
    }
}
