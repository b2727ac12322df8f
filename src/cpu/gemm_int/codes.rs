//! Weights and activations in 8 bits, as they lie in memory: see [`super`].

use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};

use crate::cpu::pages::Pages;

/// Steps of the inner dimension that share a scale.
pub(in crate::cpu) const BLOCK: usize = 64;
/// Words of four codes in a block.
pub(in crate::cpu) const CODES: usize = BLOCK / 4;
/// A block of one row of activations.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cpu) struct Activations {
    /// Every code 128 too high. As 16-bit numbers, first the steps `h` (low byte) and `h + 16`, then
    /// `h + 32` and `h + 48`, `h` from 0 to 15.
    pub codes: [u32; CODES],
    pub scale: f32,
}

/// Words that [`Activations`] take.
pub(in crate::cpu) const WORDS: usize = size_of::<Activations>() / size_of::<f32>();

/// A block of a panel of `C` columns: rows of four signed codes each, then scales (f32), then what a
/// sum begins at (i32).
pub(in crate::cpu) type Block<const C: usize> = [[u32; C]; CODES + 2];
pub(in crate::cpu) const SCALES: usize = CODES;
pub(in crate::cpu) const STARTS: usize = CODES + 1;

/// Panels in 8 bits, made when they are first asked for.
#[derive(Debug, Default)]
pub(in crate::cpu) struct Codes(pub OnceLock<Pages<u32>>);
