//! For tests only: a replica as a child process, and models made in memory.

pub mod onnx;
pub mod replica;

pub use replica::{Ended, Launch, ReplicaProcess};

/// The repository's root.
pub fn repository() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Python interpreter of the project's environment.
///
/// # Panics
/// If the environment has not been set up; the message says how.
pub fn python() -> std::path::PathBuf {
    let python = repository().join(".venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `cargo xtask setup`", python.display());
    python
}
