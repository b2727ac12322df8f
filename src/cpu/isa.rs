//! Instruction sets, by name.

use crate::error::{Error, Result};

/// The instruction sets that code is compiled for, the widest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// AVX-512 with integer dot products.
    Avx512Vnni,
    /// AVX-512 (F, BW, CD, DQ, VL).
    Avx512,
    /// AVX2 and FMA with integer dot products.
    AvxVnni,
    /// AVX2 and FMA.
    Avx2,
    /// NEON with integer dot products.
    DotProd,
    /// NEON.
    Neon,
    /// What every processor of the architecture has.
    Scalar,
}

impl Isa {
    /// All of them, the widest first.
    pub const ALL: [Isa; 7] = [
        Isa::Avx512Vnni,
        Isa::Avx512,
        Isa::AvxVnni,
        Isa::Avx2,
        Isa::DotProd,
        Isa::Neon,
        Isa::Scalar,
    ];

    /// Its name: what [`Isa::from_str`](std::str::FromStr::from_str) reads.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512 => "avx512",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx2 => "avx2",
            Isa::DotProd => "dotprod",
            Isa::Neon => "neon",
            Isa::Scalar => "scalar",
        }
    }
}

impl std::str::FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let mut all = Isa::ALL.into_iter();
        all.find(|isa| isa.name() == name).ok_or_else(|| {
            let names = Isa::ALL.map(Isa::name).join(", ");
            Error::input(
                format!("instruction set {name:?}"),
                format!("unknown; possible values: {names}"),
            )
        })
    }
}
