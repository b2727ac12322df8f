//! From the KV cache to a prefix and back.

use crate::error::{Error, Result};
use crate::kv_prefix::{KRope, KvPrefix, Shape};
use crate::model::decoder::Model;
use crate::model::kv::Kv;
use crate::ops::Backend;

impl<B: Backend> Model<B> {
    /// A KV cache that holds a prefix, ready for what follows it.
    ///
    /// Looks at sizes only: that the prefix is this model's, [`KvPrefix::check_model`] says by the
    /// fingerprint, which the engine asks before (`engine/loaded.rs`).
    ///
    /// # Errors
    /// [`Error::Shape`] for a prefix of other sizes; [`Error::Unsupported`] for one with gaps where
    /// the model's attention has a window.
    pub fn begin(&self, prefix: &KvPrefix) -> Result<Kv<B>> {
        let (c, shape) = (self.config(), prefix.shape());
        let want = Shape {
            layers: c.layers,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            tokens: shape.tokens,
        };
        if shape != want {
            return Err(Error::Shape {
                op: "prefix",
                want: format!("{want:?}"),
                got: format!("{shape:?}"),
            });
        }
        if c.sliding_window.is_some() && prefix.next_pos() != shape.tokens {
            return Err(Error::Unsupported {
                what: "a prefix with gaps for a model with windowed attention".into(),
                have: "prefixes without gaps".into(),
            });
        }
        let rotated;
        let prefix = match prefix.k_rope() {
            KRope::Applied => prefix,
            KRope::None => {
                rotated = prefix.clone().with_k_rope(KRope::Applied)?;
                &rotated
            }
        };
        let layers: Vec<[Vec<f32>; 2]> = (0..c.layers)
            .filter_map(|i| prefix.layer(i))
            .map(|[k, v]| {
                [
                    exchange(k, c.kv_heads, shape.tokens, c.head_dim),
                    exchange(v, c.kv_heads, shape.tokens, c.head_dim),
                ]
            })
            .collect();
        let mut kv = self.kv()?;
        kv.begin(self.backend(), shape.tokens, prefix.next_pos(), &layers)?;
        Ok(kv)
    }

    /// K and V at `rows` of the cache, for each layer `[kv_heads, rows, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Input`] for a row that is not there; [`Error::Device`] if the device fails.
    pub fn take(&self, kv: &Kv<B>, rows: &[usize]) -> Result<Vec<[Vec<f32>; 2]>> {
        let c = self.config();
        (0..c.layers)
            .map(|layer| {
                let (k, v) = kv.gather(self.backend(), layer, rows)?;
                Ok([
                    exchange(&k, rows.len(), c.kv_heads, c.head_dim),
                    exchange(&v, rows.len(), c.kv_heads, c.head_dim),
                ])
            })
            .collect()
    }
}

/// `[a, b, width]` to `[b, a, width]`.
pub(crate) fn exchange(values: &[f32], a: usize, b: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for j in 0..b {
        for i in 0..a {
            out.extend_from_slice(&values[(i * b + j) * width..][..width]);
        }
    }
    out
}
