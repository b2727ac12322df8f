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
    /// 256 elements of 2 bits; each 16 have a 4-bit scale and minimum.
    Q2K,
    /// 256 elements of 3 bits; each 16 have a 6-bit scale.
    Q3K,
    /// 32 elements of 4 bits that index a table, a scale.
    IQ4NL,
    /// 256 elements of 4 bits that index a table; each 32 have a 6-bit scale.
    IQ4XS,
    /// 32 floats of 4 bits that share an exponent (OCP microscaling).
    MXFP4,
}

impl DType {
    /// All of them.
    pub const ALL: [DType; 16] = [
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
        DType::Q2K,
        DType::Q3K,
        DType::IQ4NL,
        DType::IQ4XS,
        DType::MXFP4,
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
            DType::Q2K => "Q2_K",
            DType::Q3K => "Q3_K",
            DType::IQ4NL => "IQ4_NL",
            DType::IQ4XS => "IQ4_XS",
            DType::MXFP4 => "MXFP4",
        }
    }

    /// Elements in a block.
    pub const fn block_elements(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => 32,
            DType::IQ4NL | DType::MXFP4 => 32,
            DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K | DType::IQ4XS => 256,
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
            DType::Q2K => 84,
            DType::Q3K => 110,
            DType::IQ4NL => 18,
            DType::IQ4XS => 136,
            DType::MXFP4 => 17,
        }
    }

    /// Bytes that `elements` take: `None` where they are not a whole number of blocks or too many.
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
        DType::Q2K => blocks(data, out, q2_k),
        DType::Q3K => blocks(data, out, q3_k),
        DType::IQ4NL => blocks(data, out, iq4_nl),
        DType::IQ4XS => blocks(data, out, iq4_xs),
        DType::MXFP4 => blocks(data, out, mxfp4),
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

/// 16 bytes of sub-scales (low nibble) and minima (high), 64 bytes of bit pairs, scale f16, scale of
/// minima f16. Each half of 128 elements is four runs of 32: run `r` is bits `2r` of the half's 32 bytes.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, min_scale) = (half_at(block, 80), half_at(block, 82));
    let (scales, pairs) = block.split_at(16);
    for (j, out) in out.chunks_exact_mut(16).enumerate() {
        let s = scale * f32::from(scales[j] & 15);
        let m = min_scale * f32::from(scales[j] >> 4);
        let (half, run) = (j / 8, j % 8 / 2);
        let bytes = &pairs[half * 32 + j % 2 * 16..][..16];
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = s * f32::from(byte >> (run * 2) & 3) - m;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of bit pairs as in Q2_K, 12 bytes of 6-bit sub-scales, scale f16. Bit
/// `r` of third byte `l` belongs to element `l` of run `r` of 32; where it is 0 the element is 4 less. The
/// low four bits of sub-scale `j` are a nibble of bytes 0–7, its upper two lie in bytes 8–11.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = half_at(block, 108);
    let (thirds, rest) = block.split_at(32);
    let (pairs, packed) = rest.split_at(64);
    for (j, out) in out.chunks_exact_mut(16).enumerate() {
        let low = packed[j % 8] >> (j / 8 * 4) & 15;
        let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
        let s = scale * f32::from((low | high << 4) as i8 - 32);
        let (half, run) = (j / 8, j % 8 / 2);
        let at = j % 2 * 16;
        let bytes = pairs[half * 32 + at..][..16].iter().zip(&thirds[at..]);
        for (out, (&byte, &third)) in out.iter_mut().zip(bytes) {
            let below = if third >> (half * 4 + run) & 1 == 1 {
                0
            } else {
                4
            };
            *out = s * f32::from((byte >> (run * 2) & 3) as i8 - below);
        }
    }
}

/// What the 4 bits of the IQ4 types stand for.
const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// scale f16, 16 bytes of nibbles; `scale · table[q]`.
fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (j, &byte) in block[2..].iter().enumerate() {
        out[j] = scale * f32::from(IQ4[usize::from(byte & 15)]);
        out[j + 16] = scale * f32::from(IQ4[usize::from(byte >> 4)]);
    }
}

/// scale f16, the upper two bits of 8 sub-scales, 4 bytes of their low nibbles, 128 bytes of nibbles: each
/// run of 16 bytes is 32 elements.
fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
        let top = (high >> (j * 2) & 3) as u8;
        let s = scale * f32::from((low | top << 4) as i8 - 32);
        for (l, &byte) in block[8 + j * 16..][..16].iter().enumerate() {
            out[l] = s * f32::from(IQ4[usize::from(byte & 15)]);
            out[l + 16] = s * f32::from(IQ4[usize::from(byte >> 4)]);
        }
    }
}

/// Twice the values of the 4-bit float E2M1.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// exponent E8M0, 16 bytes of nibbles; `2^(exponent − 128) · table[q]`, the table being doubled.
fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let exponent = u32::from(block[0]);
    // The two smallest powers are subnormal.
    let scale = f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => (exponent - 1) << 23,
    });
    for (j, &byte) in block[1..].iter().enumerate() {
        out[j] = scale * f32::from(E2M1[usize::from(byte & 15)]);
        out[j + 16] = scale * f32::from(E2M1[usize::from(byte >> 4)]);
    }
}
