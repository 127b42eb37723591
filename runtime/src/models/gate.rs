//! Who is inside something that may be taken away: calls go in without a lock, and who takes it away closes it behind the last one.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Set once it is closed; below it, how many are inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// A gate, open to begin with.
#[derive(Debug, Default)]
pub(super) struct Gate(AtomicUsize);

/// What it is like behind somebody who has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Others are inside.
    Others,
    /// Nobody is, and it is open.
    Nobody,
    /// Nobody is, and nobody comes any more.
    Closed,
}

impl Gate {
    /// Goes in and has to leave again, unless it is closed.
    ///
    /// # Errors
    /// What it is like behind who had to turn back: who looked meanwhile has seen somebody inside.
    pub(super) fn enter(&self) -> Result<(), Behind> {
        // Who closes it must not miss somebody inside, nor who looks for what is idle: all of them see one order.
        if self.0.fetch_add(1, Ordering::SeqCst) & CLOSED == 0 { Ok(()) } else { Err(self.leave()) }
    }

    /// Goes in beside somebody who is inside and stays for as long as this takes: also where it has been closed meanwhile.
    pub(super) fn enter_beside(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Leaves.
    pub(super) fn leave(&self) -> Behind {
        match self.0.fetch_sub(1, Ordering::SeqCst).wrapping_sub(1) {
            0 => Behind::Nobody,
            CLOSED => Behind::Closed,
            _ => Behind::Others,
        }
    }

    /// Whether nobody is inside.
    pub(super) fn is_idle(&self) -> bool {
        self.0.load(Ordering::SeqCst) & !CLOSED == 0
    }

    /// Closes it if nobody is inside; says whether it did.
    pub(super) fn close_if_idle(&self) -> bool {
        self.0.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Closes it. Who is inside stays there.
    pub(super) fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_comes_in_once_it_is_closed_and_the_last_one_hears_that() {
        let gate = Gate::default();
        assert!(gate.enter().is_ok() && !gate.is_idle() && !gate.close_if_idle());
        gate.enter_beside();
        assert_eq!([gate.leave(), gate.leave()], [Behind::Others, Behind::Nobody]);
        assert!(gate.close_if_idle() && !gate.close_if_idle());
        assert_eq!((gate.enter(), gate.is_idle()), (Err(Behind::Closed), true));

        let gate = Gate::default();
        assert!(gate.enter().is_ok());
        gate.close();
        assert_eq!((gate.enter(), gate.is_idle()), (Err(Behind::Others), false));
        gate.enter_beside();
        assert_eq!([gate.leave(), gate.leave()], [Behind::Others, Behind::Closed]);
        assert!(gate.is_idle());
    }

    #[test]
    fn it_is_never_closed_with_somebody_inside() {
        // Threads that go in and out, and one that closes it: nobody is inside afterwards who came in.
        for _ in 0..50 {
            let (gate, inside, torn) = (Gate::default(), AtomicUsize::new(0), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while gate.enter().is_ok() {
                            inside.fetch_add(1, Ordering::SeqCst);
                            if torn.load(Ordering::SeqCst) > 0 {
                                torn.fetch_add(1, Ordering::SeqCst);
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                            gate.leave();
                            // Else there is hardly a moment at which nobody is inside.
                            std::thread::yield_now();
                        }
                    });
                }
                scope.spawn(|| {
                    while !gate.close_if_idle() {
                        std::thread::yield_now();
                    }
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                    torn.store(1, Ordering::SeqCst);
                });
            });
            assert_eq!(torn.load(Ordering::SeqCst), 1, "nobody was inside once it was closed");
        }
    }
}
