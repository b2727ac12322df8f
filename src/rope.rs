//! Rotary positions: frequencies with their stretches, the angles of a batch, and rotating keys.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// At least 1 as a rule.
        factor: f32,
    },
    /// Llama 3's: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original_max_positions / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below `original_max_positions / high_freq_factor` are high frequencies.
        high_freq_factor: f32,
        /// Context length before the stretch.
        original_max_positions: usize,
    },
    /// Frequencies divided one by one, as GGUF's `rope_freqs.weight` stores them: `head_dim / 2`.
    Factors(Vec<f32>),
}

/// A rotary embedding: halves of a head are paired, as Hugging Face pairs them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Width of a head, all of which is rotated; even.
    pub dim: usize,
    /// Stretch of the frequencies.
    pub scaling: RopeScaling,
}

impl Rope {
    /// The frequencies of half a head, in f32 and by the steps of the reference implementation: at
    /// position 2,000 their last bit is worth 1e-4 of an angle.
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let half = self.dim / 2;
        (0..half)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.dim as f32;
                let power = f64::from(self.theta).powf(f64::from(exponent)) as f32;
                self.scaling.stretch(i, 1.0 / power)
            })
            .collect()
    }

    /// Whether its numbers can be computed with.
    pub(crate) fn is_sound(&self) -> bool {
        let good = |value: f32| value.is_finite() && value > 0.0;
        self.dim.is_multiple_of(2)
            && good(self.theta)
            && match &self.scaling {
                RopeScaling::None => true,
                RopeScaling::Linear { factor } => good(*factor),
                &RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_positions,
                } => {
                    good(factor)
                        && good(low)
                        && good(high)
                        && high > low
                        && original_max_positions > 0
                }
                RopeScaling::Factors(factors) => {
                    factors.len() == self.dim / 2 && factors.iter().all(|&factor| good(factor))
                }
            }
    }

    /// Rotates `keys`, rows of `dim` of which row `i` stands at `positions[i]`; `back` undoes it.
    pub(crate) fn rotate(&self, keys: &mut [f32], positions: &[u32], back: bool) {
        let half = self.dim / 2;
        let angles = angles(&self.frequencies(), positions);
        for (key, angles) in keys
            .chunks_exact_mut(self.dim)
            .zip(angles.chunks_exact(2 * half))
        {
            let (cos, sin) = angles.split_at(half);
            let (low, high) = key.split_at_mut(half);
            for i in 0..half {
                let sin = if back { -sin[i] } else { sin[i] };
                let (a, b) = (low[i], high[i]);
                low[i] = a * cos[i] - b * sin;
                high[i] = b * cos[i] + a * sin;
            }
        }
    }
}

impl RopeScaling {
    /// Frequency number `i`, stretched.
    fn stretch(&self, i: usize, frequency: f32) -> f32 {
        match self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let original = original_max_positions as f32;
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength > original / low_freq_factor {
                    frequency / factor
                } else if wavelength < original / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * (frequency / factor) + smooth * frequency
                }
            }
            RopeScaling::Factors(factors) => frequency / factors.get(i).copied().unwrap_or(1.0),
        }
    }
}

/// For each position the cosines and then the sines: `[positions, 2, frequencies]`.
pub(crate) fn angles(frequencies: &[f32], positions: &[u32]) -> Vec<f32> {
    let half = frequencies.len();
    let mut out = vec![0.0; positions.len() * 2 * half];
    out.par_chunks_exact_mut(2 * half)
        .zip(positions)
        .with_min_len(32)
        .for_each(|(row, &position)| {
            let (cos, sin) = row.split_at_mut(half);
            for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                // Rounded to f32 before the cosine is taken, like the reference.
                let angle = position as f32 * frequency;
                let (s, c) = f64::from(angle).sin_cos();
                (*cos, *sin) = (c as f32, s as f32);
            }
        });
    out
}
