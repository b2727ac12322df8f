//! The token level: iterative token-level prompt compression, segment by segment, conditioned on
//! what was kept so far (`iterative_compress_prompt`; LLMLingua, algorithm 2).

use crate::control;
use crate::error::{Error, Result};
use crate::hard::python;
use crate::hard::source::Token;
use crate::model::{Session, TokenPruning};

use super::{Reference, Stretch, ratios::Segment};

/// The token that `keep_split` takes for a line break (`split_token_id`: Llama 2's newline, whatever
/// the tokenizer).
const SPLIT_TOKEN: u32 = 13;
/// Positions at the front that survive when the KV cache overflows (`cache_bos_num`).
const CACHE_HEAD: usize = 10;

/// One pass of the model over the shrinking text: with the condition in front, or without.
struct Reader<'a> {
    session: Option<Box<dyn Session + 'a>>,
    /// Nll of each token but the first of what is left of the text.
    loss: Vec<f32>,
    /// The first position whose nll the next reading replaces.
    ready: i64,
}

impl<'a> Reader<'a> {
    fn new() -> Self {
        Reader {
            session: None,
            loss: Vec::new(),
            ready: 0,
        }
    }

    /// Continues to `end` (the first time: everything that the model's context holds) and takes in
    /// the nll. None when there was nothing to read. With a `ratio` the device that scores also judges, in
    /// one go: the flags say which of all nll exceed the threshold.
    fn read(
        &mut self,
        reference: &Reference<'a>,
        ids: &[u32],
        end: usize,
        first: bool,
        size: usize,
        ratio: Option<f64>,
    ) -> Result<Option<Vec<bool>>> {
        let positions = reference.lm.max_positions();
        let mut session = match self.session.take() {
            Some(session) => session,
            None => reference.lm.session()?,
        };
        let past = session.len();
        let stop = if first { ids.len() } else { end.min(ids.len()) }.min(past + positions);
        let ids = ids.get(past..stop).unwrap_or_default();
        let fresh = ids.len().saturating_sub(1);
        if fresh == 0 {
            // An error if even this does not fit.
            session.score(ids)?;
            return Ok(None);
        }
        let to = if first {
            self.loss = vec![0.0; fresh];
            0..fresh
        } else {
            if self.loss.len() + 1 < end {
                let grown = self.loss.len() + fresh;
                self.loss.resize((end - 1).min(grown), 0.0);
            }
            python::slice(self.loss.len(), Some(self.ready), Some(end as i64 - 1))
        };
        if to.len() != fresh {
            return Err(Error::input(
                "token level",
                format!(
                    "iterative_size {size} does not fit the model's context of {positions} tokens"
                ),
            ));
        }
        let flags = match ratio {
            Some(ratio) => {
                let rank = rank(self.loss.len(), ratio);
                session.judge(ids, &mut self.loss, to.start, rank)?
            }
            None => {
                self.loss[to].copy_from_slice(&session.score(ids)?);
                Vec::new()
            }
        };
        // What was read the first time is read again with what was dropped taken out.
        if !first {
            session.truncate(end.saturating_sub(size))?;
            self.session = Some(session);
        }
        Ok(Some(flags))
    }
}

impl Reference<'_> {
    /// The tokens of `contexts` joined by blank lines, each with the decision on it. `prefix` is read
    /// in front of them and is not part of the result.
    pub(super) fn filter_tokens(
        &self,
        contexts: &[String],
        prefix: Option<&str>,
        target: f64,
        dynamic: &[f64],
        stretches: Option<Vec<Vec<Stretch>>>,
    ) -> Result<Vec<Token>> {
        let body = contexts.join("\n\n");
        let (text, start) = match prefix {
            Some(prefix) => {
                let start = self.prefix_tokens(&format!("{prefix}\n\n"), &contexts[0])?;
                (format!("{prefix}\n\n{body}"), start)
            }
            None => (body, 0),
        };
        let encoding = self.tokenizer.encode(&text, false, true)?;
        let own = encoding.ids.get(start..).unwrap_or_default();
        let segments = match stretches {
            Some(stretches) => self.tagged_ratios(contexts, &stretches, own)?,
            None => self.even_ratios(contexts, target, dynamic)?,
        };
        let (kept, nll) = self.iterate(&encoding.ids, start, &segments)?;
        let offset = prefix.map_or(0, |p| p.len() + 2);
        let mut tokens: Vec<Token> = (start..encoding.ids.len())
            .map(|i| Token {
                id: encoding.ids[i],
                span: encoding.spans[i].start.saturating_sub(offset)
                    ..encoding.spans[i].end.saturating_sub(offset),
                nll: nll[i],
                kept: false,
            })
            .collect();
        for i in kept {
            tokens[i - start].kept = true;
        }
        Ok(tokens)
    }

    /// Tokens of `prefix` in front of `text` (`get_prefix_length`).
    fn prefix_tokens(&self, prefix: &str, text: &str) -> Result<usize> {
        let alone = self.tokenizer.encode(prefix, false, true)?.ids.len();
        let head = &text[..python::char_offset(text, 100)];
        let ids = self
            .tokenizer
            .encode(&format!("{prefix}{head}"), false, true)?
            .ids;
        let shortest = alone.saturating_sub(3).max(1);
        Ok((shortest..ids.len())
            .find(|&i| self.tokenizer.decode(&ids[..i]) == prefix)
            .unwrap_or(ids.len().saturating_sub(1)))
    }

    /// The loop as the model's device can run it alone, where no step but the threshold depends on
    /// scores. That leaves out a text that is longer than the model's context, whose cache overflows, and
    /// the two options that look at more: at ids (`keep_split`) and at a second reading
    /// (`condition_compare`).
    fn pruning<'t>(
        &self,
        ids: &'t [u32],
        start: usize,
        segments: &'t [Segment],
    ) -> Option<TokenPruning<'t>> {
        let size = self.options.iterative_size;
        if self.options.keep_split
            || self.options.condition_compare
            || ids.len() > self.lm.max_positions()
        {
            return None;
        }
        let first = size.checked_add(start)?.min(ids.len());
        // As many as `iterate` comes to: what is dropped shortens the text and moves the window's end.
        let mut end = first;
        let count = segments
            .iter()
            .take_while(|segment| {
                let within = end <= ids.len();
                end = end.saturating_add(segment.iter().map(|run| run.0).sum());
                within
            })
            .count();
        let text = TokenPruning {
            ids,
            size,
            end: first,
            windows: &segments[..count],
        };
        // Among what it refuses: a text shorter than one window, which is read once anyway.
        text.check().is_ok().then_some(text)
    }

    /// The segment loop over `ids`, whose first `start` are the condition. Returns the indices that
    /// stay, from `start` on, and the last nll of every token.
    fn iterate(
        &self,
        ids: &[u32],
        start: usize,
        segments: &[Segment],
    ) -> Result<(Vec<usize>, Vec<Option<f32>>)> {
        if self.lm.prunes()
            && let Some(text) = self.pruning(ids, start, segments)
        {
            let pruned = self.lm.prune(&[text])?.into_iter().next();
            let (kept, nll) = pruned.map_or_else(Default::default, |t| (t.kept, t.nll));
            // As below.
            let kept = kept.into_iter().skip(start).filter(|&i| i >= start);
            return Ok((kept.collect(), nll));
        }
        let size = self.options.iterative_size;
        let positions = self.lm.max_positions();
        let mut nll: Vec<Option<f32>> = vec![None; ids.len()];
        let mut text = Text {
            ids: ids.to_vec(),
            from: (0..ids.len()).collect(),
            keep: self.options.keep_split.then(|| split_tokens(ids)),
        };
        let mut popped: Vec<usize> = Vec::new();
        let mut with = Reader::new();
        // Contrastive perplexity (LongLLMLingua, eq. 4): the same text without the condition.
        let mut without = self.options.condition_compare.then(Reader::new);
        let mut end = (size + start).min(ids.len());
        for (at, segment) in segments.iter().enumerate() {
            if end > text.ids.len() {
                break;
            }
            if end > positions
                && let Some(session) = &mut with.session
            {
                // The cache is full: forget the oldest after its head.
                let excess = end - positions;
                let head = (CACHE_HEAD + start).min(positions);
                session.remove(head..head + excess)?;
                popped.extend(text.pop_front(excess));
                end -= excess;
                with.ready -= excess as i64;
                if let Some(without) = &mut without
                    && let Some(session) = &mut without.session
                {
                    let head = head.min(session.len().saturating_sub(excess));
                    session.remove(head..head + excess)?;
                    without.ready -= excess as i64;
                }
            }
            let first = at == 0;
            // One threshold over the nll alone: the scorer can judge as well.
            let ratio = match segment[..] {
                [(_, ratio)] if without.is_none() && ratio != 1.0 => Some(ratio),
                _ => None,
            };
            let Some(flags) = with.read(self, &text.ids, end, first, size, ratio)? else {
                break;
            };
            if let Some(without) = &mut without {
                let own = text.ids.get(start..).unwrap_or_default();
                without.read(self, own, end.saturating_sub(start), first, size, None)?;
                without.ready = next_ready(end as i64 - start as i64, size, start, first);
            }
            with.ready = next_ready(end as i64, size, start, first);
            for (i, &from) in text.from.iter().enumerate().skip(1) {
                if let Some(&loss) = with.loss.get(i - 1) {
                    nll[from] = Some(loss);
                }
            }

            let mut cursor = end as i64;
            for &(tokens, ratio) in segment {
                let exceeds = if flags.is_empty() {
                    let without = without.as_ref().map(|w| &w.loss[..]);
                    Exceeds::Threshold(threshold(&with.loss, without, start, ratio)?)
                } else {
                    Exceeds::Judged(&flags)
                };
                let window_end = cursor - size as i64 + tokens as i64;
                let dropped = text.compress(
                    &mut with.loss,
                    without.as_mut().map(|w| &mut w.loss),
                    exceeds,
                    window_end,
                    tokens,
                    start,
                )?;
                cursor = window_end - dropped + size as i64;
            }
            end = usize::try_from(cursor).unwrap_or(0);
            let dropped = ids.len() - text.ids.len();
            control::report(ids.len().min(dropped + end), ids.len());
        }
        let mut kept: Vec<usize> = popped.into_iter().chain(text.from).skip(start).collect();
        // With the condition popped off the front, the reference's cut at `start` hits the contexts.
        kept.retain(|&i| i >= start);
        Ok((kept, nll))
    }
}

/// The reference reads the condition again in the second pass.
fn next_ready(end: i64, size: usize, start: usize, first: bool) -> i64 {
    if first && start > 0 {
        0
    } else {
        end - size as i64
    }
}

/// Tokens of doubled line breaks, which `keep_split` keeps.
fn split_tokens(ids: &[u32]) -> Vec<bool> {
    let is_split = |i: Option<&u32>| i == Some(&SPLIT_TOKEN);
    (0..ids.len())
        .map(|i| {
            let before = i > 0 && is_split(ids.get(i - 1));
            is_split(ids.get(i)) && (before || is_split(ids.get(i + 1)))
        })
        .collect()
}

/// The value that a token must exceed: the `ratio` quantile over all that is left of the text, kept
/// tokens and those still to come alike (`get_estimate_threshold_base_distribution`).
fn threshold(with: &[f32], without: Option<&[f32]>, start: usize, ratio: f64) -> Result<f32> {
    if ratio == 1.0 {
        return Ok(f32::NEG_INFINITY);
    }
    let mut values = match without {
        Some(without) => gains(with, without, start)?,
        None => with.to_vec(),
    };
    values.retain(|&v| v != 10000.0);
    if values.is_empty() {
        return Ok(f32::NEG_INFINITY);
    }
    let rank = rank(values.len(), ratio);
    let (_, value, _) = values.select_nth_unstable_by(rank, |a, b| b.total_cmp(a));
    Ok(*value)
}

/// The rank of the threshold among so many values, 0 being the largest.
fn rank(values: usize, ratio: f64) -> usize {
    ((values as f64 * ratio) as usize)
        .saturating_sub(1)
        .min(values.saturating_sub(1))
}

/// What a token must have to stay.
#[derive(Clone, Copy)]
enum Exceeds<'a> {
    /// An nll, or a gain, above this.
    Threshold(f32),
    /// A flag, as many as there are nll.
    Judged(&'a [bool]),
}

/// What the condition takes off each token's nll.
fn gains(with: &[f32], without: &[f32], start: usize) -> Result<Vec<f32>> {
    let with = with.get(start..).unwrap_or_default();
    let without = &without[..with.len().min(without.len())];
    if with.len() != without.len() {
        return Err(Error::input(
            "condition_compare",
            "the text with its condition does not fit the model's context; shorten the question or \
             raise the rate",
        ));
    }
    Ok(without.iter().zip(with).map(|(a, b)| a - b).collect())
}

/// What is left of the text.
struct Text {
    ids: Vec<u32>,
    /// Where each token stood at first.
    from: Vec<usize>,
    /// `keep_split`'s tokens.
    keep: Option<Vec<bool>>,
}

impl Text {
    fn pop_front(&mut self, n: usize) -> Vec<usize> {
        let n = n.min(self.ids.len());
        self.ids.drain(..n);
        if let Some(keep) = &mut self.keep {
            keep.drain(..n.min(keep.len()));
        }
        self.from.drain(..n).collect()
    }

    /// Drops the tokens of the window of `size` tokens before `end` that do not exceed the threshold
    /// (`get_compressed_input`); returns how many.
    ///
    /// As in the reference, a token is judged by the nll of the token *after* it: `loss[i]` belongs to
    /// token `i + 1` and decides on token `i`. And where `end` is negative the text is shorter than a
    /// segment and stays whole.
    fn compress(
        &mut self,
        loss: &mut Vec<f32>,
        without: Option<&mut Vec<f32>>,
        exceeds: Exceeds<'_>,
        end: i64,
        size: usize,
        start: usize,
    ) -> Result<i64> {
        let mut need: Vec<bool> = match (exceeds, &without) {
            (Exceeds::Judged(flags), _) => flags.to_vec(),
            (Exceeds::Threshold(threshold), Some(without)) => {
                let head = loss[..start.min(loss.len())].iter().map(|&l| l > 0.0);
                let gains = gains(loss, without, start)?;
                head.chain(gains.into_iter().map(|g| g > threshold))
                    .collect()
            }
            (Exceeds::Threshold(threshold), None) => loss.iter().map(|&l| l > threshold).collect(),
        };
        need.push(loss.first().is_some_and(|&l| l > 0.0));
        let outside = [
            python::slice(need.len(), Some(end), None),
            python::slice(need.len(), None, Some(end - size as i64)),
        ];
        for range in outside {
            need[range].fill(true);
        }
        retain_by(loss, &need);
        if let Some(without) = without {
            if need.len() < without.len() + start + 1 {
                need.resize(without.len() + start + 1, true);
            }
            retain_by(without, need.get(start..).unwrap_or_default());
        }
        need.resize(self.ids.len(), true);
        if let Some(keep) = &self.keep {
            for (need, &keep) in need.iter_mut().zip(keep) {
                *need |= keep;
            }
            // Of line breaks that come to stand side by side, only the kept ones stay.
            let mut last = None;
            for i in (end - size as i64).max(0)..end.min(need.len() as i64) {
                let i = i as usize;
                if !need[i] {
                    continue;
                }
                let doubled = last == Some(SPLIT_TOKEN) && self.ids[i] == SPLIT_TOKEN;
                if doubled && !keep.get(i).copied().unwrap_or(true) {
                    need[i] = false;
                } else {
                    last = Some(self.ids[i]);
                }
            }
        }
        retain_by(&mut self.ids, &need);
        retain_by(&mut self.from, &need);
        if let Some(keep) = &mut self.keep {
            retain_by(keep, &need);
        }
        let window = python::slice(need.len(), None, Some(end));
        Ok(need[window].iter().filter(|need| !**need).count() as i64)
    }
}

/// Keeps the items whose flag is set; items without a flag stay.
fn retain_by<T>(items: &mut Vec<T>, flags: &[bool]) {
    let mut flags = flags.iter();
    items.retain(|_| flags.next().copied().unwrap_or(true));
}
