//! Regions of the child's, in which results go to the parent.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use outrigger_backend::BackendError;

use crate::frame::Announced;
use crate::message::HostLimits;
use crate::view::{GRAIN, Place, Shared, align};

/// A region is taken for results if it is at most so many times as large.
const SLACK: usize = 8;

/// The regions of one connection.
pub(super) struct Outgoing {
    kept: Vec<Kept>,
    next: u64,
    limits: HostLimits,
}

struct Kept {
    number: u64,
    region: Arc<Shared>,
    /// The parent has been told of it and may still look at it.
    lent: bool,
}

/// A region for the results of one call.
pub(super) struct Taken {
    pub(super) number: u64,
    pub(super) places: Vec<Place>,
    /// What the parent has to be told before it can see it; `None` if it has it already.
    pub(super) new: Option<(Announced, OwnedFd)>,
}

impl Outgoing {
    pub(super) fn new(limits: HostLimits) -> Self {
        Self { kept: Vec::new(), next: 1, limits }
    }

    /// The parent's last view of a region is gone.
    pub(super) fn freed(&mut self, number: u64) {
        self.kept.iter_mut().filter(|kept| kept.number == number).for_each(|kept| kept.lent = false);
    }

    /// A region of which the parent has not been told is given up.
    pub(super) fn withdraw(&mut self, number: u64) {
        self.kept.retain(|kept| kept.number != number);
    }

    /// Takes a region for results of these lengths. Numbers of regions that are given up for it go to `gone`.
    pub(super) fn take(&mut self, lens: &[usize], gone: &mut Vec<u64>) -> Result<Taken, BackendError> {
        let size = total(lens).filter(|size| *size as u64 <= self.limits.call_bytes);
        let bytes = lens.iter().fold(0u64, |sum, len| sum.saturating_add(*len as u64));
        let size = size.ok_or_else(|| too_much(bytes, self.limits.call_bytes))?;
        let fits = |kept: &Kept| {
            let len = kept.region.len();
            !kept.lent && len >= size && len / SLACK <= size.max(GRAIN)
        };
        while let Some(found) = self.kept.iter().position(fits) {
            let Some(kept) = self.kept.get_mut(found) else { break };
            if let Some(places) = Place::divide(&mut kept.region, lens) {
                kept.lent = true;
                return Ok(Taken { number: kept.number, places, new: None });
            }
            // The backend has kept a place that it wrote to. It may have it; nobody else gets it.
            gone.push(self.kept.swap_remove(found).number);
        }
        self.make(size, lens, gone)
    }

    fn make(&mut self, size: usize, lens: &[usize], gone: &mut Vec<u64>) -> Result<Taken, BackendError> {
        let failed = |error: &dyn std::fmt::Display| {
            BackendError::OutOfMemory(format!("{size} bytes of shared memory for results: {error}"))
        };
        let size = size.checked_next_multiple_of(GRAIN).unwrap_or(size).max(GRAIN);
        let mut region = Shared::create(size).map_err(|error| failed(&error))?;
        let file = region.fd().try_clone_to_owned().map_err(|error| failed(&error))?;
        let places = Place::divide(&mut region, lens).ok_or_else(|| failed(&"it does not fit"))?;
        let stays = self.make_room(size, gone);
        let number = self.next;
        self.next += 1;
        if stays {
            self.kept.push(Kept { number, region, lent: true });
        }
        let announced = Announced { number, size: size as u64, stays };
        Ok(Taken { number, places, new: Some((announced, file)) })
    }

    /// Whether a region of `size` bytes can be kept, after those are given up that nobody looks at, where that is needed.
    fn make_room(&mut self, size: usize, gone: &mut Vec<u64>) -> bool {
        let HostLimits { kept_bytes, kept_regions, .. } = self.limits;
        let fits = |kept: &[Kept]| {
            let bytes: usize = kept.iter().map(|kept| kept.region.len()).sum();
            (bytes + size) as u64 <= kept_bytes && (kept.len() as u64) < kept_regions
        };
        if size as u64 > kept_bytes {
            return false;
        }
        while !fits(&self.kept) {
            let Some(found) = self.kept.iter().position(|kept| !kept.lent) else { return false };
            gone.push(self.kept.remove(found).number);
        }
        true
    }
}

/// Results of so many bytes are over the limit. However often it is tried: there is no want of memory.
pub(super) fn too_much(bytes: u64, limit: u64) -> BackendError {
    BackendError::Unsupported(format!(
        "results of {bytes} bytes are over max_call_bytes of the device host, {limit} bytes"
    ))
}

/// Bytes of a region that holds all of these, each aligned.
fn total(lens: &[usize]) -> Option<usize> {
    lens.iter().try_fold(0usize, |end, len| align(end)?.checked_add(*len))
}
