//! Tiles of integer dot products, one implementation for each instruction set.
//!
//! All of them compute the same: `out += f32(start + Σ x · w) · (scale of x · scale of w)` block by block,
//! with x unsigned and w signed, each block's sum exact in 32 bits and the rest in f32 with one rounding
//! by multiplication and one by a fused multiply-add.

use super::codes::{Activations, Block, CODES, SCALES, STARTS};
use crate::cpu::isa::Isa;

/// An instruction set that computes tiles of `R` rows by `C` columns. A value of such a type proves that
/// the machine has it.
pub(super) trait Dot<const R: usize, const C: usize>: Copy + Send + Sync {
    /// Writes `first` and the products of rows with a panel.
    fn tile(
        self,
        panel: &[Block<C>],
        rows: [&[Activations]; R],
        first: &[f32; C],
        out: &mut [[f32; C]; R],
    );

    /// A linear layer's task.
    fn linear(self, task: Task<'_>);
}

/// Defines [`Kernel`]: its variants by instruction set, type and tile.
macro_rules! kernels {
    ($($(#[$meta:meta])* $name:ident = $type:ty, $rows:literal x $columns:literal;)*) => {
        /// The instruction set that computes estimates.
        #[derive(Debug, Clone, Copy)]
        pub(in crate::cpu) enum Kernel {
            $($(#[$meta])* $name($type),)*
        }

        impl Kernel {
            /// What multiplies codes within an instruction set, where the machine has it.
            pub fn detect(isa: Isa) -> Option<Self> {
                match isa {
                    $($(#[$meta])* Isa::$name => <$type>::detect().map(Kernel::$name),)*
                    _ => None,
                }
            }

            /// Rows and columns of a tile.
            pub fn tile(self) -> (usize, usize) {
                match self {
                    $($(#[$meta])* Kernel::$name(_) => ($rows, $columns),)*
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels! {
    Avx512Vnni = x86::Avx512Vnni, 8 x 48;
    Avx512 = x86::Avx512, 8 x 48;
    AvxVnni = x86::AvxVnni, 6 x 16;
    Avx2 = x86::Avx2, 6 x 16;
}

#[cfg(target_arch = "aarch64")]
kernels! {
    DotProd = arm::DotProd, 8 x 12;
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
kernels! {}

/// Evaluates an expression with the kernel's [`Dot`].
#[cfg(target_arch = "x86_64")]
macro_rules! with_kernel {
    ($kernel:expr, $dot:ident => $body:expr) => {
        match $kernel {
            $crate::cpu::gemm_int::dot::Kernel::Avx512Vnni($dot) => $body,
            $crate::cpu::gemm_int::dot::Kernel::Avx512($dot) => $body,
            $crate::cpu::gemm_int::dot::Kernel::AvxVnni($dot) => $body,
            $crate::cpu::gemm_int::dot::Kernel::Avx2($dot) => $body,
        }
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! with_kernel {
    ($kernel:expr, $dot:ident => $body:expr) => {
        match $kernel {
            $crate::cpu::gemm_int::dot::Kernel::DotProd($dot) => $body,
        }
    };
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
macro_rules! with_kernel {
    ($kernel:expr, $dot:ident => $body:expr) => {
        match $kernel {}
    };
}
pub(super) use with_kernel;

/// What a tile of a product is computed from.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Operands<'a> {
    pub kernel: Kernel,
    /// Blocks of panels as wide as the kernel's tile.
    pub weights: &'a [u32],
    pub x: &'a [Activations],
    /// Blocks of a row.
    pub blocks: usize,
}

/// The part of a linear layer that one thread does: some rows by some panels.
pub(super) struct Task<'a> {
    pub operands: Operands<'a>,
    /// The first panel.
    pub panel: usize,
    /// The first row.
    pub row: usize,
    /// Of all columns; empty for none.
    pub bias: &'a [f32],
    pub add: bool,
    /// Row by row, the columns of the panels.
    pub y: Vec<&'a mut [f32]>,
}

impl Operands<'_> {
    /// Writes the products of some rows with panel `p`, for vectors and tiles of the machine's own
    /// size: others have no operands.
    #[inline(always)]
    pub(in crate::cpu) fn tile_of<S: pulp::Simd, const N: usize, const M: usize>(
        &self,
        p: usize,
        rows: [usize; M],
        out: &mut [[S::f32s; N]; M],
    ) {
        let values: &mut [f32] = bytemuck::cast_slice_mut(out.as_flattened_mut());
        with_kernel!(self.kernel, dot => {
            let tile = values.as_chunks_mut().0;
            if let (Ok(rows), Ok(tile)) = (rows[..].try_into(), tile.try_into()) {
                self.tile(dot, p, rows, &[0.0; _], tile);
            }
        });
    }

    /// Writes `first` and the products of rows with panel `p`.
    #[inline(always)]
    fn tile<D: Dot<R, C>, const R: usize, const C: usize>(
        &self,
        dot: D,
        p: usize,
        rows: &[usize; R],
        first: &[f32; C],
        out: &mut [[f32; C]; R],
    ) {
        let mut x = [&self.x[..0]; R];
        for i in 0..R {
            x[i] = &self.x[rows[i] * self.blocks..][..self.blocks];
        }
        let words = self.blocks * (CODES + 2) * C;
        let panel = &self.weights[p * words..][..words];
        // Whole rows of whole blocks.
        let blocks = panel.as_chunks::<C>().0.as_chunks::<{ CODES + 2 }>().0;
        dot.tile(blocks, x, first, out);
    }
}

/// A linear layer's task; inlined where the instruction set is enabled.
#[inline(always)]
fn linear<D: Dot<R, C>, const R: usize, const C: usize>(dot: D, task: Task<'_>) {
    let Task {
        operands,
        panel,
        row,
        bias,
        add,
        mut y,
    } = task;
    let columns = y.first().map_or(0, |row| row.len());
    let mut tile = [[0.0; C]; R];
    let (mut p, mut start) = (panel, 0);
    while start < columns {
        let end = columns.min(start + C);
        let mut first = [0.0; C];
        if !bias.is_empty() {
            first[..end - start].copy_from_slice(&bias[p * C..][..end - start]);
        }
        let mut top = 0;
        while top < y.len() {
            let count = R.min(y.len() - top);
            let mut numbers = [row + top; R];
            for i in 0..R {
                numbers[i] += i.min(count - 1);
            }
            operands.tile(dot, p, &numbers, &first, &mut tile);
            for i in 0..count {
                let out = &mut y[top + i][start..end];
                // Of a whole row the length is known to the compiler.
                if let Ok(out) = <&mut [f32; C]>::try_from(&mut *out) {
                    for j in 0..C {
                        out[j] = if add { out[j] + tile[i][j] } else { tile[i][j] };
                    }
                    continue;
                }
                for (out, sum) in out.iter_mut().zip(&tile[i]) {
                    *out = if add { *out + sum } else { *sum };
                }
            }
            top += R;
        }
        start = end;
        p += 1;
    }
}

/// Defines a type that computes tiles by functions of the module it stands in: `splat`, `first`, `dot`
/// and `scaled` on `Ints` and `Floats`, vectors of one width.
macro_rules! dot {
    ($name:ident, [$($feature:tt),*], $enable:literal, $rows:literal x $vectors:literal x $lanes:literal) => {
        /// Proof that the machine has the instructions.
        #[derive(Debug, Clone, Copy)]
        pub(in crate::cpu) struct $name(());

        impl $name {
            pub fn detect() -> Option<Self> {
                let there = $(detected!($feature) &&)* true;
                there.then_some($name(()))
            }
        }

        impl Dot<$rows, { $vectors * $lanes }> for $name {
            #[allow(unsafe_code)]
            #[inline(always)]
            fn tile(
                self,
                panel: &[Block<{ $vectors * $lanes }>],
                rows: [&[Activations]; $rows],
                first: &[f32; $vectors * $lanes],
                out: &mut [[f32; $vectors * $lanes]; $rows],
            ) {
                // SAFETY: a value exists only where the features that the function needs were found.
                unsafe { tile(panel, rows, first, out) }
            }

            #[allow(unsafe_code)]
            fn linear(self, task: Task<'_>) {
                // SAFETY: as above.
                unsafe { linear(self, task) }
            }
        }

        #[target_feature(enable = $enable)]
        fn linear(dot: $name, task: Task<'_>) {
            super::super::linear(dot, task)
        }

        #[target_feature(enable = $enable)]
        #[inline(never)]
        fn tile(
            panel: &[Block<{ $vectors * $lanes }>],
            rows: [&[Activations]; $rows],
            begin: &[f32; $vectors * $lanes],
            out: &mut [[f32; $vectors * $lanes]; $rows],
        ) {
            let mut totals: [[Floats; $vectors]; $rows] = [bytemuck::must_cast(*begin); $rows];
            for (b, block) in panel.iter().enumerate() {
                let starts: [Ints; $vectors] = bytemuck::must_cast(block[STARTS]);
                let mut sums = [[first(starts[0]); $vectors]; $rows];
                for i in 0..$rows {
                    for j in 0..$vectors {
                        sums[i][j] = first(starts[j]);
                    }
                }
                for k in 0..CODES / 2 {
                    let low: [Ints; $vectors] = bytemuck::must_cast(block[k]);
                    let high: [Ints; $vectors] = bytemuck::must_cast(block[CODES / 2 + k]);
                    for i in 0..$rows {
                        let codes = &rows[i][b].codes;
                        let x = [splat(codes[k]), splat(codes[CODES / 2 + k])];
                        for j in 0..$vectors {
                            sums[i][j] = dot(sums[i][j], x, [low[j], high[j]]);
                        }
                    }
                }
                let scales: [Floats; $vectors] = bytemuck::must_cast(block[SCALES]);
                for i in 0..$rows {
                    for j in 0..$vectors {
                        totals[i][j] = scaled(totals[i][j], sums[i][j], scales[j], rows[i][b].scale);
                    }
                }
            }
            *out = bytemuck::must_cast(totals);
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Activations, Block, CODES, Dot, SCALES, STARTS, Task};

    macro_rules! detected {
        ($feature:tt) => {
            is_x86_feature_detected!($feature)
        };
    }

    /// The functions for vectors of 256 or 512 bits that do not depend on how codes are multiplied.
    macro_rules! vectors {
        ($enable:literal, $ints:ty, $floats:ty, $set1:ident, $set1_ps:ident, $convert:ident, $mul:ident, $fma:ident) => {
            type Ints = $ints;
            type Floats = $floats;

            #[target_feature(enable = $enable)]
            #[inline]
            fn splat(codes: u32) -> Ints {
                $set1(codes as i32)
            }

            #[target_feature(enable = $enable)]
            #[inline]
            fn first(start: Ints) -> Ints {
                start
            }

            #[target_feature(enable = $enable)]
            #[inline]
            fn scaled(total: Floats, sum: Ints, scales: Floats, scale: f32) -> Floats {
                $fma($convert(sum), $mul(scales, $set1_ps(scale)), total)
            }
        };
    }

    /// Codes of eight steps multiplied by pairs: the sums of four products fit 16 bits.
    macro_rules! by_pairs {
        ($enable:literal, $set1:ident, $pairs:ident, $add16:ident, $add_pairs:ident, $add:ident) => {
            #[target_feature(enable = $enable)]
            #[inline]
            fn dot(sum: Ints, x: [Ints; 2], w: [Ints; 2]) -> Ints {
                let fours = $add16($pairs(x[0], w[0]), $pairs(x[1], w[1]));
                $add(sum, $add_pairs(fours, $set1(1)))
            }
        };
    }

    /// Codes of four steps multiplied and added by one instruction.
    macro_rules! by_fours {
        ($enable:literal, $dot:ident) => {
            #[target_feature(enable = $enable)]
            #[inline]
            fn dot(sum: Ints, x: [Ints; 2], w: [Ints; 2]) -> Ints {
                $dot($dot(sum, x[0], w[0]), x[1], w[1])
            }
        };
    }

    pub(in crate::cpu) use avx_vnni::AvxVnni;
    pub(in crate::cpu) use avx2::Avx2;
    pub(in crate::cpu) use avx512::Avx512;
    pub(in crate::cpu) use avx512_vnni::Avx512Vnni;

    mod avx2 {
        use super::*;
        vectors!(
            "avx2,fma",
            __m256i,
            __m256,
            _mm256_set1_epi32,
            _mm256_set1_ps,
            _mm256_cvtepi32_ps,
            _mm256_mul_ps,
            _mm256_fmadd_ps
        );
        by_pairs!(
            "avx2,fma",
            _mm256_set1_epi16,
            _mm256_maddubs_epi16,
            _mm256_add_epi16,
            _mm256_madd_epi16,
            _mm256_add_epi32
        );
        dot!(Avx2, ["avx2", "fma"], "avx2,fma", 6 x 2 x 8);
    }

    mod avx_vnni {
        use super::*;
        vectors!(
            "avx2,fma,avxvnni",
            __m256i,
            __m256,
            _mm256_set1_epi32,
            _mm256_set1_ps,
            _mm256_cvtepi32_ps,
            _mm256_mul_ps,
            _mm256_fmadd_ps
        );
        by_fours!("avx2,fma,avxvnni", _mm256_dpbusd_avx_epi32);
        dot!(AvxVnni, ["avx2", "fma", "avxvnni"], "avx2,fma,avxvnni", 6 x 2 x 8);
    }

    mod avx512 {
        use super::*;
        vectors!(
            "avx512f,avx512bw,fma",
            __m512i,
            __m512,
            _mm512_set1_epi32,
            _mm512_set1_ps,
            _mm512_cvtepi32_ps,
            _mm512_mul_ps,
            _mm512_fmadd_ps
        );
        by_pairs!(
            "avx512f,avx512bw,fma",
            _mm512_set1_epi16,
            _mm512_maddubs_epi16,
            _mm512_add_epi16,
            _mm512_madd_epi16,
            _mm512_add_epi32
        );
        dot!(Avx512, ["avx512f", "avx512bw", "fma"], "avx512f,avx512bw,fma", 8 x 3 x 16);
    }

    mod avx512_vnni {
        use super::*;
        vectors!(
            "avx512f,avx512vnni,fma",
            __m512i,
            __m512,
            _mm512_set1_epi32,
            _mm512_set1_ps,
            _mm512_cvtepi32_ps,
            _mm512_mul_ps,
            _mm512_fmadd_ps
        );
        by_fours!("avx512f,avx512vnni,fma", _mm512_dpbusd_epi32);
        dot!(Avx512Vnni, ["avx512f", "avx512vnni", "fma"], "avx512f,avx512vnni,fma", 8 x 3 x 16);
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{Activations, Block, CODES, Dot, SCALES, STARTS, Task};

    macro_rules! detected {
        ($feature:tt) => {
            std::arch::is_aarch64_feature_detected!($feature)
        };
    }

    type Ints = int32x4_t;
    type Floats = float32x4_t;

    /// Signed codes: both factors of the dot product are, so a sum begins at zero.
    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    fn splat(codes: u32) -> Ints {
        vreinterpretq_s32_u32(vdupq_n_u32(codes ^ 0x8080_8080))
    }

    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    fn first(_: Ints) -> Ints {
        vdupq_n_s32(0)
    }

    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    fn dot(mut sum: Ints, x: [Ints; 2], w: [Ints; 2]) -> Ints {
        for i in 0..2 {
            // SAFETY: reads and writes registers only; the instruction belongs to `dotprod`.
            #[allow(unsafe_code)]
            unsafe {
                std::arch::asm!(
                    "sdot {sum:v}.4s, {x:v}.16b, {w:v}.16b",
                    sum = inout(vreg) sum,
                    x = in(vreg) x[i],
                    w = in(vreg) w[i],
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
        sum
    }

    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    fn scaled(total: Floats, sum: Ints, scales: Floats, scale: f32) -> Floats {
        vfmaq_f32(total, vcvtq_f32_s32(sum), vmulq_n_f32(scales, scale))
    }

    dot!(DotProd, ["neon", "dotprod"], "neon,dotprod", 8 x 3 x 4);
}
