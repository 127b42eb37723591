//! Shared memory between the replica and its workers: request bodies and results of models on the way there, answers and
//! inputs of models on the way back. The rules are in `entry-scripts/PROTOCOL.md`; this file holds ours.
//!
//! Invariant: nothing is written to a region that a worker has seen but what that same worker is to see. A region is bound to the
//! worker process that it was handed to; once that process is gone, or has forked, the region is given up and not used again.
//! So a body can be read into shared memory right away only where there is one worker, whose it surely is; with several, it is copied
//! once when it is known who gets it.
//!
//! Invariant: nothing is written to a region between the frame that refers to it and the worker's RELEASE.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use outrigger_regions::{Mapping, Region, receive_region, send_region};

use super::bell::Bell;
use super::frame::{FrameError, Reference};

/// The most regions that a worker may own at once, and the most of ours that one worker may hold on to.
pub(super) const MOST: usize = 64;
/// Free regions are kept up to so many bytes in all.
const KEPT_BYTES: usize = 64 << 20;
/// A region is taken for a body if it is at most so many times as large.
const SLACK: usize = 8;
/// Regions are made in multiples of this.
const GRAIN: usize = 64 << 10;

/// Names a worker process for as long as the replica lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reader(u64);

impl Reader {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A region of ours.
struct Own {
    region: Region,
    number: u32,
    /// Which worker has its descriptor.
    bound: Option<Reader>,
}

/// The regions of a service that are free.
pub struct Pool {
    threshold: usize,
    free: Mutex<Vec<Own>>,
    /// Numbers of regions that were given up where no frame could be sent, and which worker has them mapped.
    given_up: Mutex<Vec<(Reader, u32)>>,
    next: AtomicU32,
    /// The one worker that every body is for; 0 while there is none, and where there are several.
    sole: AtomicU64,
    several: bool,
}

impl Pool {
    /// A pool for bodies of at least `threshold` bytes; `None` for 0.
    pub(super) fn new(threshold: usize, workers: usize) -> Option<Arc<Self>> {
        (threshold > 0).then(|| {
            Arc::new(Self {
                threshold,
                free: Mutex::default(),
                given_up: Mutex::default(),
                next: AtomicU32::new(1),
                sole: AtomicU64::new(0),
                several: workers > 1,
            })
        })
    }

    /// From how many bytes on a body goes into a region.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Own>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A region of at least `size` bytes that nobody but `reader` has seen.
    fn take(&self, size: usize, reader: Reader) -> std::io::Result<Own> {
        let fits = |own: &Own| own.region.len() >= size && own.region.len() / SLACK <= size.max(GRAIN);
        {
            let mut free = self.free();
            // The last to come back is in the caches.
            let known = free.iter().rposition(|own| fits(own) && own.bound == Some(reader));
            let found = known.or_else(|| free.iter().rposition(|own| fits(own) && own.bound.is_none()));
            if let Some(found) = found {
                return Ok(free.remove(found));
            }
        }
        let region = Region::create(size.max(1).next_multiple_of(GRAIN))?;
        Ok(Own { region, number: self.next.fetch_add(1, Ordering::Relaxed), bound: None })
    }

    /// Takes a region back. What is too much to keep is given up; the number of such a one.
    fn give_back(&self, own: Own) -> Option<u32> {
        self.keep(&mut self.free(), own)
    }

    /// The same for one that was filled for a worker, if that is still the one that bodies are for.
    fn give_back_for(&self, own: Own, reader: Reader) {
        let mut free = self.free();
        if self.sole.load(Ordering::Acquire) == reader.0 {
            let bound = own.bound;
            if let (Some(number), Some(bound)) = (self.keep(&mut free, own), bound) {
                self.given_up().push((bound, number));
            }
        }
    }

    fn given_up(&self) -> std::sync::MutexGuard<'_, Vec<(Reader, u32)>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was given up of the regions that this worker has mapped.
    fn take_given_up(&self, reader: Reader) -> Vec<u32> {
        // Others than the one worker that bodies are read for are gone.
        let all = std::mem::take(&mut *self.given_up());
        all.into_iter().filter(|(bound, _)| *bound == reader).map(|(_, number)| number).collect()
    }

    fn keep(&self, free: &mut Vec<Own>, own: Own) -> Option<u32> {
        let kept: usize = free.iter().map(|own| own.region.len()).sum();
        if free.len() < MOST && kept + own.region.len() <= KEPT_BYTES {
            free.push(own);
            return None;
        }
        Some(own.number)
    }

    /// Gives up every free region that this worker has seen; their numbers.
    fn retire(&self, reader: Reader) -> Vec<u32> {
        let mut retired = Vec::new();
        self.free().retain(|own| {
            let gone = own.bound == Some(reader);
            if gone {
                retired.push(own.number);
            }
            !gone
        });
        retired
    }
}

/// Bytes in a region of ours that no worker has been told of yet. Goes back to the pool when dropped.
pub struct Filled {
    pool: Arc<Pool>,
    own: Option<Own>,
    reader: Reader,
    length: usize,
}

impl Filled {
    /// Takes a region with room for `capacity` bytes, if it is known which worker the bytes are for and the system has the memory.
    pub fn new(pool: &Arc<Pool>, capacity: usize) -> Option<Self> {
        let reader = Some(pool.sole.load(Ordering::Acquire)).filter(|reader| *reader != 0)?;
        let own = pool.take(capacity, Reader(reader)).ok()?;
        Some(Self { pool: Arc::clone(pool), own: Some(own), reader: Reader(reader), length: 0 })
    }

    /// Appends bytes; a larger region takes the place of one that is full.
    ///
    /// # Errors
    /// What the system says: no memory, or no descriptors.
    pub fn extend(&mut self, data: &[u8]) -> std::io::Result<()> {
        let end = self.length + data.len();
        if end > self.own.as_ref().map_or(0, |own| own.region.len()) {
            let mut larger = self.pool.take(end.saturating_mul(2), self.reader)?;
            larger.region.bytes_mut()[..self.length].copy_from_slice(self.bytes());
            if let Some(old) = self.own.replace(larger) {
                self.pool.give_back_for(old, self.reader);
            }
        }
        if let Some(own) = &mut self.own {
            own.region.bytes_mut()[self.length..end].copy_from_slice(data);
            self.length = end;
        }
        Ok(())
    }

    /// What has been filled in.
    pub fn bytes(&self) -> &[u8] {
        self.own.as_ref().map_or(&[], |own| &own.region.bytes()[..self.length])
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // Regions of a worker that is gone are not used again.
        if let Some(own) = self.own.take() {
            self.pool.give_back_for(own, self.reader);
        }
    }
}

/// Regions on their way between the replica and one worker.
pub(super) struct Regions {
    socket: OwnedFd,
    reader: Reader,
    pool: Option<Arc<Pool>>,
    /// Ours that the worker has been told of and is not done with.
    lent: HashMap<u32, Own>,
    /// The worker's.
    theirs: HashMap<u32, Arc<Mapping>>,
    done: Arc<Done>,
    /// The largest region that the worker may own.
    limit: u64,
}

/// Numbers of the worker's regions that we are done with, for the lane to say so.
struct Done {
    numbers: Mutex<Vec<u32>>,
    bell: Arc<Bell>,
}

/// Some bytes of a region of the worker's.
struct Slice {
    mapping: Arc<Mapping>,
    offset: u64,
    size: u64,
    number: u32,
    done: Arc<Done>,
}

#[expect(unsafe_code, reason = "reads memory that the worker's process owns")]
impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: by the protocol the worker does not write to these bytes before it is told that they are done with, which is
        // when this value is dropped. A worker that breaks that changes bytes that go to a client or into a tensor as they are:
        // no unsafe code relies on what they say, and what is taken apart here is copied before (see `Connection::next_frame`).
        unsafe { self.mapping.bytes(self.offset, self.size) }.unwrap_or_default()
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        self.done.numbers.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
        self.done.bell.ring();
    }
}

impl Regions {
    /// `limit` is the most bytes of a payload of the worker's, and so of what a region of its is for.
    pub(super) fn new(socket: OwnedFd, pool: Option<Arc<Pool>>, limit: usize, bell: Arc<Bell>) -> Self {
        let reader = Reader::new();
        if let Some(pool) = pool.as_ref().filter(|pool| !pool.several) {
            pool.sole.store(reader.0, Ordering::Release);
        }
        Self {
            socket,
            reader,
            pool,
            lent: HashMap::new(),
            theirs: HashMap::new(),
            done: Arc::new(Done { numbers: Mutex::default(), bell }),
            // Owners round up to a power of two.
            limit: limit.checked_next_power_of_two().unwrap_or(limit) as u64,
        }
    }

    /// Lends the worker what has been filled in. Where that is not possible it comes back, to be sent otherwise.
    pub(super) fn lend(&mut self, mut filled: Filled) -> Result<Reference, Filled> {
        let Some(pool) = self.pool.clone().filter(|_| self.lent.len() < MOST) else { return Err(filled) };
        let length = filled.length;
        let Some(own) = filled.own.take() else { return Err(filled) };
        let foreign = filled.reader != self.reader;
        let own = if foreign {
            // The worker that it was meant for is gone: the bytes move into a region that only this one knows.
            let Ok(mut mine) = pool.take(length, self.reader) else {
                filled.own = Some(own);
                return Err(filled);
            };
            mine.region.bytes_mut()[..length].copy_from_slice(&own.region.bytes()[..length]);
            // Not back to the pool: it may be bound to the one that is gone.
            mine
        } else {
            own
        };
        self.hand_over(own, length).map_err(|own| {
            filled.own = Some(own);
            filled
        })
    }

    /// Lends the worker bytes that lie in several places, each from its start on; `None` where that is not possible.
    pub(super) fn lend_copy(&mut self, length: usize, pieces: &[(usize, &Bytes)]) -> Option<Reference> {
        let pool = self.pool.as_ref().filter(|pool| length >= pool.threshold && self.lent.len() < MOST)?;
        let mut own = pool.take(length, self.reader).ok()?;
        for (start, piece) in pieces {
            own.region.bytes_mut()[*start..start + piece.len()].copy_from_slice(piece);
        }
        match self.hand_over(own, length) {
            Ok(reference) => Some(reference),
            Err(own) => {
                if let Some(pool) = &self.pool {
                    pool.give_back(own);
                }
                None
            }
        }
    }

    fn hand_over(&mut self, mut own: Own, length: usize) -> Result<Reference, Own> {
        if own.bound.is_none() {
            let size = own.region.len() as u64;
            if send_region(self.socket.as_fd(), own.number, size, own.region.fd()).is_err() {
                return Err(own);
            }
            own.bound = Some(self.reader);
        }
        let reference = Reference { region: own.number, offset: 0, size: length as u64 };
        self.lent.insert(own.number, own);
        Ok(reference)
    }

    /// The worker is done with a region of ours. The number comes back if the worker is to forget it. One that we have retired is
    /// no news.
    pub(super) fn released(&mut self, number: u64) -> Option<u32> {
        let own = u32::try_from(number).ok().and_then(|number| self.lent.remove(&number))?;
        self.pool.as_ref().and_then(|pool| pool.give_back(own))
    }

    /// Numbers of regions that the worker has mapped and is to forget: the pool had no room for them when a body was dropped.
    pub(super) fn given_up(&self) -> Vec<u32> {
        self.pool
            .as_ref()
            .filter(|pool| !pool.several)
            .map(|pool| pool.take_given_up(self.reader))
            .unwrap_or_default()
    }

    /// Gives up every region of ours that the worker knows; their numbers.
    pub(super) fn retire(&mut self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.lent.drain().map(|(number, _)| number).collect();
        if let Some(pool) = &self.pool {
            numbers.extend(pool.retire(self.reader));
        }
        numbers
    }

    /// The worker has given up a region of its own. We may not have looked at its descriptor yet.
    ///
    /// # Errors
    /// It never sent one.
    pub(super) fn forget(&mut self, number: u64) -> Result<(), FrameError> {
        let number = u32::try_from(number).map_err(|_| FrameError::Malformed("FORGET"))?;
        if !self.theirs.contains_key(&number) {
            self.receive(number)?;
        }
        self.theirs.remove(&number);
        Ok(())
    }

    /// The bytes that a frame of the worker's refers to.
    ///
    /// # Errors
    /// It refers to none, or the region is not as the protocol asks.
    pub(super) fn tail(&mut self, reference: Reference) -> Result<Bytes, FrameError> {
        const BAD: FrameError = FrameError::Malformed("tailed");
        let mapping = match self.theirs.get(&reference.region) {
            Some(mapping) => Arc::clone(mapping),
            None => self.receive(reference.region)?,
        };
        let end = reference.offset.checked_add(reference.size).ok_or(BAD)?;
        if end > mapping.len() as u64 {
            return Err(BAD);
        }
        let (offset, size, number) = (reference.offset, reference.size, reference.region);
        Ok(Bytes::from_owner(Slice { mapping, offset, size, number, done: Arc::clone(&self.done) }))
    }

    /// Takes the messages on the regions socket, up to the one for `wanted`, which is there already.
    fn receive(&mut self, wanted: u32) -> Result<Arc<Mapping>, FrameError> {
        const BAD: FrameError = FrameError::Malformed("region");
        loop {
            let (number, size, file) = receive_region(self.socket.as_fd()).map_err(|_| BAD)?.ok_or(BAD)?;
            if size > self.limit || self.theirs.len() >= MOST {
                return Err(BAD);
            }
            let mapping = Mapping::open(file, size).map_err(|error| {
                tracing::warn!(%error, "a worker has sent a region that cannot be used");
                BAD
            })?;
            let mapping = Arc::new(mapping);
            self.theirs.insert(number, Arc::clone(&mapping));
            if number == wanted {
                return Ok(mapping);
            }
        }
    }

    /// Numbers of the worker's regions that we are done with, once for each reference.
    pub(super) fn take_done(&self) -> Vec<u32> {
        std::mem::take(&mut *self.done.numbers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Regions of ours that the worker holds, and the worker's that we have mapped.
    #[cfg(test)]
    fn counts(&self) -> (usize, usize) {
        (self.lent.len(), self.theirs.len())
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            // Nothing that is for this worker comes back to the pool after this.
            let _free = pool.free();
            let _ = pool.sole.compare_exchange(self.reader.0, 0, Ordering::AcqRel, Ordering::Acquire);
        }
        // Whoever the worker has left behind may still have them mapped.
        self.retire();
    }
}

#[cfg(test)]
mod tests {
    use outrigger_regions::seqpacket_pair;

    use super::*;

    fn regions(pool: &Arc<Pool>) -> (Regions, OwnedFd) {
        let (ours, theirs) = seqpacket_pair().unwrap();
        (Regions::new(ours, Some(Arc::clone(pool)), 1 << 20, Arc::default()), theirs)
    }

    fn filled(pool: &Arc<Pool>, text: &[u8]) -> Filled {
        let mut filled = Filled::new(pool, text.len()).unwrap();
        filled.extend(text).unwrap();
        filled
    }

    #[expect(unsafe_code, reason = "reads as a worker does")]
    fn read(mapping: &Mapping, reference: Reference) -> Vec<u8> {
        // SAFETY: nobody writes while the test reads.
        unsafe { mapping.bytes(reference.offset, reference.size) }.unwrap().to_vec()
    }

    #[test]
    fn a_region_is_sent_once_and_used_again_by_the_same_worker() {
        let pool = Pool::new(1, 1).unwrap();
        let (mut regions, worker) = regions(&pool);
        let first = regions.lend(filled(&pool, b"first")).ok().unwrap();
        let (number, size, file) = receive_region(worker.as_fd()).unwrap().unwrap();
        let mapping = Mapping::open(file, size).unwrap();
        assert_eq!((number, read(&mapping, first)), (first.region, b"first".to_vec()));
        assert_eq!(regions.released(u64::from(number)), None);
        let second = regions.lend(filled(&pool, b"second")).ok().unwrap();
        assert_eq!(second.region, first.region);
        assert!(receive_region(worker.as_fd()).unwrap().is_none(), "the worker has it already");
        assert_eq!(read(&mapping, second), b"second");
    }

    #[test]
    fn what_a_worker_holds_on_to_never_changes() {
        let pool = Pool::new(1, 1).unwrap();
        let (mut regions, worker) = regions(&pool);
        let kept = regions.lend(filled(&pool, b"kept")).ok().unwrap();
        let (_, size, file) = receive_region(worker.as_fd()).unwrap().unwrap();
        let mapping = Mapping::open(file, size).unwrap();
        for number in 0..10u8 {
            let next = regions.lend(filled(&pool, &[number; 4])).ok().unwrap();
            assert_ne!(next.region, kept.region);
            regions.released(u64::from(next.region));
        }
        assert_eq!(read(&mapping, kept), b"kept");
        drop(regions);
        let (next, _next_worker) = seqpacket_pair().unwrap();
        let _next = Regions::new(next, Some(Arc::clone(&pool)), 1 << 20, Arc::default());
        drop(filled(&pool, b"later"));
        assert_eq!(read(&mapping, kept), b"kept", "also after the replica has let go of it");
    }

    #[test]
    fn what_one_worker_has_seen_no_other_s_data_is_written_to() {
        let pool = Pool::new(1, 2).unwrap();
        let (mut first, first_worker) = regions(&pool);
        let (mut second, second_worker) = regions(&pool);
        assert!(Filled::new(&pool, 1).is_none(), "nobody knows yet whose it will be");
        let one = first.lend_copy(3, &[(0, &Bytes::from_static(b"one"))]).unwrap();
        let (_, size, file) = receive_region(first_worker.as_fd()).unwrap().unwrap();
        let mapping = Mapping::open(file, size).unwrap();
        first.released(u64::from(one.region));
        let two = second.lend_copy(3, &[(0, &Bytes::from_static(b"two"))]).unwrap();
        assert_ne!(two.region, one.region);
        assert_eq!(read(&mapping, one), b"one");
        let (_, size, file) = receive_region(second_worker.as_fd()).unwrap().unwrap();
        assert_eq!(read(&Mapping::open(file, size).unwrap(), two), b"two");
        assert_eq!(first.lend_copy(3, &[(0, &Bytes::from_static(b"1.1"))]).unwrap().region, one.region);
    }

    #[test]
    fn a_body_whose_worker_died_meanwhile_moves_to_the_next_one_s_memory() {
        let pool = Pool::new(1, 1).unwrap();
        let (mut first, first_worker) = regions(&pool);
        let seen = first.lend(filled(&pool, b"seen")).ok().unwrap();
        let (_, size, file) = receive_region(first_worker.as_fd()).unwrap().unwrap();
        let mapping = Mapping::open(file, size).unwrap();
        first.released(u64::from(seen.region));
        let body = filled(&pool, b"body");
        drop(first);
        let (mut second, second_worker) = regions(&pool);
        let body = second.lend(body).ok().unwrap();
        assert_ne!(body.region, seen.region);
        let (_, size, file) = receive_region(second_worker.as_fd()).unwrap().unwrap();
        assert_eq!(read(&Mapping::open(file, size).unwrap(), body), b"body");
        let next = second.lend(filled(&pool, b"next")).ok().unwrap();
        assert_ne!(next.region, seen.region, "it is not used again");
        assert_eq!(
            read(&mapping, seen),
            b"body",
            "the worker that it was meant for could see it, nobody else"
        );
    }

    #[test]
    fn a_worker_that_is_gone_takes_its_regions_along() {
        let pool = Pool::new(1, 1).unwrap();
        let (mut regions, _worker) = regions(&pool);
        let lent = regions.lend(filled(&pool, b"lent")).ok().unwrap();
        let free = regions.lend(filled(&pool, b"free")).ok().unwrap();
        regions.released(u64::from(free.region));
        let mut retired = regions.retire();
        retired.sort_unstable();
        assert_eq!(retired, [lent.region, free.region]);
        assert_eq!((regions.counts(), pool.free().len()), ((0, 0), 0));
        assert_eq!(regions.released(u64::from(lent.region)), None, "it comes too late and means nothing");
    }

    #[test]
    fn a_worker_s_regions_are_checked_and_said_to_be_done_once_for_each_reference() {
        let pool = Pool::new(1, 1).unwrap();
        let (mut regions, worker) = regions(&pool);
        let mut region = Region::create(4096).unwrap();
        region.bytes_mut()[..5].copy_from_slice(b"hello");
        send_region(worker.as_fd(), 9, 4096, region.fd()).unwrap();
        let reference = Reference { region: 9, offset: 1, size: 4 };
        let tail = regions.tail(reference).unwrap();
        let again = regions.tail(Reference { size: 2, ..reference }).unwrap();
        assert_eq!((&tail[..], &again[..]), (&b"ello"[..], &b"el"[..]));
        assert!(regions.take_done().is_empty());
        drop((tail.slice(..1), tail));
        assert_eq!(regions.take_done(), [9]);
        drop(again);
        assert_eq!(regions.take_done(), [9]);
        assert!(regions.tail(Reference { offset: 4095, ..reference }).is_err());
        assert!(regions.tail(Reference { offset: u64::MAX, ..reference }).is_err());
        assert!(regions.tail(Reference { region: 10, ..reference }).is_err(), "it was never sent");
        let unseen = Region::create(4096).unwrap();
        send_region(worker.as_fd(), 12, 4096, unseen.fd()).unwrap();
        regions.forget(12).unwrap();
        regions.forget(9).unwrap();
        assert_eq!(regions.counts(), (0, 0));
        assert!(regions.forget(9).is_err());
        let large = Region::create(2 << 20).unwrap();
        send_region(worker.as_fd(), 11, 2 << 20, large.fd()).unwrap();
        assert!(regions.tail(Reference { region: 11, ..reference }).is_err(), "it is over the limit");
    }

    #[test]
    fn a_worker_may_round_its_regions_up() {
        let pool = Pool::new(1, 1).unwrap();
        let (ours, worker) = seqpacket_pair().unwrap();
        let mut regions = Regions::new(ours, Some(pool), 100_000, Arc::default());
        let region = Region::create(1 << 17).unwrap();
        send_region(worker.as_fd(), 1, 1 << 17, region.fd()).unwrap();
        let reference = Reference { region: 1, offset: 0, size: 100_000 };
        assert_eq!(regions.tail(reference).unwrap().len(), 100_000);
    }

    #[test]
    fn a_body_that_outlives_its_worker_leaves_nothing_in_the_pool() {
        let pool = Pool::new(1, 1).unwrap();
        let (mut regions, _worker) = regions(&pool);
        let seen = regions.lend(filled(&pool, b"seen")).ok().unwrap();
        regions.released(u64::from(seen.region));
        let body = filled(&pool, b"body");
        drop(regions);
        drop(body);
        assert_eq!(pool.free().len(), 0, "nobody could ever use it");
        assert!(Filled::new(&pool, 1).is_none(), "there is no worker");
    }

    #[test]
    fn a_worker_forgets_what_a_dropped_body_leaves_no_room_for() {
        let pool = Pool::new(1, 1).unwrap();
        let (mut regions, _worker) = regions(&pool);
        let seen = regions.lend(filled(&pool, b"seen")).ok().unwrap();
        regions.released(u64::from(seen.region));
        let body = filled(&pool, b"body");
        let many: Vec<_> = (0..MOST).map(|_| filled(&pool, b"x")).collect();
        drop(many);
        assert!(regions.given_up().is_empty(), "the worker knows none of them");
        drop(body);
        assert_eq!(regions.given_up(), [seen.region]);
        assert!(regions.given_up().is_empty(), "it is told once");
    }

    #[test]
    fn bodies_grow_into_larger_regions() {
        let pool = Pool::new(1, 1).unwrap();
        let (_regions, _worker) = regions(&pool);
        let mut body = Filled::new(&pool, 10).unwrap();
        let text: Vec<u8> = (0..400_000u32).map(|at| at as u8).collect();
        for piece in text.chunks(30_000) {
            body.extend(piece).unwrap();
        }
        assert!(body.bytes() == text);
        drop(body);
        assert!(pool.free().len() <= 4);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let pool = Pool::new(1, 1).unwrap();
        let (_regions, _worker) = regions(&pool);
        let many: Vec<_> = (0..MOST + 10).map(|_| filled(&pool, b"x")).collect();
        drop(many);
        assert_eq!(pool.free().len(), MOST);
        let large: Vec<_> = (0..4).map(|_| Filled::new(&pool, KEPT_BYTES / 2).unwrap()).collect();
        drop(large);
        let kept: usize = pool.free().iter().map(|own| own.region.len()).sum();
        assert!(kept <= KEPT_BYTES);
    }
}
