//! Which of a text's keys and values to keep.
//!
//! By surprisal, as LLMLingua scores tokens: the same tokens in every layer. Or for each layer and each head
//! group by itself, by attention or by the keys alone, as kvpress 0.5 defines the scores of SnapKV
//! (arXiv 2404.14469), of Expected Attention (arXiv 2510.00636) and of KeyDiff (arXiv 2504.15364). Of equal
//! scores the lower position is kept.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::rope::{Rope, angles};

/// By what the kept tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum KeepBy {
    /// Their negative log-likelihood. The first token, which has none, is kept.
    Llmlingua,
    /// The attention that the last 64 tokens (of shorter texts the last half) pay to them, pooled over
    /// five neighbours; those last tokens are kept.
    Snapkv,
    /// The attention that the next 512 tokens are expected to pay to them, if their queries are like
    /// the text's, times the norm of their values; the first four tokens are kept.
    ExpectedAttention,
    /// How little their keys resemble the mean of the head group's normalised keys; no query is asked.
    Keydiff,
}

impl KeepBy {
    /// Its name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            KeepBy::Llmlingua => "llmlingua",
            KeepBy::Snapkv => "snapkv",
            KeepBy::ExpectedAttention => "expected-attention",
            KeepBy::Keydiff => "keydiff",
        }
    }
}

/// Queries that SnapKV asks.
const WINDOW: usize = 64;
/// Neighbours whose attention SnapKV pools; odd.
const POOL: usize = 5;
/// First tokens that Expected Attention leaves out of its statistics.
const SINK: usize = 4;
/// Positions whose queries Expected Attention expects.
const FUTURE: usize = 512;

/// So many of `tokens` tokens are kept at `rate`.
pub(super) fn count(tokens: usize, rate: f64) -> usize {
    // A rate such as 0.29 of 100 is meant to give 29.
    ((tokens as f64 * rate + 1e-9) as usize).clamp(1, tokens.max(1))
}

/// The indices of the `count` greatest scores, ascending.
pub(super) fn top(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// What is gathered of one layer's queries while the text goes by.
pub(super) enum Queries {
    /// The last ones, rotated, `[rows, heads, head_dim]`.
    Last { window: usize, rows: Vec<f32> },
    /// Sums over the queries of each head, not rotated, and over their products.
    Moments {
        seen: usize,
        counted: usize,
        sums: Vec<f64>,
        products: Vec<f64>,
    },
}

impl Queries {
    /// `None` for what asks no query.
    pub(super) fn new(by: KeepBy, c: &Config, tokens: usize) -> Result<Option<Self>> {
        Ok(Some(match by {
            KeepBy::Llmlingua | KeepBy::Keydiff => return Ok(None),
            KeepBy::Snapkv => Queries::Last {
                window: WINDOW.min((tokens / 2).max(1)),
                rows: Vec::new(),
            },
            KeepBy::ExpectedAttention if c.rope().is_none() => {
                return Err(Error::Unsupported {
                    what: "expected attention for a model with learned positions".into(),
                    have: "llmlingua, snapkv, keydiff".into(),
                });
            }
            KeepBy::ExpectedAttention if tokens <= SINK => {
                return Err(Error::input(
                    "keep_by expected-attention",
                    format!("{tokens} tokens are too few: it takes more than {SINK}"),
                ));
            }
            KeepBy::ExpectedAttention => Queries::Moments {
                seen: 0,
                counted: 0,
                sums: vec![0.0; c.heads * c.head_dim],
                products: vec![0.0; c.heads * c.head_dim * c.head_dim],
            },
        }))
    }

    /// Takes in `queries`, `[rows, heads, head_dim]`, rotated, of the next rows of the text.
    pub(super) fn add(&mut self, c: &Config, mut queries: Vec<f32>) {
        let (d, width) = (c.head_dim, c.heads * c.head_dim);
        match self {
            Queries::Last { window, rows } => {
                rows.append(&mut queries);
                let surplus = rows.len().saturating_sub(*window * width);
                rows.drain(..surplus);
            }
            Queries::Moments {
                seen,
                counted,
                sums,
                products,
            } => {
                let count = queries.len() / width;
                if let Some(rope) = c.rope() {
                    let positions: Vec<u32> = (*seen..*seen + count)
                        .flat_map(|position| std::iter::repeat_n(position as u32, c.heads))
                        .collect();
                    rope.rotate(&mut queries, &positions, true);
                }
                let skip = SINK.saturating_sub(*seen).min(count);
                *seen += count;
                *counted += count - skip;
                let queries = &queries[skip * width..];
                sums.par_chunks_exact_mut(d)
                    .zip(products.par_chunks_exact_mut(d * d))
                    .enumerate()
                    .for_each(|(head, (sums, products))| {
                        for query in queries.chunks_exact(width) {
                            let query = &query[head * d..][..d];
                            for (i, &a) in query.iter().enumerate() {
                                sums[i] += f64::from(a);
                                let row = &mut products[i * d..][..d];
                                for (to, &b) in row.iter_mut().zip(query) {
                                    *to += f64::from(a) * f64::from(b);
                                }
                            }
                        }
                    });
            }
        }
    }

    /// A score for each of the layer's keys by head group; `k` and `v` are
    /// `[kv_heads, tokens, head_dim]`.
    pub(super) fn score(&self, c: &Config, k: &[f32], v: &[f32]) -> Vec<Vec<f32>> {
        let keys = k.len() / c.kv_heads;
        let group = c.heads / c.kv_heads;
        let heads: Vec<Vec<f64>> = (0..c.heads)
            .into_par_iter()
            .map(|head| {
                let k = &k[head / group * keys..][..keys];
                match self {
                    Queries::Last { rows, .. } => window_attention(c, rows, head, k),
                    Queries::Moments {
                        seen,
                        counted,
                        sums,
                        products,
                    } => {
                        let d = c.head_dim;
                        let sums = &sums[head * d..][..d];
                        let products = &products[head * d * d..][..d * d];
                        expected_attention(c, *seen, *counted, sums, products, k)
                    }
                }
            })
            .collect();
        let mut scores: Vec<Vec<f64>> = heads
            .chunks_exact(group)
            .map(|heads| {
                let sum = |i: usize| heads.iter().map(|head| head[i]).sum::<f64>();
                (0..heads[0].len()).map(|i| sum(i) / group as f64).collect()
            })
            .collect();
        let (front, back) = match self {
            Queries::Last { window, .. } => (0, *window),
            Queries::Moments { .. } => {
                let values = v.chunks_exact(keys);
                for (scores, values) in scores.iter_mut().zip(values) {
                    let values = values.chunks_exact(c.head_dim).skip(SINK);
                    for (score, value) in scores.iter_mut().zip(values) {
                        let square: f64 = value.iter().map(|&x| f64::from(x).powi(2)).sum();
                        *score *= square.sqrt();
                    }
                }
                (SINK, 0)
            }
        };
        scores
            .into_iter()
            .map(|scores| {
                // Above all others.
                let always = |n| std::iter::repeat_n(f32::INFINITY, n);
                let scores = scores.into_iter().map(|score| score as f32);
                always(front).chain(scores).chain(always(back)).collect()
            })
            .collect()
    }
}

/// KeyDiff's score of each of a layer's keys by head group: the negative cosine to the mean of the keys, each of
/// length 1. `k` is `[kv_heads, tokens, head_dim]`, rotated.
pub(super) fn key_difference(c: &Config, k: &[f32]) -> Vec<Vec<f32>> {
    let d = c.head_dim;
    k.par_chunks_exact(k.len() / c.kv_heads)
        .map(|keys| {
            // PyTorch's bound of a length.
            let length = |key: &[f32]| dot(key, key).sqrt().max(1e-12);
            let mut mean = vec![0.0; d];
            for key in keys.chunks_exact(d) {
                let length = length(key);
                for (sum, value) in mean.iter_mut().zip(key) {
                    *sum += value / length;
                }
            }
            // Its length is the same for all.
            keys.chunks_exact(d)
                .map(|key| -dot(key, &mean) / length(key))
                .collect()
        })
        .collect()
}

/// The mean attention of the queries `rows` of `head` to each key before them, pooled.
fn window_attention(c: &Config, rows: &[f32], head: usize, k: &[f32]) -> Vec<f64> {
    let (d, width) = (c.head_dim, c.heads * c.head_dim);
    let (tokens, window) = (k.len() / d, rows.len() / width);
    let before = tokens - window;
    let mut mean = vec![0.0; before];
    for (i, query) in rows.chunks_exact(width).enumerate() {
        let query = &query[head * d..][..d];
        let logits: Vec<f32> = k[..(before + i + 1) * d]
            .chunks_exact(d)
            .map(|key| dot(query, key) / (d as f32).sqrt())
            .collect();
        for (mean, weight) in mean.iter_mut().zip(softmax(&logits)) {
            *mean += weight / window as f64;
        }
    }
    (0..before)
        .map(|i| {
            let pooled = i.saturating_sub(POOL / 2)..before.min(i + POOL / 2 + 1);
            mean[pooled].iter().sum::<f64>() / POOL as f64
        })
        .collect()
}

/// The softmax of the logits that a query of the text's mean and covariance is expected to give at the
/// positions after it, for the keys after the first few.
fn expected_attention(
    c: &Config,
    seen: usize,
    counted: usize,
    sums: &[f64],
    products: &[f64],
    k: &[f32],
) -> Vec<f64> {
    let d = c.head_dim;
    let n = counted.max(1) as f64;
    let mean: Vec<f64> = sums.iter().map(|sum| sum / n).collect();
    let covariance: Vec<f64> = products
        .iter()
        .enumerate()
        .map(|(at, product)| product / n - mean[at / d] * mean[at % d])
        .collect();
    let rotation = c.rope().map(|rope| mean_rotation(&rope, seen));
    // Rotating the mean and the covariance forward is rotating the keys back.
    let logits: Vec<f32> = k
        .chunks_exact(d)
        .skip(SINK)
        .map(|key| {
            let mut key: Vec<f64> = key.iter().map(|&x| x.into()).collect();
            if let Some(rotation) = &rotation {
                let half = d / 2;
                for (i, &(cos, sin)) in rotation.iter().enumerate() {
                    let (a, b) = (key[i], key[half + i]);
                    key[i] = a * cos + b * sin;
                    key[half + i] = b * cos - a * sin;
                }
            }
            let linear: f64 = mean.iter().zip(&key).map(|(m, x)| m * x).sum();
            let square: f64 = covariance
                .chunks_exact(d)
                .zip(&key)
                .map(|(row, x)| x * row.iter().zip(&key).map(|(c, y)| c * y).sum::<f64>())
                .sum();
            (linear / (d as f64).sqrt() + square / d as f64 / 2.0) as f32
        })
        .collect();
    softmax(&logits)
}

/// Cosines and sines of half a head, averaged over the positions after `seen` tokens.
fn mean_rotation(rope: &Rope, seen: usize) -> Vec<(f64, f64)> {
    let half = rope.dim / 2;
    let positions: Vec<u32> = (seen..seen + FUTURE).map(|p| p as u32).collect();
    let angles = angles(&rope.frequencies(), &positions);
    let mean = |i: usize| {
        let column = angles[i..].iter().step_by(2 * half);
        column.map(|&x| f64::from(x)).sum::<f64>() / FUTURE as f64
    };
    (0..half).map(|i| (mean(i), mean(half + i))).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let weights: Vec<f64> = logits
        .iter()
        .map(|&logit| f64::from(logit - max).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_scores_the_lower_position_is_kept() {
        assert_eq!(top(&[1.0, 3.0, 3.0, 3.0, 0.0], 2), [1, 2]);
        assert_eq!(top(&[f32::INFINITY, 1.0, 2.0], 2), [0, 2]);
        assert_eq!(top(&[1.0], 5), [0]);
    }

    #[test]
    fn counts_are_the_rate_rounded_down_and_at_least_one() {
        assert_eq!(count(100, 0.29), 29);
        assert_eq!(count(150, 0.5), 75);
        assert_eq!(count(3, 0.1), 1);
        assert_eq!(count(3, 1.0), 3);
    }
}
