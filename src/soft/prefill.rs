//! The model's own cache of a text as a prefix, whole or pruned.

use super::prune::{KeepBy, Queries, count, key_difference, top};
use super::{PASS, Source, rope};
use crate::control;
use crate::error::{Error, Result};
use crate::kv_prefix::{KRope, KvPrefix, Method, ModelId, Origin, Parts, Shape};
use crate::model::Scorer;
use crate::model::config::Config;
use crate::model::decoder::{Input, Model};
use crate::ops::Backend;

/// How a text is prefilled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PrefillOptions {
    /// The share of the tokens to keep, above 0 and up to 1, and by what; `None`: all.
    pub keep: Option<(f64, KeepBy)>,
}

/// The K and V of a text by the model itself, once for each of `options`, with one forward pass, and one more
/// where [`KeepBy::Llmlingua`] scores the tokens.
///
/// A pruned prefix keeps those of some tokens only: they were made with all of the text in sight, keep
/// the angles of their positions, and what follows continues after the whole text.
///
/// # Errors
/// [`Error::Input`] for an empty text, one with ids outside the vocabulary, one longer than the
/// model's context, or a rate out of its range.
pub fn prefill<B: Backend>(
    model: &Model<B>,
    id: &ModelId,
    source: &Source,
    options: &[PrefillOptions],
) -> Result<Vec<KvPrefix>> {
    if options.is_empty() {
        return Ok(Vec::new());
    }
    source.check()?;
    let (c, n) = (model.config(), source.ids.len());
    for (rate, _) in options.iter().filter_map(|options| options.keep) {
        if !(rate > 0.0 && rate <= 1.0) {
            let reason = "the share of the tokens to keep lies in (0, 1]";
            return Err(Error::input(format!("keep {rate}"), reason));
        }
    }
    model.check_positions(0, n)?;
    let mut scores: Vec<Scores> = Vec::new();
    for (_, by) in options.iter().filter_map(|options| options.keep) {
        if !scores.iter().any(|scores| scores.by == by) {
            scores.push(Scores::new(by, c, n)?);
        }
    }
    let mut kv = model.kv()?;
    for pass in source.ids.chunks(PASS) {
        let input = Input::Ids(pass);
        let mut watching: Vec<&mut Vec<Queries>> = scores
            .iter_mut()
            .map(|scores| &mut scores.queries)
            .filter(|queries| !queries.is_empty())
            .collect();
        match watching.split_last_mut() {
            None => drop(model.forward_adapted(input, None, &mut kv)?),
            Some((last, others)) => {
                drop(model.forward_watched(input, &mut kv, &mut |layer, rows| {
                    control::compute(|| {
                        for queries in others.iter_mut() {
                            queries[layer].add(c, rows.clone());
                        }
                        last[layer].add(c, rows);
                    });
                })?)
            }
        }
        kv.commit(pass.len())?;
        control::report(kv.len(), n);
    }
    let all: Vec<usize> = (0..n).collect();
    let mut layers = model.take(&kv, &all)?;
    drop(kv);
    for scores in &mut scores {
        scores.of_rows = match scores.by {
            KeepBy::Llmlingua => {
                let mut own = vec![f32::INFINITY];
                own.append(&mut model.score_each(&[&source.ids])?.remove(0));
                vec![own]
            }
            by => {
                let mut heads = Vec::with_capacity(c.layers * c.kv_heads);
                for (layer, [k, v]) in layers.iter().enumerate() {
                    heads.append(&mut control::step(|| match by {
                        KeepBy::Keydiff => Ok(key_difference(c, k)),
                        _ => Ok(scores.queries[layer].score(c, k, v)),
                    })?);
                }
                heads
            }
        };
    }

    let whole = |own: &PrefillOptions, layers: Layers| {
        let rows = match own.keep {
            None => vec![all.clone()],
            Some((rate, by)) => scores
                .iter()
                .filter(|scores| scores.by == by)
                .flat_map(|scores| &scores.of_rows)
                .map(|scores| top(scores, count(n, rate)))
                .collect(),
        };
        let layers = match own.keep {
            None => layers,
            Some(_) => pruned(c, n, layers, &rows),
        };
        KvPrefix::new(Parts {
            origin: Origin {
                model: id.clone(),
                method: match own.keep {
                    None => Method::Prefill,
                    Some(_) => Method::Pruned,
                },
                adapter: None,
                kept_by: own.keep.map(|(rate, by)| format!("{} {rate}", by.name())),
                source_tokens: n,
                source_sha256: source.sha256.clone(),
                pieces: 1,
            },
            shape: Shape {
                layers: c.layers,
                kv_heads: c.kv_heads,
                tokens: rows[0].len(),
                head_dim: c.head_dim,
            },
            layers,
            k_rope: KRope::Applied,
            rope: rope(model),
            positions: rows.concat().iter().map(|&row| row as u32).collect(),
            next_pos: n,
            source_ids: source.ids.clone(),
        })
    };
    let last = options.len().saturating_sub(1);
    let each = options.iter().enumerate().map(|(i, options)| {
        // The last one needs no copy of the whole cache.
        let own = match i == last {
            true => std::mem::take(&mut layers),
            false => layers.clone(),
        };
        whole(options, own)
    });
    each.collect()
}

/// K and V of each layer, `[heads, tokens, width]`.
type Layers = Vec<[Vec<f32>; 2]>;

/// What tokens are chosen by.
struct Scores {
    by: KeepBy,
    /// Of each layer, gathered while the text is read; empty where none are asked.
    queries: Vec<Queries>,
    /// A score for each token: one list for the whole model, or one for each head of each layer.
    of_rows: Vec<Vec<f32>>,
}

impl Scores {
    fn new(by: KeepBy, c: &Config, tokens: usize) -> Result<Self> {
        let queries = (0..c.layers).filter_map(|_| Queries::new(by, c, tokens).transpose());
        Ok(Scores {
            by,
            queries: queries.collect::<Result<_>>()?,
            of_rows: Vec::new(),
        })
    }
}

/// The rows that are kept of a whole cache, the same in all heads or those of each, layer by layer.
fn pruned(c: &Config, tokens: usize, mut layers: Layers, rows: &[Vec<usize>]) -> Layers {
    for (layer, parts) in layers.iter_mut().enumerate() {
        let of = |head: usize| match rows {
            [same] => same,
            each => &each[layer * c.kv_heads + head],
        };
        for part in parts {
            *part = gather(c.head_dim, tokens, part, of);
        }
    }
    layers
}

/// The rows of each head of `values`, `[heads, tokens, width]`, that `rows` names for it.
fn gather<'a>(
    width: usize,
    tokens: usize,
    values: &[f32],
    rows: impl Fn(usize) -> &'a Vec<usize>,
) -> Vec<f32> {
    let mut out = Vec::new();
    for (head, values) in values.chunks_exact(tokens * width).enumerate() {
        for &row in rows(head) {
            out.extend_from_slice(&values[row * width..][..width]);
        }
    }
    out
}
