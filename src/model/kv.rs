//! The KV cache.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::ops::Storage;

/// Keys, rotated already, and values of every layer: rows of `[kv_heads, head_dim]`, one per position.
///
/// A row stands where it stands whatever its rotation says: after [`Kv::remove`] the rows that
/// followed keep the rotation of their old position. What comes next takes position `position()`,
/// which is `len()` unless the cache began with a prefix that says otherwise.
pub struct Kv<S: Storage> {
    /// K and V by layer; one pair for all layers where nothing needs to be kept.
    layers: Vec<[S::Buf<f32>; 2]>,
    transient: bool,
    /// Elements of a row.
    width: usize,
    len: usize,
    /// Position of the next row.
    next: usize,
    capacity: usize,
}

impl<S: Storage> Kv<S> {
    /// An empty cache.
    pub fn new(storage: &S, config: &Config) -> Result<Self> {
        Self::with_layers(storage, config, false)
    }

    /// A cache for a forward pass that nothing follows: all layers share one pair of buffers, and it
    /// stays empty.
    pub(crate) fn transient(storage: &S, config: &Config) -> Result<Self> {
        Self::with_layers(storage, config, true)
    }

    fn with_layers(storage: &S, config: &Config, transient: bool) -> Result<Self> {
        let layers = if transient { 1 } else { config.layers };
        Ok(Kv {
            layers: (0..layers)
                .map(|_| Ok([storage.zeros(0)?, storage.zeros(0)?]))
                .collect::<Result<_>>()?,
            transient,
            width: config.kv_heads * config.head_dim,
            len: 0,
            next: 0,
            capacity: 0,
        })
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The position that the next row takes.
    pub fn position(&self) -> usize {
        self.next
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `rows` more; where none is left, for as many again as there are.
    pub(crate) fn reserve(&mut self, storage: &S, rows: usize) -> Result<()> {
        let need = self.len + rows;
        if need <= self.capacity {
            return Ok(());
        }
        let capacity = need.max(2 * self.capacity).next_multiple_of(64);
        for buf in self.layers.iter_mut().flatten() {
            storage.resize(buf, capacity * self.width)?;
        }
        self.capacity = capacity;
        Ok(())
    }

    /// K and V of a layer.
    pub(crate) fn layer(&mut self, layer: usize) -> &mut [S::Buf<f32>; 2] {
        let layer = if self.transient { 0 } else { layer };
        &mut self.layers[layer]
    }

    /// Counts in `rows` that a forward pass has just written after the last.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for more rows than the cache has capacity for.
    pub fn commit(&mut self, rows: usize) -> Result<()> {
        if self.transient || self.capacity - self.len < rows {
            return Err(Error::Shape {
                op: "kv_commit",
                want: format!("at most {} rows", self.capacity - self.len),
                got: format!("{rows}"),
            });
        }
        self.len += rows;
        self.next += rows;
        Ok(())
    }

    /// Keeps the first `len` positions.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] if there are fewer.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.check("length to cut the KV cache to", len, len)?;
        self.next -= (self.len - len).min(self.next);
        self.len = len;
        Ok(())
    }

    /// Drops the positions `range`; what follows moves down and keeps its rotation.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] if the range is reversed or ends after the last position.
    pub fn remove(&mut self, storage: &S, range: Range<usize>) -> Result<()> {
        self.check("range to remove from the KV cache", range.start, range.end)?;
        if range.is_empty() {
            return Ok(());
        }
        let from = range.end * self.width..self.len * self.width;
        for buf in self.layers.iter_mut().flatten() {
            storage.copy_within(buf, from.clone(), range.start * self.width)?;
        }
        self.len -= range.len();
        self.next -= range.len().min(self.next);
        Ok(())
    }

    /// Begins an empty cache with `rows` rows, for each layer K, rotated, and V; what comes next takes
    /// position `next`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a cache that is not empty, or rows of another size.
    pub(crate) fn begin(
        &mut self,
        storage: &S,
        rows: usize,
        next: usize,
        layers: &[[Vec<f32>; 2]],
    ) -> Result<()> {
        if self.len > 0 || self.transient {
            return Err(Error::Shape {
                op: "kv_begin",
                want: "an empty KV cache".into(),
                got: match self.transient {
                    true => "a transient one".into(),
                    false => format!("one of {} rows", self.len),
                },
            });
        }
        let want = format!(
            "{} layers of {rows} rows of {}",
            self.layers.len(),
            self.width
        );
        let shape = |got: usize| Error::Shape {
            op: "prefix",
            want: want.clone(),
            got: got.to_string(),
        };
        if layers.len() != self.layers.len() {
            return Err(shape(layers.len()));
        }
        self.reserve(storage, rows)?;
        for (to, from) in self.layers.iter_mut().zip(layers) {
            for (to, from) in to.iter_mut().zip(from) {
                if from.len() != rows * self.width {
                    return Err(shape(from.len()));
                }
                storage.write(from, to)?;
            }
        }
        self.len = rows;
        self.next = next;
        Ok(())
    }

    /// K and V of a layer at `positions`, in that order: `[positions, kv_heads, head_dim]` each.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] for a layer or a position that is not there.
    pub fn gather(
        &self,
        storage: &S,
        layer: usize,
        positions: &[usize],
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let Some([k, v]) = self.layers.get(layer) else {
            return Err(Error::input(
                format!("layer {layer}"),
                format!("the KV cache has {}", self.layers.len()),
            ));
        };
        let mut out = (Vec::new(), Vec::new());
        let mut rest = positions;
        while let Some(&first) = rest.first() {
            // Neighbours in one go.
            let run = rest
                .iter()
                .enumerate()
                .take_while(|&(i, &position)| position == first + i)
                .count();
            self.check("position of the KV cache", first, first + run)?;
            let range = first * self.width..(first + run) * self.width;
            out.0.extend(storage.download(k, range.clone())?);
            out.1.extend(storage.download(v, range)?);
            rest = &rest[run..];
        }
        Ok(out)
    }

    fn check(&self, what: &str, start: usize, end: usize) -> Result<()> {
        if start <= end && end <= self.len {
            return Ok(());
        }
        let what = if start == end {
            format!("{what}, {start}")
        } else {
            format!("{what}, {start}..{end}")
        };
        Err(Error::input(
            what,
            format!("{} positions are held", self.len),
        ))
    }
}
