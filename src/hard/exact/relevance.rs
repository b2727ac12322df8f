//! What each context and sentence is worth: by what it tells about the question, or without one by
//! surprise per token.

use crate::error::Result;
use crate::hard::options::{Prompt, RankMethod};
use crate::hard::rank_text;

use super::Exact;
use super::units::{Atom, Parsed};

/// Worth by unit: the higher, the rather it is kept.
pub(super) struct Relevance {
    pub contexts: Vec<f64>,
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

impl Exact<'_> {
    /// Scores contexts and sentences by the rank method.
    pub(super) fn relevance(
        &self,
        prompt: &Prompt,
        contexts: &[String],
        parsed: &[Parsed],
    ) -> Result<Relevance> {
        let default = if prompt.question.is_empty() {
            RankMethod::Llmlingua
        } else {
            RankMethod::Longllmlingua
        };
        let sentences: Vec<Vec<&str>> = contexts
            .iter()
            .zip(parsed)
            .map(|(text, p)| p.sentences.iter().map(|r| &text[r.clone()]).collect())
            .collect();
        match self.options.rank_method.unwrap_or(default) {
            RankMethod::Llmlingua => self.by_surprise(parsed),
            RankMethod::Longllmlingua => self.by_question(prompt, parsed),
            RankMethod::Bm25 => {
                let texts: Vec<&str> = contexts.iter().map(String::as_str).collect();
                let flat: Vec<&str> = sentences.concat();
                Ok(Relevance {
                    contexts: worth(&rank_text::bm25(&texts, &prompt.question)),
                    sentences: unflatten(
                        &worth(&rank_text::bm25(&flat, &prompt.question)),
                        &sentences,
                    ),
                    nll: self.surprise(parsed)?,
                })
            }
            RankMethod::Gzip => {
                let texts: Vec<&str> = contexts.iter().map(String::as_str).collect();
                let flat: Vec<&str> = sentences.concat();
                Ok(Relevance {
                    contexts: worth(&rank_text::gzip(&texts, &prompt.question)),
                    sentences: unflatten(
                        &worth(&rank_text::gzip(&flat, &prompt.question)),
                        &sentences,
                    ),
                    nll: self.surprise(parsed)?,
                })
            }
        }
    }

    fn by_surprise(&self, parsed: &[Parsed]) -> Result<Relevance> {
        let nll = self.surprise(parsed)?;
        let contexts = nll.iter().map(|n| mean(n).unwrap_or(0.0)).collect();
        let sentences = parsed
            .iter()
            .zip(&nll)
            .map(|(p, nll)| sentence_means(p, nll))
            .collect();
        Ok(Relevance {
            contexts,
            sentences,
            nll,
        })
    }

    fn by_question(&self, prompt: &Prompt, parsed: &[Parsed]) -> Result<Relevance> {
        let question = format!("\n{}", prompt.question);
        let question = self.tokenizer.encode(&question, false, false)?.ids;
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        let room = self
            .lm
            .max_positions()
            .saturating_sub(question.len())
            .max(1);
        for p in parsed {
            let whole = &p.ids[p.ids.len().saturating_sub(room)..];
            sequences.push([whole, &question].concat());
            for s in 0..p.sentences.len() {
                let own = &p.ids[p.sentence_tokens(s)];
                sequences.push([&own[own.len().saturating_sub(room)..], &question].concat());
            }
        }
        let views: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let nlls = self.lm.score_each(&views)?;
        let gain = |nll: &Vec<f32>| {
            let tail = &nll[nll.len().saturating_sub(question.len())..];
            -tail.iter().map(|&x| f64::from(x)).sum::<f64>() / tail.len().max(1) as f64
        };
        let mut nlls = nlls.iter();
        let mut relevance = Relevance {
            contexts: vec![],
            sentences: vec![],
            nll: vec![],
        };
        for p in parsed {
            let whole = nlls.next().map_or(0.0, gain);
            relevance.contexts.push(whole);
            let mut own = vec![None; p.ids.len()];
            let mut values = Vec::new();
            for s in 0..p.sentences.len() {
                let Some(nll) = nlls.next() else { break };
                values.push(gain(nll));
                let tokens = p.sentence_tokens(s);
                for (slot, &value) in own[tokens].iter_mut().skip(1).zip(nll) {
                    *slot = Some(value);
                }
            }
            relevance.sentences.push(values);
            relevance.nll.push(own);
        }
        Ok(relevance)
    }

    /// Nll of every token, each context for itself, in overlapping windows.
    fn surprise(&self, parsed: &[Parsed]) -> Result<Vec<Vec<Option<f32>>>> {
        let window = WINDOW.min(self.lm.max_positions());
        let overlap = OVERLAP.min(window / 2);
        let mut windows: Vec<(usize, usize, &[u32])> = Vec::new();
        for (c, p) in parsed.iter().enumerate() {
            let mut start = 0;
            while start < p.ids.len() {
                let end = (start + window).min(p.ids.len());
                windows.push((c, start, &p.ids[start..end]));
                if end == p.ids.len() {
                    break;
                }
                start = end - overlap;
            }
        }
        let views: Vec<&[u32]> = windows.iter().map(|w| w.2).collect();
        let nlls = self.lm.score_each(&views)?;
        let mut all: Vec<Vec<Option<f32>>> =
            parsed.iter().map(|p| vec![None; p.ids.len()]).collect();
        for ((c, start, _), nll) in windows.iter().zip(nlls) {
            for (i, value) in nll.into_iter().enumerate() {
                // The earlier window knew more of what came before.
                all[*c][start + 1 + i].get_or_insert(value);
            }
        }
        Ok(all)
    }
}

fn sentence_means(parsed: &Parsed, nll: &[Option<f32>]) -> Vec<f64> {
    (0..parsed.sentences.len())
        .map(|s| mean(&nll[parsed.sentence_tokens(s)]).unwrap_or(0.0))
        .collect()
}

/// Worth from a ranking, best first.
fn worth(ranking: &[usize]) -> Vec<f64> {
    let mut worth = vec![0.0; ranking.len()];
    for (rank, &i) in ranking.iter().enumerate() {
        worth[i] = -(rank as f64);
    }
    worth
}

fn unflatten<T>(values: &[f64], shape: &[Vec<T>]) -> Vec<Vec<f64>> {
    let mut values = values.iter().copied();
    shape
        .iter()
        .map(|row| values.by_ref().take(row.len()).collect())
        .collect()
}
