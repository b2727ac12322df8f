//! Element types and their dequantisation, bit for bit as ggml does it.
//!
//! A quantised row is a run of blocks; a block holds a fixed number of elements that share a scale
//! (and, in the `_1` and `K` types, an offset). All numbers are little-endian.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Element types that a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an F32.
    BF16,
    /// 32 elements of 4 bits, a scale.
    Q4_0,
    /// 32 elements of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 elements of 5 bits, a scale.
    Q5_0,
    /// 32 elements of 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 elements of 8 bits, a scale.
    Q8_0,
    /// 256 elements of 4 bits; each 32 have a 6-bit scale and minimum.
    Q4K,
    /// 256 elements of 5 bits; each 32 have a 6-bit scale and minimum.
    Q5K,
    /// 256 elements of 6 bits; each 16 have an 8-bit scale.
    Q6K,
}

impl DType {
    /// All of them.
    pub const ALL: [DType; 11] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
    ];

    /// As ggml writes it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::Q8_0 => "Q8_0",
            DType::Q4K => "Q4_K",
            DType::Q5K => "Q5_K",
            DType::Q6K => "Q6_K",
        }
    }

    /// Elements in a block.
    pub const fn block_elements(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => 32,
            DType::Q4K | DType::Q5K | DType::Q6K => 256,
        }
    }

    /// Bytes in a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Q4_0 => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q8_0 => 34,
            DType::Q4K => 144,
            DType::Q5K => 176,
            DType::Q6K => 210,
        }
    }

    /// Bytes that `elements` take: `None` where they are no whole number of blocks or too many.
    pub const fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// The names of all, for messages.
    pub(crate) fn names() -> String {
        DType::ALL.map(DType::name).join(", ")
    }
}

/// Elements that one task decodes: a multiple of every block, a few hundred microseconds' work.
const TASK: usize = 1 << 16;

/// Dequantises `data` into `out` on all cores.
///
/// # Errors
///
/// [`Error::Shape`] if `data` is not exactly `out.len()` elements of `dtype`.
pub fn dequantize(dtype: DType, data: &[u8], out: &mut [f32]) -> Result<()> {
    check(dtype, data, out)?;
    let task_bytes = TASK / dtype.block_elements() * dtype.block_bytes();
    if out.len() <= TASK {
        decode(dtype, data, out);
    } else {
        out.par_chunks_mut(TASK)
            .zip(data.par_chunks(task_bytes))
            .for_each(|(out, data)| decode(dtype, data, out));
    }
    Ok(())
}

/// Dequantises `data` into `out` on the calling thread: for a row or a tile inside a parallel loop.
///
/// # Errors
///
/// [`Error::Shape`] if `data` is not exactly `out.len()` elements of `dtype`.
pub fn dequantize_rows(dtype: DType, data: &[u8], out: &mut [f32]) -> Result<()> {
    check(dtype, data, out)?;
    decode(dtype, data, out);
    Ok(())
}

fn check(dtype: DType, data: &[u8], out: &[f32]) -> Result<()> {
    if dtype.bytes(out.len()) == Some(data.len()) {
        return Ok(());
    }
    Err(Error::Shape {
        op: "dequantize",
        want: format!("{} elements of {}", out.len(), dtype.name()),
        got: format!("{} bytes", data.len()),
    })
}

fn decode(dtype: DType, data: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => blocks(data, out, |b: &[u8; 4], o: &mut [f32; 1]| {
            o[0] = f32::from_le_bytes(*b);
        }),
        DType::F16 => match bytemuck::try_cast_slice::<u8, f16>(data) {
            // The slice form uses the processor's conversion.
            Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(out),
            _ => blocks(data, out, |b: &[u8; 2], o: &mut [f32; 1]| {
                o[0] = f16::from_le_bytes(*b).to_f32();
            }),
        },
        DType::BF16 => blocks(data, out, |b: &[u8; 2], o: &mut [f32; 1]| {
            o[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }),
        DType::Q4_0 => blocks(data, out, q4_0),
        DType::Q4_1 => blocks(data, out, q4_1),
        DType::Q5_0 => blocks(data, out, q5_0),
        DType::Q5_1 => blocks(data, out, q5_1),
        DType::Q8_0 => blocks(data, out, q8_0),
        DType::Q4K => blocks(data, out, q4_k),
        DType::Q5K => blocks(data, out, q5_k),
        DType::Q6K => blocks(data, out, q6_k),
    }
}

fn blocks<const BYTES: usize, const LEN: usize>(
    data: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (out, _) = out.as_chunks_mut::<LEN>();
    let (data, _) = data.as_chunks::<BYTES>();
    for (out, data) in out.iter_mut().zip(data) {
        decode(data, out);
    }
}

/// The half at byte `at` of a block.
#[inline(always)]
fn half_at<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

// In the types of 32 the low nibbles of the 16 bytes are the first half, the high ones the second.

/// scale f16, 16 bytes of nibbles; `scale · (q − 8)`.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (j, &byte) in block[2..].iter().enumerate() {
        out[j] = f32::from((byte & 15) as i8 - 8) * scale;
        out[j + 16] = f32::from((byte >> 4) as i8 - 8) * scale;
    }
}

/// scale f16, minimum f16, 16 bytes of nibbles; `scale · q + minimum`.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (j, &byte) in block[4..].iter().enumerate() {
        out[j] = f32::from(byte & 15) * scale + min;
        out[j + 16] = f32::from(byte >> 4) * scale + min;
    }
}

/// scale f16, the 32 fifth bits, 16 bytes of nibbles; `scale · (q − 16)`.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (j, &byte) in block[6..].iter().enumerate() {
        let low = byte & 15 | fifth_bit(fifth, j);
        let high = byte >> 4 | fifth_bit(fifth, j + 16);
        out[j] = f32::from(low as i8 - 16) * scale;
        out[j + 16] = f32::from(high as i8 - 16) * scale;
    }
}

/// scale f16, minimum f16, the 32 fifth bits, 16 bytes of nibbles; `scale · q + minimum`.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (j, &byte) in block[8..].iter().enumerate() {
        let low = byte & 15 | fifth_bit(fifth, j);
        let high = byte >> 4 | fifth_bit(fifth, j + 16);
        out[j] = f32::from(low) * scale + min;
        out[j + 16] = f32::from(high) * scale + min;
    }
}

#[inline(always)]
fn fifth_bit(bits: u32, j: usize) -> u8 {
    ((bits >> j & 1) as u8) << 4
}

/// scale f16, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte as i8) * scale;
    }
}

/// The 6-bit scale and minimum of sub-block `j` out of 8, packed into 12 bytes: those of the first
/// four are the low six bits of bytes 0–3 and 4–7; the others have their low nibbles in bytes 8–11
/// and their top two bits on top of bytes 0–7.
#[inline(always)]
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            packed[j + 4] >> 4 | packed[j] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// scale f16, scale of minima f16, 12 bytes of sub-scales, 128 bytes of nibbles: each run of 32
/// bytes holds one sub-block in its low nibbles and the next in its high ones.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, min_scale) = (half_at(block, 0), half_at(block, 2));
    let (packed, nibbles) = block[4..].split_at(12);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (s, m) = scale_and_min(packed, j);
        let (s, m) = (scale * s, min_scale * m);
        let bytes = &nibbles[j / 2 * 32..][..32];
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = s * f32::from(byte >> (j % 2 * 4) & 15) - m;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `j` of byte `l` belongs to element
/// `l` of sub-block `j`.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, min_scale) = (half_at(block, 0), half_at(block, 2));
    let (packed, rest) = block[4..].split_at(12);
    let (fifth, nibbles) = rest.split_at(32);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (s, m) = scale_and_min(packed, j);
        let (s, m) = (scale * s, min_scale * m);
        let bytes = &nibbles[j / 2 * 32..][..32];
        for ((out, &byte), &bits) in out.iter_mut().zip(bytes).zip(fifth) {
            let q = byte >> (j % 2 * 4) & 15 | (bits >> j & 1) << 4;
            *out = s * f32::from(q) - m;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed sub-scales, scale f16. Each half
/// of 128 elements is four runs of 32: runs 0 and 1 are the low nibbles of two runs of 32 bytes, 2
/// and 3 the high ones, and run `r` has its upper bits at bits `2r` of the half's 32 bytes.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (half, run) = (j / 4, j % 4);
        let low = &low[half * 64 + run % 2 * 32..][..32];
        let high = &high[half * 32..][..32];
        for (l, out) in out.iter_mut().enumerate() {
            let q = low[l] >> (run / 2 * 4) & 15 | (high[l] >> (run * 2) & 3) << 4;
            let s = scale * f32::from(scales[j * 2 + l / 16] as i8);
            *out = s * f32::from(q as i8 - 32);
        }
    }
}
