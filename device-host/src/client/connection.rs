//! One connection to a child: one request and its answer at a time.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_backend::{BackendError, Buffer, DataType, ShapeError, Tensor};
use outrigger_regions::{Mapping, Region, RegionError};
use rustix::net::SendFlags;

use super::options::Limits;
use crate::frame::{self, Announced, At, Given, Head, Kind, Sent};
use crate::message;
use crate::socket::{self, Inbox, Patience, ReceiveError};
use crate::view::{View, align};
use crate::wire::{Put, Reader, WireError};

/// Regions are made in multiples of this.
const GRAIN: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The backend's own word.
    Backend(BackendError),
    /// The child is gone, or has closed this connection.
    Gone,
    /// There was none in time.
    Late,
    /// The child broke the protocol.
    Protocol(String),
    /// This connection is of no use, for which the child is not to blame.
    Ours(BackendError),
}

impl Trouble {
    /// A socket failed.
    pub(super) fn of_socket(error: &std::io::Error) -> Self {
        if socket::is_want(error) {
            return Self::Ours(BackendError::Run(format!("a socket to the device host failed: {error}")));
        }
        Self::Gone
    }
}

impl From<BackendError> for Trouble {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<ReceiveError> for Trouble {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Closed => Self::Gone,
            ReceiveError::Socket(error) => Self::of_socket(&error),
            ReceiveError::Late => Self::Late,
            ReceiveError::Lost => Self::Ours(BackendError::Run(format!("results were lost: {error}"))),
            error => Self::Protocol(error.to_string()),
        }
    }
}

/// What a request carries, laid out, and what lies beside its frame.
#[derive(Default)]
pub(super) struct Laid<'a> {
    pub(super) sent: Sent,
    inline: Vec<&'a Bytes>,
    bytes: usize,
}

/// A connection.
pub(super) struct Connection {
    socket: Arc<OwnedFd>,
    inbox: Inbox,
    out: Vec<u8>,
    /// Ours, that the child has mapped.
    input: Option<Region>,
    /// Ours, that the child is to be told of with the next frame.
    is_new: bool,
    /// The child's, that it uses again.
    theirs: Vec<Theirs>,
}

struct Theirs {
    number: u64,
    mapping: Arc<Mapping>,
    /// The child has not been told that nobody looks at it.
    lent: bool,
}

/// A tensor that came, and memory of the device's under the child's number.
pub(super) enum Came {
    Host(Tensor),
    Resident { head: Head, number: u64, device: outrigger_backend::DLDevice, len: usize },
}

impl Connection {
    pub(super) fn new(socket: Arc<OwnedFd>, spin: Duration) -> Self {
        let (inbox, out) = (Inbox::spinning(spin), Vec::new());
        Self { socket, inbox, out, input: None, is_new: false, theirs: Vec::new() }
    }

    /// A request without tensors, and what came for it.
    pub(super) fn ask(
        &mut self,
        kind: Kind,
        number: u64,
        fill: impl FnOnce(&mut Vec<u8>),
        patience: &impl Patience,
    ) -> Result<&[u8], Trouble> {
        frame::begin(&mut self.out, kind, number);
        fill(&mut self.out);
        self.exchange(number, patience, false)?;
        Ok(self.inbox.payload())
    }

    /// Lays tensors where the child finds them: in the frame if they are few bytes, else in our region. `residents` are the
    /// child's numbers of those that are in memory of its device's, in their order.
    pub(super) fn lay<'a>(
        &mut self,
        tensors: &'a [Tensor],
        limits: &Limits,
        residents: &[u64],
    ) -> Result<Laid<'a>, BackendError> {
        let total: usize = tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.data().len()));
        if total as u64 > limits.call_bytes {
            let limit = limits.call_bytes;
            let text =
                format!("inputs of {total} bytes are over max_call_bytes of the device host, {limit} bytes");
            return Err(BackendError::Input(text));
        }
        let inline = total <= limits.inline_bytes;
        let mut laid = Laid { bytes: total, ..Laid::default() };
        if !inline {
            self.room_for(tensors, limits, &mut laid)?;
        }
        let (mut end, mut residents) = (0, residents.iter());
        for tensor in tensors {
            let (data, len) = (tensor.data(), tensor.data().len());
            let at = if let Some(memory) = tensor.resident() {
                let number = residents.next().copied();
                let number =
                    number.ok_or_else(|| BackendError::Internal("memory without a number".into()))?;
                let device = memory.device();
                At::Resident { number, device, len: memory.len() as u64 }
            } else if inline {
                laid.inline.push(data);
                At::Inline { len }
            } else {
                let offset = align(end).unwrap_or(usize::MAX);
                end = offset.saturating_add(len);
                let region = self.input.as_mut().and_then(|region| region.bytes_mut().get_mut(offset..end));
                let room = region.ok_or_else(|| BackendError::Internal("a region is too small".into()))?;
                room.copy_from_slice(data);
                At::Region { number: 0, offset: offset as u64, len: len as u64 }
            };
            laid.sent.tensors.push(Head { data_type: tensor.data_type(), shape: tensor.shape().clone(), at });
        }
        Ok(laid)
    }

    /// Makes the region anew if it is too small.
    fn room_for(
        &mut self,
        tensors: &[Tensor],
        limits: &Limits,
        laid: &mut Laid<'_>,
    ) -> Result<(), BackendError> {
        let end = |end: usize, tensor: &Tensor| align(end)?.checked_add(tensor.data().len());
        let size = tensors.iter().try_fold(0, end).unwrap_or(usize::MAX);
        if self.input.as_ref().is_none_or(|region| region.len() < size) {
            let fits = |size: usize| size as u64 <= limits.kept_bytes;
            // With some air, so that inputs which grow by and by do not need a new one each time.
            let size = size.checked_next_power_of_two().filter(|size| fits(*size)).unwrap_or(size);
            let size = size.checked_next_multiple_of(GRAIN).unwrap_or(size);
            let region = Region::create(size).map_err(|error| {
                BackendError::OutOfMemory(format!("{size} bytes of shared memory for inputs: {error}"))
            })?;
            self.input = Some(region);
            self.is_new = true;
        }
        let len = self.input.as_ref().map_or(0, |region| region.len() as u64);
        laid.sent.region = self.is_new.then_some(len);
        laid.sent.forget = len > limits.kept_bytes;
        Ok(())
    }

    /// Tells the child which of its regions it can use again.
    fn free(&mut self, sent: &mut Sent) {
        for theirs in &mut self.theirs {
            // Also waits for whoever looked last to be done.
            if theirs.lent && Arc::get_mut(&mut theirs.mapping).is_some() {
                theirs.lent = false;
                sent.freed.push(theirs.number);
            }
        }
    }

    /// A request that carries tensors. `write` writes its fields, `laid.sent` among them.
    pub(super) fn send_tensors(
        &mut self,
        kind: Kind,
        number: u64,
        mut laid: Laid<'_>,
        patience: &impl Patience,
        write: impl FnOnce(&Sent, &mut Vec<u8>),
    ) -> Result<(), Trouble> {
        self.free(&mut laid.sent);
        frame::begin(&mut self.out, kind, number);
        write(&laid.sent, &mut self.out);
        if !laid.inline.is_empty() {
            self.out.reserve(laid.bytes);
            laid.inline.iter().for_each(|data| self.out.put(data));
        }
        let with_region = laid.sent.region.is_some();
        let exchanged = self.exchange(number, patience, with_region);
        if with_region {
            self.is_new = false;
        }
        if laid.sent.forget || exchanged.is_err() {
            // A failure does not say whether the backend has kept some of it.
            self.input = None;
        }
        exchanged
    }

    fn exchange(&mut self, number: u64, patience: &impl Patience, with_region: bool) -> Result<(), Trouble> {
        let too_long = |error| BackendError::Input(format!("the call does not fit in a frame: {error}"));
        let file = self.input.as_ref().filter(|_| with_region).map(Region::fd);
        frame::finish(&mut self.out, file.as_slice().len()).map_err(too_long)?;
        let sent = socket::send(&*self.socket, &self.out, file.as_slice(), SendFlags::empty());
        sent.map_err(|error| Trouble::of_socket(&error))?;
        let (kind, of) = self.inbox.receive(&*self.socket, patience)?;
        if kind == Kind::Failed && of == frame::REFUSED {
            return Err(Trouble::Ours(message::error(&mut Reader(self.inbox.payload()))?));
        }
        if of != number {
            return Err(Trouble::Protocol("an answer to what was not asked".into()));
        }
        match kind {
            Kind::Done => Ok(()),
            Kind::Failed => {
                let mut reader = Reader(self.inbox.payload());
                let error = message::error(&mut reader)?;
                reader.end()?;
                Err(Trouble::Backend(error))
            }
            kind => Err(Trouble::Protocol(format!("an answer of kind {kind:?}"))),
        }
    }

    /// Takes the tensors of the last answer, `count` of them.
    pub(super) fn take_tensors(&mut self, count: usize, limits: &Limits) -> Result<Vec<Came>, Trouble> {
        let files = self.inbox.files();
        let mut reader = Reader(self.inbox.payload());
        let given = Given::read(&mut reader)?;
        if given.kept {
            self.input = None;
        }
        if given.tensors.len() != count {
            let came = given.tensors.len();
            return Err(Trouble::Protocol(format!("{came} results for {count} outputs")));
        }
        self.theirs.retain(|theirs| !given.gone.contains(&theirs.number));
        let passing = open(&mut self.theirs, &given.regions, files, limits)?;
        let mut came = Vec::with_capacity(count);
        let mut bytes = 0u64;
        for head in given.tensors {
            bytes = bytes.saturating_add(if matches!(head.at, At::Resident { .. }) { 0 } else { head.len() });
            if bytes > limits.call_bytes {
                return Err(Trouble::Protocol(format!("results of {bytes} bytes are over the limit")));
            }
            came.push(take(head, &mut self.theirs, &passing, &mut reader)?);
        }
        reader.end()?;
        Ok(came)
    }
}

/// Maps regions that are new; those that the child does not use again.
fn open(
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

fn take(
    head: Head,
    theirs: &mut [Theirs],
    passing: &[Theirs],
    inline: &mut Reader<'_>,
) -> Result<Came, Trouble> {
    let data = match head.at {
        At::Inline { len } => copy(inline.take(len)?)?,
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
            if head.data_type == DataType::Bytes { copy(view.as_ref())? } else { Bytes::from_owner(view) }
        }
        At::Resident { number, device, len } => {
            let len = usize::try_from(len).map_err(|_| WireError::Number)?;
            return Ok(Came::Resident { head, number, device, len });
        }
    };
    let tensor = Tensor::new(head.data_type, head.shape, data);
    tensor.map(Came::Host).map_err(|error: ShapeError| Trouble::Protocol(error.to_string()))
}

/// Aligned memory with these bytes in it.
fn copy(bytes: &[u8]) -> Result<Bytes, BackendError> {
    let mut buffer = Buffer::zeroed(bytes.len())
        .map_err(|_| BackendError::OutOfMemory(format!("{} bytes for results", bytes.len())))?;
    buffer.copy_from_slice(bytes);
    Ok(buffer.freeze())
}
