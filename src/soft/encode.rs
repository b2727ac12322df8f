//! 500xCompressor's encoder, ICAE's, and one that pools.

use std::borrow::Cow;
use std::ops::Range;

use super::{Adapter, Cut, NextPosition, PASS, SETTINGS, Source, advance, rope};
use crate::control;
use crate::error::{Error, Result};
use crate::kv_prefix::{KRope, KvPrefix, Method, ModelId, Origin, Parts, Shape, content_id};
use crate::model::decoder::{Input, Model};
use crate::model::kv::Kv;
use crate::model::lora::Lora;
use crate::ops::Backend;

/// How a text is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// 500xCompressor, ICAE or pooled states; `None`: as the adapter was trained.
    pub method: Option<Method>,
    /// Longest piece of text, in tokens, at least 1; `None`: as the adapter was trained.
    pub piece_tokens: Option<usize>,
}

/// The pieces of a text of `len` tokens of which none may have more than `longest`: as few as can be,
/// their lengths equal but for one token, the longer ones first.
pub fn pieces(len: usize, longest: usize) -> Vec<Range<usize>> {
    parts(len, len.div_ceil(longest.max(1)))
}

/// `len` rows in `count` parts, or in `len` where these are fewer, their lengths equal but for one, the
/// longer ones first.
pub(crate) fn parts(len: usize, count: usize) -> Vec<Range<usize>> {
    let count = count.min(len);
    let mut start = 0;
    (0..count)
        .map(|i| {
            let part = len / count + usize::from(i < len % count);
            start += part;
            start - part..start
        })
        .collect()
}

/// The mean of each of `windows` of `rows`, `[rows, width]`, in f64 on its way: `[windows, width]`.
pub(crate) fn means(rows: &[f32], width: usize, windows: &[Range<usize>]) -> Vec<f32> {
    let mut out = Vec::with_capacity(windows.len() * width);
    for window in windows {
        let mut sums = vec![0.0f64; width];
        for row in rows[window.start * width..window.end * width].chunks_exact(width) {
            let pairs = sums.iter_mut().zip(row);
            pairs.for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let share = 1.0 / window.len() as f64;
        out.extend(sums.iter().map(|sum| (sum * share) as f32));
    }
    out
}

/// As [`pieces`], but cut as [`Cut::RoundedUp`] says.
fn pieces_rounded_up(len: usize, longest: usize) -> Vec<Range<usize>> {
    let length = len.div_ceil(len.div_ceil(longest.max(1)).max(1)).max(1);
    let starts = (0..len).step_by(length);
    starts.map(|start| start..len.min(start + length)).collect()
}

/// The K and V of memory tokens that read a text: one run of them per piece, joined; for each of `sources`.
///
/// Each piece goes through the encoder (the frozen model with the adapter on) by itself from position
/// 0, and its memory tokens stand after it; where their K is rotated to is recorded as
/// `rope_positions`. The runs are joined in the text's order. The decoder continues at the number of
/// all memory tokens, unless the adapter's settings say otherwise. Pieces, of one text or of several, share
/// forward passes of up to 1,024 rows.
///
/// By ICAE's method the memory tokens' output states (after the last norm) are read by the decoder,
/// the adapter off, as embeddings at positions from 0, and the K and V are the decoder's. Where the
/// adapter has ids or an embedding to stand before and after them, their rows are a part of the prefix.
/// An adapter that pools has no memory tokens: the text's own output states, in as many windows as there
/// would be memory tokens (or one a token where the piece is shorter), are averaged and read so.
///
/// # Errors
/// [`Error::Input`] for an empty text or one with ids outside the vocabulary; [`Error::Shape`] for
/// the adapter of another model.
pub fn encode<B: Backend>(
    model: &Model<B>,
    id: &ModelId,
    adapter: &Adapter,
    lora: &Lora<B>,
    sources: &[Source],
    options: &EncodeOptions,
) -> Result<Vec<KvPrefix>> {
    let encoder = Encoder::new(model, adapter, options)?;
    let c = model.config();
    let mut cut = Vec::new();
    let mut layouts = Vec::new();
    for source in sources {
        source.check()?;
        let ids = encoder.text(&source.ids);
        let layout = encoder.layout(ids.len());
        let pieces = layout.pieces.iter();
        cut.extend(pieces.map(|piece| encoder.padded(&ids[piece.clone()])));
        layouts.push(layout);
    }
    let mut runs = Vec::with_capacity(cut.len());
    while runs.len() < cut.len() {
        runs.extend(encoder.read(lora, &cut[runs.len()..])?);
        // A piece alone has reported its tokens.
        if cut.len() > 1 {
            control::report(runs.len(), cut.len());
        }
    }
    let mut runs = runs.into_iter();
    let mut prefixes = Vec::with_capacity(sources.len());
    for (source, layout) in sources.iter().zip(layouts) {
        let layers = encoder.joined(runs.by_ref().take(layout.pieces.len()))?;
        prefixes.push(KvPrefix::new(Parts {
            origin: encoder.origin(id, source, &layout),
            shape: Shape {
                layers: c.layers,
                kv_heads: c.kv_heads,
                tokens: layout.positions.len(),
                head_dim: c.head_dim,
            },
            layers,
            k_rope: KRope::Applied,
            rope: rope(model),
            positions: layout.positions,
            next_pos: layout.next_pos,
            source_ids: Vec::new(),
        })?);
    }
    Ok(prefixes)
}

/// The [`KvPrefix::content_id`] of the prefix that [`encode`] makes of a text, without making it.
///
/// # Errors
/// [`Error::Input`] for an empty text and for options out of their ranges.
pub fn encoded_id<B: Backend>(
    model: &Model<B>,
    id: &ModelId,
    adapter: &Adapter,
    source: &Source,
    options: &EncodeOptions,
) -> Result<String> {
    source.check()?;
    let encoder = Encoder::new(model, adapter, options)?;
    let layout = encoder.layout(encoder.text(&source.ids).len());
    let origin = encoder.origin(id, source, &layout);
    Ok(content_id(&origin, &layout.positions, layout.next_pos))
}

/// How a text is cut, and where what is made of it stands.
struct Layout {
    pieces: Vec<Range<usize>>,
    /// Of each row.
    positions: Vec<u32>,
    next_pos: usize,
}

/// A model with an adapter on, and how it is to read.
struct Encoder<'a, B: Backend> {
    model: &'a Model<B>,
    adapter: &'a Adapter,
    method: Method,
    /// Tokens of a piece.
    longest: usize,
    /// The same where a caller says nothing.
    usual: usize,
    /// The length to which pieces are filled up, and by which id.
    pad: Option<(usize, u32)>,
}

/// What is left of a piece.
enum Run {
    /// Each layer's K and V of the memory tokens.
    Rows(Layers),
    /// Their output states.
    States(Vec<f32>),
}

/// Of each layer K and V, `[kv_heads, rows, head_dim]`.
type Layers = Vec<[Vec<f32>; 2]>;

impl<'a, B: Backend> Encoder<'a, B> {
    fn new(model: &'a Model<B>, adapter: &'a Adapter, options: &EncodeOptions) -> Result<Self> {
        let (c, settings) = (model.config(), adapter.settings());
        let method = options.method.unwrap_or(settings.method);
        if !method.is_adapters() {
            let what = format!("method {}", method.name());
            return Err(Error::input(what, "no adapter makes that"));
        }
        if (method == Method::Pooled) != (settings.method == Method::Pooled) {
            let what = format!("method {}", method.name());
            let reason = format!("the adapter was trained by {}", settings.method.name());
            return Err(Error::input(what, reason));
        }
        // As Adapter::open refuses it: the other methods have no place for these rows.
        let around = adapter.after().is_some() || !settings.decoder_begin.is_empty();
        if around && method != Method::Icae {
            let what = format!("method {}", method.name());
            let reason =
                "the adapter has decoder_begin or after_memory, which are for the method icae";
            return Err(Error::input(what, reason));
        }
        let room = c.max_positions.saturating_sub(adapter.num_mem());
        let longest = match options.piece_tokens.or(settings.max_text_tokens) {
            Some(tokens) if tokens > 0 && tokens <= room => tokens,
            Some(tokens) => {
                let reason = format!("there is room for 1 to {room} tokens of text");
                return Err(Error::input(format!("piece_tokens {tokens}"), reason));
            }
            None => room,
        };
        let usual = settings.max_text_tokens.unwrap_or(room);
        let pad = match settings.pad_to {
            Some(to) if to > room => {
                let reason = format!("pad_to {to}: the model has room for {room} tokens of text");
                return Err(Error::format(SETTINGS, reason));
            }
            Some(to) => {
                let reason = "neither the adapter nor the model has a pad_id";
                let missing = || Error::format(SETTINGS, reason);
                Some((to, settings.pad_id.or(c.eos).ok_or_else(missing)?))
            }
            None => None,
        };
        Ok(Encoder {
            model,
            adapter,
            method,
            longest,
            usual,
            pad,
        })
    }

    /// What is read of a text.
    fn text<'t>(&self, ids: &'t [u32]) -> Cow<'t, [u32]> {
        match self.adapter.settings().text_bos {
            Some(bos) if ids.first() != Some(&bos) => Cow::Owned([&[bos], ids].concat()),
            _ => Cow::Borrowed(ids),
        }
    }

    /// Rows of a prefix that stand around those of memory tokens.
    fn around(&self) -> usize {
        match self.method {
            Method::Icae => {
                let begin = self.adapter.settings().decoder_begin.len();
                begin + usize::from(self.adapter.after().is_some())
            }
            _ => 0,
        }
    }

    /// Rows that a piece of so many tokens becomes.
    fn rows(&self, tokens: usize) -> usize {
        match self.method {
            Method::Pooled => self.adapter.num_mem().min(tokens),
            _ => self.adapter.num_mem(),
        }
    }

    /// Memory tokens that are read after a piece.
    fn appended(&self) -> usize {
        match self.method {
            Method::Pooled => 0,
            _ => self.adapter.num_mem(),
        }
    }

    fn cut(&self, tokens: usize, longest: usize) -> Vec<Range<usize>> {
        match self.adapter.settings().cut {
            Cut::Even => pieces(tokens, longest),
            Cut::RoundedUp => pieces_rounded_up(tokens, longest),
        }
    }

    fn layout(&self, tokens: usize) -> Layout {
        let pieces = self.cut(tokens, self.longest);
        let padded = |piece: &Range<usize>| piece.len().max(self.pad.map_or(0, |(to, _)| to));
        let count = |piece: &Range<usize>| self.rows(padded(piece));
        let rows = pieces.iter().map(count).sum::<usize>() + self.around();
        let positions: Vec<u32> = match self.method {
            // The decoder reads the states from its own beginning on.
            method if method.reads_states() => (0..rows as u32).collect(),
            _ => pieces
                .iter()
                .flat_map(|piece| {
                    let at = padded(piece);
                    (at..at + count(piece)).map(|position| position as u32)
                })
                .collect(),
        };
        let next_pos = match self.adapter.settings().next_position {
            NextPosition::Memory => rows,
            NextPosition::Text => {
                let last = positions.iter().max().map_or(0, |&p| p as usize);
                rows.max(last + 1)
            }
        };
        Layout {
            pieces,
            positions,
            next_pos,
        }
    }

    fn origin(&self, id: &ModelId, source: &Source, layout: &Layout) -> Origin {
        Origin {
            model: id.clone(),
            method: self.method,
            adapter: Some(self.adapter.id().into()),
            kept_by: self.choices(layout),
            source_tokens: source.ids.len(),
            source_sha256: source.sha256.clone(),
            pieces: layout.pieces.len(),
        }
    }

    /// What a caller chose otherwise than the adapter does. A part of the prefix's id: without it one piece of
    /// 8 memory tokens and two of 4, or pieces of 40 and of 45, would have the same.
    fn choices(&self, layout: &Layout) -> Option<String> {
        let mut choices = Vec::new();
        let count = self.adapter.num_mem();
        if count < self.adapter.trained_memory_tokens() {
            choices.push(format!("first {count}"));
        }
        let tokens = layout.pieces.last().map_or(0, |last| last.end);
        if self.cut(tokens, self.usual) != layout.pieces {
            choices.push(format!("pieces of {}", self.longest));
        }
        (!choices.is_empty()).then(|| choices.join(", "))
    }

    fn padded(&self, piece: &[u32]) -> Vec<u32> {
        let mut ids = piece.to_vec();
        if let Some((to, id)) = self.pad {
            ids.resize(ids.len().max(to), id);
        }
        ids
    }

    /// Reads the first pieces, as many as share a pass, at least one.
    fn read(&self, lora: &Lora<B>, pieces: &[Vec<u32>]) -> Result<Vec<Run>> {
        let (model, num_mem) = (self.model, self.appended());
        let mut rows = 0;
        let count = pieces
            .iter()
            .take_while(|ids| {
                rows += ids.len() + num_mem;
                rows <= PASS
            })
            .count();
        let mut kv = model.kv()?;
        if count < 2 {
            let ids = pieces.first().map_or(&[][..], Vec::as_slice);
            if self.method == Method::Pooled {
                let states = self.states(lora, ids, &mut kv)?;
                return Ok(vec![Run::States(self.pooled(&states))]);
            }
            drop(advance(model, ids, Some(lora), &mut kv)?);
            let memory = Input::Embeddings(&self.adapter.memory);
            let hidden = model.forward_adapted(memory, Some(lora), &mut kv)?;
            kv.commit(num_mem)?;
            let states = match self.method {
                Method::Icae => hidden.states()?,
                _ => Vec::new(),
            };
            return Ok(vec![self.run(&kv, states, ids.len())?]);
        }
        let pieces = &pieces[..count];
        let mut embeddings = Vec::new();
        let mut lengths = Vec::with_capacity(count);
        for ids in pieces {
            model.check_positions(0, ids.len())?;
            embeddings.extend(model.embeddings(ids)?);
            embeddings.extend_from_slice(&self.adapter.memory);
            lengths.push(ids.len() + num_mem);
        }
        let hidden = model.forward_separate(&embeddings, &lengths, Some(lora), &mut kv)?;
        kv.commit(lengths.iter().sum())?;
        let states = match self.method.reads_states() {
            true => hidden.states()?,
            false => Vec::new(),
        };
        let (width, mut end) = (model.config().hidden, 0);
        let mut runs = Vec::with_capacity(count);
        for length in &lengths {
            end += length;
            if self.method == Method::Pooled {
                let own = states.get((end - length) * width..end * width);
                runs.push(Run::States(self.pooled(own.unwrap_or_default())));
                continue;
            }
            let first = end - num_mem;
            let own = states.get(first * width..end * width).unwrap_or_default();
            runs.push(self.run(&kv, own.to_vec(), first)?);
        }
        Ok(runs)
    }

    /// The output states of all of a text, `[ids, hidden]`.
    fn states(&self, lora: &Lora<B>, ids: &[u32], kv: &mut Kv<B>) -> Result<Vec<f32>> {
        self.model.check_positions(0, ids.len())?;
        let mut states = Vec::with_capacity(ids.len() * self.model.config().hidden);
        for pass in ids.chunks(PASS) {
            let input = Input::Ids(pass);
            let hidden = self.model.forward_adapted(input, Some(lora), kv)?;
            states.extend(hidden.states()?);
            drop(hidden);
            kv.commit(pass.len())?;
            control::report(kv.len(), ids.len());
        }
        Ok(states)
    }

    /// What a piece's output states become.
    fn pooled(&self, states: &[f32]) -> Vec<f32> {
        let width = self.model.config().hidden;
        let tokens = states.len() / width;
        means(states, width, &parts(tokens, self.rows(tokens)))
    }

    /// What the memory tokens hold whose rows begin at `row`.
    fn run(&self, kv: &Kv<B>, states: Vec<f32>, row: usize) -> Result<Run> {
        if self.method == Method::Icae {
            return Ok(Run::States(states));
        }
        let rows: Vec<usize> = (row..row + self.adapter.num_mem()).collect();
        Ok(Run::Rows(self.model.take(kv, &rows)?))
    }

    /// K and V of a text's runs.
    fn joined(&self, runs: impl Iterator<Item = Run>) -> Result<Layers> {
        let (mut layers, mut states) = (Layers::new(), Vec::new());
        for run in runs {
            match run {
                Run::States(more) => states.extend(more),
                Run::Rows(more) => join(&mut layers, more, self.model.config().kv_heads),
            }
        }
        if !self.method.reads_states() {
            return Ok(layers);
        }
        let mut embeddings = match &self.adapter.settings().decoder_begin[..] {
            [] => Vec::new(),
            begin => self.model.embeddings(begin)?,
        };
        embeddings.extend(states);
        embeddings.extend_from_slice(self.adapter.after().unwrap_or_default());
        let input = Input::Embeddings(&embeddings);
        let tokens = input.rows(self.model.config().hidden);
        self.model.check_positions(0, tokens)?;
        let mut kv = self.model.kv()?;
        drop(self.model.forward_adapted(input, None, &mut kv)?);
        kv.commit(tokens)?;
        let rows: Vec<usize> = (0..tokens).collect();
        self.model.take(&kv, &rows)
    }
}

/// Puts `more`, `[heads, rows, head_dim]`, after the rows of each head of `layers`.
fn join(layers: &mut Vec<[Vec<f32>; 2]>, more: Vec<[Vec<f32>; 2]>, heads: usize) {
    if layers.is_empty() {
        *layers = more;
        return;
    }
    for (all, more) in layers.iter_mut().zip(more) {
        for (all, more) in all.iter_mut().zip(more) {
            let (old, new) = (all.len() / heads, more.len() / heads);
            let rows = all.chunks_exact(old).zip(more.chunks_exact(new));
            *all = rows.flat_map(|(a, b)| [a, b].concat()).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_text_and_differ_by_one() {
        assert_eq!(pieces(10, 10), vec![0..10]);
        assert_eq!(pieces(11, 10), [0..6, 6..11]);
        assert_eq!(pieces(1, 10), vec![0..1]);
        assert!(pieces(0, 10).is_empty());
        for len in 1..60 {
            for longest in 1..20 {
                let cut = pieces(len, longest);
                assert_eq!(cut.len(), len.div_ceil(longest));
                assert_eq!(cut[0].start, 0);
                assert_eq!(cut[cut.len() - 1].end, len);
                assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
                let (max, min) = (cut[0].len(), cut[cut.len() - 1].len());
                assert!(max <= longest && min + 1 >= max);
            }
        }
    }

    #[test]
    fn pieces_that_are_rounded_up_are_equal_but_for_the_last() {
        assert_eq!(pieces_rounded_up(10, 4), [0..4, 4..8, 8..10]);
        assert_eq!(pieces_rounded_up(34, 16), [0..12, 12..24, 24..34]);
        assert!(pieces_rounded_up(0, 4).is_empty());
        for len in 1..60 {
            for longest in 1..20 {
                let cut = pieces_rounded_up(len, longest);
                assert_eq!(cut.len(), pieces(len, longest).len());
                assert!(cut.iter().all(|piece| !piece.is_empty()));
                assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(cut[0].len() <= longest && cut[cut.len() - 1].end == len);
            }
        }
    }

    #[test]
    fn windows_are_averaged() {
        let rows = [1.0, 10.0, 3.0, 30.0, 8.0, 80.0];
        assert_eq!(means(&rows, 2, &parts(3, 2)), [2.0, 20.0, 8.0, 80.0]);
        assert_eq!(means(&rows, 2, &parts(3, 5)), rows);
        assert!(means(&[], 2, &parts(0, 5)).is_empty());
    }

    #[test]
    fn runs_are_joined_head_by_head() {
        let mut all = Vec::new();
        join(&mut all, vec![[vec![1., 2., 5., 6.], vec![0.; 4]]], 2);
        join(&mut all, vec![[vec![3., 4., 7., 8.], vec![0.; 4]]], 2);
        assert_eq!(all[0][0], [1., 2., 3., 4., 5., 6., 7., 8.]);
    }
}
