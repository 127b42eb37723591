//! What can be wrong with a library, and with a call.

use std::path::PathBuf;

/// A library cannot be used. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no such file.
    #[error("there is no library at `{path}`: check the path, it is relative to the script's root")]
    Missing {
        /// As it was given.
        path: PathBuf,
        /// Why it cannot be found.
        source: std::io::Error,
    },
    /// The loader refuses it.
    #[error(
        "`{path}` cannot be loaded: {reason}; build it as a shared library (cc -shared -fPIC, or \
         crate-type = [\"cdylib\"]) for this machine, and install what it links to"
    )]
    Open {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// It lacks a function, or exports a null in its place.
    #[error(
        "`{path}` does not export `{symbol}`: define it as outrigger_script.h declares it (in C++ include that \
         first, in Rust use `outrigger_script::export!`)"
    )]
    Symbol {
        /// The library.
        path: PathBuf,
        /// What it lacks.
        symbol: &'static str,
    },
    /// It was made for another ABI.
    #[error(
        "`{path}` was made for ABI {actual}, this host has {expected}: build it with the outrigger_script.h \
         of this host"
    )]
    Version {
        /// The library.
        path: PathBuf,
        /// The host's.
        expected: String,
        /// The library's.
        actual: String,
    },
    /// Its `init` failed.
    #[error("outrigger_script_init of `{path}` failed: {message}")]
    Init {
        /// The library.
        path: PathBuf,
        /// What it says.
        message: String,
    },
    /// Its `init` broke the ABI.
    #[error("outrigger_script_init of `{path}` broke the ABI: {what}")]
    Broken {
        /// The library.
        path: PathBuf,
        /// What it did.
        what: String,
    },
}

/// A call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The script failed.
    #[error("the script failed: {message}")]
    Failed {
        /// What it says, for the log.
        message: String,
    },
    /// The request is at fault.
    #[error("the request is at fault: {message}")]
    Input {
        /// What it says, for the caller.
        message: String,
    },
    /// What the script handed back breaks the ABI.
    #[error("the script broke the ABI: {what}")]
    Broken {
        /// What it did.
        what: String,
    },
}
