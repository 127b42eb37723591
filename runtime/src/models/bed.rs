//! Models that are to be looked at later, and who of the threads that sleep sees to it.

use std::sync::Arc;
use std::time::Instant;

use super::ModelInstance;

/// What threads that sleep hold in common. There is at most one entry for each model.
#[derive(Default)]
pub(super) struct Bed {
    later: Vec<(Instant, Arc<ModelInstance>)>,
    /// Until when a thread sleeps that then looks what is due.
    watched: Option<Instant>,
}

impl Bed {
    /// A model is to be looked at then, whatever was said of it before.
    pub(super) fn add(&mut self, at: Instant, model: Arc<ModelInstance>) {
        self.later.retain(|(_, other)| !Arc::ptr_eq(other, &model));
        self.later.push((at, model));
    }

    /// When the first one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.later.iter().map(|(at, _)| *at).min()
    }

    /// Takes one that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Arc<ModelInstance>> {
        let first = self.later.iter().enumerate().min_by_key(|(_, (at, _))| *at);
        let place = first.filter(|(_, (at, _))| *at <= now).map(|(place, _)| place)?;
        Some(self.later.swap_remove(place).1)
    }

    /// Takes all.
    pub(super) fn take_all(&mut self) -> Vec<Arc<ModelInstance>> {
        self.later.drain(..).map(|(_, model)| model).collect()
    }

    /// Whether something is due before any thread that sleeps would see it.
    pub(super) fn is_unwatched(&self) -> bool {
        let sees = |at: Instant| self.watched.is_some_and(|watched| watched <= at);
        self.next().is_some_and(|at| !sees(at))
    }

    /// Until when the thread that goes to sleep does so at most, and is the one that watches; `None` if it need not be.
    pub(super) fn watch(&mut self) -> Option<Instant> {
        let at = self.next().filter(|_| self.is_unwatched())?;
        self.watched = Some(at);
        Some(at)
    }

    /// The thread that watched until `at` is awake.
    pub(super) fn end_watch(&mut self, at: Instant) {
        if self.watched == Some(at) {
            self.watched = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::models::tests::fake;

    #[test]
    fn one_thread_watches_until_the_first_is_due() {
        let now = Instant::now();
        let (soon, later) = (now + Duration::from_millis(1), now + Duration::from_millis(2));
        let (one, other) = (fake("one"), fake("other"));
        let mut bed = Bed::default();
        assert_eq!((bed.watch(), bed.is_unwatched()), (None, false));
        bed.add(later, Arc::clone(&one));
        assert_eq!(bed.watch(), Some(later));
        assert_eq!(bed.watch(), None, "one is enough");
        bed.add(soon, Arc::clone(&other));
        assert!(bed.is_unwatched());
        assert_eq!(bed.watch(), Some(soon));
        assert!(bed.take_due(now).is_none());
        bed.end_watch(soon);
        assert!(Arc::ptr_eq(&bed.take_due(soon).unwrap(), &other));
        bed.end_watch(later);
        assert!(bed.is_unwatched(), "it went to work, somebody else has to");
        bed.add(soon, Arc::clone(&one));
        assert_eq!(bed.next(), Some(soon), "the later word counts");
        assert_eq!(bed.take_all().len(), 1);
        assert!(bed.take_due(later).is_none());
    }
}
