//! A pass of texts that lose tokens window by window: the same launches whatever is read.

use super::{Model, Scratch};
use crate::control;
use crate::error::Result;
use crate::model::lora::Lora;
use crate::ops::{Backend, Capacity, Limits, Pairing, PruneBatch, Rotate, Staged};
use crate::rope;

/// A batch of texts to prune, with all that their forward passes need. Nothing of it moves, so that launches which were
/// recorded stay good.
pub(in crate::model) struct Workspace<B: Backend> {
    pub texts: PruneBatch<B>,
    /// K and V of each layer, [`Capacity::tokens`] rows a text.
    cache: Vec<[B::Buf<f32>; 2]>,
    scratch: Scratch<B>,
    /// Of every position that a text can have: `[tokens, head_dim]`.
    angles: B::Buf<f32>,
    recorded: B::Recorded,
}

impl<B: Backend> Model<B> {
    /// Bytes of K and V that [`Model::workspace`] needs for one token of a text.
    pub(in crate::model) fn bytes_per_token(&self) -> usize {
        let c = &self.config;
        c.layers * 2 * c.kv_heads * c.head_dim * size_of::<f32>()
    }

    /// Makes a workspace for texts of this capacity.
    pub(in crate::model) fn workspace(&self, capacity: Capacity) -> Result<Workspace<B>> {
        let (b, c, rows) = (&self.backend, &self.config, capacity.all_rows());
        let limits = Limits {
            vocab: c.vocab,
            positions: c.max_positions.min(capacity.tokens),
        };
        let tile = b.tile(c.heads, c.kv_heads, c.head_dim)?;
        let width = capacity.texts * capacity.tokens * c.kv_heads * c.head_dim;
        let angles = match &self.frequencies {
            Some(frequencies) => {
                let positions: Vec<u32> = (0..capacity.tokens as u32).collect();
                b.upload(&rope::angles(frequencies, &positions))?
            }
            None => b.zeros(0)?,
        };
        Ok(Workspace {
            texts: PruneBatch::new(b, capacity, limits, tile)?,
            cache: (0..c.layers)
                .map(|_| Ok([b.zeros(width)?, b.zeros(width)?]))
                .collect::<Result<_>>()?,
            scratch: Scratch::new(b, c, rows)?,
            angles,
            recorded: B::Recorded::default(),
        })
    }

    /// Reads what is staged, drops tokens by it, and stages the next pass; `lora` is on, the same each
    /// time.
    pub(in crate::model) fn read(
        &self,
        workspace: &mut Workspace<B>,
        lora: Option<&Lora<B>>,
    ) -> Result<()> {
        control::check()?;
        let (b, c) = (&self.backend, &self.config);
        let Workspace {
            texts,
            cache,
            scratch,
            angles,
            recorded,
        } = workspace;
        let rows = texts.capacity().all_rows();
        let attention = self.attention(0, &[]);
        let rotate = Rotate {
            rows,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            at: 0,
            eps: c.norm_eps,
            pairing: Pairing::Halves,
        };
        b.repeat(recorded, &mut || {
            b.embed_staged(
                texts,
                Staged::Inputs,
                &self.embedding,
                false,
                &mut scratch.x,
            )?;
            if let Some(table) = &self.positions {
                b.embed_staged(texts, Staged::Positions, table, true, &mut scratch.x)?;
            }
            if self.frequencies.is_some() {
                b.angles_staged(texts, c.head_dim, angles, &mut scratch.angles)?;
            }
            for (i, (layer, [k, v])) in self.layers.iter().zip(cache.iter_mut()).enumerate() {
                let lora = lora.map(|lora| lora.layer(i)).unwrap_or_default();
                self.layer(layer, lora, rows, scratch, false, &mut |s| {
                    let norms = layer.qk_norm.as_ref().map(|[q, k]| [q, k]);
                    let angles = self.frequencies.is_some().then_some(&s.angles);
                    b.rotate_staged(texts, rotate, &mut s.qkv, norms, angles, k, v)?;
                    b.attention_staged(texts, &attention, &s.qkv, k, v, &mut s.attention)
                })?;
            }
            self.norm(&self.norm, rows, &scratch.x, &mut scratch.h)?;
            b.nll_staged(texts, c.hidden, &scratch.h, self.head(), &mut scratch.nll)?;
            b.prune(texts, Some(&scratch.nll))
        })
    }
}
