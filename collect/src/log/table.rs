//! What a log holds: segments, and the objects whose records are in them. Shared by the writer, which adds, and by those who bring objects to blob.
//!
//! Objects begin in the order of their numbers, so the first one says which segments are still needed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::settings::Format;

/// Most attempts that are known to have been given up.
const MAX_GIVEN_UP: usize = 1024;

/// A place in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// A segment that is on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) bytes: u64,
    pub(crate) salt: u64,
}

/// An object of which not everything is in blob, or to which more may come.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) path: Arc<str>,
    pub(crate) format: Format,
    pub(crate) header: Arc<[u8]>,
    pub(crate) start: Position,
    pub(crate) end: Position,
    /// Those in the log that can be read, as far as is known.
    pub(crate) records: u64,
    /// Nothing more comes to it.
    pub(crate) closed: bool,
    /// What is known to be in blob.
    pub(crate) sent: Sent,
    /// What is being written to blob, or was and nobody knows whether it is there. Until that is known nothing else is tried.
    pub(crate) attempt: Option<Attempt>,
    /// Somebody is writing it to blob.
    pub(crate) busy: bool,
    /// Something was erased that is in blob: it is written again though nothing is new.
    pub(crate) rewrite: bool,
    /// Something of it was erased, so that blob may have more than the log.
    pub(crate) erased: bool,
    /// An earlier process has left it: what is known to be in blob is not all that is.
    pub(crate) recovered: bool,
    /// The disk may have lost something of it, which blob may have.
    pub(crate) damaged: bool,
    /// When the oldest record came that is not in blob, microseconds since 1970.
    pub(crate) unsent_since: Option<u64>,
    /// How often it could not be written to blob since it last could, and until when others go first.
    pub(crate) failures: u32,
    pub(crate) later: Option<Instant>,
    /// When it was last written to blob, or began.
    pub(crate) flushed: Instant,
}

/// How much of an object is in blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) end: Position,
    pub(crate) records: u64,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) end: Position,
    pub(crate) records: u64,
    /// Of the whole object; 0 until it is known.
    pub(crate) bytes: u64,
    pub(crate) since: Option<u64>,
}

/// An object that is not in the log any more, and of which nobody knows whether its last records came to blob: what is there says it.
#[derive(Clone, Debug)]
pub(crate) struct Doubt {
    pub(crate) path: Arc<str>,
    pub(crate) bytes: u64,
    pub(crate) records: u64,
    pub(crate) busy: bool,
    pub(crate) since: Option<u64>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) objects: BTreeMap<u64, Object>,
    pub(crate) doubts: BTreeMap<u64, Doubt>,
    /// Objects that are in blob as they stay, each with the segment it began in: to be written down.
    pub(crate) done: Vec<(u64, u64)>,
    /// Objects of which an attempt was given up, and when that was: storage may carry it out later.
    pub(crate) given_up: HashMap<Arc<str>, Instant>,
    /// Objects that were closed by who writes to blob: the writer is to begin others.
    pub(crate) ended: Vec<u64>,
    /// How many are erasing something: nothing is written to blob meanwhile.
    pub(crate) held: usize,
    /// Of all segments.
    pub(crate) bytes: u64,
}

/// What is shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Table>>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object {
    /// One that begins, and has nothing yet.
    pub(crate) fn new(path: Arc<str>, format: Format, header: Arc<[u8]>, start: Position) -> Self {
        Self {
            path,
            format,
            header,
            start,
            end: start,
            records: 0,
            closed: false,
            sent: Sent { end: start, records: 0 },
            attempt: None,
            busy: false,
            rewrite: false,
            erased: false,
            recovered: false,
            damaged: false,
            unsent_since: None,
            failures: 0,
            later: None,
            flushed: Instant::now(),
        }
    }

    /// Whether there is something to be written to blob.
    pub(crate) fn is_behind(&self) -> bool {
        self.records > self.sent.records || self.rewrite
    }

    /// Whether nothing more is to be done for it.
    pub(crate) fn is_over(&self) -> bool {
        self.closed && !self.busy && !self.is_behind()
    }
}

impl Table {
    /// Takes an object out that is over.
    pub(crate) fn remove_if_over(&mut self, number: u64) {
        let over = self.objects.get(&number).filter(|object| object.is_over());
        if let Some(start) = over.map(|object| object.start.segment) {
            self.objects.remove(&number);
            self.done.push((number, start));
        }
    }

    /// An attempt to write an object was given up.
    pub(crate) fn give_up(&mut self, path: &Arc<str>) {
        if self.given_up.len() >= MAX_GIVEN_UP {
            let oldest = self.given_up.iter().min_by_key(|(_, at)| **at).map(|(path, _)| Arc::clone(path));
            if let Some(oldest) = oldest {
                self.given_up.remove(&oldest);
            }
        }
        self.given_up.insert(Arc::clone(path), Instant::now());
    }

    /// The first segment that is needed, if any object needs one.
    pub(crate) fn first_needed(&self) -> Option<u64> {
        self.objects.values().map(|object| object.start.segment).min()
    }

    /// The parts of segments in which an object is, until `end`: number, salt, from, to.
    pub(crate) fn parts(&self, start: Position, end: Position) -> Vec<Part> {
        if start > end {
            return Vec::new();
        }
        let head = super::frame::SEGMENT_HEAD as u64;
        let within = self.segments.range(start.segment..=end.segment);
        let part = within.map(|(number, segment)| Part {
            segment: *number,
            salt: segment.salt,
            from: if *number == start.segment { start.offset } else { head },
            to: if *number == end.segment { end.offset } else { segment.bytes },
        });
        part.collect()
    }

    /// When the oldest record came that is not in blob, microseconds since 1970.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let attempts =
            self.objects.values().filter_map(|object| object.attempt.and_then(|attempt| attempt.since));
        let objects = self.objects.values().filter_map(|object| object.unsent_since);
        let doubts = self.doubts.values().filter_map(|doubt| doubt.since);
        attempts.chain(objects).chain(doubts).min()
    }
}

/// A part of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) segment: u64,
    pub(crate) salt: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}
