//! Which calls are kept: by their identifiers, so that all records of a call are kept together, on every replica.

use std::time::Duration;

use crate::record::Outcome;

/// Keeps these uses of the hash apart from others.
const CONTEXT: &str = "outrigger 2026-11 which calls are collected";

/// The rule of one collection.
#[derive(Debug)]
pub(crate) struct Sampling {
    key: [u8; 32],
    share: Share,
    keep_errors: bool,
    keep_slower: Option<Duration>,
}

#[derive(Debug)]
enum Share {
    All,
    None,
    /// Hashes below it.
    Below(u64),
}

impl Sampling {
    pub(crate) fn new(
        share: f64,
        keep_errors: bool,
        keep_slower: Option<Duration>,
        key: Option<&str>,
    ) -> Self {
        let share = if share >= 1.0 {
            Share::All
        } else if share > 0.0 {
            // 2^64 times the share: exact to 53 bits.
            Share::Below((share * 18_446_744_073_709_551_616.0) as u64)
        } else {
            Share::None
        };
        let key = blake3::derive_key(CONTEXT, key.unwrap_or_default().as_bytes());
        Self { key, share, keep_errors, keep_slower }
    }

    /// Whether the records of this call are kept.
    pub(crate) fn keeps(&self, request_id: &str, outcome: Outcome) -> bool {
        let limit = match self.share {
            Share::All => return true,
            Share::None => 0,
            Share::Below(limit) => limit,
        };
        if self.keep_errors && outcome.is_error() {
            return true;
        }
        if let (Some(limit), Some(latency)) = (self.keep_slower, outcome.latency)
            && latency > limit
        {
            return true;
        }
        let hash = blake3::keyed_hash(&self.key, request_id.as_bytes());
        let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(first) < limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(share: f64, key: Option<&str>) -> Sampling {
        Sampling::new(share, true, Some(Duration::from_millis(100)), key)
    }

    #[test]
    fn a_call_is_kept_by_its_identifier_alone_and_as_many_as_the_share_says() {
        for share in [0.0, 0.01, 0.25, 0.5, 0.99, 1.0] {
            let (one, other) = (sampling(share, None), sampling(share, None));
            let ids = (0..20_000).map(|number| format!("request-{number}"));
            let kept = ids.filter(|id| {
                let keeps = one.keeps(id, Outcome::default());
                assert_eq!(keeps, other.keeps(id, Outcome::default()));
                keeps
            });
            let got = kept.count() as f64 / 20_000.0;
            // Five standard deviations.
            let off = 5.0 * (share * (1.0 - share) / 20_000.0).sqrt();
            assert!((got - share).abs() <= off, "{share}: {got}");
        }
    }

    #[test]
    fn a_larger_share_keeps_what_a_smaller_one_keeps() {
        let (small, large) = (sampling(0.2, None), sampling(0.6, None));
        for id in (0..1000).map(|number| number.to_string()) {
            assert!(!small.keeps(&id, Outcome::default()) || large.keeps(&id, Outcome::default()));
        }
    }

    #[test]
    fn the_key_decides_which() {
        let (one, other) = (sampling(0.5, Some("a")), sampling(0.5, Some("b")));
        let ids = (0..1000).map(|number| number.to_string());
        let apart = ids.filter(|id| one.keeps(id, Outcome::default()) != other.keeps(id, Outcome::default()));
        assert!(apart.count() > 300);
    }

    #[test]
    fn errors_and_slow_calls_are_always_kept() {
        let none = sampling(0.0, None);
        let of = |status, millis| Outcome { status, latency: Some(Duration::from_millis(millis)) };
        assert!(none.keeps("a", of(Some(500), 1)) && none.keeps("a", of(Some(400), 1)));
        assert!(none.keeps("a", of(Some(200), 101)));
        assert!(!none.keeps("a", of(Some(200), 100)) && !none.keeps("a", Outcome::default()));
    }
}
