//! Which model each call is for, and what a plain LRU would have to load.

use std::collections::BTreeMap;

use outrigger_benches::random::Random;

/// Models by their indices, one for each call: the `r`-th most wanted of them has a share of calls proportional to `1 / r^skew` (Zipf's law). Which those are is
/// shuffled; the same seed gives the same calls.
pub(crate) fn zipf(models: usize, calls: usize, skew: f64, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut ranked: Vec<usize> = (0..models).collect();
    random.shuffle(&mut ranked);
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=models)
        .map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        })
        .collect();
    let draw = |_| {
        let at = random.part() * sum;
        ranked[sums.partition_point(|end| *end <= at).min(models - 1)]
    };
    (0..calls).map(draw).collect()
}

/// For each call whether a plain LRU would have had the model: what is wanted is loaded, and what was not wanted for longest goes until the sum of `sizes`
/// is within the budget. What is larger than that is loaded for each call.
pub(crate) fn lru(trace: &[usize], sizes: &[u64], budget: u64) -> Vec<bool> {
    let mut last = vec![None; sizes.len()];
    let mut order = BTreeMap::new();
    let mut held = 0;
    let call = |(now, model): (usize, &usize)| {
        let size = sizes[*model];
        let was = last[*model].take();
        match was {
            Some(was) => {
                order.remove(&was);
            }
            None if size > budget => return false,
            None => {
                held += size;
                while held > budget
                    && let Some((_, oldest)) = order.pop_first()
                {
                    held -= sizes[oldest];
                    last[oldest] = None;
                }
            }
        }
        last[*model] = Some(now);
        order.insert(now, *model);
        was.is_some()
    };
    trace.iter().enumerate().map(call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_follow_the_law() {
        let trace = zipf(1000, 100_000, 1.0, 3);
        assert_eq!(trace, zipf(1000, 100_000, 1.0, 3));
        assert_ne!(trace, zipf(1000, 100_000, 1.0, 4));
        let mut counts = vec![0; 1000];
        trace.iter().for_each(|model| counts[*model] += 1);
        counts.sort_unstable_by(|one, other| other.cmp(one));
        // The first has 1 / (1 + 1/2 + .. + 1/1000) = 0.1336 of the calls, its second half as many.
        assert!(
            (12_900..13_800).contains(&counts[0]) && (6_300..7_100).contains(&counts[1]),
            "{:?}",
            &counts[..3]
        );
        let even = zipf(10, 100_000, 0.0, 3);
        assert!(
            (0..10).all(|model| (9_500..10_500).contains(&even.iter().filter(|one| **one == model).count()))
        );
    }

    #[test]
    fn what_was_not_wanted_for_longest_goes() {
        let check = |trace: &[usize], budget, expected: &[bool]| {
            assert_eq!(lru(trace, &[1, 1, 1, 5], budget), expected, "{trace:?}");
        };
        let (hit, miss) = (true, false);
        check(&[0, 1, 0, 2, 0, 1], 2, &[miss, miss, hit, miss, hit, miss]);
        check(&[0, 1, 2, 0, 1, 2], 3, &[miss, miss, miss, hit, hit, hit]);
        check(&[0, 1, 3, 3, 0, 1], 6, &[miss, miss, miss, hit, miss, miss]);
        check(&[3, 3, 0, 3, 0], 4, &[miss, miss, miss, miss, hit]);
    }
}
