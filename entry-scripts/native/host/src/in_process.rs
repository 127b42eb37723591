//! A script in the process of its caller.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Answer, CallError, Caller, Level, Library, LoadError, Method, Request, Script, Settings};

/// A script in the caller's own process, which its crash ends and its memory is.
#[derive(Debug)]
pub struct InProcess {
    script: Arc<Script>,
    /// Taken for the time of a call of a script that is not thread-safe.
    turn: Mutex<()>,
}

impl InProcess {
    /// Opens the library at `path` and starts its script; `logger` takes the lines that it logs outside of
    /// calls. Takes as long as the script's `init`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn start(
        path: &Path,
        settings: Settings,
        logger: impl Fn(Level, &str) + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        let script = Script::start(Library::open(path)?, settings, logger)?;
        Ok(Self { script: Arc::new(script), turn: Mutex::new(()) })
    }

    /// Whether calls run at once. If not, a call waits for the one before.
    pub fn thread_safe(&self) -> bool {
        self.script.thread_safe()
    }

    /// The methods that the script takes.
    pub fn methods(&self) -> impl Iterator<Item = Method> {
        self.script.methods()
    }

    /// Calls the script on this thread; returns when it has. It cannot be ended from outside: a script that
    /// does not look at [`Caller::cancelled`] holds the thread for as long as it likes.
    ///
    /// # Errors
    /// [`CallError`]; if a stream has begun, it is incomplete.
    #[expect(unsafe_code, reason = "keeps the conditions of a call")]
    pub fn call<C: Caller>(&self, request: &Request<'_>, caller: &C) -> Result<Answer<C::Buffer>, CallError> {
        let turn = (!self.thread_safe()).then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: one at a time if it must be; the body is copied below if the script would not keep it.
        let answer = unsafe { self.script.call(request, caller) }?;
        let answer = match answer {
            Answer::Whole(head, body) => Answer::Whole(head, body.keep()),
            Answer::Streamed => Answer::Streamed,
        };
        drop(turn);
        Ok(answer)
    }
}
