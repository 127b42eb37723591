//! One after the other, where an execution provider cannot do with more.

use std::sync::{Condvar, Mutex, PoisonError};

/// Who takes turns: all that makes, runs or ends a session of a provider that has these. Unlike a mutex it may be taken on one thread and
/// given back on another.
#[derive(Debug, Default)]
pub struct Turns {
    is_taken: Mutex<bool>,
    is_free: Condvar,
}

impl Turns {
    /// Nobody's turn.
    pub const fn new() -> Self {
        Self { is_taken: Mutex::new(false), is_free: Condvar::new() }
    }

    /// Waits until nobody else has the turn, and takes it.
    pub(crate) fn take(&self) {
        let is_taken = self.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.is_free.wait_while(is_taken, |is_taken| *is_taken);
        *free.unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Gives it back.
    pub(crate) fn give_back(&self) {
        *self.is_taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.is_free.notify_one();
    }
}

/// A turn, given back when dropped; nothing where there are no turns to take.
pub(crate) struct Turn(Option<&'static Turns>);

impl Turn {
    pub(crate) fn take(turns: Option<&'static Turns>) -> Self {
        if let Some(turns) = turns {
            turns.take();
        }
        Self(turns)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0 {
            turns.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn nobody_has_a_turn_beside_another() {
        static TURNS: Turns = Turns::new();
        static INSIDE: AtomicUsize = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let _turn = Turn::take(Some(&TURNS));
                        assert_eq!(INSIDE.fetch_add(1, Ordering::Relaxed), 0);
                        std::hint::spin_loop();
                        INSIDE.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
        });
        drop(Turn::take(None));
    }
}
