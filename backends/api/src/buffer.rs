//! Memory that tensors live in.

use bytes::Bytes;

/// The alignment of every [`Buffer`], in bytes: a cache line, and what vector instructions ask for.
const ALIGNMENT: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ALIGNMENT]);

/// Owned bytes, zeroed when made and aligned to 64 bytes; written once by whoever fills it, then shared as [`Bytes`].
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// Makes a buffer of `len` zero bytes.
    ///
    /// # Errors
    /// [`std::collections::TryReserveError`] if the memory cannot be had; a size that came from outside never aborts.
    pub fn zeroed(len: usize) -> Result<Self, std::collections::TryReserveError> {
        let count = len.div_ceil(ALIGNMENT);
        let mut lines = Vec::new();
        lines.try_reserve_exact(count)?;
        lines.resize(count, Line([0; ALIGNMENT]));
        Ok(Self { lines, len })
    }

    /// Makes it `len` bytes long. What was in it before is of no use afterwards; memory is taken only if it has to grow.
    ///
    /// # Errors
    /// As [`Buffer::zeroed`].
    pub fn resize(&mut self, len: usize) -> Result<(), std::collections::TryReserveError> {
        let count = len.div_ceil(ALIGNMENT);
        if count > self.lines.len() {
            self.lines.clear();
            self.lines.try_reserve_exact(count)?;
            self.lines.resize(count, Line([0; ALIGNMENT]));
        }
        self.len = len;
        Ok(())
    }

    /// The bytes that it can be made long without taking memory.
    pub fn capacity(&self) -> usize {
        self.lines.len() * ALIGNMENT
    }

    /// The bytes, shared from now on and never copied.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

#[expect(unsafe_code, reason = "views aligned lines as plain bytes")]
mod view {
    use super::Buffer;

    impl std::ops::Deref for Buffer {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            // SAFETY: `lines` holds at least `len` initialised bytes; `Line` is `[u8; 64]` without padding.
            unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
        }
    }

    impl std::ops::DerefMut for Buffer {
        fn deref_mut(&mut self) -> &mut [u8] {
            // SAFETY: as in `deref`, and `&mut self` makes this the only view.
            unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
        }
    }
}

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
    fn a_size_that_cannot_be_had_is_an_error() {
        assert!(Buffer::zeroed(usize::MAX - 64).is_err());
    }
}
