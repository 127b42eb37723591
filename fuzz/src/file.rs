//! Files in memory, for what takes a path.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

/// A file with a path for as long as it lives.
#[derive(Debug)]
pub struct File(fs::File);

impl File {
    /// One that has these bytes.
    ///
    /// # Panics
    /// If there is no memory for it.
    pub fn with(bytes: &[u8]) -> Self {
        let made: OwnedFd =
            rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memory is there");
        let mut file = fs::File::from(made);
        file.write_all(bytes).expect("memory is there");
        Self(file)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}
