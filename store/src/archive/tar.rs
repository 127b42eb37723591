//! tar, block by block: v7, ustar and GNU headers, with PAX's and GNU's ways of giving long names and large sizes.
//!
//! Headers are taken apart by the crate `tar`; what goes from one to the next is here. The crate's own iterator reads long names whole,
//! however long, gives raw headers without the sizes that PAX puts in their place, and takes the end of the file for the archive's.
//!
//! Invariant: an archive ends with two blocks of zeros, and then has zeros alone. Without them a file that was cut between two members
//! would pass for a whole one, and behind them other programs would find other members.

use std::io::Read;

use ::tar::{EntryType, Header};

use super::Sink;
use super::error::{ArchiveError, Damage};
use super::limits::Meter;
use super::member::{Contents, deliver};
use super::names::Names;
use super::pax::Pax;
use super::shown::{MemberKind, MemberName};

/// Most bytes of a long name or of one member's PAX records: 1 MiB. Attributes of files, which are among the latter, reach some 64 KiB.
pub const RECORD_BYTES: u64 = 1 << 20;

const BLOCK: usize = 512;

/// Headers that say more of the next member. There were none of them in v7.
const EXTENSIONS: [EntryType; 4] =
    [EntryType::XHeader, EntryType::XGlobalHeader, EntryType::GNULongName, EntryType::GNULongLink];

/// Hands each file to the sink.
pub(super) fn unpack(
    data: &mut dyn Read,
    meter: &mut Meter<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), ArchiveError> {
    let mut reader = Blocks { data, at: 0 };
    let mut names = Names::default();
    let mut ahead = Ahead::default();
    while let Some(header) = reader.header()? {
        let size = reader.size(&header)?;
        if ahead.extend(header.entry_type(), size, &mut reader, meter)? {
            continue;
        }
        meter.entries(1)?;
        let member = std::mem::take(&mut ahead).describe(&header, size, &reader)?;
        match kind_of(header.entry_type(), &member)? {
            Taken::File => reader.file(&member, &mut names, meter, sink)?,
            Taken::Folder => {
                names.folder(&member.name)?;
                reader.expect(member.size == 0, Damage::FolderContents)?;
            }
        }
    }
    reader.expect(ahead.is_empty(), Damage::Dangling)?;
    reader.rest(meter)
}

/// What extended headers said of the member that follows them.
#[derive(Default)]
struct Ahead {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    /// A long target of a link, which is of no use: links are refused.
    link: bool,
}

/// A member as its headers have it, together.
struct Member {
    name: Vec<u8>,
    size: u64,
    sparse: bool,
}

impl Ahead {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && !self.link
    }

    /// Reads an extended header, each sort of which comes once before a member. False is for any other header.
    fn extend(
        &mut self,
        kind: EntryType,
        size: u64,
        reader: &mut Blocks<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<bool, ArchiveError> {
        let second = match kind {
            EntryType::XHeader => self.pax.replace(reader.pax(size, meter)?).is_some(),
            EntryType::GNULongName => self.name.replace(reader.record(size, meter)?).is_some(),
            EntryType::GNULongLink => {
                reader.record(size, meter)?;
                std::mem::replace(&mut self.link, true)
            }
            EntryType::XGlobalHeader => {
                meter.entries(1)?;
                reader.expect(self.is_empty(), Damage::Dangling)?;
                let idle = reader.pax(size, meter)?.is_idle();
                reader.expect(idle, Damage::Global)?;
                false
            }
            _ => return Ok(false),
        };
        reader.expect(!second, Damage::Contradiction)?;
        Ok(true)
    }

    /// A size from PAX goes before the header's, as all programs of today have it; the header has 0 where its digits don't reach.
    fn describe(self, header: &Header, size: u64, reader: &Blocks<'_>) -> Result<Member, ArchiveError> {
        let pax = self.pax.unwrap_or_default();
        let name = match (self.name, pax.path) {
            (Some(_), Some(_)) => return Err(reader.damaged(Damage::Contradiction)),
            (Some(name), None) => name.strip_suffix(b"\0").unwrap_or(&name).to_vec(),
            (None, Some(path)) => path,
            (None, None) => header.path_bytes().into_owned(),
        };
        Ok(Member { name, size: pax.size.unwrap_or(size), sparse: pax.sparse })
    }
}

enum Taken {
    File,
    Folder,
}

fn kind_of(kind: EntryType, member: &Member) -> Result<Taken, ArchiveError> {
    let kind = match kind {
        _ if member.sparse => MemberKind::Sparse,
        EntryType::Regular => return Ok(Taken::File),
        EntryType::Directory => return Ok(Taken::Folder),
        EntryType::Link => MemberKind::HardLink,
        EntryType::Symlink => MemberKind::Symlink,
        EntryType::Char | EntryType::Block => MemberKind::Device,
        EntryType::Fifo => MemberKind::Fifo,
        EntryType::GNUSparse => MemberKind::Sparse,
        other => MemberKind::Other(other.as_byte()),
    };
    Err(ArchiveError::Kind { member: MemberName::new(&member.name), kind })
}

/// The archive as blocks of 512 bytes, and how far in it is.
struct Blocks<'a> {
    data: &'a mut dyn Read,
    at: u64,
}

impl Blocks<'_> {
    /// The next header; `None` at the end mark.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        self.fill(header.as_mut_bytes())?;
        if is_zero(header.as_bytes()) {
            let mut second = [0; BLOCK];
            self.fill(&mut second)?;
            self.expect(is_zero(&second), Damage::Trailing)?;
            return Ok(None);
        }
        // The sum is of all bytes, with spaces where it stands itself.
        let bytes = header.as_bytes();
        let sum: u32 =
            bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]).map(|&byte| u32::from(byte)).sum();
        self.expect(header.cksum().is_ok_and(|said| said == sum), Damage::Header)?;
        let has_extensions = header.as_ustar().is_some() || header.as_gnu().is_some();
        self.expect(has_extensions || !EXTENSIONS.contains(&header.entry_type()), Damage::Extension)?;
        Ok(Some(header))
    }

    /// A header's size. The crate reads the last 8 bytes of a binary one, and takes a sign before octal digits; here the bytes before must be
    /// empty, so that a negative one is none, and digits are digits.
    fn size(&self, header: &Header) -> Result<u64, ArchiveError> {
        let field = &header.as_old().size;
        let fits = match field[0] & 0x80 {
            0 => !field.contains(&b'+'),
            _ => field[0] == 0x80 && field[1..4] == [0; 3],
        };
        header.entry_size().ok().filter(|_| fits).ok_or_else(|| self.damaged(Damage::SizeField))
    }

    /// The contents of an extended header.
    fn record(&mut self, size: u64, meter: &mut Meter<'_>) -> Result<Vec<u8>, ArchiveError> {
        self.expect(size <= RECORD_BYTES, Damage::LongRecord { limit: RECORD_BYTES })?;
        meter.beside(size)?;
        // No more than the limit, so the size may be believed.
        let mut record = vec![0; size as usize];
        self.fill(&mut record)?;
        self.fill(&mut [0; BLOCK][..padding(size)])?;
        Ok(record)
    }

    fn pax(&mut self, size: u64, meter: &mut Meter<'_>) -> Result<Pax, ArchiveError> {
        let records = self.record(size, meter)?;
        Pax::parse(&records).map_err(|damage| self.damaged(damage))
    }

    fn file(
        &mut self,
        member: &Member,
        names: &mut Names,
        meter: &mut Meter<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<(), ArchiveError> {
        let path = names.file(&member.name)?;
        let contents = Contents { declared: member.size, checksum: None, packed: None };
        deliver(&path, contents, &mut Limited { blocks: self, left: member.size }, meter, sink)?;
        let pad = &mut [0; BLOCK][..padding(member.size)];
        self.read_exact(pad).map_err(|error| ArchiveError::within(&MemberName::from(&path), error))
    }

    /// Everything behind the end mark: zeros up to a round size, and, with gzip, its checksum.
    fn rest(&mut self, meter: &mut Meter<'_>) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = match self.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ArchiveError::outside(error)),
            };
            meter.beside(read as u64)?;
            self.expect(is_zero(&buffer[..read]), Damage::Trailing)?;
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.read_exact(buffer).map_err(ArchiveError::outside)
    }

    fn expect(&self, holds: bool, damage: Damage) -> Result<(), ArchiveError> {
        if holds { Ok(()) } else { Err(self.damaged(damage)) }
    }

    fn damaged(&self, damage: Damage) -> ArchiveError {
        ArchiveError::Damaged { at: self.at, damage }
    }
}

impl Read for Blocks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.data.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// So much of the archive and no more; ending before is an error.
struct Limited<'a, 'b> {
    blocks: &'a mut Blocks<'b>,
    left: u64,
}

impl Read for Limited<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.blocks.read(&mut buffer[..most])? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}

fn padding(size: u64) -> usize {
    (size.wrapping_neg() % BLOCK as u64) as usize
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
