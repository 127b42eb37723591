//! The ensembles that are nodes of a call: for each the call begins with the first of its runs, and ends with the whole.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outrigger_protocol::error::CallError;

use crate::models::begun::Begun;
use crate::models::lease::Lease;
use crate::models::statistics::Times;

/// In the order of the wired graph's groups.
pub(super) struct Groups<'a> {
    leases: &'a [Lease],
    begun: Mutex<Vec<Option<Group>>>,
}

/// One of which a run has begun.
struct Group {
    begun: Begun,
    since: Instant,
    /// When the last of its runs ended.
    until: Instant,
}

impl<'a> Groups<'a> {
    pub(super) fn new(leases: &'a [Lease]) -> Self {
        Self { leases, begun: Mutex::new(leases.iter().map(|_| None).collect()) }
    }

    /// Held for a moment only, by one future.
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Group>>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins that these have.
    pub(super) fn begin(&self, groups: &[usize]) {
        let mut all = self.lock();
        for group in groups {
            let (Some(lease), Some(place)) = (self.leases.get(*group), all.get_mut(*group)) else { continue };
            place.get_or_insert_with(|| {
                lease.statistics().iter().for_each(|statistics| statistics.ran());
                let now = Instant::now();
                Group { begun: lease.begin(), since: now, until: now }
            });
        }
    }

    /// One has ended.
    pub(super) fn ran(&self, groups: &[usize]) {
        let mut all = self.lock();
        for group in groups {
            all.get_mut(*group).into_iter().flatten().for_each(|group| group.until = Instant::now());
        }
    }

    /// The call has ended: with a result, or with an error of a run that these have.
    pub(super) fn end(self, answer: Result<(), (&CallError, &[usize])>) {
        let all = self.begun.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (number, (group, lease)) in all.into_iter().zip(self.leases).enumerate() {
            let Some(Group { begun, since, until }) = group else { continue };
            match answer {
                Ok(()) => {
                    begun.ended(true);
                    let took = until.saturating_duration_since(since);
                    let times = Times { infer: took, whole: took, ..Times::default() };
                    lease.statistics().iter().for_each(|statistics| statistics.succeeded(&times));
                }
                Err((error, within)) if within.contains(&number) => {
                    begun.ended_as(error);
                    lease.statistics().iter().for_each(|statistics| statistics.failed(since.elapsed()));
                }
                // It was another one's fault.
                Err(_) => begun.aside(),
            }
        }
    }
}
