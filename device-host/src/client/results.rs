//! Tensors that came from a child: looked at, and made of its regions or of what lay in the frame.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_backend::{BackendError, DataType, ShapeError, Tensor};
use outrigger_regions::{Mapping, RegionError};

use super::options::Limits;
use super::trouble::Trouble;
use crate::frame::{Announced, At, Head};
use crate::socket;
use crate::view::{GRAIN, View, copy};
use crate::wire::{Reader, WireError};

/// A region of the child's.
pub(super) struct Theirs {
    pub(super) number: u64,
    pub(super) mapping: Arc<Mapping>,
    /// The child has not been told that nobody looks at it.
    pub(super) lent: bool,
}

/// A tensor that came, and memory of the device's under the child's number.
pub(super) enum Came {
    Host(Tensor),
    Resident { head: Head, number: u64, device: outrigger_backend::DLDevice, len: usize },
}

/// Maps regions that are new; those that the child does not use again.
pub(super) fn open(
    theirs: &mut Vec<Theirs>,
    regions: &[Announced],
    files: Vec<OwnedFd>,
    limits: &Limits,
) -> Result<Vec<Theirs>, Trouble> {
    if regions.len() != files.len() {
        return Err(Trouble::Protocol("regions and descriptors are not as many".into()));
    }
    let mut passing = Vec::new();
    for (region, file) in regions.iter().zip(files) {
        let Announced { number, size, stays } = *region;
        // The child rounds up.
        if size > limits.call_bytes.saturating_add(2 * GRAIN as u64) {
            return Err(Trouble::Protocol(format!("a region of {size} bytes is over the limit")));
        }
        let known = theirs.iter().chain(&passing).any(|theirs| theirs.number == number);
        if known || (stays && theirs.len() >= limits.kept_regions.max(1)) {
            return Err(Trouble::Protocol("a region too many".into()));
        }
        let mapping = Mapping::open(file, size).map_err(|error| match error {
            RegionError::Map(error) if socket::is_want(&error) => {
                Trouble::Ours(BackendError::OutOfMemory(format!("a region of {size} bytes: {error}")))
            }
            error => Trouble::Protocol(error.to_string()),
        })?;
        let opened = Theirs { number, mapping: Arc::new(mapping), lent: true };
        if stays { theirs.push(opened) } else { passing.push(opened) }
    }
    Ok(passing)
}

/// A tensor where its head says that it is.
pub(super) fn take(
    head: Head,
    theirs: &mut [Theirs],
    passing: &[Theirs],
    inline: &mut Reader<'_>,
) -> Result<Came, Trouble> {
    let data = match head.at {
        At::Inline { len } => copy(inline.take(len)?, "results")?,
        At::Region { number, offset, len } => {
            let outside =
                || Trouble::Protocol(format!("{len} bytes at {offset} are not inside region {number}"));
            let view = match theirs.iter_mut().find(|theirs| theirs.number == number) {
                Some(theirs) => {
                    theirs.lent = true;
                    View::new(&theirs.mapping, offset, len)
                }
                None => {
                    let passing = passing.iter().find(|passing| passing.number == number);
                    View::new(&passing.ok_or_else(outside)?.mapping, offset, len)
                }
            };
            let view = view.ok_or_else(outside)?;
            // What is taken apart is copied first, for the child can write to it at any time.
            if head.data_type == DataType::Bytes {
                copy(view.as_ref(), "results")?
            } else {
                Bytes::from_owner(view)
            }
        }
        At::Resident { number, device, len } => {
            let len = usize::try_from(len).map_err(|_| WireError::Number)?;
            return Ok(Came::Resident { head, number, device, len });
        }
    };
    let tensor = Tensor::new(head.data_type, head.shape, data);
    tensor.map(Came::Host).map_err(|error: ShapeError| Trouble::Protocol(error.to_string()))
}
