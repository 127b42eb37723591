//! One connection to a child: one request and its answer at a time.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_backend::{BackendError, Tensor};
use outrigger_regions::Region;
use rustix::net::SendFlags;

use super::options::Limits;
use super::results::{self, Came, Theirs};
use super::trouble::Trouble;
use crate::frame::{self, At, Given, Head, Kind, Sent};
use crate::message;
use crate::patience::Patience;
use crate::socket::{self, Inbox};
use crate::view::{GRAIN, align};
use crate::wire::{Put, Reader};

/// What a request carries, laid out, and what lies beside its frame.
#[derive(Default)]
pub(super) struct Laid<'a> {
    pub(super) sent: Sent,
    inline: Vec<&'a Bytes>,
    bytes: usize,
}

/// The descriptor beside a request.
enum Beside<'a> {
    Nothing,
    /// Of our region for inputs.
    Input,
    File(BorrowedFd<'a>),
}

/// A connection.
pub(super) struct Connection {
    socket: Arc<OwnedFd>,
    inbox: Inbox,
    out: Vec<u8>,
    /// An answer has come, so that the child has taken the other end.
    is_taken: bool,
    /// Ours, that the child has mapped.
    input: Option<Region>,
    /// Ours, that the child is to be told of with the next frame.
    is_new: bool,
    /// The child's, that it uses again.
    theirs: Vec<Theirs>,
}

impl Connection {
    pub(super) fn new(socket: Arc<OwnedFd>, spin: Duration) -> Self {
        let (inbox, out) = (Inbox::spinning(spin), Vec::new());
        Self { socket, inbox, out, is_taken: false, input: None, is_new: false, theirs: Vec::new() }
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
        self.exchange(number, patience, Beside::Nothing)?;
        Ok(self.inbox.payload())
    }

    /// The same for a region that the child is to map.
    pub(super) fn pin(
        &mut self,
        number: u64,
        size: usize,
        file: BorrowedFd<'_>,
        patience: &impl Patience,
    ) -> Result<&[u8], Trouble> {
        frame::begin(&mut self.out, Kind::Pin, number);
        self.out.put_size(size);
        self.exchange(number, patience, Beside::File(file))?;
        Ok(self.inbox.payload())
    }

    /// Lays tensors where the child finds them: in the frame if they are few bytes, else in our region. `placed` says where those are
    /// that it has already: in memory of its device's, or in a region that both have.
    pub(super) fn lay<'a>(
        &mut self,
        tensors: &'a [Tensor],
        limits: &Limits,
        placed: &[Option<At>],
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
        let placed = |index: usize| placed.get(index).copied().flatten();
        let left = tensors.iter().enumerate().filter(|(index, _)| placed(*index).is_none());
        if !inline {
            self.room_for(left.map(|(_, tensor)| tensor.data().len()), limits, &mut laid)?;
        }
        let mut end = 0;
        for (index, tensor) in tensors.iter().enumerate() {
            let (data, len) = (tensor.data(), tensor.data().len());
            let at = if let Some(at) = placed(index) {
                at
            } else if tensor.resident().is_some() {
                return Err(BackendError::Internal("memory without a number".into()));
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

    /// Makes the region anew if it is too small for tensors of these lengths.
    fn room_for(
        &mut self,
        mut lens: impl Iterator<Item = usize>,
        limits: &Limits,
        laid: &mut Laid<'_>,
    ) -> Result<(), BackendError> {
        let size = lens.try_fold(0usize, |end, len| align(end)?.checked_add(len)).unwrap_or(usize::MAX);
        if size == 0 {
            return Ok(());
        }
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
        let beside = if with_region { Beside::Input } else { Beside::Nothing };
        let exchanged = self.exchange(number, patience, beside);
        if with_region {
            self.is_new = false;
        }
        if laid.sent.forget || exchanged.is_err() {
            // A failure does not say whether the backend has kept some of it.
            self.input = None;
        }
        exchanged
    }

    fn exchange(&mut self, number: u64, patience: &impl Patience, beside: Beside<'_>) -> Result<(), Trouble> {
        let too_long = |error| BackendError::Input(format!("the call does not fit in a frame: {error}"));
        let file = match beside {
            Beside::Nothing => None,
            Beside::Input => self.input.as_ref().map(Region::fd),
            Beside::File(file) => Some(file),
        };
        frame::finish(&mut self.out, file.as_slice().len()).map_err(too_long)?;
        let sent = socket::send(&*self.socket, &self.out, file.as_slice(), SendFlags::empty());
        let sent = sent.map_err(|error| Trouble::of_socket(&error));
        if let Err(Trouble::Ours(_)) = &sent {
            return sent;
        }
        // Also where it was not taken: the child may have said why before it closed the connection.
        let (kind, of) = self.inbox.receive(&*self.socket, patience).map_err(|error| match error.into() {
            Trouble::Gone if !self.is_taken => Trouble::Untaken,
            trouble => trouble,
        })?;
        self.is_taken = true;
        if kind == Kind::Failed && of == frame::REFUSED {
            return Err(Trouble::Ours(message::error(&mut Reader(self.inbox.payload()))?));
        }
        sent?;
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
        let passing = results::open(&mut self.theirs, &given.regions, files, limits)?;
        let mut came = Vec::with_capacity(count);
        let mut bytes = 0u64;
        for head in given.tensors {
            bytes = bytes.saturating_add(if matches!(head.at, At::Resident { .. }) { 0 } else { head.len() });
            if bytes > limits.call_bytes {
                return Err(Trouble::Protocol(format!("results of {bytes} bytes are over the limit")));
            }
            came.push(results::take(head, &mut self.theirs, &passing, &mut reader)?);
        }
        reader.end()?;
        Ok(came)
    }
}
