//! zip: the entries of its directory, each read from where it lies.
//!
//! The directory is read here, not by the crate `zip`. That one looks for an earlier end record where the last one doesn't suit it, sets
//! memory aside by the number of entries that a record claims, keeps the later of two entries with one name, and takes the end of
//! compressed data for the end of a member. Here the last end record is the one, its number of entries is held against the limit first,
//! and what could be read in two ways is refused.
//!
//! Invariant: all entries are known to have names, kinds and methods that are taken, and to lie apart, before the first goes to the
//! sink. So a few bytes cannot be unpacked over and over (D. Fifield, "A better zip bomb", 2019).

mod directory;
mod end;

use std::io::{BufReader, Read, Seek, SeekFrom};

use flate2::bufread::DeflateDecoder;

use crate::path::FilePath;

use super::error::{ArchiveError, Damage};
use super::limits::{Meter, Packed};
use super::member::{Contents, deliver};
use super::{BUFFER, Sink};

use directory::{Entry, Method};

/// Hands each file to the sink.
pub(super) fn unpack<R: Read + Seek>(
    source: &mut R,
    meter: &mut Meter<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), ArchiveError> {
    let length = source.seek(SeekFrom::End(0)).map_err(ArchiveError::outside)?;
    let end = end::find(source, length)?;
    meter.entries(end.entries)?;
    let mut entries = directory::read(source, &end)?;
    entries.sort_by_key(|entry| entry.offset);
    let bounds: Vec<u64> = entries.iter().skip(1).map(|next| next.offset).chain([end.start]).collect();
    // By what the directory says alone, so that not one is unpacked where some overlap.
    for (entry, &bound) in entries.iter().zip(&bounds) {
        fits(entry, entry.least_header(), bound)?;
    }
    for (entry, &bound) in entries.iter().zip(&bounds) {
        fits(entry, directory::local_header(source, entry)?, bound)?;
        if let Some(path) = &entry.path {
            file(source, entry, path, length, meter, sink)?;
        }
    }
    Ok(())
}

/// Whether an entry ends before what comes next does begin.
fn fits(entry: &Entry, header: u64, bound: u64) -> Result<(), ArchiveError> {
    match entry.offset.checked_add(header).and_then(|data| data.checked_add(entry.packed)) {
        Some(end) if end <= bound => Ok(()),
        _ => Err(ArchiveError::Damaged { at: entry.offset, damage: Damage::Overlap }),
    }
}

/// Hands over one file, whose data is what the source stands at.
fn file(
    source: &mut impl Read,
    entry: &Entry,
    path: &FilePath,
    length: u64,
    meter: &mut Meter<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), ArchiveError> {
    let packed = Some(Packed { member: entry.packed, archive: length });
    let contents = Contents { declared: entry.size, checksum: Some(entry.checksum), packed };
    let mut data = source.take(entry.packed);
    match entry.method {
        Method::Stored => deliver(path, contents, &mut data, meter, sink),
        Method::Deflated => {
            let mut decoder = DeflateDecoder::new(BufReader::with_capacity(BUFFER, data));
            deliver(path, contents, &mut decoder, meter, sink)?;
            match decoder.total_in() {
                all if all == entry.packed => Ok(()),
                _ => Err(ArchiveError::Damaged { at: entry.offset, damage: Damage::Tail }),
            }
        }
    }
}

/// Two bytes of a record, lowest first. The place is one of the format's, within the record.
fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([record[at], record[at + 1]])
}

/// Four of them.
fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from(u16_at(record, at)) | u32::from(u16_at(record, at + 2)) << 16
}

/// Eight of them.
fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32
}
