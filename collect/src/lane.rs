//! From one ring to one log.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use crate::collection::{Collection, Kept};
use crate::counts::Reason;
use crate::gauges::Gauges;
use crate::layout::date::{Calendar, micros};
use crate::layout::{Key, Layout, Place, events};
use crate::log::frame::Stored;
use crate::log::{Beginning, Log};
use crate::ring::Queued;
use crate::settings::{CollectionSettings, Full, Settings, Sync};
use crate::spool::Spool;

/// Most records that are written together.
const BATCH_RECORDS: usize = 256;
/// Bytes after which nothing more is written together.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// How long after the end of its folder's time an object waits for stragglers.
const STRAGGLERS: Duration = Duration::from_secs(60);
/// How many segments an object may keep from being removed.
const PINNED: u64 = 3;
/// When a log that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How long what could not be written is kept to be tried again, or longer where callers wait longer for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// One collection, as the writer has it.
pub(crate) struct Lane {
    pub(crate) collection: Arc<Collection>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) log: Log,
    full: Full,
    sync: Sync,
    bounds: Bounds,
    open: BTreeMap<Key, Open>,
    /// Those of what is gathered, each with its record's object.
    acks: Vec<(u64, oneshot::Sender<Kept>)>,
    line: Vec<u8>,
    calendar: Calendar,
    /// When what is written together was taken.
    now: Instant,
    /// Records that have been taken.
    turn: u64,
    /// There was no room, and it is not tried again before then.
    retry: Option<Instant>,
    /// Since when there is none.
    stalled: Option<Instant>,
}

struct Bounds {
    object_bytes: usize,
    open_objects: usize,
    waiting_objects: usize,
    line_bytes: usize,
    disk_bytes: u64,
}

/// An object to which records come.
struct Open {
    number: u64,
    path: Arc<str>,
    bytes: usize,
    records: u64,
    /// Microseconds since 1970.
    until: u64,
    last: Instant,
    /// Records that the lane had taken by then: it tells those apart that are of one batch.
    turn: u64,
    segment: u64,
}

impl Lane {
    pub(crate) fn new(
        collection: Arc<Collection>,
        layout: Arc<Layout>,
        log: Log,
        all: &Settings,
        settings: &CollectionSettings,
    ) -> Self {
        let bounds = Bounds {
            object_bytes: usize::try_from(all.object_bytes).unwrap_or(usize::MAX),
            open_objects: all.open_objects,
            waiting_objects: all.waiting_objects,
            line_bytes: all.line_bytes(),
            disk_bytes: settings.disk_bytes,
        };
        Self {
            collection,
            layout,
            gauges: Arc::new(Gauges::new()),
            log,
            full: settings.full,
            sync: settings.sync,
            bounds,
            open: BTreeMap::new(),
            calendar: Calendar::default(),
            now: Instant::now(),
            turn: 0,
            acks: Vec::new(),
            line: Vec::new(),
            retry: None,
            stalled: None,
        }
    }

    /// Whether there is something that could be written now.
    pub(crate) fn is_ready(&self) -> bool {
        self.retry.is_none() && self.collection.ring.items() > 0
    }

    /// Takes what there is out of the ring, up to a batch, and writes it; how many records that were.
    pub(crate) fn drain(&mut self, spool: &mut Spool) -> usize {
        if self.retry.is_some_and(|retry| Instant::now() < retry) || !self.make_room(spool) {
            return 0;
        }
        let ended = std::mem::take(&mut self.log.shared().lock().ended);
        if !ended.is_empty() {
            self.open.retain(|_, open| !ended.contains(&open.number));
        }
        let mut records = 0;
        self.now = Instant::now();
        while records < BATCH_RECORDS && self.log.gathered() < BATCH_BYTES {
            let Some(queued) = self.collection.ring.pop() else { break };
            records += 1;
            self.take(queued, spool);
        }
        if records > 0 {
            self.collection.room.notify_waiters();
            self.commit();
        }
        records
    }

    /// Whether there is room for a batch. What could not be written goes first.
    fn make_room(&mut self, spool: &mut Spool) -> bool {
        if self.log.gathered() > 0 && !self.commit_again() {
            let patience = self.collection.waits().unwrap_or_default().max(PATIENCE);
            if self.stalled.is_some_and(|since| since.elapsed() >= patience) {
                // It keeps its objects from being finished, and so their segments from being removed, which may be all that there is no room for.
                self.discard();
                self.close_all();
            }
            return false;
        }
        if self.collection.ring.items() == 0 {
            self.goes_on();
            return true;
        }
        while let Err(error) = spool.ensure(2 * BATCH_RECORDS as u64) {
            if !(self.full == Full::DropOldest && self.free_oldest()) {
                self.failed(&error);
                return false;
            }
        }
        let needed = (BATCH_BYTES + 2 * self.bounds.line_bytes) as u64;
        if !self.has_room(needed) {
            // Nothing is gathered, so everything that is there can go to blob, and then be removed.
            self.close_all();
            while !self.has_room(needed) {
                if self.full == Full::DropOldest && self.free_oldest() {
                    continue;
                }
                self.failed(&io::Error::from(io::ErrorKind::StorageFull));
                return false;
            }
        }
        self.goes_on();
        true
    }

    fn has_room(&mut self, needed: u64) -> bool {
        let has = |lane: &Self| {
            let table = lane.log.shared().lock();
            let bytes = table.bytes.saturating_add(needed) <= lane.bounds.disk_bytes;
            bytes && table.objects.len() + 2 * BATCH_RECORDS <= lane.bounds.waiting_objects
        };
        has(self) || {
            self.log.tidy_segments();
            has(self)
        }
    }

    fn goes_on(&mut self) {
        self.retry = None;
        if self.stalled.take().is_some() {
            self.gauges.stalled.store(0, Ordering::Release);
            Gauges::tell(&self.gauges.disk_problem, None);
            tracing::info!(collection = self.collection.name(), "collected data is written to disk again");
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.retry = Some(Instant::now() + RETRY);
        if self.stalled.is_none() {
            self.stalled = Some(Instant::now());
            self.gauges.stalled.store(micros(SystemTime::now()), Ordering::Release);
            tracing::warn!(
                collection = self.collection.name(),
                %error,
                "collected data cannot be written to disk: it waits in memory, and what finds no room there is dropped"
            );
        }
        self.gauges.disk_failures.fetch_add(1, Ordering::AcqRel);
        Gauges::tell(&self.gauges.disk_problem, Some(error.to_string()));
    }

    fn take(&mut self, queued: Queued, spool: &mut Spool) {
        let Queued { mut record, ack, .. } = queued;
        let taken = self
            .layout
            .prepare(&mut record, &mut self.calendar)
            .and_then(|place| self.append(&record, &place, spool));
        match (taken, ack) {
            (Ok(object), Some(ack)) => self.acks.push((object, ack)),
            (Ok(_), None) => {}
            (Err(reason), ack) => {
                let kept = self.collection.drop_one(reason);
                if let Some(ack) = ack {
                    let _ = ack.send(kept);
                }
            }
        }
    }

    /// Gathers a record; the object that it comes to.
    fn append(&mut self, record: &crate::Record, place: &Place, spool: &mut Spool) -> Result<u64, Reason> {
        self.line.clear();
        if !place.aside {
            self.layout.write_line(record, place, None, self.bounds.line_bytes, &mut self.line)?;
        }
        if self.line.len() > self.bounds.line_bytes {
            return Err(Reason::Large);
        }
        let known = self.open.get(&place.key);
        let is_full = |open: &Open| open.bytes > 0 && open.bytes + self.line.len() > self.bounds.object_bytes;
        if known.is_none_or(is_full) {
            self.begin(place, spool)?;
        }
        let open = self.open.get_mut(&place.key).ok_or(Reason::Invalid)?;
        let side = place.aside.then(|| self.layout.side_path(&open.path, open.records, record));
        if let Some(side) = &side {
            self.layout.write_line(record, place, Some(side), self.bounds.line_bytes, &mut self.line)?;
        }
        let stored = Stored {
            time: place.time,
            correlation: events::correlation(record).as_bytes(),
            line: &self.line,
            side: side.as_deref().map(|side| (side, &record.data[..])),
        };
        self.log.append(open.number, &stored);
        open.bytes += self.line.len();
        open.records += 1;
        self.turn += 1;
        (open.last, open.turn) = (self.now, self.turn);
        Ok(open.number)
    }

    /// Begins an object for a place.
    fn begin(&mut self, place: &Place, spool: &mut Spool) -> Result<(), Reason> {
        let number = spool.number().ok_or(Reason::Full)?;
        if let Some(open) = self.open.remove(&place.key) {
            self.log.close(open.number);
        }
        if self.open.len() >= self.bounds.open_objects
            && let Some(key) = self.open.iter().min_by_key(|(_, open)| open.turn).map(|(key, _)| key.clone())
        {
            self.close_one(&key);
        }
        let path: Arc<str> = self.layout.path(place, spool.instance(), number).into();
        let header = self.layout.header(place);
        let beginning =
            Beginning { path: Arc::clone(&path), format: self.layout.format, header: header.into() };
        self.log.begin(number, beginning);
        let segment = self.log.segment();
        let open = Open {
            number,
            path,
            bytes: header.len(),
            records: 0,
            until: place.until,
            last: self.now,
            turn: self.turn,
            segment,
        };
        self.open.insert(place.key.clone(), open);
        Ok(())
    }

    fn close_one(&mut self, key: &Key) {
        if let Some(open) = self.open.remove(key) {
            self.log.close(open.number);
        }
    }

    /// Nothing more comes to any object that there is.
    pub(crate) fn close_all(&mut self) {
        for (_, open) in std::mem::take(&mut self.open) {
            self.log.close(open.number);
        }
        if self.log.gathered() == 0 {
            // Nothing is written, so nothing fails.
            let _ = self.log.commit();
        }
        if let Err(error) = self.log.rotate() {
            self.failed(&error);
        }
    }

    /// Tries again what could not be written. What has come to blob meanwhile has made room.
    fn commit_again(&mut self) -> bool {
        self.log.tidy_segments();
        self.commit()
    }

    /// Whether nothing waits for the log to take it: neither what is gathered nor, because of that, what is in the ring.
    pub(crate) fn is_settled(&self) -> bool {
        self.log.gathered() == 0 && self.stalled.is_none()
    }

    /// Ends the segment that is being written; the first that comes after it.
    pub(crate) fn seal(&mut self) -> io::Result<u64> {
        if !self.is_settled() {
            return Err(io::Error::other(
                "it takes nothing now, and what waits for it may be what is to be deleted",
            ));
        }
        if self.log.is_long() {
            self.log.rotate()?;
        }
        Ok(self.log.segment())
    }

    /// Writes what is gathered, and tells those who wait; whether that went well. With [`Sync::Always`] it is on the disk then.
    pub(crate) fn commit(&mut self) -> bool {
        while let Err(error) = self.log.commit() {
            let kind = error.kind();
            if self.full == Full::DropOldest && kind == io::ErrorKind::StorageFull && self.free_oldest() {
                continue;
            }
            // Another one may be taken.
            if kind == io::ErrorKind::FileTooLarge && self.log.is_long() && self.log.rotate().is_ok() {
                continue;
            }
            self.failed(&error);
            return false;
        }
        self.goes_on();
        let orphans = self.count_orphans();
        for (object, ack) in self.acks.drain(..) {
            let kept = match orphans {
                Some(reason) if self.log.is_orphan(object) => Kept::Dropped(reason),
                _ => Kept::Logged,
            };
            let _ = ack.send(kept);
        }
        self.log.forget_orphans();
        true
    }

    /// Records of objects that were gone before these were written: dropped, or given up as the disk had not kept what blob has. Why, if there are any.
    fn count_orphans(&mut self) -> Option<Reason> {
        let orphans = self.log.orphans();
        let reason = if self.full == Full::DropOldest { Reason::Oldest } else { Reason::Damaged };
        self.open.retain(|_, open| !orphans.contains(&open.number));
        self.collection.counters.dropped(reason, orphans.len() as u64);
        (!orphans.is_empty()).then_some(reason)
    }

    /// Drops what is in the oldest segment and not in blob; whether anything became free.
    fn free_oldest(&mut self) -> bool {
        let Some(freed) = self.log.free_oldest() else { return false };
        self.collection.counters.dropped(Reason::Oldest, freed.records);
        self.open.retain(|_, open| !freed.objects.contains(&open.number));
        true
    }

    /// What is to be done from time to time.
    pub(crate) fn tick(&mut self) {
        if let (Sync::Interval(interval), Some(since)) = (self.sync, self.log.unsynced())
            && since.elapsed() >= interval
            && let Err(error) = self.log.sync()
        {
            self.failed(&error);
        }
        let (now, segment) = (micros(SystemTime::now()), self.log.segment());
        let is_over = |open: &Open| {
            let ended = open.until.saturating_add(STRAGGLERS.as_micros() as u64) < now;
            ended && open.last.elapsed() >= STRAGGLERS || open.segment + PINNED <= segment
        };
        let over: Vec<_> =
            self.open.iter().filter(|(_, open)| is_over(open)).map(|(key, _)| key.clone()).collect();
        over.iter().for_each(|key| self.close_one(key));
        if self.log.gathered() > 0 {
            return;
        }
        // Closings are no bytes.
        let _ = self.log.commit();
        if self.log.is_spent() && self.open.is_empty() && self.log.rotate().is_err() {
            return;
        }
        self.log.tidy();
        if self.log.commit().is_err() {
            // That something is done is known again when it is done again.
            self.log.discard();
        }
    }

    /// Gives up what could not be written.
    fn discard(&mut self) {
        let records = self.log.discard();
        self.collection.counters.dropped(Reason::Full, records);
        for (_, ack) in self.acks.drain(..) {
            let _ = ack.send(Kept::Dropped(Reason::Full));
        }
    }

    /// Takes nothing more, and gives up what could not be written.
    pub(crate) fn end(&mut self) {
        if self.log.gathered() > 0 && !self.commit_again() {
            self.discard();
        }
        self.collection.close();
        self.close_all();
        self.tick();
        let _ = self.log.sync();
    }
}
