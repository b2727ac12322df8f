//! Intervals by resampling.

use serde::Serialize;

use crate::random::Random;

/// A mean with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Of the values themselves.
    pub mean: f64,
    /// The 2.5th percentile of the resampled means.
    pub low: f64,
    /// The 97.5th.
    pub high: f64,
}

/// Resampled means that an interval is read from.
pub const DRAWS: usize = 2000;

/// The mean of `values` and its percentile interval over [`DRAWS`] bootstrap samples; `None` for no
/// values. The same seed draws the same places, so that rows over the same questions are resampled
/// together.
pub fn interval(values: &[f64], seed: u64) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    let n = values.len();
    let mut random = Random(seed);
    let mut means: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let sum: f64 = (0..n)
                .map(|_| values[((random.unit() * n as f64) as usize).min(n - 1)])
                .sum();
            sum / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    Some(Interval {
        mean: values.iter().sum::<f64>() / n as f64,
        low: means[DRAWS / 40],
        high: means[DRAWS - 1 - DRAWS / 40],
    })
}
