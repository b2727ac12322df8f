//! How much of each segment of `iterative_size` tokens is to stay.

use crate::error::{Error, Result};
use crate::hard::python;

use super::{Reference, Stretch};

/// The runs of tokens of one segment, each with its rate.
pub(super) type Segment = Vec<(usize, f64)>;

impl Reference<'_> {
    /// One rate for all, moved by each context's dynamic ratio (`get_dynamic_compression_ratio`).
    /// The contexts are laid end to end with two tokens for each separator; segments are cut from
    /// that.
    pub(super) fn even_ratios(
        &self,
        contexts: &[String],
        target: f64,
        dynamic: &[f64],
    ) -> Result<Vec<Segment>> {
        let size = self.options.iterative_size;
        let mut lengths = Vec::new();
        for context in contexts {
            lengths.push(self.tokenizer.encode(context, false, true)?.ids.len() + 2);
        }
        let tau = target / (lengths.iter().sum::<usize>() + 1) as f64;
        let mut segments = Vec::new();
        let mut current = Segment::new();
        // The reference starts at 1, so the first segment is one token short.
        let mut filled = 1;
        for (length, dynamic) in lengths.into_iter().zip(dynamic) {
            let ratio = (tau + dynamic).clamp(0.0, 1.0);
            if filled + length < size {
                filled += length;
                current.push((length, ratio));
                continue;
            }
            current.push((size - filled, ratio));
            segments.push(std::mem::take(&mut current));
            filled = filled + length - size;
            if filled > size {
                for _ in 0..filled / size {
                    segments.push(vec![(size, ratio)]);
                }
                filled %= size;
            }
            if filled > 0 {
                current.push((filled, ratio));
            }
        }
        if !current.is_empty() {
            segments.push(current);
        }
        Ok(segments)
    }

    /// Each tagged stretch at its own rate (`get_structured_dynamic_compression_ratio` and
    /// `token_segment`); `ids` are the tokens of the contexts.
    pub(super) fn tagged_ratios(
        &self,
        contexts: &[String],
        stretches: &[Vec<Stretch>],
        ids: &[u32],
    ) -> Result<Vec<Segment>> {
        // Characters and rates in one row, each context's last stretch with the separator after it.
        let mut row: Vec<Stretch> = Vec::new();
        for (i, context) in stretches.iter().enumerate() {
            row.extend(context);
            if i + 1 < contexts.len()
                && !context.is_empty()
                && let Some(last) = row.last_mut()
            {
                last.chars += 2;
            }
        }
        for stretch in &mut row {
            if !stretch.compress {
                stretch.rate = 1.0;
            }
        }
        let text = contexts.join("\n\n");
        let covered: usize = row.iter().map(|s| s.chars).sum();
        if covered != python::len(&text) || self.tokenizer.decode(ids) != text {
            return Err(Error::input(
                "structured context",
                "its segments do not add up to its text (a special token or a bare '<' inside?)",
            ));
        }
        self.cut_at_tokens(ids, &row)
    }

    fn cut_at_tokens(&self, ids: &[u32], row: &[Stretch]) -> Result<Vec<Segment>> {
        /// Tokens that are decoded together to see what the last of them adds.
        const WINDOW: usize = 3;
        let size = self.options.iterative_size;
        let beyond = || Error::input("structured context", "tokens go beyond the last segment");
        let (mut at, mut seen) = (0, 0);
        let mut segments = Vec::new();
        let mut current = Segment::new();
        let (mut start, mut last_rate) = (0, -1.0);
        for i in 0..ids.len() {
            let window = if i < WINDOW { 0 } else { i + 1 - WINDOW };
            let before = python::len(&self.tokenizer.decode(&ids[window..i]));
            let after = python::len(&self.tokenizer.decode(&ids[window..=i]));
            let mut chars = after.saturating_sub(before);
            let stretch = *row.get(at).ok_or_else(beyond)?;
            let rate = if chars > 0 && chars >= stretch.chars - seen {
                // The token reaches the end of one stretch or more: the lowest of their rates
                // holds, unless one of them must stay whole.
                let mut touched: Vec<Stretch> = Vec::new();
                while chars > 0 && at < row.len() && chars >= row[at].chars - seen {
                    touched.push(row[at]);
                    chars -= row[at].chars - seen;
                    at += 1;
                    seen = 0;
                }
                if chars > 0 {
                    touched.push(*row.get(at).ok_or_else(beyond)?);
                }
                if touched.iter().any(|s| !s.compress) {
                    1.0
                } else {
                    touched.iter().map(|s| s.rate).fold(f64::INFINITY, f64::min)
                }
            } else {
                stretch.rate
            };
            if rate != last_rate && i > start {
                current.push((i - start, last_rate));
                start = i;
            }
            last_rate = rate;
            seen += chars;
            if (i + 1) % size == 0 {
                if start != i + 1 {
                    current.push((i + 1 - start, last_rate));
                    start = i + 1;
                }
                segments.push(std::mem::take(&mut current));
            }
        }
        if start != ids.len() {
            current.push((ids.len() - start, last_rate));
        }
        if !current.is_empty() {
            segments.push(current);
        }
        Ok(segments)
    }
}
