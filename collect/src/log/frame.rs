//! The bytes of a segment.
//!
//! All numbers are little-endian. A segment begins with 32 bytes, and frames follow, each of 32 bytes and a body:
//!
//! ```text
//! segment  magic 8 | number 8 | salt 8 | checksum 4 | zero 4
//! frame    body's length 4 | body's checksum 4 | sequence 8 | object 8 | kind 1 | zero 3 | checksum 4
//! ```
//!
//! Checksums are CRC-32 begun with the segment's salt, which is random: what somebody has sent to be collected is no frame, wherever in a file a reader might
//! stand. A frame's head has a checksum of its own, so that a body that is damaged loses itself alone, and a head that is damaged loses its frame alone: the next
//! one is looked for behind it. A body that was erased says so, as zeros may be what a disk has made of it.

use std::io::{self, Read, Seek, SeekFrom};

/// What segments begin with; the last byte is the version.
const MAGIC: &[u8; 8] = b"OTRCOLL\x01";
/// Bytes before the first frame.
pub(crate) const SEGMENT_HEAD: usize = 32;
/// Bytes before a body.
pub(crate) const FRAME_HEAD: usize = 32;
/// Largest body. Records are bounded far below; this one keeps numbers in their types.
pub(crate) const MAX_BODY: usize = u32::MAX as usize;
/// What a body begins with that was erased; a checksum follows, and zeros.
const ERASED: &[u8; 8] = b"erased\0\x01";
/// Bytes that say that a body was erased. No record is shorter.
pub(crate) const ERASED_HEAD: usize = 12;
/// What is looked at together where a head is looked for, bytes.
const SEARCH: u64 = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An object begins. Of an object whose beginning is not in the log nothing is looked at.
    Open,
    /// A record of an object.
    Record,
    /// An object is in blob as it stays.
    Done,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Record => 2,
            Self::Done => 3,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Open, Self::Record, Self::Done].into_iter().find(|kind| kind.number() == number)
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) sequence: u64,
    pub(crate) object: u64,
    pub(crate) length: u32,
    checksum: u32,
}

/// What is left of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Nothing, as somebody wished.
    Erased,
    /// Something else than what was written.
    Damaged,
    /// Not looked at.
    Passed,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|bytes| bytes.first_chunk().copied()).unwrap_or([0; N])
}

fn checksum(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial((salt ^ (salt >> 32)) as u32);
    hasher.update(bytes);
    hasher.finalize()
}

/// What a segment begins with.
pub(crate) fn segment_head(segment: u64, salt: u64) -> [u8; SEGMENT_HEAD] {
    let mut head = [0; SEGMENT_HEAD];
    let fields = [*MAGIC, segment.to_le_bytes(), salt.to_le_bytes()];
    for (to, field) in head.chunks_exact_mut(8).zip(fields) {
        to.copy_from_slice(&field);
    }
    let sum = checksum(salt, &head[..24]);
    head[24..28].copy_from_slice(&sum.to_le_bytes());
    head
}

/// The number and the salt of a segment, if it is one.
pub(crate) fn read_segment_head(head: &[u8; SEGMENT_HEAD]) -> Option<(u64, u64)> {
    let salt = u64::from_le_bytes(number(head, 16));
    let sum = u32::from_le_bytes(number(head, 24));
    let is_whole = &head[..8] == MAGIC && sum == checksum(salt, &head[..24]) && head[28..] == [0; 4];
    is_whole.then(|| (u64::from_le_bytes(number(head, 8)), salt))
}

/// Makes room for a head; the body is what is appended until [`end_frame`].
pub(crate) fn begin_frame(buffer: &mut Vec<u8>) -> usize {
    let at = buffer.len();
    buffer.extend_from_slice(&[0; FRAME_HEAD]);
    at
}

/// Writes the head of the frame that was begun at `at`.
pub(crate) fn end_frame(buffer: &mut [u8], at: usize, salt: u64, kind: Kind, sequence: u64, object: u64) {
    let Some((head, body)) = buffer.get_mut(at..).and_then(|frame| frame.split_at_mut_checked(FRAME_HEAD))
    else {
        return;
    };
    debug_assert!(body.len() <= MAX_BODY);
    head[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    head[4..8].copy_from_slice(&checksum(salt ^ sequence, body).to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    head[16..24].copy_from_slice(&object.to_le_bytes());
    head[24..28].copy_from_slice(&[kind.number(), 0, 0, 0]);
    let sum = checksum(salt, &head[..28]);
    head[28..32].copy_from_slice(&sum.to_le_bytes());
}

fn read_head(head: &[u8; FRAME_HEAD], salt: u64) -> Option<Head> {
    let sum = u32::from_le_bytes(number(head, 28));
    if sum != checksum(salt, &head[..28]) || head[25..28] != [0; 3] {
        return None;
    }
    Some(Head {
        kind: Kind::of(head[24])?,
        sequence: u64::from_le_bytes(number(head, 8)),
        object: u64::from_le_bytes(number(head, 16)),
        length: u32::from_le_bytes(number(head, 0)),
        checksum: u32::from_le_bytes(number(head, 4)),
    })
}

/// What is written over the beginning of a record's body that is erased; zeros follow.
pub(crate) fn erased(salt: u64, head: &Head) -> [u8; ERASED_HEAD] {
    let mut bytes = [0; ERASED_HEAD];
    bytes[..8].copy_from_slice(ERASED);
    // Of this frame, and of no other.
    let sum = checksum(salt ^ !head.sequence, &[&ERASED[..], &head.length.to_le_bytes()].concat());
    bytes[8..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Reads the frames of a segment, or of a part of it. Memory is that of the largest body that is wanted, and no more than there are bytes.
pub(crate) struct Reader<R> {
    input: R,
    salt: u64,
    at: u64,
    end: u64,
    sequence: Option<u64>,
    /// Bytes between frames that are none.
    skipped: u64,
    body: Vec<u8>,
}

impl<R: Read + Seek> Reader<R> {
    /// Begins with a whole segment of `size` bytes; nothing where it is none, or not `segment`.
    pub(crate) fn of_segment(mut input: R, segment: u64, size: u64) -> io::Result<Option<Self>> {
        let mut head = [0; SEGMENT_HEAD];
        match input.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let salt = read_segment_head(&head).filter(|(number, _)| *number == segment).map(|(_, salt)| salt);
        Ok(salt.map(|salt| Self::of_part(input, salt, SEGMENT_HEAD as u64, size)))
    }

    /// Goes on where `input` stands, which is `at` in the segment and in the input, until `end`.
    pub(crate) fn of_part(input: R, salt: u64, at: u64, end: u64) -> Self {
        Self { input, salt, at, end, sequence: None, skipped: 0, body: Vec::new() }
    }

    pub(crate) fn salt(&self) -> u64 {
        self.salt
    }

    /// Where the next frame begins: after the last one, where all that was readable ends.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes between frames were none.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The head of the next frame, which `at` is then the beginning of.
    fn head(&mut self) -> io::Result<Option<Head>> {
        if self.end.saturating_sub(self.at) < FRAME_HEAD as u64 {
            return Ok(None);
        }
        let mut bytes = [0; FRAME_HEAD];
        match self.input.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        match self.accepted(&bytes, self.at) {
            Some(head) => Ok(Some(head)),
            None => self.search(),
        }
    }

    /// Frames that stand out of their order are no frames that were written here.
    fn accepted(&self, bytes: &[u8; FRAME_HEAD], at: u64) -> Option<Head> {
        let head = read_head(bytes, self.salt)?;
        let fits = u64::from(head.length) <= self.end.saturating_sub(at + FRAME_HEAD as u64);
        (fits && self.sequence.is_none_or(|last| head.sequence > last)).then_some(head)
    }

    /// Looks for a head behind what is none. That something else looks like one is as good as impossible, as nobody outside knows the salt.
    fn search(&mut self) -> io::Result<Option<Head>> {
        let mut base = self.at + 1;
        self.input.seek(SeekFrom::Start(base))?;
        let mut window = Vec::new();
        loop {
            let more = SEARCH.min(self.end.saturating_sub(base + window.len() as u64));
            if self.input.by_ref().take(more).read_to_end(&mut window)? == 0 {
                return Ok(None);
            }
            for (at, bytes) in (base..).zip(window.windows(FRAME_HEAD)) {
                let Some(bytes) = bytes.first_chunk().filter(|bytes| bytes[25..28] == [0; 3]) else {
                    continue;
                };
                if let Some(head) = self.accepted(bytes, at) {
                    self.input.seek(SeekFrom::Start(at + FRAME_HEAD as u64))?;
                    self.skipped += at - self.at;
                    self.at = at;
                    return Ok(Some(head));
                }
            }
            let seen = window.len().saturating_sub(FRAME_HEAD - 1);
            window.drain(..seen);
            base += seen as u64;
        }
    }

    /// The next frame, where it begins, and its body if it is wanted. Nothing where frames end, be it as they should or not.
    ///
    /// # Errors
    /// Of the disk.
    pub(crate) fn next(
        &mut self,
        wants: impl FnOnce(&Head) -> bool,
    ) -> io::Result<Option<(u64, Head, Body<'_>)>> {
        let Some(head) = self.head()? else { return Ok(None) };
        let at = self.at;
        let body = if wants(&head) {
            self.body.resize(head.length as usize, 0);
            match self.input.read_exact(&mut self.body) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            if checksum(self.salt ^ head.sequence, &self.body) == head.checksum {
                Body::Whole(&self.body)
            } else if is_erased(&self.body, self.salt, &head) {
                Body::Erased
            } else {
                Body::Damaged
            }
        } else {
            self.input.seek_relative(i64::from(head.length))?;
            Body::Passed
        };
        self.at += FRAME_HEAD as u64 + u64::from(head.length);
        self.sequence = Some(head.sequence);
        Ok(Some((at, head, body)))
    }
}

fn is_erased(body: &[u8], salt: u64, head: &Head) -> bool {
    body.split_first_chunk()
        .is_some_and(|(first, rest)| *first == erased(salt, head) && rest.iter().all(|byte| *byte == 0))
}

/// A record as it is in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored<'a> {
    /// Microseconds since 1970.
    pub(crate) time: u64,
    /// What it is deleted by.
    pub(crate) correlation: &'a [u8],
    /// What it adds to its object, with the end of the line.
    pub(crate) line: &'a [u8],
    /// The name and the bytes of an object of its own.
    pub(crate) side: Option<(&'a str, &'a [u8])>,
}

impl<'a> Stored<'a> {
    /// Appends the body.
    pub(crate) fn write(&self, buffer: &mut Vec<u8>) {
        let correlation = self.correlation.get(..usize::from(u16::MAX)).unwrap_or(self.correlation);
        let (name, data) = self.side.unwrap_or_default();
        buffer.extend_from_slice(&self.time.to_le_bytes());
        buffer.extend_from_slice(&(correlation.len() as u16).to_le_bytes());
        buffer.extend_from_slice(&(name.len() as u16).to_le_bytes());
        buffer.extend_from_slice(&(self.line.len() as u32).to_le_bytes());
        for part in [correlation, name.as_bytes(), self.line, data] {
            buffer.extend_from_slice(part);
        }
    }

    /// Reads a body.
    pub(crate) fn read(body: &'a [u8]) -> Option<Self> {
        let (head, rest) = body.split_at_checked(16)?;
        let correlation = u16::from_le_bytes(number(head, 8));
        let name = u16::from_le_bytes(number(head, 10));
        let line = u32::from_le_bytes(number(head, 12));
        let (correlation, rest) = rest.split_at_checked(usize::from(correlation))?;
        let (name, rest) = rest.split_at_checked(usize::from(name))?;
        let (line, data) = rest.split_at_checked(line as usize)?;
        let name = str::from_utf8(name).ok()?;
        if name.is_empty() && !data.is_empty() {
            return None;
        }
        let side = (!name.is_empty()).then_some((name, data));
        Some(Self { time: u64::from_le_bytes(number(head, 0)), correlation, line, side })
    }
}

/// How an object begins, as it is in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    /// Of its format.
    pub(crate) format: u8,
    /// Its name, below the target.
    pub(crate) path: &'a str,
    /// What it begins with.
    pub(crate) header: &'a [u8],
}

impl<'a> Opened<'a> {
    /// Appends the body.
    pub(crate) fn write(&self, buffer: &mut Vec<u8>) {
        buffer.push(self.format);
        buffer.extend_from_slice(&(self.path.len() as u16).to_le_bytes());
        buffer.extend_from_slice(self.path.as_bytes());
        buffer.extend_from_slice(self.header);
    }

    /// Reads a body.
    pub(crate) fn read(body: &'a [u8]) -> Option<Self> {
        let (format, rest) = body.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (path, header) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        Some(Self { format: *format, path: str::from_utf8(path).ok()?, header })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    const SALT: u64 = 0x1234_5678_9abc_def0;

    fn segment(bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = segment_head(7, SALT).to_vec();
        let mut ends = vec![bytes.len()];
        for (number, body) in bodies.iter().enumerate() {
            let at = begin_frame(&mut bytes);
            bytes.extend_from_slice(body);
            end_frame(&mut bytes, at, SALT, Kind::Record, number as u64, 3);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    type Bodies = Vec<(u64, Option<Vec<u8>>)>;

    /// The bodies that are read, `None` where one is damaged, and where reading ends.
    fn read(bytes: &[u8]) -> Option<(Bodies, u64)> {
        let mut reader = Reader::of_segment(Cursor::new(bytes), 7, bytes.len() as u64).expect("memory")?;
        let mut bodies = Vec::new();
        while let Some((_, head, body)) = reader.next(|_| true).expect("memory") {
            let body = match body {
                Body::Whole(body) => Some(body.to_vec()),
                Body::Erased | Body::Damaged | Body::Passed => None,
            };
            bodies.push((head.sequence, body));
        }
        Some((bodies, reader.at()))
    }

    #[test]
    fn whatever_is_cut_off_what_is_before_it_is_read() {
        let bodies = [b"first".to_vec(), Vec::new(), vec![9; 300], b"last".to_vec()];
        let (bytes, ends) = segment(&bodies);
        for cut in 0..=bytes.len() {
            let whole = ends.iter().take_while(|end| **end <= cut).count();
            let Some((got, end)) = read(&bytes[..cut]) else {
                assert!(cut < SEGMENT_HEAD);
                continue;
            };
            assert_eq!(got.len() + 1, whole, "cut at {cut}");
            assert_eq!(end, ends[whole - 1] as u64);
            for ((_, body), wanted) in got.iter().zip(&bodies) {
                assert_eq!(body.as_ref(), Some(wanted));
            }
        }
    }

    #[test]
    fn a_body_that_was_erased_says_so_and_zeros_do_not() {
        let (mut bytes, ends) = segment(&[b"first".to_vec(), vec![2; 50], vec![3; 50], b"last".to_vec()]);
        let reader = |bytes: &Vec<u8>| {
            let size = bytes.len() as u64;
            Reader::of_segment(Cursor::new(bytes.clone()), 7, size).expect("memory").expect("a segment")
        };
        let mut whole = reader(&bytes);
        let mut heads = std::iter::from_fn(|| whole.next(|_| true).expect("memory").map(|(_, head, _)| head));
        let head = heads.nth(1).expect("the second");
        // Of the third the body alone.
        bytes[ends[1] + FRAME_HEAD..ends[2]].fill(0);
        bytes[ends[2] + FRAME_HEAD..ends[3]].fill(0);
        bytes[ends[1] + FRAME_HEAD..][..ERASED_HEAD].copy_from_slice(&erased(SALT, &head));
        let mut reader = reader(&bytes);
        assert!(matches!(reader.next(|_| true), Ok(Some((_, _, Body::Whole(b"first"))))));
        assert!(matches!(reader.next(|_| true), Ok(Some((_, _, Body::Erased)))));
        assert!(matches!(reader.next(|_| true), Ok(Some((_, _, Body::Damaged)))));
        assert!(matches!(reader.next(|_| true), Ok(Some((_, _, Body::Whole(b"last"))))));
    }

    #[test]
    fn a_head_that_is_damaged_loses_its_frame_alone() {
        let (mut bytes, ends) = segment(&[b"first".to_vec(), vec![2; 200_000], b"third".to_vec()]);
        bytes[ends[1] + 5] ^= 1;
        let mut reader = Reader::of_segment(Cursor::new(&bytes), 7, bytes.len() as u64)
            .expect("memory")
            .expect("a segment");
        assert!(matches!(reader.next(|_| true), Ok(Some((_, _, Body::Whole(b"first"))))));
        assert!(matches!(reader.next(|_| true), Ok(Some((_, _, Body::Whole(b"third"))))));
        assert!(matches!(reader.next(|_| true), Ok(None)));
        assert_eq!((reader.skipped(), reader.at()), ((ends[2] - ends[1]) as u64, bytes.len() as u64));
    }

    #[test]
    fn a_frame_inside_a_body_is_no_frame() {
        let (inner, _) = segment(&[b"forged".to_vec()]);
        const OTHER: u64 = SALT + 1;
        let mut other = segment_head(7, OTHER).to_vec();
        let at = begin_frame(&mut other);
        other.extend_from_slice(&inner);
        end_frame(&mut other, at, OTHER, Kind::Record, 1, 3);
        // Somebody has torn off the head of the outer frame: what is inside does not come to light.
        other.drain(at..at + FRAME_HEAD + SEGMENT_HEAD);
        assert_eq!(read(&other), Some((Vec::new(), SEGMENT_HEAD as u64)));
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_never_taken_for_what_was_written(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8),
            damage in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
        ) {
            let (mut bytes, _) = segment(&bodies);
            for (at, with) in damage {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            if let Some((got, _)) = read(&bytes) {
                for (sequence, body) in got {
                    if let Some(body) = body {
                        prop_assert_eq!(&body, &bodies[sequence as usize]);
                    }
                }
            }
        }

        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
            let _ = (Stored::read(&bytes), Opened::read(&bytes));
        }

        #[test]
        fn records_are_read_as_they_were_written(
            time: u64,
            correlation in prop::collection::vec(any::<u8>(), 0..50),
            line in prop::collection::vec(any::<u8>(), 0..50),
            side in prop::option::of(("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..50))),
        ) {
            let side = side.as_ref().map(|(name, data)| (name.as_str(), data.as_slice()));
            let stored = Stored { time, correlation: &correlation, line: &line, side };
            let mut body = Vec::new();
            stored.write(&mut body);
            prop_assert_eq!(Stored::read(&body), Some(stored));
        }
    }
}
