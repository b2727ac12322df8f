//! The generator SplitMix64: small, seeded, the same everywhere.

/// Its state.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub u64);

impl Random {
    /// A generator for each of several uses of one seed.
    pub fn of(seed: u64, uses: &[u64]) -> Self {
        let mut random = Random(seed);
        for &other in uses {
            random.0 = random.next() ^ other;
        }
        random
    }

    /// All bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 to `end` − 1; 0 where `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        // The high half of the product: its bias is below 2⁻⁴⁰ for all that fits in memory.
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// Puts items in another order, each order as likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// From the normal distribution of mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_their_moments() {
        let mut random = Random::of(7, &[1, 2]);
        let draws: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.015, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
        let draws: Vec<f64> = (0..1000).map(|_| random.unit()).collect();
        assert!(draws.iter().all(|&x| (0.0..1.0).contains(&x)));
        let mut counts = [0; 3];
        (0..30_000).for_each(|_| counts[random.below(3)] += 1);
        assert!(
            counts.iter().all(|&n| (9_700..10_300).contains(&n)),
            "{counts:?}"
        );
        assert_eq!(random.below(0), 0);
    }
}
