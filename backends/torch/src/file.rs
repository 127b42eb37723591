//! An archive's file, opened once: what libtorch reads is what was looked at, also where the name has become another file's meanwhile.

use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Why it cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("is no plain file")]
    NoFile,
    #[error("was written to while it was read")]
    Changed,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    /// Bytes that it had when it was opened.
    pub(crate) len: u64,
    stamp: Stamp,
}

/// What is different when a file has been written to: its size, and when that was.
type Stamp = (u64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

impl Opened {
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        // Asked before it is opened as well: to open a pipe would wait for who writes to it.
        if !std::fs::metadata(path)?.is_file() {
            return Err(FileError::NoFile);
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(FileError::NoFile);
        }
        Ok(Self { file, len: metadata.len(), stamp: stamp(&metadata) })
    }

    /// Its name in this process as long as this lives.
    pub(crate) fn path(&self) -> CString {
        CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd())).unwrap_or_default()
    }

    /// Whether it is still as it was.
    pub(crate) fn is_as_it_was(&self) -> Result<(), FileError> {
        if stamp(&self.file.metadata()?) == self.stamp { Ok(()) } else { Err(FileError::Changed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_the_file_that_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["model.pt", "other.pt"].map(|name| folder.path().join(name));
        std::fs::write(&path, "first").unwrap();
        std::fs::write(&other, "second").unwrap();
        let opened = Opened::open(&path).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(std::fs::read_to_string(opened.path().to_str().unwrap()).unwrap(), "first");
        opened.is_as_it_was().unwrap();
        let opened = Opened::open(&path).unwrap();
        std::fs::write(&path, "third, longer").unwrap();
        let error = opened.is_as_it_was().unwrap_err();
        assert_eq!(error.to_string(), "was written to while it was read");
    }
}
