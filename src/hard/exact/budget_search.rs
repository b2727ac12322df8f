//! How much of an order fits a budget, exactly. Pure: a count in, a length out.

/// The largest `n` in `0..=total` that was found to count at most `target`, and its count; 0 where not even
/// that fits, which the caller sees by the count.
///
/// `count` gives the tokens of the text that the first `n` of an order leave, `at_none` those for 0.
/// Tokens of a text are not the sum of its parts' (neighbours merge), so it is asked again and again,
/// though only about ten times: the search interpolates between a length that fits and one that does
/// not.
pub(super) fn longest(
    total: usize,
    target: usize,
    at_none: usize,
    mut count: impl FnMut(usize) -> usize,
) -> (usize, usize) {
    if total == 0 || at_none > target {
        return (0, at_none);
    }
    let mut above = (total, count(total));
    if above.1 <= target {
        return above;
    }
    let mut below = (0, at_none);
    let mut halve = false;
    while above.0 - below.0 > 1 {
        let span = above.0 - below.0;
        let share = (target - below.1) as f64 / above.1.saturating_sub(below.1).max(1) as f64;
        // Interpolation can creep from one side; halving every other time bounds the steps.
        let step = if halve {
            span / 2
        } else {
            (span as f64 * share) as usize
        };
        halve = !halve;
        let n = below.0 + step.clamp(1, span - 1);
        let tokens = count(n);
        if tokens <= target {
            below = (n, tokens);
        } else {
            above = (n, tokens);
        }
    }
    below
}

#[cfg(test)]
mod tests {
    use super::longest;

    #[test]
    fn finds_the_longest_beginning_that_fits() {
        let weights = [5, 4, 7, 1];
        let count = |n: usize| weights[..n].iter().sum();
        assert_eq!(longest(4, 10, 0, count), (2, 9));
        assert_eq!(longest(4, 0, 0, count), (0, 0));
        assert_eq!(longest(4, 17, 0, count), (4, 17));
        assert_eq!(longest(0, 3, 0, count), (0, 0));
        // Not even what must stay fits.
        assert_eq!(longest(4, 2, 3, |n| 3 + n), (0, 3));
    }

    #[test]
    fn asks_for_few_counts() {
        for target in [0, 1, 17, 2500, 4999] {
            let mut calls = 0;
            let found = longest(5000, target, 0, |n| {
                calls += 1;
                n
            });
            assert_eq!(found, (target, target));
            assert!(calls <= 12, "{calls} counts for {target}");
        }
    }

    #[test]
    fn survives_counts_that_do_not_grow_evenly() {
        // Pairs of neighbours merge into one token, and a longer text may have fewer.
        let count = |n: usize| n.div_ceil(2) + usize::from(n % 7 == 3);
        for target in 0..=52 {
            let (n, tokens) = longest(100, target, 0, count);
            assert!(
                tokens <= target && tokens == count(n),
                "{target}: {n}, {tokens}"
            );
            assert!(target > 50 || tokens + 2 >= target, "{target}: {tokens}");
        }
    }
}
