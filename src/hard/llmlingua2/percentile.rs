//! Percentiles as NumPy computes them, in the precision that it would choose.

use crate::error::{Error, Result};

/// A probability as the reference holds it: of the model (float32), or put in by hand (a Python float).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Probability {
    Single(f32),
    Double(f64),
}

impl Probability {
    pub(super) fn value(self) -> f64 {
        match self {
            Probability::Single(value) => value.into(),
            Probability::Double(value) => value,
        }
    }

    /// `sum(p) / len(p)`: in float32 from the first float32 on, which takes Python's floats with it.
    pub(super) fn mean(values: &[Probability]) -> Probability {
        if values.iter().all(|p| matches!(p, Probability::Double(_))) {
            let sum: f64 = values.iter().map(|p| p.value()).sum();
            return Probability::Double(sum / values.len().max(1) as f64);
        }
        let (mut double, mut single) = (0.0f64, None);
        for value in values {
            single = match (single, *value) {
                (None, Probability::Double(value)) => {
                    double += value;
                    None
                }
                (None, Probability::Single(value)) => Some(double as f32 + value),
                (Some(sum), value) => Some(sum + value.value() as f32),
            };
        }
        Probability::Single(single.unwrap_or_default() / values.len() as f32)
    }
}

/// `numpy.percentile(values, percent)` by linear interpolation, of at least one value.
///
/// # Errors
/// [`Error::Input`] for a percentage above 100, which a rate of 0 asks for.
pub(super) fn percentile(values: &[Probability], percent: i64) -> Result<f64> {
    if !(0..=100).contains(&percent) {
        return Err(Error::input(
            "rate 0",
            "LLMLingua-2 keeps a percentile of the words; ask for a larger rate",
        ));
    }
    let mut sorted: Vec<f64> = values.iter().map(|p| p.value()).collect();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() - 1) as f64 * (percent as f64 / 100.0);
    let (below, weight) = (at.floor(), at - at.floor());
    let low = sorted[below as usize];
    let high = sorted[(below as usize + 1).min(sorted.len() - 1)];
    let single = values.iter().all(|p| matches!(p, Probability::Single(_)));
    Ok(match single {
        true => lerp32(
            low as f32,
            high as f32,
            weight as f32,
            (1.0 - weight) as f32,
        )
        .into(),
        false if weight >= 0.5 => high - (high - low) * (1.0 - weight),
        false => low + (high - low) * weight,
    })
}

fn lerp32(low: f32, high: f32, weight: f32, rest: f32) -> f32 {
    match weight >= 0.5 {
        true => high - (high - low) * rest,
        false => low + (high - low) * weight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        let values = [0.4, 0.1, 0.2, 0.3].map(Probability::Double);
        for (percent, want) in [(0, 0.1), (25, 0.175), (50, 0.25), (90, 0.37), (100, 0.4)] {
            assert!((percentile(&values, percent).unwrap() - want).abs() < 1e-15);
        }
        assert!(percentile(&values, 101).is_err());
        let one = [Probability::Single(0.5)];
        assert_eq!(percentile(&one, 70).unwrap(), 0.5);
    }

    #[test]
    fn a_mean_is_in_float32_once_one_of_it_is() {
        use Probability::{Double, Single};
        assert_eq!(Probability::mean(&[Double(1.0), Double(1.0)]), Double(1.0));
        assert_eq!(Probability::mean(&[Double(1.0), Single(0.5)]), Single(0.75));
        let third = 1.0f32 / 3.0;
        assert_eq!(
            Probability::mean(&[Single(third), Double(1.0), Single(0.1)]),
            Single((third + 1.0 + 0.1) / 3.0)
        );
    }
}
