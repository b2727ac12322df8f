//! The sentence level: whole sentences under the target (`control_sentence_budget`; LLMLingua,
//! algorithm 1).

use std::ops::Range;

use crate::error::{Error, Result};
use crate::hard::options::{RankMethod, Where};
use crate::hard::python;
use crate::hard::request::Request;
use crate::hard::structured::Segment;
use crate::text::sentences::sentences;

use super::{Conditioning, Reference, Stretch, stretches_of};

/// For each context the byte ranges that stay, and their stretches.
type Kept = (Vec<Vec<Range<usize>>>, Option<Vec<Vec<Stretch>>>);

impl Reference<'_> {
    /// The sentences of each context that stay.
    pub(super) fn filter_sentences(
        &self,
        prompt: &Request,
        contexts: &[&str],
        target: f64,
        condition: Conditioning,
        segments: Option<&[Vec<Segment>]>,
    ) -> Result<Kept> {
        let split: Vec<Vec<Range<usize>>> = contexts
            .iter()
            .map(|context| with_gaps(context))
            .collect::<Result<_>>()?;
        let texts: Vec<&str> = contexts
            .iter()
            .zip(&split)
            .flat_map(|(context, ranges)| ranges.iter().map(|r| &context[r.clone()]))
            .collect();
        let stretches = segments.map(|segments| {
            let all = stretches_of(segments);
            let cut = |(context, ranges): (&[Stretch], &Vec<Range<usize>>), text: &str| {
                cut_stretches(
                    context,
                    ranges.iter().map(|r| python::len(&text[r.clone()])),
                )
            };
            all.iter()
                .map(Vec::as_slice)
                .zip(&split)
                .zip(contexts)
                .map(|(pair, text)| cut(pair, text))
                .collect::<Vec<Vec<Vec<Stretch>>>>()
        });
        if texts.len() <= 1 {
            let stretches = stretches.map(|all| all.into_iter().map(|c| c.concat()).collect());
            return Ok((split, stretches));
        }

        let ranked = if self.options.rank_method == RankMethod::Longllmlingua {
            self.rank_with_bonus(&texts, &split, &prompt.question, condition.at)?
        } else {
            self.rank(&texts, &prompt.question, condition.at)?
        };
        let lengths = self.lengths(&texts)?;
        let target = if target < 0.0 { 100.0 } else { target };
        let mut left = target * self.options.token_budget_ratio;
        let mut keep = vec![false; texts.len()];
        for i in ranked {
            left -= lengths[i] as f64;
            keep[i] = true;
            if left < 0.0 {
                break;
            }
        }
        if let Some(stretches) = &stretches {
            for (keep, sentence) in keep.iter_mut().zip(stretches.iter().flatten()) {
                *keep |= sentence.iter().any(|s| !s.compress);
            }
        }

        let mut flags = keep.iter();
        let kept: Vec<Vec<bool>> = split
            .iter()
            .map(|c| flags.by_ref().take(c.len()).copied().collect())
            .collect();
        let stretches = stretches.map(|all| {
            all.iter()
                .zip(&kept)
                .map(|(context, kept)| chosen(context, kept).flatten().copied().collect())
                .collect()
        });
        let ranges = split
            .iter()
            .zip(&kept)
            .map(|(context, kept)| chosen(context, kept).cloned().collect())
            .collect();
        Ok((ranges, stretches))
    }

    /// LongLLMLingua's ranking, with `high_priority_bonus` for the sentences to be kept. (Conditioned
    /// on a question, low values come first, so that the reference's bonus then works against them.)
    fn rank_with_bonus(
        &self,
        texts: &[&str],
        split: &[Vec<Range<usize>>],
        question: &str,
        at: Where,
    ) -> Result<Vec<usize>> {
        let options = self.options;
        let bonus = options.high_priority_bonus;
        let mut nlls = self.mean_nlls(texts, question, at)?;
        // The reference reads the means as f32.
        nlls.iter_mut()
            .for_each(|nll| *nll = f64::from(*nll as f32));
        let n = nlls.len();
        for nll in &mut nlls[..options.keep_first_sentence.min(n)] {
            *nll += bonus;
        }
        for nll in &mut nlls[n - options.keep_last_sentence.min(n)..] {
            *nll += bonus;
        }
        if options.keep_sentence_number > 0 {
            let mut start = 0;
            for context in split {
                let own = start..start + context.len();
                for i in python::argsort(&nlls[own])
                    .into_iter()
                    .take(options.keep_sentence_number)
                {
                    nlls[start + i] += bonus;
                }
                start += context.len();
            }
        }
        if at == Where::None {
            nlls.iter_mut().for_each(|nll| *nll = -*nll);
        }
        Ok(python::argsort(&nlls))
    }
}

fn chosen<'a, T>(items: &'a [T], keep: &'a [bool]) -> impl Iterator<Item = &'a T> {
    items
        .iter()
        .zip(keep)
        .filter(|(_, keep)| **keep)
        .map(|(item, _)| item)
}

/// Sentences with the white space after them, so that together they are the text; an empty text has none.
fn with_gaps(text: &str) -> Result<Vec<Range<usize>>> {
    let found = sentences(text);
    if found.is_empty() {
        return match text.is_empty() {
            true => Ok(Vec::new()),
            // The reference fails at an assertion.
            false => Err(Error::input(
                "context",
                "nothing but white space, which has no sentences; leave it out",
            )),
        };
    }
    let starts: Vec<usize> = found.into_iter().skip(1).map(|s| s.start).collect();
    let ends = starts.iter().copied().chain([text.len()]);
    let starts = [0].into_iter().chain(starts.iter().copied());
    Ok(starts.zip(ends).map(|(start, end)| start..end).collect())
}

/// Cuts a context's stretches at the ends of its sentences, given in characters.
fn cut_stretches(context: &[Stretch], sentences: impl Iterator<Item = usize>) -> Vec<Vec<Stretch>> {
    let mut left = context.iter().copied();
    let mut current = left.next();
    sentences
        .map(|mut remain| {
            let mut cut = Vec::new();
            while remain > 0 {
                let Some(stretch) = &mut current else { break };
                let chars = stretch.chars.min(remain);
                cut.push(Stretch { chars, ..*stretch });
                remain -= chars;
                stretch.chars -= chars;
                if stretch.chars == 0 {
                    current = left.next();
                }
            }
            cut
        })
        .collect()
}
