//! Both sockets: frames and regions, both ways.
//!
//! Nothing is read while nobody asks: the runtime reads at all times, so it never depends on that, and a call
//! costs no switch between threads. A running script that asks whether it was cancelled, or waits for credit,
//! reads meanwhile.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use outrigger_regions::{Mapping, receive_region, send_region};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::call::Memory;
use super::frame::{self, Call, Fields, Header, Kind, Malformed, Outcome, Reference, ReplyHead, TAIL, Tail};
use super::pool::{Lease, Pool};
use super::process;
use super::reader::Reader;
use super::start::Start;
use crate::{Body, Cancelled, Gone, Head, Level};

/// Calls that may lie here unanswered. The runtime sends a few ahead.
const MOST_WAITING: usize = 1024;
/// Regions of the runtime's that may be mapped.
const MOST_MAPPED: usize = 4096;
/// A longer line of the log is cut, by the protocol, at so many characters.
const LINE_CHARACTERS: usize = 8 * 1024;

/// Why the conversation is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The runtime has closed.
    Closed,
    /// The runtime broke the protocol.
    Protocol(String),
    /// This is a child that the script has forked; the sockets are its parent's.
    Forked,
}

impl End {
    pub(super) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol(what.into())
    }
}

impl From<Malformed> for End {
    fn from(Malformed(what): Malformed) -> Self {
        Self::protocol(what)
    }
}

/// The worker's ends.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) stream: OwnedFd,
    pub(super) regions: OwnedFd,
}

/// What START says of payloads.
struct Limits {
    max_payload: u64,
    window: u64,
    /// `u64::MAX` where no body goes into a region.
    region_threshold: u64,
}

pub(super) struct Channel {
    sockets: Sockets,
    /// Held for the time of a frame.
    sending: Mutex<()>,
    inbox: Mutex<Inbox>,
    pool: Pool,
    limits: OnceLock<Limits>,
    /// The runtime takes no more frames.
    over: AtomicBool,
}

struct Inbox {
    reader: Reader,
    waiting: VecDeque<Call>,
    running: Option<Running>,
    mapped: HashMap<u32, Arc<Mapping>>,
    /// Set when reading failed while a call was running.
    end: Option<End>,
}

/// What the runtime has said of the call that runs.
struct Running {
    id: u64,
    cancelled: Cancelled,
    /// Bytes of chunks that may be sent.
    credit: u64,
}

impl Channel {
    pub(super) fn new(sockets: Sockets) -> Self {
        let inbox = Inbox {
            reader: Reader::new(),
            waiting: VecDeque::new(),
            running: None,
            mapped: HashMap::new(),
            end: None,
        };
        Self {
            sockets,
            sending: Mutex::new(()),
            inbox: Mutex::new(inbox),
            pool: Pool::default(),
            limits: OnceLock::new(),
            over: AtomicBool::new(false),
        }
    }

    /// Waits for START, the first frame.
    pub(super) fn start(&self) -> Result<Start, End> {
        let mut inbox = self.inbox();
        let frame = inbox.reader.next(self.sockets.stream.as_fd(), true)?;
        let Some((header @ Header { kind: Kind::Start, .. }, payload)) = frame else {
            return Err(End::protocol("the first frame is not START"));
        };
        let tail = self.tail(&mut inbox, header, &payload)?;
        let text = match &tail {
            Some(tail) => [&payload[frame::REFERENCE..], tail.bytes()].concat(),
            None => payload,
        };
        let start: Start = serde_json::from_slice(&text)
            .map_err(|error| End::Protocol(format!("START does not parse: {error}")))?;
        drop(inbox);
        self.pool.open(if start.region_threshold == 0 { 0 } else { start.regions });
        let threshold = if start.region_threshold == 0 { u64::MAX } else { start.region_threshold };
        // The frame's length is a u32; nothing is longer.
        let max_payload = start.max_payload.min(u32::MAX.into());
        // Set here alone.
        let _ = self.limits.set(Limits { max_payload, window: start.window, region_threshold: threshold });
        if let Some(tail) = tail {
            let region = tail.reference.region;
            drop(tail);
            self.release(region)?;
        }
        Ok(start)
    }

    /// Waits for the next call, which then runs until [`Channel::end_call`].
    pub(super) fn next_call(&self) -> Result<Call, End> {
        self.forget_retired()?;
        let mut inbox = self.inbox();
        loop {
            if let Some(end) = inbox.end.take() {
                return Err(end);
            }
            if let Some(call) = inbox.waiting.pop_front() {
                let credit = self.limits.get().map_or(0, |limits| limits.window);
                inbox.running = Some(Running { id: call.id, cancelled: Cancelled::No, credit });
                return Ok(call);
            }
            self.take_in(&mut inbox, true)?;
        }
    }

    /// The conversation is over. What the script logs from now on goes to stderr, which the runtime reads to the end.
    pub(super) fn hang_up(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// The call has returned. Whether it was cancelled.
    pub(super) fn end_call(&self) -> bool {
        self.inbox().running.take().is_some_and(|running| running.cancelled != Cancelled::No)
    }

    /// Whether the call that runs is cancelled; reads what has come.
    pub(super) fn cancelled(&self) -> Cancelled {
        let mut inbox = self.inbox();
        self.catch_up(&mut inbox);
        match (&inbox.running, &inbox.end) {
            (_, Some(_)) | (None, _) => Cancelled::ClientGone,
            (Some(running), None) => running.cancelled,
        }
    }

    /// Sends a piece of a streamed answer, in parts as the runtime gives credit.
    pub(super) fn chunk(&self, id: u64, mut piece: &[u8]) -> Result<(), Gone> {
        let most = self.limits.get().map_or(1, |limits| limits.max_payload).max(1);
        while !piece.is_empty() {
            let credit = self.wait_for_credit()?.min(most);
            let (part, rest) = piece.split_at(piece.len().min(usize::try_from(credit).unwrap_or(usize::MAX)));
            self.send_body(Kind::Chunk, id, &[], part).map_err(|_| Gone)?;
            if let Some(running) = &mut self.inbox().running {
                running.credit = running.credit.saturating_sub(part.len() as u64);
            }
            piece = rest;
        }
        Ok(())
    }

    fn wait_for_credit(&self) -> Result<u64, Gone> {
        loop {
            let mut inbox = self.inbox();
            self.catch_up(&mut inbox);
            let running = inbox.running.as_ref().filter(|_| inbox.end.is_none()).ok_or(Gone)?;
            match (running.cancelled, running.credit) {
                (Cancelled::No, 0) => {}
                (Cancelled::No, credit) => return Ok(credit),
                _ => return Err(Gone),
            }
            // Not with the inbox held: other threads of the script may ask for something.
            drop(inbox);
            let _ = poll(&mut [PollFd::new(&self.sockets.stream, PollFlags::IN)], None);
        }
    }

    /// Memory for an answer of `len` bytes: in a region if the answer is to go into one.
    pub(super) fn allocate(&self, len: usize) -> Option<Memory> {
        if self.goes_into_region(len)
            && let Some(lease) = self.lend(len)
        {
            return Some(Memory::Region(lease));
        }
        let limits = self.limits.get()?;
        if len as u64 > limits.max_payload {
            return None;
        }
        let mut heap = Vec::new();
        heap.try_reserve_exact(len).ok()?;
        heap.resize(len, 0);
        Some(Memory::Heap(heap))
    }

    /// Sends a whole answer.
    pub(super) fn reply(
        &self,
        id: u64,
        head: &Head,
        body: &mut Body<Memory>,
        run: Duration,
    ) -> Result<(), End> {
        let len = body.as_ref().len();
        let size = (ReplyHead::BYTES + head.block.len()) as u64 + len as u64;
        let limit = self.limits.get().map_or(0, |limits| limits.max_payload);
        if size > limit {
            let message = format!("the answer has {size} bytes with its headers, the limit is {limit}");
            let head = ReplyHead::new(Outcome::Unserialisable, 0, message.len(), run);
            return self.send(Kind::Reply, id, &[&head.encode(), message.as_bytes()]);
        }
        let fixed = ReplyHead::new(Outcome::Whole, head.status, head.block.len(), run).encode();
        let first: [&[u8]; 2] = [&fixed, &head.block];
        if let Some((Memory::Region(lease), range)) = body.lent() {
            return self.send_region(Kind::Reply, id, &first, lease, range.start as u64, len as u64);
        }
        self.send_body(Kind::Reply, id, &first, body.as_ref())
    }

    /// Sends a frame whose payload ends with `body`, which goes into a region if it is large and there is
    /// one.
    fn send_body(&self, kind: Kind, id: u64, first: &[&[u8]], body: &[u8]) -> Result<(), End> {
        if self.goes_into_region(body.len())
            && let Some(mut lease) = self.lend(body.len())
        {
            lease.bytes_mut()[..body.len()].copy_from_slice(body);
            return self.send_region(kind, id, first, &mut lease, 0, body.len() as u64);
        }
        self.send(kind, id, &[first, &[body]].concat())
    }

    fn send_region(
        &self,
        kind: Kind,
        id: u64,
        first: &[&[u8]],
        lease: &mut Lease,
        offset: u64,
        size: u64,
    ) -> Result<(), End> {
        let Some(owned) = lease.owned() else { return Ok(()) };
        let reference = Reference { region: owned.number, offset, size }.encode();
        if !owned.announced {
            let (region, regions) = (&owned.region, self.sockets.regions.as_fd());
            send_region(regions, owned.number, region.len() as u64, region.fd()).map_err(|_| End::Closed)?;
            owned.announced = true;
        }
        // Before the frame: what follows upon it may be the runtime's RELEASE.
        lease.go_away();
        self.send_flagged(kind, TAIL, id, &[&[&reference[..]], first].concat())
    }

    fn goes_into_region(&self, len: usize) -> bool {
        self.limits.get().is_some_and(|limits| len as u64 >= limits.region_threshold)
    }

    fn lend(&self, len: usize) -> Option<Lease> {
        // The runtime may have released some.
        self.catch_up(&mut self.inbox());
        self.pool.lend(len)
    }

    /// Tells the runtime that the last view of a call's body is gone.
    pub(super) fn release(&self, region: u32) -> Result<(), End> {
        self.send(Kind::Release, region.into(), &[])
    }

    /// If the script has forked: gives up all regions, which the child has too, and says so.
    pub(super) fn notice_fork(&self) -> Result<(), End> {
        if process::is_child() {
            return Err(End::Forked);
        }
        if process::take_forked() {
            self.pool.retire_all();
            self.forget_retired()?;
            self.send(Kind::Leave, 0, &[])?;
        }
        Ok(())
    }

    fn forget_retired(&self) -> Result<(), End> {
        self.pool
            .take_retired()
            .into_iter()
            .try_for_each(|region| self.send(Kind::Forget, region.into(), &[]))
    }

    /// Writes one line of the replica's log.
    pub(super) fn log(&self, id: u64, level: Level, line: &str) {
        if self.over.load(Ordering::Relaxed) {
            eprintln!("{line}");
            return;
        }
        let cut = line.char_indices().nth(LINE_CHARACTERS).map_or(line.len(), |(at, _)| at);
        // If the runtime is gone, that is noticed elsewhere.
        let _ = self.send(Kind::Log, id, &[&frame::log_head(level as u8), &line.as_bytes()[..cut]]);
    }

    pub(super) fn send(&self, kind: Kind, id: u64, pieces: &[&[u8]]) -> Result<(), End> {
        self.send_flagged(kind, 0, id, pieces)
    }

    fn send_flagged(&self, kind: Kind, flags: u8, id: u64, pieces: &[&[u8]]) -> Result<(), End> {
        if process::is_child() {
            return Err(End::Forked);
        }
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        // Checked against `max_payload` where a payload can be long.
        let length = u32::try_from(length).map_err(|_| End::protocol("max_payload is too long"))?;
        let header = Header { length, kind, flags, id }.encode();
        let mut slices: Vec<IoSlice<'_>> =
            std::iter::once(&header[..]).chain(pieces.iter().copied()).map(IoSlice::new).collect();
        let mut left = &mut slices[..];
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        while !left.is_empty() {
            let nothing = &mut SendAncillaryBuffer::default();
            match sendmsg(&self.sockets.stream, left, nothing, SendFlags::NOSIGNAL) {
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(Errno::INTR) => {}
                Err(_) => return Err(End::Closed),
            }
        }
        Ok(())
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is there and not more; remembers why it could not.
    fn catch_up(&self, inbox: &mut Inbox) {
        while inbox.end.is_none() {
            match self.take_in(inbox, false) {
                Ok(true) => {}
                Ok(false) => return,
                Err(end) => inbox.end = Some(end),
            }
        }
    }

    /// Reads a frame and does what it says; `false` if there is none and it is not to be waited for.
    fn take_in(&self, inbox: &mut Inbox, wait: bool) -> Result<bool, End> {
        if process::is_child() {
            return Err(End::Forked);
        }
        let Some((header, payload)) = inbox.reader.next(self.sockets.stream.as_fd(), wait)? else {
            return Ok(false);
        };
        let Header { kind, id, .. } = header;
        match kind {
            Kind::Call => {
                if inbox.waiting.len() == MOST_WAITING {
                    return Err(End::protocol("more calls than a worker can hold"));
                }
                let tail = self.tail(inbox, header, &payload)?;
                inbox.waiting.push_back(Call::decode(id, payload, tail)?);
            }
            Kind::Cancel => {
                let [reason] = Fields(&payload).array()?;
                let reason = match reason {
                    1 => Cancelled::ClientGone,
                    2 => Cancelled::OutOfTime,
                    _ => return Err(End::protocol("a CANCEL for an unknown reason")),
                };
                match &mut inbox.running {
                    Some(running) if running.id == id => running.cancelled = reason,
                    _ => inbox.waiting.iter_mut().filter(|call| call.id == id).for_each(Call::cancel),
                }
            }
            Kind::Credit => {
                let more = Fields(&payload).u64()?;
                if let Some(running) = inbox.running.as_mut().filter(|running| running.id == id) {
                    running.credit = running.credit.saturating_add(more);
                }
            }
            Kind::Release => {
                // Of a region that was retired meanwhile it means nothing.
                u32::try_from(id).map(|region| self.pool.released(region)).ok();
            }
            Kind::Forget => {
                let region = u32::try_from(id).map_err(|_| End::protocol("a FORGET of no region"))?;
                inbox.mapped.remove(&region);
            }
            _ => {
                return Err(End::Protocol(format!(
                    "a {kind:?} frame, which is none that a native worker gets"
                )));
            }
        }
        Ok(true)
    }

    /// The region part of a payload, if it has one.
    fn tail(&self, inbox: &mut Inbox, header: Header, payload: &[u8]) -> Result<Option<Tail>, End> {
        if header.flags & TAIL == 0 {
            return Ok(None);
        }
        let reference = Reference::decode(payload)?;
        while !inbox.mapped.contains_key(&reference.region) {
            let message = receive_region(self.sockets.regions.as_fd())
                .map_err(|error| End::Protocol(format!("the regions socket failed: {error}")))?;
            let (number, size, file) = message.ok_or_else(|| {
                End::Protocol(format!("a frame refers to region {}, which was not sent", reference.region))
            })?;
            if inbox.mapped.len() == MOST_MAPPED {
                return Err(End::protocol("more regions than a worker can hold"));
            }
            let mapping = Mapping::open(file, size)
                .map_err(|error| End::Protocol(format!("region {number} cannot be mapped: {error}")))?;
            inbox.mapped.insert(number, Arc::new(mapping));
        }
        let mapping = Arc::clone(&inbox.mapped[&reference.region]);
        let end = reference.offset.checked_add(reference.size);
        if end.is_none_or(|end| end > mapping.len() as u64) {
            return Err(End::protocol("a reference that is not inside its region"));
        }
        Ok(Some(Tail { mapping, reference }))
    }
}
