//! Memory that tensors live in.

use bytes::Bytes;

/// The alignment of every [`Buffer`], in bytes: a cache line, and what vector instructions ask for.
pub(crate) const ALIGNMENT: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; ALIGNMENT]);

/// Owned bytes, aligned to 64 bytes and zeroed when made, or memory that somebody gave: a backend, or [`Buffer::over`]; written once by
/// whoever fills it, then shared as [`Bytes`].
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Lines(Vec<Line>),
    Pinned(Pinned),
    Over(Box<dyn Over>),
}

/// What a buffer can be made over.
trait Over: AsRef<[u8]> + AsMut<[u8]> + Send + Sync {}
impl<T: AsRef<[u8]> + AsMut<[u8]> + Send + Sync> Over for T {}

impl Buffer {
    /// Makes a buffer of `len` zero bytes.
    ///
    /// # Errors
    /// [`std::collections::TryReserveError`] if the memory cannot be had; a size that came from outside never aborts.
    pub fn zeroed(len: usize) -> Result<Self, std::collections::TryReserveError> {
        Ok(Self { memory: Memory::Lines(lines(len)?), len })
    }

    /// Pinned memory that a backend gave.
    pub(crate) fn pinned(pinned: Pinned) -> Self {
        let len = pinned.len();
        Self { memory: Memory::Pinned(pinned), len }
    }

    /// Makes a buffer of memory that lies elsewhere: shared with another process, say. It is as long as `memory` says now, and
    /// as well aligned as it is.
    pub fn over(memory: impl AsRef<[u8]> + AsMut<[u8]> + Send + Sync + 'static) -> Self {
        let len = memory.as_ref().len();
        Self { memory: Memory::Over(Box::new(memory)), len }
    }

    /// Makes it `len` bytes long. What was in it before is of no use afterwards; memory is taken only if it has to grow, and is then
    /// not pinned any more.
    ///
    /// # Errors
    /// As [`Buffer::zeroed`].
    pub fn resize(&mut self, len: usize) -> Result<(), std::collections::TryReserveError> {
        if len > self.capacity() {
            // Before the new memory is taken, so that there is never twice as much.
            self.memory = Memory::Lines(Vec::new());
            self.len = 0;
            self.memory = Memory::Lines(lines(len)?);
        }
        self.len = len;
        Ok(())
    }

    /// The bytes that it can be made long without taking memory.
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Lines(lines) => lines.len() * ALIGNMENT,
            Memory::Pinned(pinned) => pinned.len(),
            Memory::Over(memory) => (**memory).as_ref().len(),
        }
    }

    /// The bytes, shared from now on and never copied.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

fn lines(len: usize) -> Result<Vec<Line>, std::collections::TryReserveError> {
    let count = len.div_ceil(ALIGNMENT);
    let mut lines = Vec::new();
    lines.try_reserve_exact(count)?;
    lines.resize(count, Line([0; ALIGNMENT]));
    Ok(lines)
}

#[expect(unsafe_code, reason = "views aligned lines, and memory that a backend gave, as plain bytes")]
mod view {
    use std::ptr::NonNull;

    use super::{Buffer, Memory};

    /// Host memory that a backend gave, and what gives it back when dropped.
    pub(crate) struct Pinned {
        data: NonNull<u8>,
        len: usize,
        _owner: Box<dyn Send + Sync>,
    }

    // SAFETY: plain bytes of the host's, reached through this value alone until it is dropped.
    unsafe impl Send for Pinned {}
    // SAFETY: as above; a shared reference allows reading only.
    unsafe impl Sync for Pinned {}

    impl Pinned {
        /// # Safety
        /// `len` initialised bytes at `data` are this value's alone until `owner` is dropped.
        pub(crate) unsafe fn new(data: NonNull<u8>, len: usize, owner: Box<dyn Send + Sync>) -> Self {
            Self { data, len, _owner: owner }
        }

        pub(super) fn len(&self) -> usize {
            self.len
        }
    }

    impl std::ops::Deref for Buffer {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            let data = match &self.memory {
                Memory::Lines(lines) => lines.as_ptr().cast(),
                Memory::Pinned(pinned) => pinned.data.as_ptr().cast_const(),
                Memory::Over(memory) => return (**memory).as_ref().get(..self.len).unwrap_or_default(),
            };
            // SAFETY: either holds at least `len` initialised bytes; `Line` is `[u8; 64]` without padding.
            unsafe { std::slice::from_raw_parts(data, self.len) }
        }
    }

    impl std::ops::DerefMut for Buffer {
        fn deref_mut(&mut self) -> &mut [u8] {
            let data = match &mut self.memory {
                Memory::Lines(lines) => lines.as_mut_ptr().cast(),
                Memory::Pinned(pinned) => pinned.data.as_ptr(),
                Memory::Over(memory) => return (**memory).as_mut().get_mut(..self.len).unwrap_or_default(),
            };
            // SAFETY: as in `deref`, and `&mut self` makes this the only view.
            unsafe { std::slice::from_raw_parts_mut(data, self.len) }
        }
    }
}

pub(crate) use view::Pinned;

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_of_the_asked_length() {
        for len in [0, 1, 63, 64, 65, 4096] {
            let mut buffer = Buffer::zeroed(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|byte| *byte == 0));
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            buffer.fill(7);
            let address = buffer.as_ptr();
            let bytes = buffer.freeze();
            assert_eq!(bytes.as_ptr(), address, "freezing must not copy");
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn a_buffer_that_is_used_again_keeps_its_memory() {
        let mut buffer = Buffer::zeroed(1000).unwrap();
        let address = buffer.as_ptr();
        for len in [0, 1000, 64, 1024] {
            buffer.resize(len).unwrap();
            assert_eq!((buffer.len(), buffer.as_ptr(), buffer.capacity()), (len, address, 1024));
        }
        buffer.resize(1025).unwrap();
        assert_eq!((buffer.len(), buffer.capacity(), buffer.as_ptr() as usize % ALIGNMENT), (1025, 1088, 0));
        assert!(buffer.resize(usize::MAX - 64).is_err());
    }

    #[test]
    fn a_buffer_over_other_memory_is_that_memory() {
        let memory = vec![1u8; 100].into_boxed_slice();
        let address = memory.as_ptr();
        let mut buffer = Buffer::over(memory);
        assert_eq!((buffer.len(), buffer.capacity(), buffer.as_ptr()), (100, 100, address));
        buffer.fill(7);
        buffer.resize(40).unwrap();
        assert_eq!((buffer.as_ptr(), &buffer[..]), (address, &[7; 40][..]));
        assert_eq!(buffer.freeze().as_ptr(), address);
    }

    #[test]
    fn a_size_that_cannot_be_had_is_an_error() {
        assert!(Buffer::zeroed(usize::MAX - 64).is_err());
    }
}
