//! The model's own cache of a text as a prefix, whole or pruned.

use super::prune::{KeepBy, Queries, count, key_difference, top};
use super::{PASS, Source, rope};
use crate::control;
use crate::error::{Error, Result};
use crate::kv_prefix::{KRope, KvPrefix, Method, ModelId, Origin, Parts, Shape};
use crate::model::Scorer;
use crate::model::decoder::{Input, Model};
use crate::ops::Backend;

/// How a text is prefilled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PrefillOptions {
    /// The share of the tokens to keep, above 0 and up to 1, and by what; `None`: all.
    pub keep: Option<(f64, KeepBy)>,
}

/// The K and V of a text by the model itself.
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
    options: &PrefillOptions,
) -> Result<KvPrefix> {
    source.check()?;
    let (c, n) = (model.config(), source.ids.len());
    if let Some((rate, _)) = options.keep
        && !(rate > 0.0 && rate <= 1.0)
    {
        let reason = "the share of the tokens to keep lies in (0, 1]";
        return Err(Error::input(format!("keep {rate}"), reason));
    }
    model.check_positions(0, n)?;
    let mut queries: Vec<Queries> = match options.keep {
        Some((_, by)) => (0..c.layers)
            .filter_map(|_| Queries::new(by, c, n).transpose())
            .collect::<Result<_>>()?,
        None => Vec::new(),
    };
    let mut kv = model.kv()?;
    for pass in source.ids.chunks(PASS) {
        let input = Input::Ids(pass);
        match queries.is_empty() {
            true => drop(model.forward_adapted(input, None, &mut kv)?),
            false => drop(model.forward_watched(input, &mut kv, &mut |layer, rows| {
                let queries = &mut queries[layer];
                control::compute(|| queries.hear(c, rows));
            })?),
        }
        kv.commit(pass.len())?;
        control::report(kv.len(), n);
    }
    let all: Vec<usize> = (0..n).collect();
    let mut layers = model.take(&kv, &all)?;
    drop(kv);

    let kept: Option<Vec<Vec<usize>>> = match options.keep {
        None => None,
        Some((rate, KeepBy::Llmlingua)) => {
            let mut scores = vec![f32::INFINITY];
            scores.append(&mut model.score_each(&[&source.ids])?.remove(0));
            let rows = top(&scores, count(n, rate));
            layers = layers
                .iter()
                .map(|[k, v]| [k, v].map(|part| gather(c.head_dim, n, part, |_| &rows)))
                .collect();
            Some(vec![rows])
        }
        Some((rate, by)) => {
            let mut kept = Vec::with_capacity(c.layers * c.kv_heads);
            for (layer, [k, v]) in layers.iter_mut().enumerate() {
                let scores = control::step(|| match by {
                    KeepBy::Keydiff => Ok(key_difference(c, k)),
                    _ => Ok(queries[layer].score(c, k, v)),
                })?;
                let rows: Vec<Vec<usize>> = scores
                    .iter()
                    .map(|scores| top(scores, count(n, rate)))
                    .collect();
                *k = gather(c.head_dim, n, k, |head| &rows[head]);
                *v = gather(c.head_dim, n, v, |head| &rows[head]);
                kept.extend(rows);
            }
            Some(kept)
        }
    };
    let kept_by = options
        .keep
        .map(|(rate, by)| format!("{} {rate}", by.name()));
    let rows = kept.unwrap_or_else(|| vec![all]);
    KvPrefix::new(Parts {
        origin: Origin {
            model: id.clone(),
            method: match options.keep {
                None => Method::Prefill,
                Some(_) => Method::Pruned,
            },
            adapter: None,
            kept_by,
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
