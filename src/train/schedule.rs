//! The learning rate over the steps.

use serde::{Deserialize, Serialize};

/// What the learning rate does after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays (the papers' choice).
    #[default]
    Constant,
    /// Falls to 0 along a line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
}

impl Schedule {
    /// The share of the full rate at `step`, counted from 1, of `steps`: `step / warmup` in the first
    /// `warmup` steps. What falls would be 0 at the step after the last.
    pub fn share(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        // The warm-up's last step has the full rate, and so has the first without a warm-up.
        let full = warmup.max(1);
        let done = step.saturating_sub(full) as f64
            / steps.saturating_add(1).saturating_sub(full).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - done).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_stay_or_fall() {
        let shares = |schedule: Schedule, warmup| -> Vec<f64> {
            (1..=8).map(|s| schedule.share(s, warmup, 8)).collect()
        };
        assert_eq!(
            shares(Schedule::Constant, 4),
            [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
        );
        // Fifths have no exact value: equal but for the last bit.
        let falling = [0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2];
        for (got, want) in shares(Schedule::Linear, 4).into_iter().zip(falling) {
            assert!((got - want).abs() < 1e-15, "{got} for {want}");
        }
        assert_eq!(shares(Schedule::Constant, 0), [1.0; 8]);
        let linear = shares(Schedule::Linear, 0);
        assert_eq!((linear[0], linear[7]), (1.0, 0.125));
        let cosine = shares(Schedule::Cosine, 0);
        assert!((cosine[4] - 0.5).abs() < 1e-12);
        assert!(cosine.windows(2).all(|pair| pair[0] > pair[1]));
        assert!(cosine[7] > 0.0);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_just_rises() {
        assert_eq!(Schedule::Cosine.share(5, 300, 10), 5.0 / 300.0);
        assert_eq!(Schedule::Linear.share(20, 0, 10), 0.0);
    }
}
