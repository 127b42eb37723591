//! Mapped memory, unmapped when dropped.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The whole of a file, mapped shared. Valid for `len` bytes for as long as it lives, given that the file cannot shrink.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: memory of the process, bound to no thread; who may read or write when is the business of its users.
unsafe impl Send for Memory {}
// SAFETY: as above: nothing is read or written through a shared reference but by unsafe code.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes, more than 0.
    pub(crate) fn map(file: BorrowedFd<'_>, len: usize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: with a null address the kernel chooses a place where nothing is mapped yet.
        let start = unsafe { mmap(null_mut(), len, protection, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// # Safety
    /// Nobody writes to these bytes while the slice lives.
    pub(crate) unsafe fn slice(&self, offset: usize, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside the mapping by the check above; the caller promises that it does not change.
        Some(unsafe { std::slice::from_raw_parts(self.as_ptr().add(offset), len) })
    }

    /// # Safety
    /// The memory is mapped for writing, and nobody else reads or writes it while the slice lives.
    pub(crate) unsafe fn slice_mut(&mut self) -> &mut [u8] {
        // SAFETY: the whole mapping; the caller promises that it is writable and nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let start: *mut c_void = self.as_ptr().cast();
        // SAFETY: mapped in `map` with this length, and no reference into it outlives `self`. It cannot fail for a range
        // that is mapped.
        let _ = unsafe { munmap(start, self.len) };
    }
}
