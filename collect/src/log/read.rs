//! Reading frames of a segment.

use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::path::Path;

use super::frame::{Body, Head, Reader};
use super::segment_path;
use super::table::{Part, Position};

/// What a reader of a segment has in memory at a time, beside a body.
pub(super) const READ: usize = 64 << 10;

/// A frame's place and what is in it.
pub(crate) type Visit<'a> = (Position, Head, Body<'a>);

/// Reads the frames in a part of a segment. Those of which `wants` says no are passed by.
///
/// # Errors
/// Of the disk.
pub(crate) fn read(
    dir: &Path,
    part: &Part,
    wants: impl Fn(&Head) -> bool,
    mut each: impl FnMut(Visit<'_>),
) -> io::Result<()> {
    let mut file = File::open(segment_path(dir, part.segment))?;
    file.seek(SeekFrom::Start(part.from))?;
    let input = BufReader::with_capacity(READ, file);
    let mut reader = Reader::of_part(input, part.salt, part.from, part.to);
    while let Some((offset, head, body)) = reader.next(&wants)? {
        each((Position { segment: part.segment, offset }, head, body));
    }
    Ok(())
}

/// Reads the first frame of a part, if it is the one that is wanted and whole.
///
/// # Errors
/// Of the disk.
pub(crate) fn read_one(
    dir: &Path,
    part: Option<Part>,
    is_it: impl Fn(&Head) -> bool,
    take: impl FnOnce(&[u8]),
) -> io::Result<()> {
    let Some(part) = part else { return Ok(()) };
    let mut file = File::open(segment_path(dir, part.segment))?;
    file.seek(SeekFrom::Start(part.from))?;
    let mut reader = Reader::of_part(file, part.salt, part.from, part.to);
    if let Some((_, head, Body::Whole(body))) = reader.next(&is_it)?
        && is_it(&head)
    {
        take(body);
    }
    Ok(())
}
