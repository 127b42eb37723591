//! Memory that an arena has and nothing uses goes back to the device at the end of a run that asks for it: of one that comes after a pause.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ort::sys::OrtRunOptions;

use crate::raw::RunOptions;

/// When a device's arena is shrunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shrink {
    /// The arena, as ONNX Runtime's run options name it: `gpu:0`.
    pub arena: String,
    /// How long there was no run on the device before one that shrinks it.
    pub after: Duration,
}

/// Runs on a device, as far as that takes.
#[derive(Default)]
pub(crate) struct Pauses {
    /// When the last one ended; that of none is no pause.
    last: Mutex<Option<Instant>>,
    options: OnceLock<Option<RunOptions>>,
}

impl Pauses {
    /// Options of a run that begins: such as shrink the arena, or null.
    pub(crate) fn begin(&self, shrink: &Shrink, now: Instant) -> *const OrtRunOptions {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_some_and(|last| now.saturating_duration_since(last) >= shrink.after);
        if !is_due {
            return std::ptr::null();
        }
        // One of those that begin now is enough.
        *last = Some(now);
        let options = self.options.get_or_init(|| {
            let options = RunOptions::new().ok()?;
            options.add(c"memory.enable_memory_arena_shrinkage", &shrink.arena).ok()?;
            Some(options)
        });
        options.as_ref().map_or(std::ptr::null(), RunOptions::as_ptr)
    }

    /// A run has ended.
    pub(crate) fn end(&self, now: Instant) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }
}
