//! What it is worth to keep a model: the time that its loads would take, as often as it is likely to be used, for each of its bytes.
//!
//! How often that is nobody knows. Its uses so far say so while what is popular stays so, and the time since the last of them while it
//! does not: of both the mean is taken, in the way of rates. Of what was tried in `simulation.rs` uses alone are better while
//! nothing changes (0.36 of the loads of the least recently used first, for 0.40 of this) and worse than the latter when models are
//! called in bursts and the half-life is long (1.45); the time alone is no better than that where all are of one size; uses divided by
//! the whole time need up to a third more loads than this, and never fewer. Bytes decide as far as a load costs the same for all; where
//! it is a matter of bytes they cancel out.

use std::time::Duration;

use super::core::Usage;

/// How much a model has been used lately: its uses, each of which counts half after a half-life.
#[derive(Debug, Default)]
pub(super) struct Heat {
    uses: f64,
    /// When that was so.
    at: Duration,
    /// Uses that are in it.
    seen: u64,
}

impl Heat {
    /// Takes in the uses since the last time, as if they had been spread evenly from then on to the last of them.
    pub(super) fn update(&mut self, usage: &Usage, now: Duration, half_life: Duration) {
        let half_life = half_life.as_secs_f64().max(1e-3);
        let new = usage.uses.saturating_sub(self.seen) as f64;
        let before = now.saturating_sub(self.at).as_secs_f64() / half_life;
        let after = now.saturating_sub(usage.last.max(self.at)).as_secs_f64() / half_life;
        let spread = (before - after) * std::f64::consts::LN_2;
        let decayed =
            if spread > 1e-6 { ((-after).exp2() - (-before).exp2()) / spread } else { (-after).exp2() };
        self.uses = self.uses * (-before).exp2() + new * decayed;
        self.at = self.at.max(now);
        self.seen = self.seen.max(usage.uses);
    }

    /// A load is for a call that comes: that one counts already.
    pub(super) fn loaded(&mut self, now: Duration, half_life: Duration) {
        let none = Usage { uses: self.seen, last: now, idle: false };
        self.update(&none, now, half_life);
        self.uses += 1.0;
        self.seen += 1;
    }
}

/// What a load costs beside the time that it takes: a call waits. How long the shortest loads take is chance.
const EACH: Duration = Duration::from_millis(10);

/// What a byte of a model is worth that has not been used for some time.
pub(super) fn density(heat: &Heat, load: Duration, bytes: u64, unused: Duration) -> f64 {
    // Whatever was used a moment ago is in use, as far as can be told.
    let unused = unused.as_secs_f64().max(1e-3);
    heat.uses / unused.sqrt() * (load + EACH).as_secs_f64() / bytes.max(1) as f64
}
