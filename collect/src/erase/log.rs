//! In the log: what is to be gone is written over where it lies.
//!
//! What cannot be read may be what is to be gone. Nobody will ever read it, so it is written over as well; only what says of itself that it was erased is taken
//! for erased by a start.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use super::is_meant;
use crate::counts::Reason;
use crate::log::frame::{self, Body, ERASED_HEAD, FRAME_HEAD, Head, Kind, Reader, SEGMENT_HEAD, Stored};
use crate::log::segment_path;
use crate::log::table::{Position, Segment};
use crate::upload::Source;

/// Zeros that are written at a time.
const ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// What was erased from a log.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) records: u64,
    /// Objects of records' own data.
    pub(crate) sides: Vec<String>,
}

/// What a segment has that is to be written over.
#[derive(Default)]
struct Meant {
    records: Vec<(u64, Head)>,
    /// Bytes that are no frames, or bodies that are not what was written: from, and how many.
    unreadable: Vec<(u64, u64)>,
    sides: Vec<String>,
}

impl Source {
    /// Writes over what segments before `end` have of a correlation id. Nobody writes to them any more, and nothing of this collection is written to blob
    /// meanwhile.
    ///
    /// # Errors
    /// Of the disk. What was done stays done.
    pub(crate) fn erase(&self, end: u64, correlation: &str) -> io::Result<Found> {
        let mut found = Found::default();
        let segments: Vec<_> =
            self.table.lock().segments.range(..end).map(|(number, segment)| (*number, *segment)).collect();
        for (number, segment) in segments {
            match self.erase_in(number, segment, correlation, &mut found) {
                // It was removed meanwhile, with all that was in it.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && !self.table.lock().segments.contains_key(&number) => {}
                other => other?,
            }
        }
        Ok(found)
    }

    fn erase_in(
        &self,
        number: u64,
        segment: Segment,
        correlation: &str,
        found: &mut Found,
    ) -> io::Result<()> {
        let path = segment_path(&self.dir, number);
        let mut meant = Meant::default();
        match segment.salt {
            // It has no beginning, and so nobody reads anything of it.
            0 => meant.unreadable.push((0, segment.bytes)),
            salt => meant.read(File::open(&path)?, salt, segment.bytes, correlation)?,
        }
        if meant.records.is_empty() && meant.unreadable.is_empty() {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&path)?;
        for (offset, head) in &meant.records {
            let (body, said) = (offset + FRAME_HEAD as u64, ERASED_HEAD as u64);
            write_zeros(&file, body + said, u64::from(head.length).saturating_sub(said))?;
            file.write_all_at(&frame::erased(segment.salt, head), body)?;
        }
        for (from, length) in meant.unreadable {
            write_zeros(&file, from, length)?;
        }
        file.sync_all()?;
        for (offset, head) in meant.records {
            self.forget(head.object, Position { segment: number, offset });
            found.records += 1;
        }
        found.sides.extend(meant.sides);
        Ok(())
    }

    /// Takes a record out of what is known of its object.
    fn forget(&self, number: u64, position: Position) {
        let mut table = self.table.lock();
        let Some(object) = table.objects.get_mut(&number) else { return };
        if position >= object.end {
            return;
        }
        object.erased = true;
        object.records = object.records.saturating_sub(1);
        if position < object.sent.end {
            object.sent.records = object.sent.records.saturating_sub(1);
        } else {
            self.collection.counters.dropped(Reason::Deleted, 1);
        }
        // What was tried and may be in blob goes, too.
        object.rewrite |= position < object.sent.end;
        if let Some(attempt) = object.attempt.take_if(|attempt| position < attempt.end) {
            object.rewrite = true;
            object.unsent_since = [attempt.since, object.unsent_since].into_iter().flatten().min();
        }
        if object.records == object.sent.records {
            object.unsent_since = None;
        }
        if object.recovered {
            // Blob may have it. Of an object of which the log has nothing any more, blob is asked itself.
            object.rewrite = object.records > 0;
        }
        table.remove_if_over(number);
    }
}

impl Meant {
    fn read(&mut self, mut file: File, salt: u64, size: u64, correlation: &str) -> io::Result<()> {
        file.seek(SeekFrom::Start(SEGMENT_HEAD as u64))?;
        let mut reader = Reader::of_part(BufReader::new(file), salt, SEGMENT_HEAD as u64, size);
        let mut at = SEGMENT_HEAD as u64;
        while let Some((offset, head, body)) = reader.next(|_| true)? {
            self.gap(at, offset);
            at = offset + FRAME_HEAD as u64 + u64::from(head.length);
            match body {
                Body::Whole(body) if head.kind == Kind::Record => {
                    let stored = Stored::read(body)
                        .ok_or_else(|| io::Error::other("a record is not one that is written here"))?;
                    if is_meant(stored.correlation, correlation.as_bytes()) {
                        self.records.push((offset, head));
                        self.sides.extend(stored.side.map(|(name, _)| name.to_owned()));
                    }
                }
                Body::Damaged => self.gap(offset + FRAME_HEAD as u64, at),
                Body::Whole(_) | Body::Erased | Body::Passed => {}
            }
        }
        self.gap(at, size);
        Ok(())
    }

    fn gap(&mut self, from: u64, to: u64) {
        if to > from {
            self.unreadable.push((from, to - from));
        }
    }
}

fn write_zeros(file: &File, mut at: u64, mut length: u64) -> io::Result<()> {
    while length > 0 {
        let part = length.min(ZEROS.len() as u64);
        file.write_all_at(ZEROS.get(..part as usize).unwrap_or(&ZEROS), at)?;
        at += part;
        length -= part;
    }
    Ok(())
}
