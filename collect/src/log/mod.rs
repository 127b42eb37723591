//! The log of one collection: segments on disk.
//!
//! Frames are gathered in memory and written together ([`Log::commit`]); only then they are in the [`table`]. What could not be written stays gathered and is
//! tried again at the same place, so that a disk that was full leaves no gap. Segments are removed in their order, the oldest first, as soon as no object has
//! anything in them. So what is left of an object whose beginning was removed is over, and a start may forget it.

pub(crate) mod frame;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod read;
mod recover;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use self::frame::{Kind, Opened, SEGMENT_HEAD, Stored};
pub(crate) use self::read::{read, read_one};
use self::table::{Doubt, Object, Position, Segment, Shared};
use crate::layout::date::micros;
use crate::settings::{Format, Sync};
use crate::spool::may_pass;

/// What a log is kept to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) segment_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) sync: Sync,
}

/// The writer's end of a log.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    bounds: Bounds,
    shared: Shared,
    active: Option<Active>,
    next: u64,
    sequence: u64,
    salt: u64,
    gathered: Vec<u8>,
    events: Vec<Event>,
    /// Objects that were gone before their records were written, of each of these the object.
    orphans: Vec<u64>,
    /// Something is with the kernel and not known to be on the disk, since then.
    unsynced: Option<Instant>,
}

#[derive(Debug)]
struct Active {
    file: File,
    number: u64,
    size: u64,
    /// There may be something behind `size`. It must not be there when frames go on elsewhere: they would be there twice.
    torn: bool,
}

/// What is in the table once it is written. Places are within what is gathered.
#[derive(Debug)]
enum Event {
    Open { object: u64, at: u64, path: Arc<str>, format: Format, header: Arc<[u8]> },
    Record { object: u64, end: u64 },
    Close { object: u64 },
}

/// What an object begins with.
#[derive(Clone, Debug)]
pub(crate) struct Beginning {
    pub(crate) path: Arc<str>,
    pub(crate) format: Format,
    pub(crate) header: Arc<[u8]>,
}

/// What was given up.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// Records that are lost for certain.
    pub(crate) records: u64,
    pub(crate) objects: Vec<u64>,
}

impl Log {
    /// Opens the log in a folder, which is made, and reads all of it.
    ///
    /// # Errors
    /// If the folder cannot be made or read.
    pub(crate) fn open(dir: &Path, bounds: Bounds) -> io::Result<Self> {
        let shared = Shared::default();
        let next = match make(dir) {
            Ok(()) => recover::recover(dir, &mut shared.lock())?,
            // Where there is no room for the folder there is nothing in it, and it is made when something is written.
            Err(full) if may_pass(&full) && !dir.exists() => 1,
            Err(error) => return Err(error),
        };
        let mut salt = [0; 8];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        Ok(Self {
            dir: dir.to_owned(),
            bounds,
            shared,
            active: None,
            next,
            sequence: 0,
            salt: u64::from_le_bytes(salt),
            gathered: Vec::new(),
            events: Vec::new(),
            orphans: Vec::new(),
            unsynced: None,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The segment that is being written, or will be.
    pub(crate) fn segment(&self) -> u64 {
        self.active.as_ref().map_or(self.next, |active| active.number)
    }

    /// Whether the segment that is being written has anything in it.
    pub(crate) fn is_long(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.size > SEGMENT_HEAD as u64)
    }

    /// Bytes that are gathered.
    pub(crate) fn gathered(&self) -> usize {
        self.gathered.len()
    }

    /// An object begins.
    pub(crate) fn begin(&mut self, object: u64, beginning: Beginning) {
        let at = self.gathered.len();
        self.frame(Kind::Open, object, |buffer| {
            let Beginning { path, format, header } = &beginning;
            Opened { format: format.number(), path, header }.write(buffer);
        });
        let Beginning { path, format, header } = beginning;
        self.events.push(Event::Open { object, at: at as u64, path, format, header });
    }

    /// A record of an object that has begun.
    pub(crate) fn append(&mut self, object: u64, record: &Stored<'_>) {
        self.frame(Kind::Record, object, |buffer| record.write(buffer));
        let end = self.gathered.len() as u64;
        self.events.push(Event::Record { object, end });
    }

    /// Nothing more comes to an object.
    pub(crate) fn close(&mut self, object: u64) {
        self.events.push(Event::Close { object });
    }

    fn frame(&mut self, kind: Kind, object: u64, body: impl FnOnce(&mut Vec<u8>)) {
        self.sequence += 1;
        let at = frame::begin_frame(&mut self.gathered);
        body(&mut self.gathered);
        frame::end_frame(&mut self.gathered, at, self.salt, kind, self.sequence, object);
    }

    /// Writes what is gathered, and with [`Sync::Always`] waits until it is on the disk. It stays gathered if that fails.
    ///
    /// # Errors
    /// Of the disk; [`io::ErrorKind::StorageFull`] where the log's bound is met, too.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            self.apply(Position::default());
            return Ok(());
        }
        if self.active.as_ref().is_some_and(|active| active.size >= self.bounds.segment_bytes) {
            self.rotate()?;
        }
        let mut needed = self.gathered.len() as u64;
        if self.active.is_none() {
            needed += SEGMENT_HEAD as u64;
        }
        if self.shared.lock().bytes.saturating_add(needed) > self.bounds.disk_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.active.is_none() {
            self.active = Some(self.create()?);
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Err(error) = active.file.write_all_at(&self.gathered, active.size) {
            active.torn = active.file.set_len(active.size).is_err();
            return Err(error);
        }
        if self.bounds.sync == Sync::Always
            && let Err(error) = active.file.sync_data()
        {
            // What the kernel could not write it takes for written. So it goes on elsewhere, with all of it.
            active.torn = active.file.set_len(active.size).is_err();
            if !active.torn {
                self.active = None;
            }
            return Err(error);
        }
        active.torn = false;
        let at = Position { segment: active.number, offset: active.size };
        active.size += self.gathered.len() as u64;
        if self.bounds.sync != Sync::Always {
            self.unsynced.get_or_insert_with(Instant::now);
        }
        self.apply(at);
        self.gathered.clear();
        // One huge record does not keep its memory.
        self.gathered.shrink_to(4 << 20);
        Ok(())
    }

    /// Puts what was written into the table.
    fn apply(&mut self, at: Position) {
        let now = micros(SystemTime::now());
        let mut table = self.shared.lock();
        let written = self.gathered.len() as u64;
        if written > 0 {
            table.bytes += written;
            if let Some(segment) = table.segments.get_mut(&at.segment) {
                segment.bytes += written;
            }
        }
        let place = |offset: u64| Position { segment: at.segment, offset: at.offset + offset };
        for event in self.events.drain(..) {
            match event {
                Event::Open { object, at, path, format, header } => {
                    table.objects.insert(object, Object::new(path, format, header, place(at)));
                }
                Event::Record { object, end } => {
                    let Some(object) = table.objects.get_mut(&object) else {
                        self.orphans.push(object);
                        continue;
                    };
                    object.end = place(end);
                    object.records += 1;
                    object.unsent_since.get_or_insert(now);
                }
                Event::Close { object: number } => {
                    if let Some(object) = table.objects.get_mut(&number) {
                        object.closed = true;
                    }
                    table.remove_if_over(number);
                }
            }
        }
    }

    /// Gives up what is gathered and could not be written; how many records these are. The objects that began in it have never begun.
    pub(crate) fn discard(&mut self) -> u64 {
        self.gathered.clear();
        self.events.drain(..).filter(|event| matches!(event, Event::Record { .. })).count() as u64
    }

    /// The objects of records that were written after these were gone: one for each record.
    pub(crate) fn orphans(&self) -> &[u64] {
        &self.orphans
    }

    pub(crate) fn is_orphan(&self, object: u64) -> bool {
        self.orphans.contains(&object)
    }

    /// They are counted.
    pub(crate) fn forget_orphans(&mut self) {
        self.orphans.clear();
    }

    /// Gives up the oldest segment: what is in it and not in blob, with all of the objects that it belongs to. Nothing if there is none.
    ///
    /// What was being written to blob, or may have been, is in doubt until somebody has looked there.
    pub(crate) fn free_oldest(&mut self) -> Option<Freed> {
        let oldest = self.shared.lock().segments.keys().next().copied()?;
        if self.active.as_ref().is_some_and(|active| active.number == oldest) {
            if self.active.as_ref().is_some_and(|active| active.size <= SEGMENT_HEAD as u64) {
                return None;
            }
            // Whoever gives it up does not care whether it is on the disk.
            self.active = None;
            self.unsynced = None;
        }
        let mut table = self.shared.lock();
        let mut freed = Freed::default();
        while let Some(first) =
            table.objects.first_entry().filter(|first| first.get().start.segment <= oldest)
        {
            let (number, object) = first.remove_entry();
            let certain = match object.attempt.filter(|attempt| attempt.bytes > 0 || object.busy) {
                Some(attempt) => {
                    let records = attempt.records.saturating_sub(object.sent.records);
                    let Object { path, busy, .. } = object;
                    let (bytes, since) = (attempt.bytes, attempt.since);
                    table.doubts.insert(number, Doubt { path, bytes, records, busy, since });
                    object.records.saturating_sub(attempt.records)
                }
                None => object.records.saturating_sub(object.sent.records),
            };
            freed.records += certain;
            freed.objects.push(number);
        }
        drop(table);
        self.tidy_segments();
        Some(freed)
    }

    fn create(&mut self) -> io::Result<Active> {
        if !self.dir.is_dir() {
            make(&self.dir)?;
        }
        let number = self.next;
        let path = segment_path(&self.dir, number);
        // One that could not be begun may have been left.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        if let Err(error) = file.write_all_at(&frame::segment_head(number, self.salt), 0) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        if self.bounds.sync != Sync::Never {
            File::open(&self.dir)?.sync_all()?;
        }
        self.next += 1;
        let size = SEGMENT_HEAD as u64;
        let mut table = self.shared.lock();
        table.bytes += size;
        table.segments.insert(number, Segment { bytes: size, salt: self.salt });
        Ok(Active { file, number, size, torn: false })
    }

    /// The next commit begins another segment.
    ///
    /// # Errors
    /// Of the disk, which is to have this one first.
    pub(crate) fn rotate(&mut self) -> io::Result<()> {
        if let Some(active) = self.active.as_mut().filter(|active| active.torn) {
            active.file.set_len(active.size)?;
            active.torn = false;
        }
        if self.bounds.sync != Sync::Never {
            self.sync()?;
        }
        self.active = None;
        self.unsynced = None;
        Ok(())
    }

    /// Since when something is not known to be on the disk.
    pub(crate) fn unsynced(&self) -> Option<Instant> {
        self.unsynced
    }

    /// Waits until all that was committed is on the disk.
    ///
    /// # Errors
    /// Of the disk. What was not written then is not tried again, as the kernel does not either: it goes on in another segment.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced.take().is_none() {
            return Ok(());
        }
        let Some(active) = &self.active else { return Ok(()) };
        let synced = active.file.sync_data();
        if synced.is_err() && !active.torn {
            self.active = None;
        }
        synced
    }

    /// Removes the segments that nobody needs, and gathers which of the objects in the others are done.
    pub(crate) fn tidy(&mut self) {
        self.tidy_segments();
        let mut table = self.shared.lock();
        let first = table.segments.keys().next().copied().unwrap_or(u64::MAX);
        let done: Vec<_> = table.done.drain(..).filter(|(_, start)| *start >= first).collect();
        drop(table);
        for (object, _) in done {
            self.frame(Kind::Done, object, |_| {});
        }
    }

    /// Removes the segments that nobody needs.
    pub(crate) fn tidy_segments(&mut self) {
        let active = self.active.as_ref().map_or(self.next, |active| active.number);
        let first_spare = || {
            let table = self.shared.lock();
            let needed = table.first_needed().unwrap_or(active).min(active);
            table.segments.keys().next().copied().filter(|first| *first < needed)
        };
        // Others do not wait for the table while the disk removes something: of what is spare nobody reads anything any more.
        while let Some(number) = first_spare() {
            match fs::remove_file(segment_path(&self.dir, number)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, dir = %self.dir.display(), "a segment of collected data cannot be removed");
                    break;
                }
            }
            let mut table = self.shared.lock();
            let bytes = table.segments.remove(&number).map_or(0, |segment| segment.bytes);
            table.bytes = table.bytes.saturating_sub(bytes);
        }
    }

    /// Whether there is only what nobody needs.
    pub(crate) fn is_spent(&self) -> bool {
        let table = self.shared.lock();
        self.gathered.is_empty() && table.objects.is_empty() && !table.segments.is_empty()
    }
}

impl Format {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Events => 1,
            Self::Csv => 2,
            Self::Parquet => 3,
        }
    }

    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::Events, Self::Csv, Self::Parquet].into_iter().find(|format| format.number() == number)
    }
}

/// Makes a folder, on the disk: one that is not there loses all that is in it.
fn make(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Where a segment is.
pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.log"))
}
