//! What the scoring model says: the surprisal of texts, and of a question after them.

use std::ops::Range;

use crate::error::Result;

use super::Exact;
use super::relevance::Passage;
use super::units::Parsed;

/// Tokens that are read together where a text is scored for itself.
const WINDOW: usize = 1024;
/// Tokens of a window that the next one reads again, to know what came before.
const OVERLAP: usize = 128;

impl Exact<'_> {
    /// Mean nll of the question after each passage.
    pub(super) fn question_nll(
        &self,
        question: &str,
        parsed: &[Parsed],
        passages: &[&Passage],
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

    /// Nll of the tokens of some passages, each for itself.
    pub(super) fn surprisal_of(
        &self,
        parsed: &[Parsed],
        passages: &[&Passage],
        nll: &mut [Vec<Option<f32>>],
    ) -> Result<()> {
        let longest = self.lm.max_positions();
        let ranges: Vec<(usize, Range<usize>)> = passages
            .iter()
            .map(|passage| {
                let tokens = passage.tokens(parsed);
                (
                    passage.context,
                    tokens.start..tokens.end.min(tokens.start + longest),
                )
            })
            .filter(|(_, tokens)| tokens.len() > 1)
            .collect();
        let tails: Vec<(&[u32], usize)> = ranges
            .iter()
            .map(|(c, tokens)| (&parsed[*c].ids[tokens.clone()], 1))
            .collect();
        for ((c, tokens), scored) in ranges.iter().zip(self.lm.estimate_tails(&tails)?) {
            for (slot, value) in nll[*c][tokens.start + 1..].iter_mut().zip(scored) {
                *slot = Some(value);
            }
        }
        Ok(())
    }

    /// Nll of every token, each context for itself, in overlapping windows.
    pub(super) fn surprisal(&self, parsed: &[Parsed]) -> Result<Vec<Vec<Option<f32>>>> {
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
