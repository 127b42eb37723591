//! Ends that must not happen where they fall due: in a function of this side's that the other side has called.
//!
//! A library calls this side in the middle of a call of its own, perhaps under a lock: to end a tensor, or to say that a run is over.
//! If the last user of a model goes with that, its end would be an entry of the table called out of the library itself.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

thread_local! {
    /// How many functions of this side's the other side is in, on this thread.
    static CALLED: Cell<usize> = const { Cell::new(0) };
}

/// Runs the body of a function that the other side calls.
pub(crate) fn called<T>(body: impl FnOnce() -> T) -> T {
    struct Left;
    impl Drop for Left {
        fn drop(&mut self) {
            let _ = CALLED.try_with(|called| called.set(called.get() - 1));
        }
    }
    let entered = CALLED.try_with(|called| called.set(called.get() + 1));
    let _left = entered.is_ok().then_some(Left);
    body()
}

/// A value that is dropped on a thread of its own where the other side is being answered.
#[derive(Debug)]
pub(crate) struct Elsewhere<T: Send + 'static>(ManuallyDrop<T>);

impl<T: Send + 'static> Elsewhere<T> {
    pub(crate) fn new(value: T) -> Arc<Self> {
        Arc::new(Self(ManuallyDrop::new(value)))
    }
}

impl<T: Send + 'static> Deref for Elsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        // SAFETY: taken once, and this value is not used any more.
        let value = unsafe { ManuallyDrop::take(&mut self.0) };
        // A thread that is ending cannot tell; then it is no callback that ends it.
        if CALLED.try_with(Cell::get).unwrap_or(0) == 0 {
            return drop(value);
        }
        // Handed over once the thread is there: with what a closure holds, a thread that cannot start would drop it here.
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("outrigger-ends".into());
        match thread.spawn(move || drop(receiver.recv())) {
            Ok(_) => drop(sender.send(value)),
            // Better kept for good than ended here.
            Err(_) => std::mem::forget(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::ThreadId;

    use super::*;

    struct Tells(mpsc::SyncSender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.try_send(std::thread::current().id());
        }
    }

    #[test]
    fn values_are_dropped_here_unless_the_other_side_is_being_answered() {
        let (sender, ends) = mpsc::sync_channel(1);
        let here = std::thread::current().id();
        drop(Elsewhere::new(Tells(sender.clone())));
        assert_eq!(ends.recv(), Ok(here));
        called(|| called(|| drop(Elsewhere::new(Tells(sender.clone())))));
        assert_ne!(ends.recv(), Ok(here));
        let panicked = std::panic::catch_unwind(|| called(|| std::panic::resume_unwind(Box::new(()))));
        assert!(panicked.is_err());
        drop(Elsewhere::new(Tells(sender)));
        assert_eq!(ends.recv(), Ok(here), "a panic leaves the function too");
    }
}
