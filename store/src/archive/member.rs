//! One member on its way to the sink: counted, checked, and read to its end whether the sink does so or not.

use std::io::{self, Read};

use flate2::Crc;

use crate::path::FilePath;

use super::Sink;
use super::error::ArchiveError;
use super::limits::{Meter, Packed};
use super::shown::MemberName;

/// What an archive says of a member's contents.
pub(super) struct Contents {
    /// Bytes.
    pub(super) declared: u64,
    /// CRC-32, where there is one.
    pub(super) checksum: Option<u32>,
    /// What it comes from, where that is known of each member.
    pub(super) packed: Option<Packed>,
}

/// Hands a member to the sink, then reads what that left. `data` ends where the member does.
pub(super) fn deliver(
    path: &FilePath,
    contents: Contents,
    data: &mut dyn Read,
    meter: &mut Meter<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), ArchiveError> {
    let member = MemberName::from(path);
    meter.declared(&member, contents.declared)?;
    let mut reader =
        Checked { member, contents, data, meter, read: 0, sum: Crc::new(), ended: false, failed: None };
    let taken = sink(path, &mut reader);
    if reader.failed.is_none() {
        taken.map_err(|source| ArchiveError::Sink { member: reader.member.clone(), source })?;
        // Its own errors are kept, and there are no others.
        let _ = io::copy(&mut reader, &mut io::sink());
    }
    match reader.failed.take() {
        Some(error) => Err(error),
        None => {
            meter.file_ended();
            Ok(())
        }
    }
}

/// Reads a member, and keeps the first thing that is wrong: a sink may wrap the error, or lose it.
struct Checked<'a, 'b> {
    member: MemberName,
    contents: Contents,
    data: &'a mut dyn Read,
    meter: &'a mut Meter<'b>,
    read: u64,
    sum: Crc,
    ended: bool,
    failed: Option<ArchiveError>,
}

impl Checked<'_, '_> {
    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let read = loop {
            match self.data.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| ArchiveError::within(&self.member, error))?,
            }
        };
        if read == 0 {
            self.ended = true;
            return self.end().map(|()| 0);
        }
        self.read += read as u64;
        self.meter.file(&self.member, read as u64, self.read)?;
        if let Some(packed) = self.contents.packed {
            self.meter.ratio(&self.member, self.read, packed)?;
        }
        if self.read > self.contents.declared {
            return Err(self.size());
        }
        if self.contents.checksum.is_some() {
            self.sum.update(&buffer[..read]);
        }
        Ok(read)
    }

    fn end(&self) -> Result<(), ArchiveError> {
        if self.read != self.contents.declared {
            return Err(self.size());
        }
        match self.contents.checksum {
            Some(expected) if expected != self.sum.sum() => {
                Err(ArchiveError::Checksum { member: self.member.clone(), expected, actual: self.sum.sum() })
            }
            _ => Ok(()),
        }
    }

    fn size(&self) -> ArchiveError {
        let declared = self.contents.declared;
        ArchiveError::Size { member: self.member.clone(), declared, actual: self.read }
    }
}

impl Read for Checked<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = &self.failed {
            return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
        }
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        self.step(buffer).map_err(|error| {
            let shown = error.to_string();
            self.failed = Some(error);
            io::Error::new(io::ErrorKind::InvalidData, shown)
        })
    }
}
