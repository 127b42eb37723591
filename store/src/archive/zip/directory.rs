//! The directory of a zip, and the header that each entry has besides.
//!
//! Source: PKWARE, *.ZIP File Format Specification* 6.3.10 (2022), sections 4.3.7, 4.3.12, 4.4 and 4.5.3.

use std::io::{BufReader, Read, Seek, SeekFrom};

use crate::archive::BUFFER;
use crate::archive::error::{ArchiveError, Damage};
use crate::archive::names::Names;
use crate::archive::shown::{MemberKind, MemberName};
use crate::path::{FilePath, MAX_LENGTH, PathError};

use super::end::End;
use super::{u16_at, u32_at, u64_at};

const SIGNATURE: &[u8] = b"PK\x01\x02";
const LENGTH: usize = 46;
const LOCAL_SIGNATURE: &[u8] = b"PK\x03\x04";
const LOCAL_LENGTH: usize = 30;

/// Flags: encrypted, strongly encrypted, and directory masked for encryption.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
/// Extra fields: sizes of zip64, and Info-ZIP's name in UTF-8.
const ZIP64: u16 = 0x0001;
const UNICODE_NAME: u16 = 0x7075;

/// How an entry's data is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Stored,
    Deflated,
}

/// An entry, as the directory has it.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` for a folder.
    pub(super) path: Option<FilePath>,
    /// The name as it is written.
    name: Vec<u8>,
    pub(super) method: Method,
    /// CRC-32 of what it unpacks to.
    pub(super) checksum: u32,
    /// Bytes that it unpacks to.
    pub(super) size: u64,
    /// Bytes that it takes.
    pub(super) packed: u64,
    /// Where its own header is.
    pub(super) offset: u64,
}

impl Entry {
    /// Bytes of its header, at least.
    pub(super) fn least_header(&self) -> u64 {
        (LOCAL_LENGTH + self.name.len()) as u64
    }
}

/// Reads all entries, whose number has been held against the limit. Of each, a name's length is kept.
pub(super) fn read<R: Read + Seek>(source: &mut R, end: &End) -> Result<Vec<Entry>, ArchiveError> {
    source.seek(SeekFrom::Start(end.start)).map_err(ArchiveError::outside)?;
    let mut directory = BufReader::with_capacity(BUFFER, source.take(end.end - end.start));
    let mut names = Names::default();
    let mut entries = Vec::new();
    let mut at = end.start;
    for _ in 0..end.entries {
        let raw = Raw::read(&mut directory, at)?;
        at += raw.length();
        entries.push(raw.entry(&mut names)?);
    }
    match at == end.end {
        true => Ok(entries),
        false => Err(ArchiveError::Damaged { at, damage: Damage::Directory }),
    }
}

/// An entry of the directory, bytes alone.
struct Raw {
    at: u64,
    fixed: [u8; LENGTH],
    name: Vec<u8>,
    extra: Vec<u8>,
}

impl Raw {
    fn read(directory: &mut impl Read, at: u64) -> Result<Self, ArchiveError> {
        let damaged = |error: std::io::Error| match ArchiveError::outside(error) {
            ArchiveError::NoEnd => ArchiveError::Damaged { at, damage: Damage::Directory },
            other => other,
        };
        let mut fixed = [0; LENGTH];
        directory.read_exact(&mut fixed).map_err(damaged)?;
        if !fixed.starts_with(SIGNATURE) {
            return Err(ArchiveError::Damaged { at, damage: Damage::Directory });
        }
        let mut name = vec![0; u16_at(&fixed, 28).into()];
        directory.read_exact(&mut name).map_err(damaged)?;
        let mut extra = vec![0; u16_at(&fixed, 30).into()];
        directory.read_exact(&mut extra).map_err(damaged)?;
        let mut comment = vec![0; u16_at(&fixed, 32).into()];
        directory.read_exact(&mut comment).map_err(damaged)?;
        Ok(Self { at, fixed, name, extra })
    }

    fn length(&self) -> u64 {
        LENGTH as u64 + self.name.len() as u64 + self.extra.len() as u64 + u64::from(u16_at(&self.fixed, 32))
    }

    fn entry(self, names: &mut Names) -> Result<Entry, ArchiveError> {
        let member = MemberName::new(&self.name);
        // Before it is kept: a folder's has a slash more.
        if self.name.len() > MAX_LENGTH + 1 {
            return Err(ArchiveError::Path { member, source: PathError::Long });
        }
        if u16_at(&self.fixed, 8) & ENCRYPTED != 0 {
            return Err(ArchiveError::Encrypted { member });
        }
        let method = match u16_at(&self.fixed, 10) {
            0 => Method::Stored,
            8 => Method::Deflated,
            method => return Err(ArchiveError::Method { member, method }),
        };
        // What is split over several files says so here.
        self.expect([0, u16::MAX].contains(&u16_at(&self.fixed, 34)), Damage::Parts)?;
        // A byte of version and a checksum go before the name.
        let unicode = self.extra_field(UNICODE_NAME)?;
        self.expect(unicode.is_none_or(|field| field.get(5..) == Some(&self.name)), Damage::Directory)?;
        let [size, packed, offset] = self.sizes()?;
        let path = match self.is_folder(&member)? {
            false => Some(names.file(&self.name)?),
            true if size != 0 => return Err(self.damaged(Damage::FolderContents)),
            true => {
                names.folder(&self.name)?;
                None
            }
        };
        let checksum = u32_at(&self.fixed, 16);
        Ok(Entry { path, name: self.name, method, checksum, size, packed, offset })
    }

    /// By the name's end, with which the mode has to agree, if there is one: the upper half of the attributes, where Unix's programs
    /// and those that imitate them put it.
    fn is_folder(&self, member: &MemberName) -> Result<bool, ArchiveError> {
        let folder = self.name.ends_with(b"/");
        let kind = match (u16_at(&self.fixed, 40) >> 12, folder) {
            (0, _) | (0o10, false) | (0o4, true) => return Ok(folder),
            (0o10, true) | (0o4, false) => MemberKind::FolderByHalf,
            (0o12, _) => MemberKind::Symlink,
            (0o2 | 0o6, _) => MemberKind::Device,
            (0o1, _) => MemberKind::Fifo,
            (0o14, _) => MemberKind::Socket,
            (other, _) => MemberKind::Other(other as u8),
        };
        Err(ArchiveError::Kind { member: member.clone(), kind })
    }

    /// Unpacked size, packed size and offset. Each that is full stands in zip64's field, in this order.
    fn sizes(&self) -> Result<[u64; 3], ArchiveError> {
        let mut sizes = [24, 20, 42].map(|at| u64::from(u32_at(&self.fixed, at)));
        let mut zip64 = self.extra_field(ZIP64)?;
        for size in sizes.iter_mut().filter(|size| **size == u64::from(u32::MAX)) {
            let Some(field) = &mut zip64 else { continue };
            let (value, rest) = field.split_at_checked(8).ok_or_else(|| self.damaged(Damage::Zip64))?;
            (*size, *field) = (u64_at(value, 0), rest);
        }
        Ok(sizes)
    }

    /// The contents of an extra field. Twice the same one is refused; zeros at the end that are too few for a field are padding.
    fn extra_field(&self, wanted: u16) -> Result<Option<&[u8]>, ArchiveError> {
        let (mut rest, mut found) = (&self.extra[..], None);
        while let Some((head, tail)) = rest.split_at_checked(4) {
            let field = tail.split_at_checked(u16_at(head, 2).into());
            let (field, tail) = field.ok_or_else(|| self.damaged(Damage::Directory))?;
            if u16_at(head, 0) == wanted {
                self.expect(found.replace(field).is_none(), Damage::Directory)?;
            }
            rest = tail;
        }
        self.expect(rest.iter().all(|byte| *byte == 0), Damage::Directory)?;
        Ok(found)
    }

    fn expect(&self, holds: bool, damage: Damage) -> Result<(), ArchiveError> {
        if holds { Ok(()) } else { Err(self.damaged(damage)) }
    }

    fn damaged(&self, damage: Damage) -> ArchiveError {
        ArchiveError::Damaged { at: self.at, damage }
    }
}

/// Reads an entry's own header, after which the source stands at its data; says how long it is. It has to have the directory's name,
/// method and way of encryption; its sizes may be left open, and aren't looked at.
pub(super) fn local_header<R: Read + Seek>(source: &mut R, entry: &Entry) -> Result<u64, ArchiveError> {
    let at = entry.offset;
    source.seek(SeekFrom::Start(at)).map_err(ArchiveError::outside)?;
    let mut fixed = [0; LOCAL_LENGTH];
    source.read_exact(&mut fixed).map_err(ArchiveError::outside)?;
    let method = match entry.method {
        Method::Stored => 0,
        Method::Deflated => 8,
    };
    let agrees = fixed.starts_with(LOCAL_SIGNATURE)
        && u16_at(&fixed, 6) & ENCRYPTED == 0
        && u16_at(&fixed, 8) == method
        && usize::from(u16_at(&fixed, 26)) == entry.name.len();
    let damaged = ArchiveError::Damaged { at, damage: Damage::LocalHeader };
    if !agrees {
        return Err(damaged);
    }
    let mut name = vec![0; entry.name.len()];
    source.read_exact(&mut name).map_err(ArchiveError::outside)?;
    if name != entry.name {
        return Err(damaged);
    }
    let extra = i64::from(u16_at(&fixed, 28));
    source.seek(SeekFrom::Current(extra)).map_err(ArchiveError::outside)?;
    Ok(entry.least_header() + extra.unsigned_abs())
}
