//! Comparing with a reference, within bounds.

/// Fails unless `|got - want| <= atol + rtol * |want|` everywhere; gives the greatest difference.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], atol: f64, rtol: f64) -> f64 {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let mut worst = 0.0f64;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let difference = (f64::from(got) - want).abs();
        assert!(
            difference <= atol + rtol * want.abs(),
            "{what}: at {i} expected {want}, got {got}"
        );
        worst = worst.max(difference);
    }
    worst
}

/// As f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}
