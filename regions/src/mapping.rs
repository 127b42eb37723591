//! The reader's side: checking what another process has sent, and mapping it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::ProtFlags;

use crate::memory::Memory;

/// `f_type` of plain memory files, from Linux's `magic.h`. Huge pages have another one.
const TMPFS: u64 = 0x0102_1994;

/// A region of another process's, mapped for reading. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    memory: Memory,
}

/// What was sent is not a region, or not the one that was announced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// It could shrink under its reader, or its size is open.
    #[error("it is not a memfd sealed against shrinking and growing")]
    Seals,
    /// It is no file of plain memory: reading huge pages that the owner never wrote can be a bus error.
    #[error("it is not plain memory but of file system {kind:#x}")]
    Kind {
        /// `f_type` of its file system.
        kind: u64,
    },
    /// Its size is not the announced one, or 0.
    #[error("it was announced with {announced} bytes and has {actual}")]
    Size {
        /// What the message said.
        announced: u64,
        /// What the file has.
        actual: u64,
    },
    /// A range that is referred to is not inside.
    #[error("{size} bytes at {offset} are not inside its {len} bytes")]
    Range {
        /// Where the range starts.
        offset: u64,
        /// How long it is.
        size: u64,
        /// How long the region is.
        len: usize,
    },
    /// The kernel refused.
    #[error("it could not be mapped")]
    Map(#[from] std::io::Error),
}

impl Mapping {
    /// Checks that `file` is a memfd of plain memory, sealed against shrinking and growing, of exactly `size` bytes, and
    /// maps it for reading. The descriptor is closed in any case. How many bytes a sender may make the process map is
    /// for the caller to limit.
    ///
    /// # Errors
    /// Which of these it is not.
    pub fn open(file: OwnedFd, size: u64) -> Result<Self, RegionError> {
        let seals = fcntl_get_seals(&file).map_err(|_| RegionError::Seals)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(RegionError::Seals);
        }
        let kind = fstatfs(&file).map_err(std::io::Error::from)?.f_type;
        // Its type differs between architectures.
        let kind = kind as u64;
        if kind != TMPFS {
            return Err(RegionError::Kind { kind });
        }
        // Only now: the seals keep the size as it is.
        let actual = fstat(&file).map_err(std::io::Error::from)?.st_size;
        let actual = u64::try_from(actual).unwrap_or_default();
        let wrong = RegionError::Size { announced: size, actual };
        if actual != size || size == 0 {
            return Err(wrong);
        }
        let len = usize::try_from(size).map_err(|_| wrong)?;
        Ok(Self { memory: Memory::map(file.as_fd(), len, ProtFlags::READ)? })
    }

    /// The size in bytes, which never changes.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// The first byte. Memory is valid for reading for as long as this value lives; the owner may write to it.
    pub fn as_ptr(&self) -> *const u8 {
        self.memory.as_ptr()
    }

    /// `size` bytes from `offset` on.
    ///
    /// # Errors
    /// [`RegionError::Range`].
    ///
    /// # Safety
    /// The owner does not write to these bytes while the slice lives. The protocol forbids it between the frame that
    /// refers to them and the reader's RELEASE. If the owner is not trusted to keep to that, nothing that unsafe code
    /// relies on may be derived from these bytes: what was once checked, such as UTF-8, must be checked on a copy.
    #[expect(unsafe_code, reason = "reads memory that another process can write")]
    pub unsafe fn bytes(&self, offset: u64, size: u64) -> Result<&[u8], RegionError> {
        let range = || Some((usize::try_from(offset).ok()?, usize::try_from(size).ok()?));
        // SAFETY: the caller's promise.
        range()
            .and_then(|(offset, size)| unsafe { self.memory.slice(offset, size) })
            .ok_or(RegionError::Range { offset, size, len: self.len() })
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "reads regions that nobody writes to meanwhile")]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;
    use crate::Region;

    fn sealed(size: u64, flags: MemfdFlags, seals: SealFlags) -> OwnedFd {
        let file = memfd_create("test", flags | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, size).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn refused(file: impl Into<OwnedFd>, size: u64) -> String {
        Mapping::open(file.into(), size).expect_err("it is refused").to_string()
    }

    #[test]
    fn it_shows_what_the_owner_writes() {
        let mut region = Region::create(4096).unwrap();
        region.bytes_mut()[..5].copy_from_slice(b"hello");
        let mapping = Mapping::open(region.fd().try_clone_to_owned().unwrap(), 4096).unwrap();
        // SAFETY: nobody writes while the slice lives, here and below.
        assert_eq!(unsafe { mapping.bytes(1, 4) }.unwrap(), b"ello");
        region.bytes_mut()[1] = b'a';
        // The memory outlives its owner.
        drop(region);
        // SAFETY: as above.
        assert_eq!(unsafe { mapping.bytes(0, 5) }.unwrap(), b"hallo");
        assert_eq!(mapping.len(), 4096);
    }

    #[test]
    fn ranges_are_checked() {
        let region = Region::create(4096).unwrap();
        let mapping = Mapping::open(region.fd().try_clone_to_owned().unwrap(), 4096).unwrap();
        for (offset, size) in [(0, 4097), (4097, 0), (4096, 1), (u64::MAX, 2), (2, u64::MAX)] {
            // SAFETY: nobody writes.
            let error = unsafe { mapping.bytes(offset, size) }.unwrap_err().to_string();
            assert_eq!(error, format!("{size} bytes at {offset} are not inside its 4096 bytes"));
        }
        // SAFETY: nobody writes.
        assert_eq!(unsafe { mapping.bytes(4096, 0) }.unwrap(), b"");
    }

    #[test]
    fn what_can_change_its_size_is_refused() {
        let unsealed = "it is not a memfd sealed against shrinking and growing";
        for seals in [SealFlags::empty(), SealFlags::SHRINK, SealFlags::GROW] {
            assert_eq!(refused(sealed(4096, MemfdFlags::empty(), seals), 4096), unsealed);
        }
        assert_eq!(refused(File::open("/dev/null").unwrap(), 4096), unsealed);
        assert_eq!(refused(File::open("/proc/self/exe").unwrap(), 4096), unsealed);
    }

    #[test]
    fn the_announced_size_must_be_the_real_one() {
        let both = SealFlags::SHRINK | SealFlags::GROW;
        let file = |size| sealed(size, MemfdFlags::empty(), both);
        assert_eq!(refused(file(4096), 8192), "it was announced with 8192 bytes and has 4096");
        assert_eq!(refused(file(0), 0), "it was announced with 0 bytes and has 0");
        assert!(Mapping::open(file(4095), 4095).is_ok());
    }

    #[test]
    fn huge_pages_are_refused() {
        let both = SealFlags::SHRINK | SealFlags::GROW;
        // An empty one needs no huge pages to exist on the machine.
        let file = sealed(0, MemfdFlags::HUGETLB, both);
        assert_eq!(refused(file, 0), "it is not plain memory but of file system 0x958458f6");
    }
}
