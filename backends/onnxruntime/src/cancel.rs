//! Runs that can be cancelled.

use std::sync::{Mutex, MutexGuard, PoisonError};

use outrigger_backend::RunId;

use crate::raw::RunOptions;

/// The runs of one instance that have a number. Those without never come here.
#[derive(Default)]
pub(crate) struct Cancels(Mutex<State>);

#[derive(Default)]
struct State {
    /// A handful at most: as many as there are threads in runs, for which a list is faster than a map.
    running: Vec<Running>,
    /// Options of runs that are over, for the next ones.
    idle: Vec<RunOptions>,
}

struct Running {
    id: RunId,
    options: RunOptions,
    is_cancelled: bool,
}

impl Cancels {
    /// Puts a run down under its number; what it returns is valid until [`Cancels::end`] of that number.
    pub(crate) fn begin(&self, id: RunId) -> ort::Result<*const ort::sys::OrtRunOptions> {
        let idle = self.lock().idle.pop();
        let options = idle.map_or_else(RunOptions::new, Ok)?;
        let pointer = options.as_ptr();
        self.lock().running.push(Running { id, options, is_cancelled: false });
        Ok(pointer)
    }

    /// A run is over; tells whether it has been cancelled meanwhile.
    pub(crate) fn end(&self, id: RunId) -> bool {
        let mut state = self.lock();
        let Some(at) = state.running.iter().position(|running| running.id == id) else { return false };
        let Running { options, is_cancelled, .. } = state.running.swap_remove(at);
        // Options whose mark does not come off are not used again.
        if !is_cancelled || options.set_terminate(false).is_ok() {
            state.idle.push(options);
        }
        is_cancelled
    }

    /// Marks a run, if it is under way: ONNX Runtime looks at the mark before each operator.
    pub(crate) fn cancel(&self, id: RunId) {
        let mut state = self.lock();
        if let Some(running) = state.running.iter_mut().find(|running| running.id == id) {
            running.is_cancelled = running.options.set_terminate(true).is_ok() || running.is_cancelled;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
