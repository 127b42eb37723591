//! Reading a ZIP file's directory, and small files out of it, without believing what it claims.
//!
//! libtorch allocates as many bytes as a directory says that a file has. So nothing is left of it that is larger than the archive
//! could hold. Source: PKWARE's APPNOTE 6.3, sections 4.3.12 to 4.3.16 and 4.5.3 (ZIP64).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::file::{FileError, Opened};
use crate::limits::{DIRECTORY_BYTES, ENTRIES, NAME_BYTES};

/// The end of a directory, and the longest comment that can follow it.
const END_BYTES: u64 = 22 + 65_535;

/// What is wrong with a file as a ZIP file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZipError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("is no ZIP file: it begins with {0:02x?}, not with [50, 4b, 03, 04]")]
    Start([u8; 4]),
    #[error("is cut off, or no ZIP file: it has no directory")]
    NoDirectory,
    #[error("is broken: its directory {0}")]
    Directory(&'static str),
    #[error("`{name}` in it {problem}")]
    Entry { name: String, problem: &'static str },
    #[error("`{name}` in it claims {size} bytes, over the limit of {limit}")]
    Large { name: String, size: u64, limit: u64 },
}

/// An open archive.
pub(crate) struct Zip {
    opened: Opened,
    entries: Vec<Entry>,
    /// Which entry has a name, in small letters: libtorch does not tell them from capital ones.
    names: BTreeMap<String, usize>,
}

/// A file in it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    deflated: bool,
    /// Bytes in the archive.
    stored: u64,
    /// Bytes that it has.
    pub(crate) size: u64,
    offset: u64,
}

impl Entry {
    /// Where it ends at the earliest: a header goes before its bytes, with its name and perhaps more.
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(30 + self.name.len() as u64)?.checked_add(self.stored)
    }
}

impl Zip {
    /// Opens an archive and checks its directory. Files that are compressed may have `inflated_bytes` together.
    pub(crate) fn open(path: &Path, inflated_bytes: u64) -> Result<Self, ZipError> {
        let opened = Opened::open(path)?;
        let (file, len) = (&opened.file, opened.len);
        start(file, len)?;
        let Directory { bytes, count, offset } = directory(file, len)?;
        let entries = entries(&bytes, count)?;
        check(&entries, offset, inflated_bytes)?;
        let mut names = BTreeMap::new();
        for (number, entry) in entries.iter().enumerate() {
            if names.insert(entry.name.to_ascii_lowercase(), number).is_some() {
                return Err(ZipError::Entry { name: entry.name.clone(), problem: "is there twice" });
            }
        }
        Ok(Self { opened, entries, names })
    }

    /// The file that was looked at.
    pub(crate) fn into_file(self) -> Opened {
        self.opened
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.get(*self.names.get(&name.to_ascii_lowercase())?)
    }

    /// What a file has in it, if that is no more than `limit` bytes.
    pub(crate) fn read(&self, entry: &Entry, limit: u64) -> Result<Vec<u8>, ZipError> {
        if entry.size > limit {
            return Err(ZipError::Large { name: entry.name.clone(), size: entry.size, limit });
        }
        let broken = |problem| ZipError::Entry { name: entry.name.clone(), problem };
        let mut header = [0; 30];
        fill(&self.opened.file, &mut header, entry.offset)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(broken("is not where the directory says"));
        }
        let lengths = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let start = entry.offset.saturating_add(30 + lengths);
        let size = usize::try_from(entry.stored).map_err(|_| broken("is too large"))?;
        let mut bytes = vec![0; size];
        fill(&self.opened.file, &mut bytes, start)?;
        if !entry.deflated {
            return Ok(bytes);
        }
        let most = usize::try_from(entry.size).map_err(|_| broken("is too large"))?;
        miniz_oxide::inflate::decompress_to_vec_with_limit(&bytes, most)
            .map_err(|_| broken("does not decompress to the size that it claims"))
    }
}

/// Whether it begins with a file of an archive, as PyTorch's do. What is put before them moves all of them.
fn start(file: &File, len: u64) -> Result<(), ZipError> {
    if len < 4 {
        return Err(ZipError::NoDirectory);
    }
    let mut start = [0; 4];
    fill(file, &mut start, 0)?;
    if start == *b"PK\x03\x04" { Ok(()) } else { Err(ZipError::Start(start)) }
}

struct Directory {
    bytes: Vec<u8>,
    /// How many files it has.
    count: u64,
    /// Where it begins, behind all of them.
    offset: u64,
}

fn directory(file: &File, len: u64) -> Result<Directory, ZipError> {
    let tail_len = len.min(END_BYTES);
    let tail = read(file, len - tail_len, tail_len)?;
    // From the end, as libtorch looks for it.
    let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06").ok_or(ZipError::NoDirectory)?;
    let record = tail.get(end..end + 22).ok_or(ZipError::NoDirectory)?;
    let (mut count, mut size, mut offset) =
        (u64::from(u16_at(record, 10)), u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    let at = len - tail_len + end as u64;
    // ZIP64, as PyTorch writes it always: a pointer of 20 bytes stands before the end.
    if let Some(before) = at.checked_sub(20) {
        let locator = read(file, before, 20)?;
        if locator.starts_with(b"PK\x06\x07") {
            let large = u64_at(&locator, 8);
            let fits = large.checked_add(56).is_some_and(|end| end <= len);
            let record = if fits { read(file, large, 56)? } else { Vec::new() };
            if !record.starts_with(b"PK\x06\x06") {
                return Err(ZipError::Directory("is not where its end says"));
            }
            (count, size, offset) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
        }
    }
    if offset.checked_add(size).is_none_or(|end| end > at) {
        return Err(ZipError::Directory("is not where its end says"));
    }
    if size > DIRECTORY_BYTES {
        return Err(ZipError::Directory("has more than 16 MiB"));
    }
    if count > ENTRIES {
        return Err(ZipError::Directory("has more than 65536 files"));
    }
    Ok(Directory { bytes: read(file, offset, size)?, count, offset })
}

fn entries(directory: &[u8], count: u64) -> Result<Vec<Entry>, ZipError> {
    const SHORT: ZipError = ZipError::Directory("is shorter than it says");
    let mut rest = directory;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (header, after) = rest.split_at_checked(46).ok_or(SHORT)?;
        if !header.starts_with(b"PK\x01\x02") {
            return Err(ZipError::Directory("has something else among its entries"));
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(header, at)));
        let (name, after) = after.split_at_checked(name).ok_or(SHORT)?;
        let (extra, after) = after.split_at_checked(extra).ok_or(SHORT)?;
        rest = after.get(comment..).ok_or(SHORT)?;
        if name.contains(&0) {
            // libtorch's would end there.
            return Err(ZipError::Directory("has a name with a zero in it"));
        }
        if name.len() > NAME_BYTES {
            return Err(ZipError::Directory("has a name of more than 4096 bytes"));
        }
        let name =
            std::str::from_utf8(name).map_err(|_| ZipError::Directory("has a name that is no UTF-8"))?;
        let name = name.to_owned();
        let deflated = match (u16_at(header, 10), u16_at(header, 8) & 1) {
            (0, 0) => false,
            (8, 0) => true,
            (_, 0) => {
                return Err(ZipError::Entry { name, problem: "is compressed in a way that is not known" });
            }
            _ => return Err(ZipError::Entry { name, problem: "is encrypted" }),
        };
        let mut numbers = [24, 20, 42].map(|at| u64::from(u32_at(header, at)));
        enlarge(&mut numbers, extra);
        let [size, stored, offset] = numbers;
        entries.push(Entry { name, deflated, stored, size, offset });
    }
    Ok(entries)
}

/// Numbers that are all ones stand in the field of kind 1, in this order.
fn enlarge(numbers: &mut [u64; 3], mut extra: &[u8]) {
    while let Some((head, after)) = extra.split_at_checked(4) {
        let len = usize::from(u16_at(head, 2)).min(after.len());
        let (mut field, rest) = after.split_at(len);
        if u16_at(head, 0) == 1 {
            for number in numbers.iter_mut().filter(|number| **number == u64::from(u32::MAX)) {
                let Some((value, after)) = field.split_at_checked(8) else { break };
                *number = u64_at(value, 0);
                field = after;
            }
        }
        extra = rest;
    }
}

/// Holds what the directory claims against the place that there is before it.
fn check(entries: &[Entry], end: u64, inflated_bytes: u64) -> Result<(), ZipError> {
    let mut inflated = 0u64;
    for entry in entries {
        let broken = |problem| Err(ZipError::Entry { name: entry.name.clone(), problem });
        if entry.end().is_none_or(|own| own > end) {
            return broken("claims more bytes than the archive has");
        }
        if !entry.deflated && entry.size != entry.stored {
            return broken("claims another size than it has");
        }
        if entry.deflated {
            inflated = inflated.saturating_add(entry.size);
            if inflated > inflated_bytes {
                let (size, limit) = (inflated, inflated_bytes);
                return Err(ZipError::Large { name: entry.name.clone(), size, limit });
            }
        }
    }
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_key(|entry| entry.offset);
    let mut pairs = sorted.iter().zip(sorted.iter().skip(1));
    match pairs.find(|(one, next)| one.end() > Some(next.offset)) {
        Some((_, entry)) => {
            Err(ZipError::Entry { name: entry.name.clone(), problem: "lies where another file does" })
        }
        None => Ok(()),
    }
}

fn fill(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), ZipError> {
    Ok(file.read_exact_at(bytes, offset).map_err(FileError::Read)?)
}

fn read(file: &File, offset: u64, len: u64) -> Result<Vec<u8>, ZipError> {
    let len = usize::try_from(len).map_err(|_| ZipError::NoDirectory)?;
    let mut bytes = vec![0; len];
    fill(file, &mut bytes, offset)?;
    Ok(bytes)
}

/// A number at a place; 0 where the bytes are too few, which callers have ruled out.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u64::from_le_bytes)
}
