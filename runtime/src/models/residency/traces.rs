//! Calls for models as they come, the same ones each time.

pub(super) const MODELS: usize = 1000;

/// Numbers that look random, the same ones each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.roll() * bound as f64) as usize).min(bound - 1)
    }

    fn order(&mut self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..MODELS).collect();
        (1..MODELS).rev().for_each(|at| order.swap(at, self.below(at + 1)));
        order
    }
}

/// How often models are wanted, the first the most often.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(s: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=MODELS).map(|rank| {
            sum += (rank as f64).powf(-s);
            sum
        });
        Self(sums.collect())
    }

    fn rank(&self, dice: &mut Dice) -> usize {
        let wanted = dice.roll() * self.0[MODELS - 1];
        self.0.partition_point(|sum| *sum <= wanted).min(MODELS - 1)
    }
}

/// Calls as they come, and what models take.
pub(super) struct Trace {
    pub(super) sizes: Vec<u64>,
    pub(super) calls: Vec<usize>,
}

impl Trace {
    fn sizes(dice: &mut Dice) -> Vec<u64> {
        (0..MODELS).map(|_| (5e3 * 4000f64.powf(dice.roll())) as u64).collect()
    }

    pub(super) fn zipf(s: f64, calls: usize) -> Self {
        let (mut dice, zipf) = (Dice(7), Zipf::new(s));
        Self { sizes: Self::sizes(&mut dice), calls: (0..calls).map(|_| zipf.rank(&mut dice)).collect() }
    }

    pub(super) fn equal(calls: usize) -> Self {
        Self { sizes: vec![1_000_000; MODELS], ..Self::zipf(1.0, calls) }
    }

    pub(super) fn uniform(calls: usize) -> Self {
        Self::zipf(0.0, calls)
    }

    /// All of some models, again and again in the same order.
    pub(super) fn cyclic(models: usize, calls: usize) -> Self {
        Self { sizes: Self::sizes(&mut Dice(7)), calls: (0..calls).map(|call| call % models).collect() }
    }

    /// What is popular is so for a fifth of the time.
    pub(super) fn shifting(calls: usize) -> Self {
        let (mut dice, zipf) = (Dice(7), Zipf::new(1.0));
        let sizes = Self::sizes(&mut dice);
        let part = |_| {
            let order = dice.order();
            (0..calls / 5).map(|_| order[zipf.rank(&mut dice)]).collect::<Vec<_>>()
        };
        Self { calls: (0..5).flat_map(part).collect(), sizes }
    }

    /// A model is called some times on end, and then for a long time not.
    pub(super) fn bursts(calls: usize) -> Self {
        let mut dice = Dice(7);
        let sizes = Self::sizes(&mut dice);
        let mut all = Vec::new();
        // Three bursts at a time.
        let mut left = [(0, 0); 3];
        while all.len() < calls {
            let at = dice.below(3);
            if left[at].1 == 0 {
                left[at] = (dice.below(MODELS), 1 + dice.below(50));
            }
            left[at].1 -= 1;
            all.push(left[at].0);
        }
        Self { sizes, calls: all }
    }

    /// Popular models with a scan of all of them now and then.
    pub(super) fn scanned(calls: usize) -> Self {
        let mut trace = Self::zipf(1.0, calls);
        for from in (0..calls.saturating_sub(MODELS)).step_by(10 * MODELS) {
            (0..MODELS).for_each(|model| trace.calls[from + model] = model);
        }
        trace
    }
}
