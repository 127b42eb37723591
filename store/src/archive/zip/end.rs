//! The end of a zip: how many entries it has and where their directory is.
//!
//! Source: PKWARE, *.ZIP File Format Specification* 6.3.10 (2022), sections 4.3.14 to 4.3.16.

use std::io::{Read, Seek, SeekFrom};

use crate::archive::error::{ArchiveError, Damage};

use super::{u16_at, u32_at, u64_at};

const END_SIGNATURE: &[u8] = b"PK\x05\x06";
const END_LENGTH: usize = 22;
const LOCATOR_SIGNATURE: &[u8] = b"PK\x06\x07";
const LOCATOR_LENGTH: u64 = 20;
const END64_SIGNATURE: &[u8] = b"PK\x06\x06";
const END64_LENGTH: u64 = 56;

/// What the end says, once it agrees with itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Entries in the directory.
    pub(super) entries: u64,
    /// Where the directory begins, bytes from the start of the file.
    pub(super) start: u64,
    /// Where it ends.
    pub(super) end: u64,
}

/// Finds the end: the last thing that has its signature, whose comment has to reach to the end of the file. A file in which others would
/// find another end than that (a comment that holds one, data behind it) is refused.
pub(super) fn find<R: Read + Seek>(source: &mut R, length: u64) -> Result<End, ArchiveError> {
    let reach = length.min(END_LENGTH as u64 + u64::from(u16::MAX));
    let tail_at = length - reach;
    let mut tail = vec![0; reach as usize];
    read_at(source, tail_at, &mut tail)?;
    let found = tail.windows(END_LENGTH).rposition(|window| window.starts_with(END_SIGNATURE));
    let at = found.ok_or(ArchiveError::Damaged { at: length, damage: Damage::EndRecord })?;
    let record = &tail[at..];
    let record_at = tail_at + at as u64;
    if record.len() != END_LENGTH + usize::from(u16_at(record, 20)) {
        return Err(ArchiveError::Damaged { at: record_at, damage: Damage::EndRecord });
    }
    let short = Short::new(record);
    let locator = if short.is_full() { locator(source, record_at)? } else { None };
    match locator {
        Some(locator) => long(source, &short, record_at - LOCATOR_LENGTH, &locator),
        None => short.end(record_at),
    }
}

/// The end record as it is without zip64.
struct Short {
    parts: [u16; 2],
    entries: [u16; 2],
    size: u32,
    start: u32,
}

impl Short {
    fn new(record: &[u8]) -> Self {
        Self {
            parts: [u16_at(record, 4), u16_at(record, 6)],
            entries: [u16_at(record, 8), u16_at(record, 10)],
            size: u32_at(record, 12),
            start: u32_at(record, 16),
        }
    }

    /// Whether a field has the value that says to look into the records of zip64, if there are any.
    fn is_full(&self) -> bool {
        self.parts.contains(&u16::MAX)
            || self.entries.contains(&u16::MAX)
            || self.size == u32::MAX
            || self.start == u32::MAX
    }

    fn end(&self, at: u64) -> Result<End, ArchiveError> {
        if self.parts != [0, 0] || self.entries[0] != self.entries[1] {
            return Err(ArchiveError::Damaged { at, damage: Damage::Parts });
        }
        directory(u64::from(self.entries[0]), self.start.into(), self.size.into(), at)
    }

    /// Whether the fields that it has itself are those of zip64's record.
    fn agrees(&self, entries: u64, size: u64, start: u64) -> bool {
        let count = |field: u16| field == u16::MAX || u64::from(field) == entries;
        let wide = |field: u32, value: u64| field == u32::MAX || u64::from(field) == value;
        self.parts.iter().all(|part| [0, u16::MAX].contains(part))
            && self.entries.iter().all(|&field| count(field))
            && wide(self.size, size)
            && wide(self.start, start)
    }
}

/// The record before the end that says where zip64's is.
fn locator<R: Read + Seek>(source: &mut R, end_at: u64) -> Result<Option<[u8; 20]>, ArchiveError> {
    let Some(at) = end_at.checked_sub(LOCATOR_LENGTH) else { return Ok(None) };
    let mut locator = [0; LOCATOR_LENGTH as usize];
    read_at(source, at, &mut locator)?;
    Ok(locator.starts_with(LOCATOR_SIGNATURE).then_some(locator))
}

/// The end as zip64 has it. Its record stands right before the locator.
fn long<R: Read + Seek>(
    source: &mut R,
    short: &Short,
    locator_at: u64,
    locator: &[u8; 20],
) -> Result<End, ArchiveError> {
    let at = u64_at(locator, 8);
    let damaged = |damage| ArchiveError::Damaged { at: locator_at, damage };
    let extent = locator_at.checked_sub(at).filter(|&extent| extent >= END64_LENGTH);
    let extent = extent.ok_or(damaged(Damage::Zip64))?;
    let mut record = [0; END64_LENGTH as usize];
    read_at(source, at, &mut record)?;
    // Its size leaves out the signature and itself.
    if !record.starts_with(END64_SIGNATURE) || u64_at(&record, 4) != extent - 12 {
        return Err(damaged(Damage::Zip64));
    }
    if u32_at(locator, 4) != 0 || u32_at(locator, 16) > 1 || u64_at(&record, 16) != 0 {
        return Err(damaged(Damage::Parts));
    }
    let (entries, size, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    if u64_at(&record, 24) != entries || !short.agrees(entries, size, start) {
        return Err(damaged(Damage::Zip64));
    }
    directory(entries, start, size, at)
}

/// The directory, which has to end where the records of the end begin.
fn directory(entries: u64, start: u64, size: u64, end: u64) -> Result<End, ArchiveError> {
    match start.checked_add(size) {
        Some(sum) if sum == end => Ok(End { entries, start, end }),
        _ => Err(ArchiveError::Damaged { at: end, damage: Damage::Directory }),
    }
}

fn read_at<R: Read + Seek>(source: &mut R, at: u64, buffer: &mut [u8]) -> Result<(), ArchiveError> {
    source.seek(SeekFrom::Start(at)).map_err(ArchiveError::outside)?;
    source.read_exact(buffer).map_err(ArchiveError::outside)
}
