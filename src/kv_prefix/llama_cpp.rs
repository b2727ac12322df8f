//! A prefix as a sequence-state file of llama.cpp: what `POST /slots/{id}?action=restore` and
//! `llama_state_seq_load_file` read.
//!
//! The server takes a file only if its version, number of streams, element types and order of V are
//! its own, so the best template is a slot that it saved itself; a slot of one token will do. It
//! compares the prompt with the file's token ids and continues after them, so a prompt begins with
//! those ids; memory tokens have none and get placeholders.

use std::path::Path;

use super::{Dtype, KRope, KvPrefix, Placeholder};
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::mapped::{Access, Mapped};

const MAGIC: u32 = 0x6767_7371;
/// ggml's numbers of element types.
const TYPES: [(i32, Dtype); 3] = [(0, Dtype::F32), (1, Dtype::F16), (30, Dtype::Bf16)];

/// What a server wants of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// 3 or 4.
    pub version: u32,
    /// Token ids stand as `[-1, 1, n, ids…, 0]` and not alone.
    pub packed: bool,
    /// One per slot, unless the server has `--kv-unified`; at least 1.
    pub streams: u32,
    /// The slot's stream.
    pub stream: u32,
    /// The slot's sequence.
    pub sequence: i32,
    /// V lies channel by channel: without flash attention.
    pub v_transposed: bool,
    /// Element type of K.
    pub k: Dtype,
    /// Element type of V.
    pub v: Dtype,
}

impl Layout {
    /// A server with one slot, flash attention and the default cache; `version` is 3 or 4.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another version.
    pub fn new(version: u32) -> Result<Self> {
        check_version(version)?;
        Ok(Layout {
            version,
            packed: version == 4,
            streams: 1,
            stream: 0,
            sequence: 0,
            v_transposed: false,
            k: Dtype::F16,
            v: Dtype::F16,
        })
    }

    /// The layout of a file that a server saved, which must hold at least one token.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what is not such a file; [`Error::Unsupported`] for a cache
    /// in another type than F32, F16 or BF16.
    pub fn of_template(path: &Path) -> Result<Self> {
        // Mapped: what counts is its beginning, and a slot may take gigabytes.
        let map = Mapped::open(path, Access::Map)?;
        let template = Template {
            path,
            rest: map.bytes(),
        };
        template.layout()
    }
}

fn check_version(version: u32) -> Result<()> {
    match version {
        3 | 4 => Ok(()),
        other => Err(Error::Unsupported {
            what: format!("version {other} of llama.cpp's state files"),
            have: "3 and 4".into(),
        }),
    }
}

/// A saved slot, read from its beginning.
struct Template<'a> {
    path: &'a Path,
    rest: &'a [u8],
}

impl Template<'_> {
    fn bad(&self, reason: &str) -> Error {
        Error::format(self.path, format!("as a template: {reason}"))
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.bad("it ends too early: is it a slot that holds a token?"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        Ok(bytes.first_chunk().map_or(0, |&b| u32::from_le_bytes(b)))
    }

    /// Passes over a tensor of so many rows, whose size in bytes stands in front.
    fn rows(&mut self, cells: u32) -> Result<()> {
        let row = self.take(8)?.first_chunk();
        let row = row.map_or(0, |&b| u64::from_le_bytes(b));
        self.skip(row.saturating_mul(cells.into()))
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.take(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        Ok(())
    }

    /// The element type of a tensor, and the bytes of its header passed over.
    fn dtype(&mut self, what: &str) -> Result<Dtype> {
        let found = self.u32()? as i32;
        let dtype = TYPES.iter().find(|(number, _)| *number == found);
        dtype
            .map(|&(_, dtype)| dtype)
            .ok_or_else(|| Error::Unsupported {
                what: format!("{}: {what} of ggml type {found}", self.path.display()),
                have: "F32, F16 and BF16; start the server with --cache-type-k f16 \
                   --cache-type-v f16"
                    .into(),
            })
    }

    fn layout(mut self) -> Result<Layout> {
        if self.u32()? != MAGIC {
            return Err(self.bad("not a slot that llama.cpp saved"));
        }
        let version = self.u32()?;
        check_version(version)?;
        let words = self.u32()? as usize;
        let ids = self.take(words.saturating_mul(4))?;
        let packed = ids.first_chunk() == Some(&(-1i32).to_le_bytes());
        let streams = self.u32()?;
        if !(1..=4096).contains(&streams) {
            return Err(self.bad(&format!("{streams} streams")));
        }
        let mut found = None;
        for stream in 0..streams {
            let cells = self.u32()?;
            if cells == 0 {
                continue;
            }
            let mut sequence = 0;
            for _ in 0..cells {
                self.u32()?;
                let sequences = self.u32()? as usize;
                let ids = self.take(sequences.saturating_mul(4))?;
                sequence = ids.first_chunk().map_or(0, |&b| i32::from_le_bytes(b));
            }
            let v_transposed = match self.u32()? {
                0 => false,
                1 => true,
                other => return Err(self.bad(&format!("v_trans is {other}"))),
            };
            let layers = self.u32()?;
            if version == 4 && [self.u32()?, self.u32()?] != [0, 0] {
                return Err(Error::Unsupported {
                    what: format!("{}: a cache of rotated data", self.path.display()),
                    have: "plain ones; start the server with --cache-type-k f16".into(),
                });
            }
            let mut types = [Dtype::F16; 2];
            for _ in 0..layers {
                types[0] = self.dtype("K")?;
                self.rows(cells)?;
            }
            for _ in 0..layers {
                types[1] = self.dtype("V")?;
                if v_transposed {
                    let (element, channels) = (self.u32()?, self.u32()?);
                    let row = u64::from(element).saturating_mul(channels.into());
                    self.skip(row.saturating_mul(cells.into()))?;
                } else {
                    self.rows(cells)?;
                }
            }
            // Of several streams the first that holds something is the slot's.
            found = found.or(Some((stream, sequence, v_transposed, types)));
        }
        // After K and V other memory follows: recurrent states, or a second cache for sliding windows.
        if !self.rest.is_empty() {
            return Err(Error::Unsupported {
                what: format!(
                    "{}: a slot with {} bytes beside K and V, as of a hybrid or sliding-window model",
                    self.path.display(),
                    self.rest.len()
                ),
                have: "models whose every layer keeps all K and V".into(),
            });
        }
        let Some((stream, sequence, v_transposed, [k, v])) = found else {
            return Err(self.bad("it holds no token: save the slot after a prompt of one"));
        };
        Ok(Layout {
            version,
            packed,
            streams,
            stream,
            sequence,
            v_transposed,
            k,
            v,
        })
    }
}

/// A prefix as llama.cpp's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The file.
    pub bytes: Vec<u8>,
    /// The ids that every prompt to the slot begins with.
    pub tokens: Vec<u32>,
    /// Cells of the cache that it fills.
    pub cells: usize,
}

impl Slot {
    /// Lays out a prefix. Where it has no token ids of its own, or the text was longer than the rows
    /// that are left of it, the ids are what the text had, or placeholders.
    ///
    /// # Errors
    /// [`Error::Input`] for a value beyond the range of the cache's element type, or a placeholder
    /// beyond all ids;
    /// [`Error::Unsupported`] for a family whose order of K is not known.
    pub fn new(prefix: &KvPrefix, layout: &Layout, placeholder: Placeholder) -> Result<Self> {
        check_version(layout.version)?;
        let interleaved = interleaved(&prefix.origin().model.architecture)?;
        if let Placeholder::Repeated(id) = placeholder
            && i32::try_from(id).is_err()
        {
            return Err(Error::input(
                "placeholder",
                format!("{id} is not a token id"),
            ));
        }
        let tokens = match prefix.source_ids().len() == prefix.next_pos() {
            true => prefix.source_ids().to_vec(),
            false => prefix.placeholders(placeholder, prefix.next_pos()),
        };
        let prefix = prefix.clone().with_k_rope(KRope::Applied)?;
        let s = prefix.shape();
        let mut out = Writer(Vec::new());
        out.u32(MAGIC);
        out.u32(layout.version);
        let ids = tokens.iter().map(|&id| id as i32);
        let words: Vec<i32> = match layout.packed {
            true => [-1, 1, tokens.len() as i32]
                .into_iter()
                .chain(ids)
                .chain([0])
                .collect(),
            false => ids.collect(),
        };
        out.u32(words.len() as u32);
        words.iter().for_each(|&word| out.i32(word));
        out.u32(layout.streams);
        for stream in 0..layout.streams {
            if stream != layout.stream {
                out.u32(0);
                continue;
            }
            out.u32(s.tokens as u32);
            for position in cells(&prefix) {
                out.u32(position);
                out.u32(1);
                out.i32(layout.sequence);
            }
            out.u32(layout.v_transposed.into());
            out.u32(s.layers as u32);
            if layout.version == 4 {
                out.u32(0);
                out.u32(0);
            }
            out.tensors(&prefix, layout, interleaved)?;
        }
        Ok(Slot {
            bytes: out.0,
            tokens,
            cells: s.tokens,
        })
    }

    /// Writes the file whole or not at all: a server that reads half of one aborts.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        write_whole(path, &self.bytes)
    }
}

/// Checks that a prefix is of a family whose order of K in llama.cpp is known.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn check_architecture(prefix: &KvPrefix) -> Result<()> {
    interleaved(&prefix.origin().model.architecture).map(drop)
}

/// Whether llama.cpp keeps K of a family in interleaved pairs, and not half a head apart.
fn interleaved(architecture: &str) -> Result<bool> {
    match architecture {
        "llama" => Ok(true),
        "qwen2" | "qwen3" | "gpt2" => Ok(false),
        other => Err(Error::Unsupported {
            what: format!(
                "a prefix of {} for llama.cpp",
                other.replace(char::is_control, " ")
            ),
            have: "those of llama, qwen2, qwen3 and gpt2".into(),
        }),
    }
}

/// The position of each cell. The last must be the one before the next token's, and all must rise;
/// the angles that the keys have may be others, and stay.
fn cells(prefix: &KvPrefix) -> Vec<u32> {
    let (n, next) = (prefix.shape().tokens, prefix.next_pos());
    let positions = prefix.positions();
    let rising = positions.windows(2).all(|pair| pair[0] < pair[1])
        && positions.last().is_some_and(|&last| (last as usize) < next);
    let mut cells: Vec<u32> = match positions.len() == n && rising {
        true => positions.to_vec(),
        false => (next - n..next).map(|position| position as u32).collect(),
    };
    if let Some(last) = cells.last_mut() {
        *last = next as u32 - 1;
    }
    cells
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }

    fn tensors(&mut self, prefix: &KvPrefix, layout: &Layout, interleaved: bool) -> Result<()> {
        let s = prefix.shape();
        let width = s.kv_heads * s.head_dim;
        let number = |dtype: Dtype| TYPES.iter().find(|t| t.1 == dtype).map_or(0, |t| t.0);
        let all = || (0..s.layers).filter_map(|i| prefix.layer(i));
        for [k, _] in all() {
            let mut rows = cell_rows(k, prefix);
            if interleaved {
                rows.chunks_exact_mut(s.head_dim).for_each(interleave);
            }
            self.i32(number(layout.k));
            self.0
                .extend(((width * layout.k.bytes()) as u64).to_le_bytes());
            self.0.extend(layout.k.encode(&rows)?);
        }
        for [_, v] in all() {
            self.i32(number(layout.v));
            if !layout.v_transposed {
                self.0
                    .extend(((width * layout.v.bytes()) as u64).to_le_bytes());
                self.0.extend(layout.v.encode(&cell_rows(v, prefix))?);
                continue;
            }
            self.u32(layout.v.bytes() as u32);
            self.u32(width as u32);
            let mut channels = Vec::with_capacity(v.len());
            for head in v.chunks_exact(s.tokens * s.head_dim) {
                for channel in 0..s.head_dim {
                    channels.extend(head[channel..].iter().step_by(s.head_dim));
                }
            }
            self.0.extend(layout.v.encode(&channels)?);
        }
        Ok(())
    }
}

/// `[kv_heads, tokens, head_dim]` to `[tokens, kv_heads, head_dim]`.
fn cell_rows(values: &[f32], prefix: &KvPrefix) -> Vec<f32> {
    let s = prefix.shape();
    let mut out = Vec::with_capacity(values.len());
    for token in 0..s.tokens {
        for head in 0..s.kv_heads {
            out.extend_from_slice(&values[(head * s.tokens + token) * s.head_dim..][..s.head_dim]);
        }
    }
    out
}

/// Brings a head from halves to interleaved pairs.
fn interleave(head: &mut [f32]) {
    let halves = head.to_vec();
    let (low, high) = halves.split_at(head.len() / 2);
    for (pair, (&a, &b)) in head.chunks_exact_mut(2).zip(low.iter().zip(high)) {
        (pair[0], pair[1]) = (a, b);
    }
}
