//! Vectors: dispatch to the widest instruction set, and the few functions that ops share.

use pulp::Simd;

/// Defines a function whose body is compiled once for each instruction set and dispatched to the
/// widest that the machine has. Whatever the body calls must be `#[inline(always)]`, and it must use
/// no closures: both would be compiled for the baseline.
macro_rules! simd_fn {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$lt:lifetime, $S:ident>($simd:ident $(, $arg:ident: $ty:ty)* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$lt>(arch: pulp::Arch $(, $arg: $ty)*) {
            struct Call<$lt> {
                $($arg: $ty,)*
                lifetime: std::marker::PhantomData<&$lt ()>,
            }
            impl<$lt> pulp::WithSimd for Call<$lt> {
                type Output = ();
                #[inline(always)]
                fn with_simd<$S: pulp::Simd>(self, $simd: $S) {
                    let Call { $($arg,)* lifetime: _ } = self;
                    $body
                }
            }
            arch.dispatch(Call { $($arg,)* lifetime: std::marker::PhantomData })
        }
    };
}
pub(super) use simd_fn;

/// `eˣ` for each lane, to about one ulp; `x` is first brought within ±87, where f32 is normal.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `eʳ` by its Taylor polynomial, which is exact enough on so
/// short an interval, and `2ⁿ` added to the exponent's bits.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    // Adding it rounds to an integer and leaves that integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // In two parts, the first short enough that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = s.min_f32s(s.max_f32s(x, s.splat_f32s(-87.0)), s.splat_f32s(87.0));
    let shifted = s.mul_add_e_f32s(
        x,
        s.splat_f32s(std::f32::consts::LOG2_E),
        s.splat_f32s(ROUND),
    );
    let n = s.sub_f32s(shifted, s.splat_f32s(ROUND));
    let r = s.mul_add_e_f32s(n, s.splat_f32s(-LN2_HIGH), x);
    let r = s.mul_add_e_f32s(n, s.splat_f32s(-LN2_LOW), r);
    let mut p = s.splat_f32s(1.0 / 5040.0);
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = s.mul_add_e_f32s(p, r, s.splat_f32s(c));
    }
    let exponent = s.wrapping_dyn_shl_u32s(s.transmute_u32s_f32s(shifted), s.splat_u32s(23));
    s.transmute_f32s_u32s(s.add_u32s(s.transmute_u32s_f32s(p), exponent))
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let one = s.splat_f32s(1.0);
    s.div_f32s(one, s.add_f32s(one, exp(s, s.neg_f32s(x))))
}

/// Sum of `(x - shift)²`, or with `square` off of `x - shift`.
#[inline(always)]
pub(super) fn sum<S: Simd>(s: S, x: &[f32], shift: f32, square: bool) -> f32 {
    let (vectors, tail) = S::as_simd_f32s(x);
    let (fours, rest) = vectors.as_chunks::<4>();
    let shifts = s.splat_f32s(shift);
    let mut sums = [s.splat_f32s(0.0); 4];
    for four in fours {
        for i in 0..4 {
            sums[i] = add_shifted(s, sums[i], four[i], shifts, square);
        }
    }
    for &v in rest {
        sums[0] = add_shifted(s, sums[0], v, shifts, square);
    }
    let low = s.add_f32s(sums[0], sums[1]);
    let high = s.add_f32s(sums[2], sums[3]);
    let mut total = s.reduce_sum_f32s(s.add_f32s(low, high));
    for &v in tail {
        let v = v - shift;
        total += if square { v * v } else { v };
    }
    total
}

#[inline(always)]
fn add_shifted<S: Simd>(s: S, sum: S::f32s, x: S::f32s, shift: S::f32s, square: bool) -> S::f32s {
    let x = s.sub_f32s(x, shift);
    if square {
        s.mul_add_e_f32s(x, x, sum)
    } else {
        s.add_f32s(sum, x)
    }
}

/// Sum of `a · b`, or with `(c, shift)` of `a · b · (c - shift)`, of vectors of one length.
#[inline(always)]
pub(super) fn dot<S: Simd>(s: S, a: &[f32], b: &[f32], third: Option<(&[f32], f32)>) -> f32 {
    let (c, shift, weighs) = match third {
        Some((c, shift)) => (c, shift, true),
        None => (a, 0.0, false),
    };
    let (va, ta) = S::as_simd_f32s(a);
    let (vb, tb) = S::as_simd_f32s(b);
    let (vc, tc) = S::as_simd_f32s(c);
    let shifts = s.splat_f32s(shift);
    let mut sums = [s.splat_f32s(0.0); 2];
    for (i, ((&a, &b), &c)) in va.iter().zip(vb).zip(vc).enumerate() {
        let c = if weighs {
            s.mul_f32s(a, s.sub_f32s(c, shifts))
        } else {
            a
        };
        sums[i % 2] = s.mul_add_e_f32s(c, b, sums[i % 2]);
    }
    let mut total = s.reduce_sum_f32s(s.add_f32s(sums[0], sums[1]));
    for ((&a, &b), &c) in ta.iter().zip(tb).zip(tc) {
        total += a * b * if weighs { c - shift } else { 1.0 };
    }
    total
}

/// Calls a function generic over vectors per tile row and rows per tile with the numbers that fill
/// the registers of `$S`: 24 sums, three columns and a broadcast of 32; or 12, two and one of 16.
macro_rules! tiled {
    ($S:ident, $function:ident($($arg:expr),* $(,)?)) => {
        if <$S as pulp::Simd>::REGISTER_COUNT >= 32 {
            $function::<$S, 3, 8>($($arg),*)
        } else {
            $function::<$S, 2, 6>($($arg),*)
        }
    };
}
pub(super) use tiled;

/// The same numbers as constants.
pub(super) trait TileOf: Simd {
    /// Rows of a tile.
    const ROWS: usize = if Self::REGISTER_COUNT >= 32 { 8 } else { 6 };
    /// Vectors in a row of a tile.
    const VECTORS: usize = if Self::REGISTER_COUNT >= 32 { 3 } else { 2 };
}

impl<S: Simd> TileOf for S {}
