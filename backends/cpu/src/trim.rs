//! Gives memory back to the operating system after models were loaded, which takes more than the model keeps, and unloaded.
//!
//! What is freed stays where it was twice over: in the arena that all sessions share, and in the heap of the C library ([`heap`]).
//! So the arena is emptied ([`Runtime::shrink_arena`]), and then `malloc_trim` returns the heap's free pages. That holds up nobody's
//! call: it happens on a thread of its own, a moment after a load or an unload and at most once a second however many there are.

use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use outrigger_onnxruntime::Runtime;

/// How long after it was asked for; more often follows, and one pass is for all of it.
const DELAY: Duration = Duration::from_millis(100);
/// The least time between two passes. A pass over 200 MB in 1000 sessions takes 12 ms, during which allocations may wait.
const PAUSE: Duration = Duration::from_secs(1);

/// When the last pass began, and whether one is to come.
struct State {
    last: Option<Instant>,
    is_due: bool,
}

static STATE: Mutex<State> = Mutex::new(State { last: None, is_due: false });

/// Comes before a session is made or ends.
pub(crate) fn before() {
    heap::tighten();
}

/// Comes after it, and asks for what is left of it.
pub(crate) fn after(runtime: &'static Runtime) {
    heap::loosen();
    later(runtime);
}

fn later(runtime: &'static Runtime) {
    // What is asked for last is done first at the end: ONNX Runtime asked when it was loaded, before there was a runtime.
    static ASKED: Once = Once::new();
    ASKED.call_once(|| heap::at_exit(end));
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if state.is_due {
        return;
    }
    let since = state.last.map_or(PAUSE, |last| last.elapsed());
    let wait = DELAY.max(PAUSE.saturating_sub(since));
    let pass = move || {
        std::thread::sleep(wait);
        {
            // What is freed from here on may be missed by this pass, so it asks for the next one.
            let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            *state = State { last: Some(Instant::now()), is_due: false };
        }
        now(runtime);
    };
    // Where no thread can be had the memory waits for the next time.
    state.is_due = std::thread::Builder::new().name("outrigger-trim".into()).spawn(pass).is_ok();
}

/// Whether the process ends; held during a pass. ONNX Runtime takes itself apart at the end, and a pass that uses it then crashes.
static ENDS: Mutex<bool> = Mutex::new(false);

fn now(runtime: &Runtime) {
    let ends = ENDS.lock().unwrap_or_else(PoisonError::into_inner);
    if *ends {
        return;
    }
    heap::tighten();
    // A failure is nothing that anybody must be told.
    let _ = runtime.shrink_arena();
    heap::loosen();
    heap::trim();
    drop(ends);
}

/// Waits for a pass that is under way, a few milliseconds, and lets none begin any more.
extern "C" fn end() {
    *ENDS.lock().unwrap_or_else(PoisonError::into_inner) = true;
}

/// The heap of the GNU C library.
///
/// `malloc_trim` returns all free pages but those at the end of a thread's own heap, and as a process frees larger blocks the
/// library leaves more and more there, up to 64 MB. So while a model is loaded or unloaded, larger blocks are mapped by
/// themselves, and heaps are cut at once. Other times have what the library comes to by itself in a process that frees large
/// blocks: then they are kept, for mapping and clearing memory anew costs more than most copies.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "calls the C library")]
mod heap {
    use std::ffi::c_int;
    use std::sync::{Mutex, PoisonError};

    const TIGHT: c_int = 256 << 10;
    /// The library's own bounds, in malloc.c: `DEFAULT_MMAP_THRESHOLD_MAX`, and twice that.
    const LOOSE: c_int = 32 << 20;

    /// How many want it tight.
    static HOLDERS: Mutex<usize> = Mutex::new(0);

    pub(super) fn tighten() {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        *holders += 1;
        if *holders == 1 {
            set(TIGHT, TIGHT);
        }
    }

    pub(super) fn loosen() {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        *holders = holders.saturating_sub(1);
        if *holders == 0 {
            set(LOOSE, 2 * LOOSE);
        }
    }

    pub(super) fn at_exit(end: extern "C" fn()) {
        // SAFETY: the function takes nothing, may be called on any thread, and stays: libraries of backends are never unloaded.
        unsafe { libc::atexit(end) };
    }

    pub(super) fn trim() {
        // SAFETY: takes a number, and may be called at any time on any thread.
        unsafe { libc::malloc_trim(0) };
    }

    fn set(map: c_int, cut: c_int) {
        // SAFETY: each stores one word, which allocations on other threads read whole, before or after; either is right for
        // them. `HOLDERS` is locked, so these calls do not overlap.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, map);
            libc::mallopt(libc::M_TRIM_THRESHOLD, cut);
        }
    }
}

/// Elsewhere the C library returns what it likes.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod heap {
    pub(super) fn tighten() {}
    pub(super) fn loosen() {}
    pub(super) fn trim() {}
    pub(super) fn at_exit(_end: extern "C" fn()) {}
}
