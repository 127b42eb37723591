//! How much may come out of an archive, counted while it comes.

use super::Unpacked;
use super::error::ArchiveError;
use super::shown::MemberName;

/// Unpacked bytes below which no ratio is too high: 16 MiB. Text of little content compresses very well and harms nobody.
pub const RATIO_FLOOR: u64 = 16 << 20;

/// How much may come out of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Most members, folders and tar's global headers among them. Default: 10,000. Each costs
    /// its name's length of memory a few times over, 4 KiB at most.
    pub entries: u64,
    /// Largest file, bytes. Default: 64 GiB.
    pub file_bytes: u64,
    /// All files together, with tar's extended headers and its padding at the end, bytes. Default: 256 GiB.
    pub bytes: u64,
    /// Most bytes unpacked for each packed one, once [`RATIO_FLOOR`] bytes are unpacked. Default: 200; deflate reaches about 1,000, on
    /// zeros, and weights hardly reach 2. It is judged for a tar.gz as a whole, by the bytes read so far, and for a zip as a whole, by
    /// the file's size, and for each of its members.
    pub ratio: u64,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { entries: 10_000, file_bytes: 64 << 30, bytes: 256 << 30, ratio: 200 }
    }
}

/// What has come out so far, held against the limits.
pub(super) struct Meter<'a> {
    limits: &'a ArchiveLimits,
    entries: u64,
    /// Bytes that aren't a file's and yet came out.
    beside: u64,
    unpacked: Unpacked,
}

impl<'a> Meter<'a> {
    pub(super) fn new(limits: &'a ArchiveLimits) -> Self {
        Self { limits, entries: 0, beside: 0, unpacked: Unpacked::default() }
    }

    pub(super) fn unpacked(&self) -> Unpacked {
        self.unpacked
    }

    /// One more member, or `count` that are said to come.
    pub(super) fn entries(&mut self, count: u64) -> Result<(), ArchiveError> {
        self.entries = self.entries.saturating_add(count);
        match self.limits.entries {
            limit if self.entries > limit => Err(ArchiveError::Entries { limit }),
            _ => Ok(()),
        }
    }

    /// Refuses what a member says of itself, so that nothing of it is unpacked in vain.
    pub(super) fn declared(&self, member: &MemberName, bytes: u64) -> Result<(), ArchiveError> {
        let ArchiveLimits { file_bytes, bytes: all, .. } = *self.limits;
        if bytes > file_bytes {
            return Err(ArchiveError::FileBytes { member: member.clone(), limit: file_bytes });
        }
        if self.total().saturating_add(bytes) > all {
            return Err(ArchiveError::Bytes { limit: all });
        }
        Ok(())
    }

    /// `count` more bytes of a member, which make `so_far` of it.
    pub(super) fn file(&mut self, member: &MemberName, count: u64, so_far: u64) -> Result<(), ArchiveError> {
        if so_far > self.limits.file_bytes {
            return Err(ArchiveError::FileBytes { member: member.clone(), limit: self.limits.file_bytes });
        }
        self.unpacked.bytes += count;
        self.bytes()
    }

    /// A member has been handed over.
    pub(super) fn file_ended(&mut self) {
        self.unpacked.files += 1;
    }

    /// `count` more bytes that are no member's.
    pub(super) fn beside(&mut self, count: u64) -> Result<(), ArchiveError> {
        self.beside += count;
        self.bytes()
    }

    /// Holds a member and all of a zip against what they came from.
    pub(super) fn ratio(&self, member: &MemberName, so_far: u64, packed: Packed) -> Result<(), ArchiveError> {
        let limit = self.limits.ratio;
        if excessive(so_far, packed.member, limit) {
            let (unpacked, packed) = (so_far, packed.member);
            return Err(ArchiveError::MemberRatio { member: member.clone(), unpacked, packed, limit });
        }
        if excessive(self.unpacked.bytes, packed.archive, limit) {
            let (unpacked, packed) = (self.unpacked.bytes, packed.archive);
            return Err(ArchiveError::Ratio { unpacked, packed, limit });
        }
        Ok(())
    }

    fn total(&self) -> u64 {
        self.unpacked.bytes.saturating_add(self.beside)
    }

    fn bytes(&self) -> Result<(), ArchiveError> {
        match self.limits.bytes {
            limit if self.total() > limit => Err(ArchiveError::Bytes { limit }),
            _ => Ok(()),
        }
    }
}

/// Bytes that a member of a zip takes, and the whole of the zip.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    pub(super) member: u64,
    pub(super) archive: u64,
}

/// Whether so much may not come out of so little.
pub(super) fn excessive(unpacked: u64, packed: u64, limit: u64) -> bool {
    unpacked > RATIO_FLOOR && unpacked > packed.saturating_mul(limit)
}
