//! Whether a new version does worse than the one before it.

use super::outcomes::Counts;

/// When a version is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// So many calls must have failed.
    pub(super) failures: u64,
    /// By so much the share of calls that fail must be larger, from 0 to 1.
    pub(super) margin: f64,
}

/// So many standard deviations what was seen of the new version may be by chance...
const DOUBT: f64 = 3.5;
/// ...and of the old one, of which there are more calls.
const DOUBT_BEFORE: f64 = 2.0;
/// Of fewer calls of the old version that went well nothing follows, and it is taken not to fail.
const KNOWN: u64 = 20;

/// Whether calls of the new version fail more often than those of the old one did, beyond chance and by the margin.
pub(super) fn is_worse(before: Counts, after: Counts, rule: Rule) -> bool {
    if after.failures < rule.failures.max(1) {
        return false;
    }
    let unknown = before.calls < KNOWN && before.failures == 0;
    let before = if unknown { 0.0 } else { bounds(before, DOUBT_BEFORE).1 };
    bounds(after, DOUBT).0 > before + rule.margin
}

/// Between what shares the true one lies: Wilson's score interval (E. B. Wilson, 1927).
fn bounds(counts: Counts, deviations: f64) -> (f64, f64) {
    if counts.calls == 0 {
        return (0.0, 1.0);
    }
    let (calls, squared) = (counts.calls as f64, deviations * deviations);
    let share = counts.failures.min(counts.calls) as f64 / calls;
    let middle = share + squared / (2.0 * calls);
    let half = deviations * (share * (1.0 - share) / calls + squared / (4.0 * calls * calls)).sqrt();
    let scale = 1.0 + squared / calls;
    ((middle - half) / scale, (middle + half) / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule = Rule { failures: 5, margin: 0.02 };

    fn worse(before: (u64, u64), after: (u64, u64)) -> bool {
        let counts = |(calls, failures)| Counts { calls, failures };
        is_worse(counts(before), counts(after), RULE)
    }

    #[test]
    fn a_step_up_is_seen_soon_and_what_may_be_chance_is_not() {
        assert!(worse((1000, 0), (5, 5)), "all of the first calls fail");
        assert!(!worse((1000, 0), (4, 4)), "too few to tell");
        assert!(worse((0, 0), (6, 5)), "nothing is known of the old one");
        assert!(!worse((1000, 0), (1000, 20)), "within the margin");
        assert!(worse((1000, 0), (1000, 80)));
        assert!(!worse((1000, 100), (1000, 120)), "the old one failed too");
        assert!(worse((1000, 100), (1000, 250)));
        assert!(!worse((20, 10), (10, 6)), "hardly anything is known");
        assert!(!worse((15, 5), (17, 5)), "seldom called, and not always rightly");
        assert!(!worse((19, 19), (60, 5)), "what mends it");
        assert!(!worse((1000, 1000), (1000, 1000)), "it cannot be worse");
    }

    #[test]
    fn bounds_are_those_of_the_literature() {
        // R. G. Newcombe, Two-sided confidence intervals for the single proportion, 1998: 81 of 263, 15 of 148, 0 of 20, 1 of 29 at 95 %.
        for (failures, calls, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0000, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let (below, above) = bounds(Counts { calls, failures }, 1.959_964);
            assert!((below - low).abs() < 5e-5 && (above - high).abs() < 5e-5, "{below} {above}");
        }
    }

    proptest! {
        #[test]
        fn more_failures_are_never_better(calls in 0_u64..5000, before in 0_u64..5000, failures in 0_u64..5000, more in 0_u64..100) {
            let failures = failures.min(calls);
            let (one, two) = ((calls, failures), (calls + more, failures + more));
            let old = (before, before / 7);
            prop_assert!(!worse(old, one) || worse(old, two));
        }
    }

    #[test]
    fn a_version_that_is_as_good_is_hardly_ever_given_up() {
        // Looked at after each call, as it is.
        let mut state = 88_172_645_463_325_252_u64;
        let mut fails = |share: f64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 11) as f64 / (1_u64 << 53) as f64) < share
        };
        for share in [0.0, 0.01, 0.05, 0.2, 0.5] {
            let mut given_up = 0;
            for _ in 0..300 {
                let before = (2000, (0..2000).filter(|_| fails(share)).count() as u64);
                let mut after = (0, 0);
                given_up += u32::from((0..1000).any(|_| {
                    after = (after.0 + 1, after.1 + u64::from(fails(share)));
                    worse(before, after)
                }));
            }
            assert!(given_up <= 3, "{given_up} of 300 at {share}");
        }
    }
}
