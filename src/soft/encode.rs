//! 500xCompressor's encoder, and ICAE's.

use std::ops::Range;

use super::{Adapter, NextPosition, Source, advance, rope};
use crate::error::{Error, Result};
use crate::model::decoder::{Input, Model};
use crate::model::lora::Lora;
use crate::ops::Backend;
use crate::prefix::{KRope, KvPrefix, Method, ModelId, Origin, Parts, Shape};

/// How a text is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// 500xCompressor or ICAE; `None`: as the adapter was trained.
    pub method: Option<Method>,
    /// Longest piece of text, in tokens, at least 1; `None`: as the adapter was trained.
    pub piece_tokens: Option<usize>,
}

/// The pieces of a text of `len` tokens of which none may have more than `longest`: as few as can be,
/// their lengths equal but for one token, the longer ones first.
pub fn pieces(len: usize, longest: usize) -> Vec<Range<usize>> {
    let count = len.div_ceil(longest.max(1));
    let mut start = 0;
    (0..count)
        .map(|i| {
            let piece = len / count + usize::from(i < len % count);
            start += piece;
            start - piece..start
        })
        .collect()
}

/// The K and V of memory tokens that read a text: one run of them per piece, joined.
///
/// Each piece goes through the encoder (the frozen model with the adapter on) by itself from position
/// 0, and its memory tokens stand after it; where their K is rotated to is recorded as
/// `rope_positions`. The runs are joined in the text's order. The decoder continues at the number of
/// all memory tokens, unless the adapter's settings say otherwise.
///
/// By ICAE's method the memory tokens' output states (after the last norm) are read by the decoder,
/// the adapter off, as embeddings at positions from 0, and the K and V are the decoder's.
///
/// # Errors
/// [`Error::Input`] for an empty text or one with ids outside the vocabulary; [`Error::Shape`] for
/// the adapter of another model.
pub fn encode<B: Backend>(
    model: &Model<B>,
    id: &ModelId,
    adapter: &Adapter,
    lora: &Lora<B>,
    source: &Source,
    options: &EncodeOptions,
) -> Result<KvPrefix> {
    source.check()?;
    let (c, settings) = (model.config(), adapter.settings());
    let method = options.method.unwrap_or(settings.method);
    let num_mem = adapter.num_mem();
    let room = c.max_positions.saturating_sub(num_mem);
    let longest = match options.piece_tokens.or(settings.max_text_tokens) {
        Some(tokens) if tokens > 0 && tokens <= room => tokens,
        Some(tokens) => {
            let reason = format!("there is room for 1 to {room} tokens of text");
            return Err(Error::input(format!("piece_tokens {tokens}"), reason));
        }
        None => room,
    };
    let pad = match settings.pad_to {
        Some(to) if to > room => {
            let reason = format!("the adapter wants {to}, but there is room for {room}");
            return Err(Error::input("padded length", reason));
        }
        Some(to) => {
            let missing = || Error::input("pad_id", "neither the adapter nor the model has one");
            Some((to, settings.pad_id.or(c.eos).ok_or_else(missing)?))
        }
        None => None,
    };

    let mut layers: Vec<[Vec<f32>; 2]> = Vec::new();
    let mut states = Vec::new();
    let mut positions: Vec<u32> = Vec::new();
    let pieces = pieces(source.ids.len(), longest);
    for piece in &pieces {
        let mut ids = source.ids[piece.clone()].to_vec();
        if let Some((to, id)) = pad {
            ids.resize(ids.len().max(to), id);
        }
        let mut kv = model.kv()?;
        drop(advance(model, &ids, Some(lora), &mut kv)?);
        let memory = Input::Embeddings(&adapter.memory);
        let hidden = model.forward_adapted(memory, Some(lora), &mut kv)?;
        kv.commit(num_mem)?;
        let rows: Vec<usize> = (ids.len()..ids.len() + num_mem).collect();
        if method == Method::Icae {
            states.extend(hidden.states()?);
            continue;
        }
        positions.extend(rows.iter().map(|&row| row as u32));
        join(&mut layers, model.take(&kv, &rows)?, c.kv_heads);
    }
    let tokens = pieces.len() * num_mem;
    if method == Method::Icae {
        let mut kv = model.kv()?;
        drop(model.forward_adapted(Input::Embeddings(&states), None, &mut kv)?);
        kv.commit(tokens)?;
        let rows: Vec<usize> = (0..tokens).collect();
        positions = rows.iter().map(|&row| row as u32).collect();
        layers = model.take(&kv, &rows)?;
    }
    let next_pos = match settings.next_position {
        NextPosition::Memory => tokens,
        NextPosition::Text => {
            let last = positions.iter().max().map_or(0, |&p| p as usize);
            tokens.max(last + 1)
        }
    };
    KvPrefix::new(Parts {
        origin: Origin {
            model: id.clone(),
            method,
            adapter: Some(adapter.id().into()),
            kept_by: None,
            source_tokens: source.ids.len(),
            source_sha256: source.sha256.clone(),
            pieces: pieces.len(),
        },
        shape: Shape {
            layers: c.layers,
            kv_heads: c.kv_heads,
            tokens,
            head_dim: c.head_dim,
        },
        layers,
        k_rope: KRope::Applied,
        rope: rope(model),
        positions,
        next_pos,
        source_ids: Vec::new(),
    })
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
                let (most, least) = (cut[0].len(), cut[cut.len() - 1].len());
                assert!(most <= longest && least + 1 >= most);
            }
        }
    }

    #[test]
    fn runs_are_joined_head_by_head() {
        let mut all = Vec::new();
        join(&mut all, vec![[vec![1., 2., 5., 6.], vec![0.; 4]]], 2);
        join(&mut all, vec![[vec![3., 4., 7., 8.], vec![0.; 4]]], 2);
        assert_eq!(all[0][0], [1., 2., 3., 4., 5., 6., 7., 8.]);
    }
}
