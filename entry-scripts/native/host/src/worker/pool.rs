//! The worker's own regions: answers are written there and read by the runtime.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_regions::Region;

/// The smallest region.
const SMALLEST: usize = 64 * 1024;
/// A larger region is not kept for another answer.
const LARGEST_KEPT: usize = 64 << 20;

/// A region of ours and its number.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) number: u32,
    pub(super) region: Region,
    /// Whether the runtime has its descriptor.
    pub(super) announced: bool,
    /// Forks that had happened when it was made: a later child has it too.
    forks: u32,
}

#[derive(Debug, Default)]
struct State {
    /// Most living regions: free, lent and away.
    most: usize,
    living: usize,
    next: u32,
    forks: u32,
    free: Vec<Owned>,
    /// Those that frames refer to which the runtime has not released.
    away: HashMap<u32, Owned>,
    /// Numbers of announced regions that are gone, of which the runtime is still to be told.
    retired: Vec<u32>,
}

/// All regions of this worker's. A region belongs to one answer at a time, from [`Pool::lend`] to the
/// runtime's RELEASE.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<State>>);

impl Pool {
    /// Lets it have `most` living regions.
    pub(super) fn open(&self, most: u32) {
        self.with(|state| state.most = most as usize);
    }

    /// Lends a region of at least `len` bytes; `None` if too many are away, or there is no memory.
    pub(super) fn lend(&self, len: usize) -> Option<Lease> {
        let size = len.max(SMALLEST).checked_next_power_of_two()?;
        let owned = self.with(|state| {
            let fits = |owned: &Owned| owned.region.len() >= len;
            let smallest = state.free.iter().enumerate().filter(|(_, owned)| fits(owned));
            if let Some((at, _)) = smallest.min_by_key(|(_, owned)| owned.region.len()) {
                return Some(state.free.swap_remove(at));
            }
            if state.living >= state.most {
                // One that is too small makes place.
                let small = state.free.pop()?;
                state.retire(small);
            }
            let region = Region::create(size).ok()?;
            let number = state.next;
            // Numbers come round after four thousand million regions; none of the first is alive then.
            state.next = state.next.wrapping_add(1);
            state.living += 1;
            Some(Owned { number, region, announced: false, forks: state.forks })
        })?;
        Some(Lease { owned: Some(owned), pool: self.clone() })
    }

    /// The runtime is done with a region. `false` if it is none that it had.
    pub(super) fn released(&self, number: u32) -> bool {
        self.with(|state| {
            let Some(owned) = state.away.remove(&number) else { return false };
            state.take_back(owned);
            true
        })
    }

    /// Gives up all regions; for a process that has forked.
    pub(super) fn retire_all(&self) {
        self.with(|state| {
            state.forks += 1;
            let all: Vec<Owned> =
                state.free.drain(..).chain(state.away.drain().map(|(_, owned)| owned)).collect();
            all.into_iter().for_each(|owned| state.retire(owned));
        });
    }

    /// Numbers to send FORGET for.
    pub(super) fn take_retired(&self) -> Vec<u32> {
        self.with(|state| std::mem::take(&mut state.retired))
    }

    fn with<R>(&self, body: impl FnOnce(&mut State) -> R) -> R {
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn take_back(&mut self, owned: Owned) {
        if owned.region.len() > LARGEST_KEPT || owned.forks != self.forks {
            self.retire(owned);
        } else {
            self.free.push(owned);
        }
    }

    fn retire(&mut self, owned: Owned) {
        self.living -= 1;
        if owned.announced {
            self.retired.push(owned.number);
        }
    }
}

/// A region that is written; goes back to the pool when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    owned: Option<Owned>,
    pool: Pool,
}

impl Lease {
    pub(super) fn owned(&mut self) -> Option<&mut Owned> {
        self.owned.as_mut()
    }

    /// A frame refers to it, which is sent next: it is the runtime's until that releases it.
    pub(super) fn go_away(&mut self) {
        let Some(owned) = self.owned.take() else { return };
        self.pool.with(|state| {
            if owned.forks == state.forks {
                state.away.insert(owned.number, owned);
            } else {
                state.retire(owned);
            }
        });
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.owned.as_ref().map(|owned| owned.region.bytes()).unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.owned.as_mut().map(|owned| owned.region.bytes_mut()).unwrap_or_default()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(owned) = self.owned.take() {
            self.pool.with(|state| state.take_back(owned));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(most: u32) -> Pool {
        let pool = Pool::default();
        pool.open(most);
        pool
    }

    fn number(lease: &mut Lease) -> u32 {
        lease.owned().unwrap().number
    }

    #[test]
    fn a_region_is_one_answers_until_it_is_released() {
        let pool = pool(2);
        let mut first = pool.lend(100_000).unwrap();
        assert_eq!(first.bytes().len(), 131_072);
        let one = number(&mut first);
        first.go_away();
        let mut second = pool.lend(100_000).unwrap();
        assert_ne!(number(&mut second), one);
        second.go_away();
        assert!(pool.lend(1).is_none(), "two are away and there may be no more");
        assert!(pool.released(one));
        assert!(!pool.released(one), "it was released once");
        assert_eq!(number(&mut pool.lend(1).unwrap()), one);
    }

    #[test]
    fn one_that_is_not_sent_goes_back() {
        let pool = pool(1);
        let one = number(&mut pool.lend(1).unwrap());
        assert_eq!(number(&mut pool.lend(1).unwrap()), one);
    }

    #[test]
    fn what_is_too_small_or_too_large_is_retired() {
        let pool = pool(1);
        let mut small = pool.lend(1).unwrap();
        small.owned().unwrap().announced = true;
        let one = number(&mut small);
        drop(small);
        let mut large = pool.lend(LARGEST_KEPT + 1).unwrap();
        assert_eq!(pool.take_retired(), [one]);
        large.owned().unwrap().announced = true;
        let two = number(&mut large);
        assert_ne!(one, two);
        large.go_away();
        assert!(pool.released(two));
        assert_eq!(pool.take_retired(), [two]);
        assert!(pool.take_retired().is_empty());
    }

    #[test]
    fn none_are_lent_where_there_may_be_none() {
        assert!(pool(0).lend(1).is_none());
        assert!(pool(1).lend(usize::MAX).is_none());
    }

    #[test]
    fn a_fork_retires_all() {
        let pool = pool(3);
        let [mut away, mut free, mut held] = [(); 3].map(|()| pool.lend(1).unwrap());
        for lease in [&mut away, &mut free, &mut held] {
            lease.owned().unwrap().announced = true;
        }
        away.go_away();
        drop(free);
        pool.retire_all();
        let mut retired = pool.take_retired();
        retired.sort_unstable();
        assert_eq!(retired, [0, 1]);
        // What was being written when it happened goes with the first frame that refers to it.
        held.go_away();
        assert_eq!(pool.take_retired(), [2]);
        assert_eq!(number(&mut pool.lend(1).unwrap()), 3);
    }
}
