//! The model's own cache of a text as a prefix.

use super::{Source, advance, rope};
use crate::error::Result;
use crate::model::decoder::Model;
use crate::ops::Backend;
use crate::prefix::{KRope, KvPrefix, Method, ModelId, Origin, Parts, Shape};

/// How a text is prefilled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PrefillOptions {}

/// The K and V of a text by the model itself.
///
/// # Errors
/// [`crate::Error::Input`] for an empty text, one with ids outside the vocabulary, or one longer than
/// the model's context.
pub fn prefill<B: Backend>(
    model: &Model<B>,
    id: &ModelId,
    source: &Source,
    _options: &PrefillOptions,
) -> Result<KvPrefix> {
    source.check()?;
    let c = model.config();
    let mut kv = model.kv()?;
    drop(advance(model, &source.ids, None, &mut kv)?);
    let rows: Vec<usize> = (0..source.ids.len()).collect();
    KvPrefix::new(Parts {
        origin: Origin {
            model: id.clone(),
            method: Method::Prefill,
            adapter: None,
            kept_by: None,
            source_tokens: rows.len(),
            source_sha256: source.sha256.clone(),
            pieces: 1,
        },
        shape: Shape {
            layers: c.layers,
            kv_heads: c.kv_heads,
            tokens: rows.len(),
            head_dim: c.head_dim,
        },
        layers: model.take(&kv, &rows)?,
        k_rope: KRope::Applied,
        rope: rope(model),
        positions: rows.iter().map(|&row| row as u32).collect(),
        next_pos: rows.len(),
        source_ids: source.ids.clone(),
    })
}
