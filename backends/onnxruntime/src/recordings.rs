//! Recordings beside which nothing else is done.
//!
//! While a run is recorded as a graph, CUDA takes a call of any thread's that waits for the device, takes or gives back its memory, or copies without a
//! stream, for one of the recording's, and fails that call or the recording (`cudaStreamCaptureModeGlobal`, which is ONNX Runtime's). So a recording is
//! alone in the process, and all else goes on beside each other as it likes.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who records, and who does anything else on the devices. What is done inside of either on the same thread needs no leave any more; it may be entered on
/// one thread and left on that one alone.
#[derive(Debug, Default)]
pub struct Recordings {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many are at it that do not record.
    beside: usize,
    /// How many wait to record. They go first, for there are few of them, and of the others there is no end.
    waiting: usize,
    is_recording: bool,
}

thread_local! {
    /// How often this thread has entered. A library has recordings of one kind.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

impl Recordings {
    /// None under way.
    pub const fn new() -> Self {
        let state = State { beside: 0, waiting: 0, is_recording: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits until nothing is recorded, and sees to it that nothing is until this is dropped.
    pub fn beside(&'static self) -> Beside {
        Beside::enter(Some(self))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Recordings::beside`], until as many calls of [`Recordings::leave`].
    pub(crate) fn enter(&self) {
        let depth = DEPTH.get();
        DEPTH.set(depth + 1);
        if depth > 0 {
            return;
        }
        let state = self.changed.wait_while(self.lock(), |state| state.is_recording || state.waiting > 0);
        state.unwrap_or_else(PoisonError::into_inner).beside += 1;
    }

    pub(crate) fn leave(&self) {
        let depth = DEPTH.get().saturating_sub(1);
        DEPTH.set(depth);
        if depth > 0 {
            return;
        }
        let mut state = self.lock();
        state.beside = state.beside.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }
}

/// Something that is done while nothing is recorded; nothing special where nothing ever is.
pub struct Beside(Option<&'static Recordings>);

impl Beside {
    pub(crate) fn enter(recordings: Option<&'static Recordings>) -> Self {
        if let Some(recordings) = recordings {
            recordings.enter();
        }
        Self(recordings)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(recordings) = self.0 {
            recordings.leave();
        }
    }
}

/// A recording. Its thread must be at nothing else on the devices.
pub(crate) struct Alone(Option<&'static Recordings>);

impl Alone {
    pub(crate) fn enter(recordings: Option<&'static Recordings>) -> Self {
        if let Some(recordings) = recordings {
            let mut state = recordings.lock();
            state.waiting += 1;
            let state = recordings.changed.wait_while(state, |state| state.is_recording || state.beside > 0);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
            state.is_recording = true;
            DEPTH.set(DEPTH.get() + 1);
        }
        Self(recordings)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Some(recordings) = self.0 {
            DEPTH.set(DEPTH.get().saturating_sub(1));
            recordings.lock().is_recording = false;
            recordings.changed.notify_all();
        }
    }
}

/// A value whose end is beside no recording: memory of a device's.
pub struct EndsBeside<T> {
    // The order of these three is the order of what happens at the end.
    _enter: Enter,
    value: T,
    _leave: Leave,
}

impl<T> EndsBeside<T> {
    /// Holds a value.
    pub fn new(recordings: &'static Recordings, value: T) -> Self {
        Self { _enter: Enter(recordings), value, _leave: Leave(recordings) }
    }
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for EndsBeside<T> {
    fn as_ref(&self) -> &[u8] {
        self.value.as_ref()
    }
}

impl<T: AsMut<[u8]>> AsMut<[u8]> for EndsBeside<T> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.value.as_mut()
    }
}

struct Enter(&'static Recordings);

impl Drop for Enter {
    fn drop(&mut self) {
        self.0.enter();
    }
}

struct Leave(&'static Recordings);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn nothing_is_done_beside_a_recording() {
        static RECORDINGS: Recordings = Recordings::new();
        static BESIDE: AtomicUsize = AtomicUsize::new(0);
        static RECORDS: AtomicBool = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for _ in 0..500 {
                        if thread == 0 {
                            let _alone = Alone::enter(Some(&RECORDINGS));
                            assert!(!RECORDS.swap(true, Ordering::SeqCst));
                            assert_eq!(BESIDE.load(Ordering::SeqCst), 0);
                            // What its own thread does belongs to it.
                            drop(RECORDINGS.beside());
                            RECORDS.store(false, Ordering::SeqCst);
                        } else {
                            let _beside = RECORDINGS.beside();
                            BESIDE.fetch_add(1, Ordering::SeqCst);
                            assert!(!RECORDS.load(Ordering::SeqCst));
                            BESIDE.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn who_is_at_it_may_begin_more_while_a_recording_waits() {
        static RECORDINGS: Recordings = Recordings::new();
        let (done, is_done) = mpsc::channel();
        let first = RECORDINGS.beside();
        let thread = std::thread::spawn(move || {
            let _alone = Alone::enter(Some(&RECORDINGS));
            done.send(()).unwrap();
        });
        while RECORDINGS.lock().waiting == 0 {
            std::thread::yield_now();
        }
        drop(RECORDINGS.beside());
        drop(EndsBeside::new(&RECORDINGS, ()));
        assert!(is_done.try_recv().is_err(), "it waits for the first");
        drop(first);
        is_done.recv().unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn an_end_waits_for_a_recording() {
        static RECORDINGS: Recordings = Recordings::new();
        struct Ends(mpsc::Sender<()>);
        impl Drop for Ends {
            fn drop(&mut self) {
                assert!(!RECORDINGS.lock().is_recording);
                self.0.send(()).unwrap();
            }
        }
        let (ended, has_ended) = mpsc::channel();
        let alone = Alone::enter(Some(&RECORDINGS));
        let value = EndsBeside::new(&RECORDINGS, Ends(ended));
        let thread = std::thread::spawn(move || drop(value));
        assert!(has_ended.try_recv().is_err());
        drop(alone);
        has_ended.recv().unwrap();
        thread.join().unwrap();
    }
}
