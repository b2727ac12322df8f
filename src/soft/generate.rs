//! The frozen decoder after a prefix: greedy, or sampled with temperature and top-p.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{PASS, advance};
use crate::error::{Error, Result};
use crate::kv_prefix::KvPrefix;
use crate::model::decoder::{Hidden, Input, Model};
use crate::model::kv::Kv;
use crate::ops::{Backend, NllTarget};
use crate::random::Random;

/// How the next token is chosen, and when to stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Most tokens to make.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token (of equals the lowest id); more flattens the odds. Not negative.
    pub temperature: f32,
    /// The likeliest tokens whose probabilities add up to so much are candidates; above 0, up to 1.
    pub top_p: f32,
    /// The same seed gives the same tokens.
    pub seed: u64,
    /// Continues after the end of a text.
    pub ignore_eos: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            max_new_tokens: 128,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            ignore_eos: false,
        }
    }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The end-of-text token came; it is not among the ids.
    Eos,
    /// As many tokens as were asked for.
    Length,
    /// The model has no more positions.
    Context,
    /// The caller stopped it.
    Stopped,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generated {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The natural log of each one's probability, before temperature and top-p.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
    /// Rows of the prefix.
    pub prefix_tokens: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Until the first token was known.
    pub first_token_seconds: f64,
    /// All in all.
    pub seconds: f64,
}

/// What the decoder is asked.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// What it has read before.
    pub prefix: Option<&'a KvPrefix>,
    /// At least one token, or embeddings of as many rows: see [`Adapter::begin`](super::Adapter::begin).
    pub prompt: Input<'a>,
    /// A continuation whose nll is wanted; it may be empty, and does not steer what is generated.
    pub gold: &'a [u32],
}

/// What the decoder says to a [`Query`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// Nll (nats) of each token of `gold`, given all before it.
    pub nll: Vec<f32>,
    /// Its own continuation.
    pub generated: Generated,
}

/// Continues after `prefix` and `prompt`; `each` is called with every id as it comes and may stop.
///
/// # Errors
/// [`Error::Input`] for an empty prompt, options outside their ranges, ids outside the vocabulary, or more
/// tokens than the model has positions; [`Error::Shape`] for a prefix of other sizes; [`Error::Unsupported`]
/// for one with gaps where the model's attention has a window; [`Error::Device`] if the device fails.
pub fn generate<B: Backend>(
    model: &Model<B>,
    prefix: Option<&KvPrefix>,
    prompt: &[u32],
    options: &Sampling,
    each: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated> {
    let query = Query {
        prefix,
        prompt: Input::Ids(prompt),
        gold: &[],
    };
    let completions = answer(model, &[query], options, &mut |_, id| each(id))?;
    match completions.into_iter().next() {
        Some(completion) => Ok(completion.generated),
        None => Err(Error::input("prompt", "none was given")),
    }
}

/// Reads each prompt once, and from what is then in the cache gives the nll of `gold` and a
/// continuation of its own. As many as have up to 32,768 tokens between them continue together, so that
/// the weights are read once for all of those. `each` is called with every id and the place of its
/// ask, and may stop that one.
///
/// # Errors
/// For any of the queries: [`Error::Input`] for an empty prompt, options outside their ranges, ids outside
/// the vocabulary, or more tokens than the model has positions; [`Error::Shape`] for a prefix of other sizes;
/// [`Error::Unsupported`] for one with gaps where the model's attention has a window; [`Error::Device`] if
/// the device fails.
pub fn answer<B: Backend>(
    model: &Model<B>,
    queries: &[Query<'_>],
    options: &Sampling,
    each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    options.check()?;
    let mut completions = Vec::with_capacity(queries.len());
    while completions.len() < queries.len() {
        let (done, mut tokens) = (completions.len(), 0);
        let fit = queries[done..].iter().take_while(|query| {
            let before = query.prefix.map_or(0, |prefix| prefix.shape().tokens);
            let prompt = query.prompt.rows(model.config().hidden);
            let after = prompt.saturating_add(options.max_new_tokens);
            tokens = after.saturating_add(tokens + before).min(TOGETHER + 1);
            tokens <= TOGETHER
        });
        let end = done + fit.count().max(1);
        let group = &queries[done..end];
        completions.extend(answer_batch(model, group, options, &mut |i, id| {
            each(done + i, id)
        })?);
    }
    Ok(completions)
}

/// Tokens whose K and V are held at once: some hundred megabytes to a few gigabytes.
const TOGETHER: usize = 1 << 15;

fn answer_batch<B: Backend>(
    model: &Model<B>,
    queries: &[Query<'_>],
    options: &Sampling,
    each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    let start = Instant::now();
    let c = model.config();
    let eos = c.eos.filter(|_| !options.ignore_eos);
    let mut sequences = Vec::with_capacity(queries.len());
    for query in queries {
        sequences.push(Sequence::read(model, query, options)?);
    }
    loop {
        let mut ids = Vec::new();
        for (i, sequence) in sequences.iter_mut().enumerate() {
            if sequence.finish.is_some() {
                continue;
            }
            if sequence.ids.len() >= options.max_new_tokens {
                sequence.finish = Some(Finish::Length);
                continue;
            }
            let id = options.choose(&sequence.logits, &mut sequence.random);
            if sequence.ids.is_empty() {
                sequence.first_token_seconds = start.elapsed().as_secs_f64();
            }
            if eos == Some(id) {
                sequence.finish = Some(Finish::Eos);
                continue;
            }
            sequence.ids.push(id);
            sequence.logprobs.push(logprob(&sequence.logits, id));
            if each(i, id).is_break() {
                sequence.finish = Some(Finish::Stopped);
            } else if sequence.kv.position() >= c.max_positions {
                sequence.finish = Some(Finish::Context);
            } else if sequence.ids.len() >= options.max_new_tokens {
                sequence.finish = Some(Finish::Length);
            } else {
                ids.push(id);
            }
        }
        if ids.is_empty() {
            break;
        }
        let (mut caches, mut logits) = (Vec::new(), Vec::new());
        for sequence in sequences.iter_mut().filter(|s| s.finish.is_none()) {
            caches.push(&mut sequence.kv);
            logits.push(&mut sequence.logits);
        }
        let all = model.step(&ids, &mut caches)?.logits()?;
        for (logits, row) in logits.into_iter().zip(all.chunks_exact(c.vocab)) {
            logits.clear();
            logits.extend_from_slice(row);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let completions = sequences
        .into_iter()
        .zip(queries)
        .map(|(sequence, query)| Completion {
            nll: sequence.nll,
            generated: Generated {
                ids: sequence.ids,
                logprobs: sequence.logprobs,
                finish: sequence.finish.unwrap_or(Finish::Length),
                prefix_tokens: query.prefix.map_or(0, |prefix| prefix.shape().tokens),
                prompt_tokens: query.prompt.rows(c.hidden),
                first_token_seconds: sequence.first_token_seconds,
                seconds,
            },
        });
    Ok(completions.collect())
}

/// One ask on its way.
struct Sequence<B: Backend> {
    kv: Kv<B>,
    nll: Vec<f32>,
    /// Of the next token.
    logits: Vec<f32>,
    random: Random,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    first_token_seconds: f64,
    finish: Option<Finish>,
}

impl<B: Backend> Sequence<B> {
    fn read(model: &Model<B>, query: &Query<'_>, options: &Sampling) -> Result<Self> {
        let c = model.config();
        let Some(last) = query.prompt.rows(c.hidden).checked_sub(1) else {
            let reason = "it has no tokens; one BOS asks for the text after a prefix";
            return Err(Error::input("prompt", reason));
        };
        let mut kv = match query.prefix {
            Some(prefix) => model.begin(prefix)?,
            None => model.kv()?,
        };
        let before_last = query.gold.split_last().map_or(&[][..], |(_, gold)| gold);
        // The pass that ends the prompt, the prompt's rows in it, and how much of the continuation
        // those and the rest of it foretell: of ids it reads the continuation too, which is then
        // forgotten.
        let (mut hidden, rows, foretold) = match query.prompt {
            Input::Ids(prompt) => {
                let (passes, pass) = prompt.split_at(last / PASS * PASS);
                drop(advance(model, passes, None, &mut kv)?);
                let ids = [pass, before_last].concat();
                model.check_positions(kv.position(), ids.len())?;
                let hidden = model.forward_adapted(Input::Ids(&ids), None, &mut kv)?;
                (hidden, pass.len(), query.gold.len())
            }
            Input::Embeddings(_) => {
                let hidden = model.forward_adapted(query.prompt, None, &mut kv)?;
                (hidden, last + 1, query.gold.len().min(1))
            }
        };
        kv.commit(rows)?;
        let (first, rest) = query.gold.split_at(foretold);
        let mut nll = nll(&mut hidden, rows - 1, first)?;
        let logits = match options.max_new_tokens {
            0 => Vec::new(),
            _ => hidden.row_logits(rows - 1)?,
        };
        drop(hidden);
        if !rest.is_empty() {
            model.check_positions(kv.position(), before_last.len())?;
            let mut hidden = model.forward_adapted(Input::Ids(before_last), None, &mut kv)?;
            nll.extend(self::nll(&mut hidden, 0, rest)?);
        }
        Ok(Sequence {
            kv,
            nll,
            logits,
            random: Random(options.seed),
            ids: Vec::new(),
            logprobs: Vec::new(),
            first_token_seconds: 0.0,
            finish: None,
        })
    }
}

/// Nll of `targets` by the rows from `row` on.
fn nll<B: Backend>(hidden: &mut Hidden<'_, B>, row: usize, targets: &[u32]) -> Result<Vec<f32>> {
    let picks = (row as u32..).zip(targets);
    let picks: Vec<NllTarget> = picks
        .map(|(row, &target)| NllTarget { row, target })
        .collect();
    match picks.is_empty() {
        true => Ok(Vec::new()),
        false => hidden.nll(&picks),
    }
}

fn logprob(logits: &[f32], id: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let own = logits.get(id as usize).copied().unwrap_or(f32::MIN);
    (f64::from(own - max) - sum.ln()) as f32
}

impl Sampling {
    /// An error that names the first option outside its range.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option and its range.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let reason = format!("{} is not 0 or a positive number", self.temperature);
            return Err(Error::input("temperature", reason));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let reason = format!("{} is not above 0 and up to 1", self.top_p);
            return Err(Error::input("top_p", reason));
        }
        Ok(())
    }

    fn choose(&self, logits: &[f32], random: &mut Random) -> u32 {
        let best = best(logits);
        if self.temperature == 0.0 {
            return best as u32;
        }
        let top = f64::from(logits.get(best).copied().unwrap_or(0.0));
        let weight = |logit: f32| ((f64::from(logit) - top) / f64::from(self.temperature)).exp();
        let mut odds: Vec<(u32, f64)> = (0..)
            .zip(logits.iter().map(|&logit| weight(logit)))
            .filter(|(_, weight)| *weight > 0.0)
            .collect();
        let mut total: f64 = odds.iter().map(|(_, weight)| weight).sum();
        if self.top_p < 1.0 {
            odds.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let wanted = total * f64::from(self.top_p);
            let mut sum = 0.0;
            let last = odds.iter().position(|(_, weight)| {
                sum += weight;
                sum >= wanted
            });
            if let Some(last) = last {
                odds.truncate(last + 1);
                total = sum;
            }
        }
        let mut left = random.unit() * total;
        for &(id, weight) in &odds {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        odds.last().map_or(best as u32, |&(id, _)| id)
    }
}

/// The index of the greatest value, of equals the lowest.
fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: &Sampling, logits: &[f32]) -> Vec<usize> {
        let mut random = Random(sampling.seed);
        let mut counts = vec![0; logits.len()];
        for _ in 0..10_000 {
            counts[sampling.choose(logits, &mut random) as usize] += 1;
        }
        counts
    }

    #[test]
    fn sampling_follows_the_odds() {
        // Probabilities 0.5, 0.25, 0.25 and none.
        let logits = [2f32.ln(), 0.0, 0.0, f32::NEG_INFINITY];
        let mut sampling = Sampling {
            temperature: 1.0,
            ..Sampling::default()
        };
        let seen = counts(&sampling, &logits);
        // Four standard deviations are 200.
        assert!(seen[0].abs_diff(5000) < 200 && seen[1].abs_diff(2500) < 180);
        assert_eq!(seen[3], 0);
        sampling.top_p = 0.6;
        let seen = counts(&sampling, &logits);
        // Of equals the lower id is the candidate.
        assert!(seen[0].abs_diff(6667) < 200);
        assert_eq!(seen[2], 0);
        sampling.top_p = 0.5;
        assert_eq!(counts(&sampling, &logits)[0], 10_000);
        sampling.top_p = 1.0;
        sampling.temperature = 0.5;
        // Squares of the odds: 4 to 1 to 1.
        assert!(counts(&sampling, &logits)[0].abs_diff(6667) < 200);
        sampling.temperature = 0.0;
        assert_eq!(counts(&sampling, &[1.0, 3.0, 3.0])[1], 10_000);
    }

    #[test]
    fn options_outside_their_ranges_are_errors() {
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.1)] {
            let sampling = Sampling {
                temperature,
                top_p,
                ..Sampling::default()
            };
            assert!(sampling.check().is_err());
        }
    }
}
