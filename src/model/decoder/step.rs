//! One more token for each of several sequences, each after a cache of its own.

use super::{Hidden, Input, Model};
use crate::control;
use crate::error::{Error, Result};
use crate::model::kv::Kv;
use crate::model::lora::LayerLora;
use crate::ops::Backend;
use crate::rope;

impl<B: Backend> Model<B> {
    /// Runs one id after each cache and counts it in; row `i` of the states is that of `ids[i]`.
    ///
    /// A single row is bound by reading the weights: here they are read once for all of them. Only
    /// attention, which has nothing in common, goes row by row.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless there is a cache for each id; [`Error::Input`] for an id outside the
    /// vocabulary or a position outside the model's range; [`Error::Device`] if the device fails. The caches
    /// then hold what they held before.
    pub fn step(&self, ids: &[u32], kvs: &mut [&mut Kv<B>]) -> Result<Hidden<'_, B>> {
        let (b, c, rows) = (&self.backend, &self.config, ids.len());
        if kvs.len() != rows {
            return Err(Error::Shape {
                op: "step",
                want: format!("{rows} caches"),
                got: kvs.len().to_string(),
            });
        }
        let mut positions = Vec::with_capacity(rows);
        for kv in kvs.iter_mut() {
            self.check_positions(kv.position(), 1)?;
            kv.reserve(b, 1)?;
            positions.push(kv.position() as u32);
        }
        let mut hidden = self.hidden(rows, false)?;
        let Some(scratch) = hidden.scratch.as_mut() else {
            return Ok(hidden);
        };
        control::step(|| self.enter(Input::Ids(ids), &positions, scratch))?;

        // What one row needs for itself.
        let wide = (c.heads + 2 * c.kv_heads) * c.head_dim;
        let narrow = c.heads * c.head_dim;
        let (mut qkv, mut out) = (b.zeros(wide)?, b.zeros(narrow)?);
        let angles = positions
            .iter()
            .map(|&position| match &self.frequencies {
                Some(frequencies) => b.upload(&rope::angles(frequencies, &[position])),
                None => b.zeros(0),
            })
            .collect::<Result<Vec<_>>>()?;
        for (i, layer) in self.layers.iter().enumerate() {
            let plain = LayerLora::default();
            control::step(|| {
                self.layer(layer, plain, rows, scratch, false, &mut |s| {
                    for (row, (kv, angles)) in kvs.iter_mut().zip(&angles).enumerate() {
                        b.copy(&s.qkv, row * wide..(row + 1) * wide, &mut qkv, 0)?;
                        let attention = self.attention(kv.len(), &[1]);
                        let cache = kv.layer(i);
                        self.attend(layer, &attention, 1, &mut qkv, angles, cache, &mut out)?;
                        b.copy(&out, 0..narrow, &mut s.attention, row * narrow)?;
                    }
                    Ok(())
                })
            })?;
        }
        control::step(|| self.norm(&self.norm, rows, &scratch.x, &mut scratch.h))?;
        for kv in kvs {
            kv.commit(1)?;
        }
        Ok(hidden)
    }
}
