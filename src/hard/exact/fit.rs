//! How much of an order fits a budget, exactly. Pure: an order and a count in, a length or a mask out.

/// Atoms that are tried after the first that does not fit, to fill the last tokens of the budget.
const FILL_TRIES: usize = 48;

/// The largest `n` in `0..=total` that was found to count at most `target`, and its count.
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

/// Marks the atoms to keep: the longest beginning of `order` whose text counts at most `target`
/// tokens, then single atoms from what follows while they fit and the count is short of the target.
pub(in crate::hard) fn fit(
    atoms: usize,
    order: &[usize],
    target: usize,
    mut count: impl FnMut(&[bool]) -> usize,
) -> Vec<bool> {
    let mask_of = |n: usize| {
        let mut mask = vec![false; atoms];
        for &atom in &order[..n] {
            mask[atom] = true;
        }
        mask
    };
    let none = count(&mask_of(0));
    let (n, mut tokens) = longest(order.len(), target, none, |n| count(&mask_of(n)));
    let mut best = mask_of(n);
    for &atom in order[n..].iter().skip(1).take(FILL_TRIES) {
        if tokens >= target {
            break;
        }
        best[atom] = true;
        let more = count(&best);
        if more <= target && more > tokens {
            tokens = more;
        } else {
            best[atom] = false;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::{fit, longest};

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

    /// Counts the sum of the kept atoms' weights.
    fn run(weights: &[usize], order: &[usize], target: usize) -> (Vec<bool>, usize) {
        let sum = |mask: &[bool]| {
            mask.iter()
                .zip(weights)
                .filter(|(k, _)| **k)
                .map(|(_, w)| w)
                .sum::<usize>()
        };
        let mask = fit(weights.len(), order, target, |mask| sum(mask));
        let total = sum(&mask);
        (mask, total)
    }

    #[test]
    fn a_mask_has_the_longest_beginning_that_fits() {
        let order = [3, 1, 0, 2];
        assert_eq!(run(&[1, 1, 1, 1], &order, 2).0, [false, true, false, true]);
        assert_eq!(run(&[1, 1, 1, 1], &order, 0).1, 0);
        assert_eq!(run(&[1, 1, 1, 1], &order, 9).1, 4);
    }

    #[test]
    fn fills_up_with_smaller_atoms() {
        // The third of the order does not fit; the fourth does.
        assert_eq!(
            run(&[5, 4, 7, 1], &[0, 1, 2, 3], 10),
            (vec![true, true, false, true], 10)
        );
    }
}
