//! Rotary positions: frequencies with their stretches, and the angles of a batch.

use rayon::prelude::*;

use crate::model::config::{Config, RopeScaling};

/// The frequencies of half a head, in f32 and by the steps of the reference implementation: at
/// position 2,000 their last bit is worth 1e-4 of an angle.
pub(crate) fn frequencies(config: &Config) -> Vec<f32> {
    let half = config.head_dim / 2;
    (0..half)
        .map(|i| {
            let exponent = (2 * i) as f32 / config.head_dim as f32;
            let power = f64::from(config.rope_theta).powf(f64::from(exponent)) as f32;
            let frequency = 1.0 / power;
            match &config.rope_scaling {
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
        })
        .collect()
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
