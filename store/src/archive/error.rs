//! Why an archive is refused.

use std::io;

use crate::path::PathError;

use super::shown::{MemberKind, MemberName, method_name};

/// Why an archive was not unpacked, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The file below fails: nothing is known about the archive.
    #[error("the archive's file cannot be read")]
    Io {
        /// What the file system says.
        source: io::Error,
    },
    /// Where the members go, something fails.
    #[error("member `{member}` cannot be taken")]
    Sink {
        /// The member being handed over.
        member: MemberName,
        /// What the sink says.
        source: io::Error,
    },
    /// The archive ends within a member, or its compressed data does.
    #[error("the archive's data ends within member `{member}`")]
    Truncated {
        /// The last member.
        member: MemberName,
    },
    /// The archive ends before its own end does.
    #[error("the archive ends before its end mark, so that a part of it is missing")]
    NoEnd,
    /// Compressed data is none, or its checksum isn't that of what came out.
    #[error("the archive's compressed data is damaged")]
    Corrupt {
        /// What the decoder says.
        source: io::Error,
    },
    /// The archive's own structures are not what the format says, or could be read in two ways.
    #[error("the archive is damaged at byte {at}: {damage}")]
    Damaged {
        /// Where: in the file, or in what gzip holds.
        at: u64,
        /// What it is.
        damage: Damage,
    },
    /// A name is no path of a file in a model.
    #[error("member `{member}` has a name that is not taken: {source}")]
    Path {
        /// The name.
        member: MemberName,
        /// What is wrong with it.
        source: PathError,
    },
    /// A name is not UTF-8.
    #[error("member `{member}` has a name that is not UTF-8")]
    Encoding {
        /// The name.
        member: MemberName,
    },
    /// Something that is neither file nor folder.
    #[error("member `{member}` is {kind}; files and folders alone are taken")]
    Kind {
        /// The name.
        member: MemberName,
        /// What it is.
        kind: MemberKind,
    },
    /// Two files have one name.
    #[error("member `{member}` is in the archive twice")]
    Twice {
        /// The name.
        member: MemberName,
    },
    /// One name is a file's and a folder's.
    #[error("member `{member}` and another need `{path}` to be a file and a folder")]
    FileAndFolder {
        /// The later of the two.
        member: MemberName,
        /// The path that they quarrel about.
        path: MemberName,
    },
    /// An entry of a zip is encrypted.
    #[error("member `{member}` is encrypted")]
    Encrypted {
        /// The name.
        member: MemberName,
    },
    /// An entry of a zip is compressed in a way that is not read.
    #[error("member `{member}` is compressed with {}; stored and deflated ones alone are read", method_name(*.method))]
    Method {
        /// The name.
        member: MemberName,
        /// The number of the method.
        method: u16,
    },
    /// A member has another size than the archive says.
    #[error("member `{member}` is said to have {declared} bytes and has {}{actual}", if actual > declared { "at least " } else { "" })]
    Size {
        /// The name.
        member: MemberName,
        /// Bytes that the archive says.
        declared: u64,
        /// Bytes that came: all, or as many as were read before it was stopped.
        actual: u64,
    },
    /// A member's checksum isn't that of its contents.
    #[error("member `{member}` has the checksum {actual:08x} instead of {expected:08x}")]
    Checksum {
        /// The name.
        member: MemberName,
        /// CRC-32 that the archive says.
        expected: u32,
        /// That of the contents.
        actual: u32,
    },
    /// More members than [`entries`](super::ArchiveLimits::entries).
    #[error("the archive has more than {limit} members")]
    Entries {
        /// Members that are taken.
        limit: u64,
    },
    /// A member is larger than [`file_bytes`](super::ArchiveLimits::file_bytes).
    #[error("member `{member}` has more than {limit} bytes")]
    FileBytes {
        /// The name.
        member: MemberName,
        /// Bytes that are taken.
        limit: u64,
    },
    /// All of it is larger than [`bytes`](super::ArchiveLimits::bytes).
    #[error("the archive has more than {limit} bytes when unpacked")]
    Bytes {
        /// Bytes that are taken.
        limit: u64,
    },
    /// The archive unpacks to more than [`ratio`](super::ArchiveLimits::ratio) times itself, and to more than
    /// [`RATIO_FLOOR`](super::RATIO_FLOOR).
    #[error(
        "the archive was stopped when {unpacked} bytes had come out of {packed}, more than {limit} times as many"
    )]
    Ratio {
        /// Bytes that came out so far.
        unpacked: u64,
        /// Bytes that they came from.
        packed: u64,
        /// Bytes that are taken out of each byte.
        limit: u64,
    },
    /// One member does.
    #[error(
        "member `{member}` was stopped when {unpacked} bytes had come out of {packed}, more than {limit} times as many"
    )]
    MemberRatio {
        /// The name.
        member: MemberName,
        /// Bytes that came out so far.
        unpacked: u64,
        /// Bytes that they came from.
        packed: u64,
        /// Bytes that are taken out of each byte.
        limit: u64,
    },
}

impl ArchiveError {
    /// What a reader's error means between members.
    pub(super) fn outside(error: io::Error) -> Self {
        Self::of(error, || Self::NoEnd)
    }

    /// What a reader's error means within a member.
    pub(super) fn within(member: &MemberName, error: io::Error) -> Self {
        Self::of(error, || Self::Truncated { member: member.clone() })
    }

    fn of(error: io::Error, end: impl FnOnce() -> Self) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => end(),
            Err(source) => Self::Corrupt { source },
        }
    }
}

/// What is wrong with an archive's own structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Of tar: what stands there is no header.
    #[error("there is no header of tar, or its checksum is wrong")]
    Header,
    /// Of tar: what says more of the next member in a header whose format knows no such thing, so that some readers take it for a file.
    #[error("an extended header is neither GNU's nor ustar's")]
    Extension,
    /// Of tar.
    #[error("a member's size is no number of bytes")]
    SizeField,
    /// Of tar: a long name, or PAX records.
    #[error("an extended header has more than {limit} bytes")]
    LongRecord {
        /// Bytes that are read.
        limit: u64,
    },
    /// Of tar.
    #[error("PAX records are not of their form")]
    Pax,
    /// Of tar: one extended header says twice, or two of them say, what the next member's name or size is.
    #[error("extended headers contradict each other")]
    Contradiction,
    /// Of tar.
    #[error("extended headers describe a member that does not follow")]
    Dangling,
    /// Of tar: which programs know global records of names and sizes, and which do not, differs.
    #[error("a global header changes names or sizes")]
    Global,
    /// A folder has contents, which some programs skip and others read as the next header.
    #[error("a folder has contents")]
    FolderContents,
    /// Of tar: there is more behind its end.
    #[error("there is data behind the end")]
    Trailing,
    /// Of zip: the record at the end is missing or does not end where the file does.
    #[error("there is no end record of zip that ends where the file does")]
    EndRecord,
    /// Of zip.
    #[error("it is one of several parts of an archive")]
    Parts,
    /// Of zip: the directory is not where the end record says, or holds something else.
    #[error("the directory of the zip is not as its end record says")]
    Directory,
    /// Of zip: sizes and offsets beyond 32 bits.
    #[error("a record of zip64 is missing or contradicts the directory")]
    Zip64,
    /// Of zip: an entry's own header is not there or says something else than the directory.
    #[error("an entry's header is missing or contradicts the directory")]
    LocalHeader,
    /// Of zip: entries share bytes with each other or with the directory.
    #[error("entries overlap")]
    Overlap,
    /// Of zip: compressed data ends before the entry does.
    #[error("an entry's compressed data ends before the entry does")]
    Tail,
}
