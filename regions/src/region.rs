//! The owner's side: making a region and writing it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::ProtFlags;

use crate::memory::Memory;

/// A region of this process's: only it can write there, through this mapping; whoever is given the descriptor can map it
/// for reading. Its pages are zero until written and cost memory from then on. Unmapped and closed when dropped; the
/// memory is given back when the last reader's mapping is gone as well.
#[derive(Debug)]
pub struct Region {
    memory: Memory,
    file: OwnedFd,
}

impl Region {
    /// Makes a region of `size` bytes, not 0. The descriptor is closed upon `exec`.
    ///
    /// # Errors
    /// What the kernel says: no descriptors or no memory left; a kernel before 5.1 has no seal against future writes.
    pub fn create(size: usize) -> io::Result<Self> {
        let file = anonymous_file()?;
        ftruncate(&file, u64::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?)?;
        // Before the seals: afterwards no mapping can be written, this one can.
        let memory = Memory::map(file.as_fd(), size, ProtFlags::READ | ProtFlags::WRITE)?;
        fcntl_add_seals(
            &file,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL,
        )?;
        Ok(Self { memory, file })
    }

    /// The size in bytes, which never changes.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// The first byte. Memory is valid for reading and writing for as long as this value lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// What has been written. To write and read at the same time, [`Region::as_ptr`].
    #[expect(unsafe_code, reason = "reads memory that only this value can write")]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: nobody else can write to the region, and here it takes a `&mut self`, or unsafe code's own promise.
        unsafe { self.memory.slice(0, self.len()) }.unwrap_or_default()
    }

    /// The bytes, to be written. Readers in other processes see them change at once.
    #[expect(unsafe_code, reason = "writes memory that nobody else of this process reaches")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped for writing in `create`; `&mut self` keeps everybody else in this process away.
        unsafe { self.memory.slice_mut() }
    }

    /// The descriptor, to be sent.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A memfd that can be sealed and never executed.
fn anonymous_file() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("outrigger", flags | MemfdFlags::NOEXEC_SEAL) {
        // A kernel before 6.3 does not know the flag.
        Err(Errno::INVAL) => Ok(memfd_create("outrigger", flags)?),
        made => Ok(made?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::fcntl_get_seals;
    use rustix::io::{FdFlags, fcntl_getfd, pwrite};

    #[test]
    fn its_maker_writes_it_and_nobody_else() {
        let mut region = Region::create(8192).unwrap();
        assert_eq!((region.len(), region.bytes()[8191]), (8192, 0));
        region.bytes_mut()[8191] = 7;
        assert_eq!(region.bytes()[8191], 7);
        assert_eq!(pwrite(region.fd(), b"x", 0), Err(Errno::PERM));
        let again = Memory::map(region.fd(), 8192, ProtFlags::READ | ProtFlags::WRITE);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn its_size_and_its_seals_stay() {
        let region = Region::create(4096).unwrap();
        for size in [0, 8192] {
            assert_eq!(ftruncate(region.fd(), size), Err(Errno::PERM));
        }
        let seals = fcntl_get_seals(region.fd()).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE));
        assert_eq!(fcntl_add_seals(region.fd(), SealFlags::WRITE), Err(Errno::PERM));
        assert_eq!(fcntl_getfd(region.fd()), Ok(FdFlags::CLOEXEC));
    }

    #[test]
    fn sizes_that_cannot_be() {
        for size in [0, usize::MAX] {
            assert!(Region::create(size).is_err());
        }
    }
}
