//! Models that leave and come back: memory is too small for what is used.

use std::time::Duration;

use super::core::Core;

/// How long loads are counted before anything is said of them.
const WINDOW: Duration = Duration::from_secs(300);
/// Fewer models that came back are nothing to speak of.
const FEW: u64 = 10;
/// Memory beyond what is used, 1 byte in so many.
const HEADROOM: u64 = 10;

/// Models have left and come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::models) struct Thrash {
    /// How long this has been looked at.
    pub(in crate::models) window: Duration,
    /// Loads.
    pub(in crate::models) loads: u64,
    /// Those of models that had had to leave within the same time.
    pub(in crate::models) reloads: u64,
    /// What all loads took together.
    pub(in crate::models) loading: Duration,
    /// For devices that hold too little, the budget that would do for what was used: device, bytes.
    pub(in crate::models) budgets: Vec<(usize, u64)>,
}

/// The loads of the current window.
#[derive(Debug, Default)]
pub(super) struct Window {
    since: Duration,
    loads: u64,
    reloads: u64,
    loading: Duration,
}

impl Window {
    /// A load is done, of a model that was evicted at some time.
    pub(super) fn note(&mut self, evicted: Option<Duration>, took: Duration) {
        self.loads += 1;
        self.reloads += u64::from(evicted.is_some_and(|evicted| evicted >= self.since));
        self.loading = self.loading.saturating_add(took);
    }
}

impl Core {
    /// What there is to say of the last window: once for each, and only if many of the loads were of models that had had to leave within it.
    pub(in crate::models) fn thrash(&mut self, now: Duration) -> Option<Thrash> {
        let window = now.saturating_sub(self.window.since);
        if window < WINDOW {
            return None;
        }
        let since = self.window.since;
        let Window { loads, reloads, loading, .. } =
            std::mem::replace(&mut self.window, Window { since: now, ..Window::default() });
        if reloads < FEW || reloads.saturating_mul(2) < loads {
            return None;
        }
        let used = self.models.iter().filter(|this| this.used >= since);
        let needed = self.accounts.with(used.map(|this| &this.measured));
        let budgets = needed.iter().enumerate().filter_map(|(device, needed)| {
            let budget = self.accounts.budget(device)?;
            let needed = needed.saturating_add(needed / HEADROOM);
            (needed > budget).then_some((device, needed))
        });
        Some(Thrash { window, loads, reloads, loading, budgets: budgets.collect() })
    }
}
