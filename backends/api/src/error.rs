//! What can go wrong in a backend.

/// A backend's failure. The variants are the codes of the C ABI; the text is for the log and for whoever asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The library, its driver or something it needs is not there. The text lists what was tried.
    #[error("backend `{backend}` is not available: {reason}")]
    Unavailable {
        /// The backend's name or its library's path.
        backend: String,
        /// What is missing, and where it was looked for.
        reason: String,
    },
    /// The library speaks another version of the table.
    #[error("backend `{backend}` speaks ABI {actual}, this host needs {expected}")]
    Version {
        /// The library's path.
        backend: String,
        /// The version the host needs.
        expected: String,
        /// The version the library has.
        actual: String,
    },
    /// The model's files cannot be read, or are no model this backend can run.
    #[error("model cannot be loaded: {0}")]
    Load(String),
    /// An input has the wrong name, type, rank or shape: the caller's mistake.
    #[error("{0}")]
    Input(String),
    /// The device has not enough memory.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The model failed while it ran.
    #[error("model failed on its device: {0}")]
    Run(String),
    /// The run was asked to end, and did so before it had results.
    #[error("the run was cancelled")]
    Cancelled,
    /// The device is lost: nothing on it succeeds any more until its backend is opened anew, by ending its process where need be.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// Something that this backend cannot do, however often it is tried: a kind of memory, a format, results over a limit of its own. The caller
    /// hears the text.
    #[error("{0}")]
    Unsupported(String),
    /// A bug in the backend: it panicked, or broke the contract of the table.
    #[error("internal error of the backend: {0}")]
    Internal(String),
}

/// An error with all its causes in one line: a loader's own words are in the source of what it returns. A cause that the text
/// before it already quotes is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
