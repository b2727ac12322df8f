//! The longest beginning of an order that fits a budget, exactly. Pure: an order and a count in, a
//! keep mask out.

/// Atoms that are tried after the first that does not fit, to fill the last tokens of the budget.
const FILL_TRIES: usize = 48;

/// Marks the atoms to keep: the longest beginning of `order` whose text counts at most `target`
/// tokens, then single atoms from what follows while they fit and the count is short of the target.
///
/// `count` gives the tokens of the text that a mask leaves. Tokens of a text are not the sum of its
/// atoms' (neighbours merge), so it is asked again and again, though only about ten times: the search
/// interpolates between a beginning that fits and one that does not.
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
    let everything = mask_of(order.len());
    let mut above = (order.len(), count(&everything));
    if above.1 <= target {
        return everything;
    }
    let mut below = (0, count(&mask_of(0)));
    let mut best = mask_of(0);
    let mut halve = false;
    while above.0 - below.0 > 1 {
        let span = above.0 - below.0;
        let share = (target.saturating_sub(below.1)) as f64 / (above.1 - below.1) as f64;
        // Interpolation can creep from one side; halving every other time bounds the steps.
        let step = if halve {
            span / 2
        } else {
            (span as f64 * share) as usize
        };
        halve = !halve;
        let n = below.0 + step.clamp(1, span - 1);
        let mask = mask_of(n);
        let tokens = count(&mask);
        if tokens <= target {
            below = (n, tokens);
            best = mask;
        } else {
            above = (n, tokens);
        }
    }
    let mut tokens = below.1;
    for &atom in order[below.0..].iter().skip(1).take(FILL_TRIES) {
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
    use super::fit;

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
    fn takes_the_longest_beginning_that_fits() {
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

    #[test]
    fn hits_every_target_of_ones_in_few_counts() {
        let order: Vec<usize> = (0..5000).rev().collect();
        for target in [0, 1, 17, 2500, 4999] {
            let mut calls = 0;
            let mask = fit(5000, &order, target, |mask| {
                calls += 1;
                mask.iter().filter(|k| **k).count()
            });
            assert_eq!(mask.iter().filter(|k| **k).count(), target);
            assert!(calls <= 12, "{calls} counts for {target}");
        }
    }

    #[test]
    fn survives_counts_that_do_not_grow_evenly() {
        // Pairs of neighbours merge into one token.
        let order: Vec<usize> = (0..100).collect();
        let count = |mask: &[bool]| {
            mask.chunks(2)
                .map(|pair| usize::from(pair.iter().any(|k| *k)))
                .sum::<usize>()
        };
        for target in 0..=50 {
            let mask = fit(100, &order, target, count);
            assert_eq!(count(&mask), target);
        }
    }
}
