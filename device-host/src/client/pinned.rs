//! Host memory that the child sees too: filled here, and read there in place.
//!
//! Once it is an input it is not written any more, for a [`Buffer`] is written once. So whatever the backend keeps of it stays what it is.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use outrigger_backend::{BackendError, Buffer, Tensor};
use outrigger_regions::Region;

use super::device::OpenDevice;
use super::link::Link;
use crate::frame::At;

/// The regions of one device's clients, by their address in this process.
#[derive(Default)]
pub(super) struct Pinned(RwLock<BTreeMap<usize, Arc<Entry>>>);

struct Entry {
    number: u64,
    len: usize,
    file: OwnedFd,
    /// The way to the child that has it mapped.
    known_to: Mutex<Weak<Link>>,
}

impl Pinned {
    /// Where the child finds each of the tensors that are views of a region; a child that does not know it yet is told.
    pub(super) fn find(&self, link: &Arc<Link>, tensors: &[Tensor]) -> Vec<Option<At>> {
        let regions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if regions.is_empty() {
            return Vec::new();
        }
        let found: Vec<_> = tensors.iter().map(|tensor| region_of(&regions, tensor)).collect();
        // Whoever tells the child waits for its answer.
        drop(regions);
        let at = |(entry, offset, len): (Arc<Entry>, u64, u64)| {
            let number = entry.number;
            entry.is_known_to(link).then_some(At::Region { number, offset, len })
        };
        found.into_iter().map(|found| found.and_then(at)).collect()
    }
}

/// The region in which a tensor's bytes lie, and where in it.
fn region_of(regions: &BTreeMap<usize, Arc<Entry>>, tensor: &Tensor) -> Option<(Arc<Entry>, u64, u64)> {
    let (address, len) = (tensor.data().as_ptr().addr(), tensor.data().len());
    let (start, entry) = regions.range(..=address).next_back()?;
    let offset = address - start;
    let inside = len > 0 && offset.checked_add(len).is_some_and(|end| end <= entry.len);
    inside.then(|| (Arc::clone(entry), offset as u64, len as u64))
}

impl Entry {
    /// Where it cannot be told the input is copied, as any other.
    fn is_known_to(&self, link: &Arc<Link>) -> bool {
        let mut known = self.known_to.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(known.as_ptr(), Arc::as_ptr(link)) {
            if link.pin(self.number, self.len, self.file.as_fd()).is_err() {
                return false;
            }
            *known = Arc::downgrade(link);
        }
        true
    }
}

/// Makes a buffer in a region of its own.
pub(super) fn buffer(device: &Arc<OpenDevice>, bytes: usize) -> Result<Buffer, BackendError> {
    let failed = |error: std::io::Error| {
        BackendError::OutOfMemory(format!("{bytes} bytes of shared memory for the host: {error}"))
    };
    let region = Region::create(bytes).map_err(failed)?;
    let file = region.fd().try_clone_to_owned().map_err(failed)?;
    let entry = Entry { number: device.host().number(), len: bytes, file, known_to: Mutex::default() };
    let mut regions = device.pinned.0.write().unwrap_or_else(PoisonError::into_inner);
    regions.insert(region.as_ptr().addr(), Arc::new(entry));
    Ok(Buffer::over(Owner { region, device: Arc::downgrade(device) }))
}

/// What a buffer is made over.
struct Owner {
    region: Region,
    device: Weak<OpenDevice>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.region.bytes()
    }
}

impl AsMut<[u8]> for Owner {
    fn as_mut(&mut self) -> &mut [u8] {
        self.region.bytes_mut()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(device) = self.device.upgrade() else { return };
        // Before it is unmapped, for another may lie at its address then.
        let mut regions = device.pinned.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = regions.remove(&self.region.as_ptr().addr());
        drop(regions);
        let known_to = entry.and_then(|entry| {
            let link = entry.known_to.lock().unwrap_or_else(PoisonError::into_inner).upgrade()?;
            Some((link, entry.number))
        });
        // A child that is gone has let go of it already.
        if let Some((link, number)) = known_to
            && device.host().link().is_ok_and(|now| Arc::ptr_eq(&now, &link))
        {
            device.release(&link, number);
        }
    }
}
