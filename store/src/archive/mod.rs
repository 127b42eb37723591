//! Archives of models: tar, tar.gz and zip, read with bounds. Nothing is written by this.
//!
//! An archive is somebody's file, so each claim in it is checked before it counts. Its members are handed to a sink one after the other,
//! as a [`FilePath`] and a reader; where they go is the sink's affair, and since no such path leads out of a folder, no member does.
//! What is taken is little: files and folders. Links, devices, sparse files, and whatever two programs might read in two ways (a name
//! twice, data behind the end, entries of a zip that overlap) are refused, each by its name.
//!
//! Invariant: what the archive says about its sizes bounds nothing. Entries, bytes and ratio are counted on what comes out, while it
//! comes out ([`ArchiveLimits`]), and memory is a few buffers, whatever a member's size: the names alone are kept.
//!
//! Invariant: checksums stand behind what they are about, so a member may have been handed over before it is known to be damaged.
//! What the sink was given counts when [`unpack`] has returned `Ok`, and not before.

mod error;
mod gzip;
mod limits;
mod member;
mod names;
mod pax;
mod shown;
mod source;
mod tar;
#[cfg(test)]
mod tests;
mod zip;

use std::io::{self, BufReader, Read, Seek, SeekFrom};

pub use error::{ArchiveError, Damage};
pub use limits::{ArchiveLimits, RATIO_FLOOR};
pub use shown::{MemberKind, MemberName};
pub use tar::RECORD_BYTES;

use crate::path::FilePath;
use gzip::Gunzip;
use limits::Meter;
use source::Source;

/// How much of the file is read at once, bytes.
const BUFFER: usize = 128 * 1024;

/// What sort of archive a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArchiveKind {
    /// Tar: v7, ustar, GNU and PAX headers.
    Tar,
    /// Tar within gzip, of one member or more.
    TarGz,
    /// Zip and zip64: stored and deflated entries.
    Zip,
}

impl ArchiveKind {
    /// By the end of a name, in either case: `.tar`, `.tar.gz`, `.tgz`, `.zip`. `None` is for files that are no archives.
    pub fn of(path: &str) -> Option<Self> {
        let ends = |end: &str| {
            path.len()
                .checked_sub(end.len())
                .and_then(|at| path.get(at..))
                .is_some_and(|tail| tail.eq_ignore_ascii_case(end))
        };
        match () {
            () if ends(".tar.gz") || ends(".tgz") => Some(Self::TarGz),
            () if ends(".tar") => Some(Self::Tar),
            () if ends(".zip") => Some(Self::Zip),
            () => None,
        }
    }
}

/// What came out of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files handed to the sink.
    pub files: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// Takes the path of each file, and its contents.
///
/// It need not read to the end: the rest is read and checked all the same. An error of the reader need not be passed on either, for it
/// ends the unpacking in any case.
pub type Sink<'a> = dyn FnMut(&FilePath, &mut dyn Read) -> io::Result<()> + 'a;

/// Hands each file of an archive to `sink`: a tar's in their order, a zip's in the order in which they lie in it. Folders are passed over,
/// their names checked; modes, owners and times are nobody's concern here.
///
/// `archive` is read from its start, wherever it stands, by blocking calls. When this fails, whatever `sink` was given is to be thrown
/// away: a checksum or the end of the archive may have been what was wrong.
///
/// # Errors
/// [`ArchiveError::Sink`] if `sink` fails, [`ArchiveError::Io`] if the file cannot be read, and otherwise what is wrong with the archive or
/// which of the `limits` it goes beyond.
pub fn unpack(
    kind: ArchiveKind,
    archive: impl Read + Seek,
    limits: &ArchiveLimits,
    sink: &mut Sink<'_>,
) -> Result<Unpacked, ArchiveError> {
    let mut source = Source::new(archive);
    source.seek(SeekFrom::Start(0)).map_err(ArchiveError::outside)?;
    let mut meter = Meter::new(limits);
    match kind {
        ArchiveKind::Tar => {
            tar::unpack(&mut BufReader::with_capacity(BUFFER, source), &mut meter, sink)?;
        }
        ArchiveKind::TarGz => tar::unpack(&mut Gunzip::new(source, limits.ratio), &mut meter, sink)?,
        ArchiveKind::Zip => zip::unpack(&mut source, &mut meter, sink)?,
    }
    Ok(meter.unpacked())
}
