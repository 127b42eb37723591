//! The file below everything: how much of it has been read, and its own failures told from those of what is in it.

use std::io::{self, Read, Seek, SeekFrom};

use super::error::ArchiveError;

/// Counts the bytes read, and marks errors as the file's.
pub(super) struct Source<R> {
    inner: R,
    taken: u64,
}

impl<R> Source<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, taken: 0 }
    }

    /// Bytes read so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer).map_err(mark)?;
        self.taken += read as u64;
        Ok(read)
    }
}

impl<R: Seek> Seek for Source<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to).map_err(mark)
    }
}

/// An interrupted call is none of it: readers call again, and have to see what it was.
fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Interrupted => error,
        _ => io::Error::other(ArchiveError::Io { source: error }),
    }
}
