//! For tests: files that are broken at random, alike in each run.

/// Numbers of xorshift64*. Source: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    /// One of them with a few changes: a byte that is another one, a number that is extreme, a piece that is missing, doubled, or another's.
    pub(crate) fn mutation(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len().max(1)).min(bytes.len());
            let end = (at + self.below(9)).min(bytes.len());
            match self.below(6) {
                0 if at < end => bytes[at] = self.below(256) as u8,
                1 if at < end => bytes[at] ^= 1 << self.below(8),
                2 => bytes[at..end].fill([0, 0xff, 0x7f][self.below(3)]),
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let piece = bytes[at..end].to_vec();
                    let place = self.below(bytes.len() + 1);
                    bytes.splice(place..place, piece);
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let piece = other[from..(from + self.below(40)).min(other.len())].to_vec();
                    bytes.splice(at..end, piece);
                }
            }
        }
        bytes
    }
}
