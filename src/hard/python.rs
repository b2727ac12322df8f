//! The few Python semantics that the reference's results depend on.

use std::cmp::Ordering;
use std::ops::Range;

/// The index range that `sequence[start:end]` means: negative indices count from the end, and both
/// are clamped.
pub(crate) fn slice(len: usize, start: Option<i64>, end: Option<i64>) -> Range<usize> {
    let resolve = |i: i64| {
        if i < 0 {
            (len as i64 + i).max(0) as usize
        } else {
            (i as usize).min(len)
        }
    };
    let start = start.map_or(0, resolve);
    start..end.map_or(len, resolve).max(start)
}

/// `str.strip()`: Unicode white space and the four ASCII separators.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// `sorted(enumerate(keys), key=…)`: indices by ascending key, stable.
///
/// A NaN (the mean of no losses, from a text of one token) compares as neither less nor more; where
/// it ends up is decided by the sort's own steps, so those are followed: a first run, then binary
/// insertion, as CPython does below 64 items.
pub(crate) fn argsort(keys: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    if !keys.iter().any(|k| k.is_nan()) {
        order.sort_by(|&a, &b| keys[a].partial_cmp(&keys[b]).unwrap_or(Ordering::Equal));
        return order;
    }
    let less = |a: usize, b: usize| keys[a] < keys[b];
    let mut run = 1;
    if keys.len() > 1 {
        let descending = less(1, 0);
        run = 2;
        while run < keys.len() && less(run, run - 1) == descending {
            run += 1;
        }
        if descending {
            order[..run].reverse();
        }
    }
    for next in run..keys.len() {
        let pivot = order[next];
        let (mut low, mut high) = (0, next);
        while low < high {
            let middle = low + (high - low) / 2;
            if less(pivot, order[middle]) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        order.copy_within(low..next, low + 1);
        order[low] = pivot;
    }
    order
}

/// The byte offset of the `n`th character, or the text's length.
pub(crate) fn char_offset(text: &str, n: usize) -> usize {
    text.char_indices().nth(n).map_or(text.len(), |(at, _)| at)
}

/// `len(text)`: code points.
pub(crate) fn len(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_as_python_does() {
        assert_eq!(slice(5, Some(-2), None), 3..5);
        assert_eq!(slice(5, Some(-9), None), 0..5);
        assert_eq!(slice(5, None, Some(-9)), 0..0);
        assert_eq!(slice(5, Some(2), Some(99)), 2..5);
        assert_eq!(slice(5, Some(4), Some(1)), 4..4);
    }

    #[test]
    fn sorts_nan_as_python_does() {
        // sorted(range(n), key=keys.__getitem__) in CPython 3.11
        let nan = f64::NAN;
        assert_eq!(argsort(&[3.0, 1.0, 2.0, 1.0]), [1, 3, 2, 0]);
        assert_eq!(argsort(&[2.0, nan, 1.0]), [0, 1, 2]);
        assert_eq!(argsort(&[nan, 2.0, 1.0, 0.5]), [0, 3, 2, 1]);
        assert_eq!(argsort(&[5.0, 4.0, nan, 1.0, 3.0]), [3, 4, 1, 0, 2]);
    }
}
