//! Numbers that look random and are the same in every run.

/// xorshift64*; Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Another sequence for each seed.
    pub fn new(seed: u64) -> Self {
        // 0 would stay 0, and small seeds take long to differ.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(if state == 0 { 1 } else { state })
    }

    /// 31 bits.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    /// A number below `end`, which is far below 2^31; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end.max(1)
    }

    /// From 0 to 1, without 1, by 62 bits.
    pub fn part(&mut self) -> f64 {
        ((self.next() << 31 | self.next()) >> 9) as f64 / (1u64 << 53) as f64
    }

    /// Puts what is there in another order.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        // Fisher and Yates; Knuth, *The Art of Computer Programming*, volume 2, algorithm P.
        for at in (1..values.len()).rev() {
            values.swap(at, self.below(at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_differ_by_seed_and_fill_their_range() {
        let of = |seed| {
            let mut random = Random::new(seed);
            [(); 1000].map(|()| random.part())
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let mean = of(u64::MAX).iter().sum::<f64>() / 1000.0;
        assert!(of(0).iter().all(|part| (0.0..1.0).contains(part)) && (0.45..0.55).contains(&mean), "{mean}");
        let mut values: Vec<usize> = (0..100).collect();
        Random::new(3).shuffle(&mut values);
        assert!(values.iter().enumerate().any(|(at, value)| at != *value));
        values.sort_unstable();
        assert_eq!(values, Vec::from_iter(0..100));
    }
}
