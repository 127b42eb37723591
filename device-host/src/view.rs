//! Views of shared memory as tensors' bytes and as places for results.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_backend::{BackendError, Buffer};
use outrigger_regions::{Mapping, Region};

/// Regions are made in multiples of this.
pub(crate) const GRAIN: usize = 64 << 10;
/// The alignment of every tensor in a region.
pub(crate) const ALIGNMENT: usize = 64;

/// The next offset at which a tensor may begin.
pub(crate) fn align(offset: usize) -> Option<usize> {
    offset.checked_next_multiple_of(ALIGNMENT)
}

/// Bytes of a region of the other process's, which stays mapped as long as this lives.
pub(crate) struct View {
    mapping: Arc<Mapping>,
    offset: u64,
    len: u64,
}

impl View {
    /// `None` if they are not inside.
    pub(crate) fn new(mapping: &Arc<Mapping>, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= mapping.len() as u64).then(|| Self { mapping: Arc::clone(mapping), offset, len })
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: by the protocol the owner does not write to these bytes before it hears that they are done with, which it does
        // after this value is dropped. An owner that breaks that changes the numbers of a tensor: nothing that unsafe code
        // relies on is derived from them, and strings, whose lengths are among the bytes, are copied before they are looked at.
        unsafe { self.mapping.bytes(self.offset, self.len) }.unwrap_or_default()
    }
}

/// Aligned memory of this process's own with these bytes in it, which are some of `what`.
pub(crate) fn copy(bytes: &[u8], what: &str) -> Result<Bytes, BackendError> {
    let mut buffer = Buffer::zeroed(bytes.len())
        .map_err(|_| BackendError::OutOfMemory(format!("{} bytes for {what}", bytes.len())))?;
    buffer.copy_from_slice(bytes);
    Ok(buffer.freeze())
}

/// A region of ours whose bytes are reached through [`Place`]s alone.
pub(crate) struct Shared(Region);

impl Shared {
    pub(crate) fn create(size: usize) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self(Region::create(size)?)))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

/// Bytes of a region of ours, to be written by whoever has this.
pub(crate) struct Place {
    region: Arc<Shared>,
    offset: usize,
    len: usize,
}

impl Place {
    /// Divides a region that nobody else in this process holds: one place for each of `lens`, aligned, in order. `None` if
    /// somebody does, or they do not fit.
    pub(crate) fn divide(region: &mut Arc<Shared>, lens: &[usize]) -> Option<Vec<Self>> {
        // Also waits for the writes of whoever held it last to be seen.
        let size = Arc::get_mut(region)?.len();
        let mut places = Vec::with_capacity(lens.len());
        let mut offset = 0usize;
        for &len in lens {
            let end = offset.checked_add(len).filter(|end| *end <= size)?;
            places.push(Self { region: Arc::clone(region), offset, len });
            offset = align(end)?;
        }
        Some(places)
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }
}

impl AsRef<[u8]> for Place {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `divide` has checked that the bytes are inside the region, which lives as long as this; they are in no other place,
        // so that nobody writes to them while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.region.0.as_ptr().add(self.offset), self.len) }
    }
}

impl AsMut<[u8]> for Place {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and `&mut self` is the only way to these bytes in this process. Other processes only read.
        unsafe { std::slice::from_raw_parts_mut(self.region.0.as_ptr().add(self.offset), self.len) }
    }
}
