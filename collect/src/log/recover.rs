//! What an earlier process has left in a log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::frame::{Body, Kind, Opened, Reader, Stored};
use super::read::READ;
use super::segment_path;
use super::table::{Object, Position, Segment, Table};
use crate::settings::Format;

/// Reads all segments into a table, in which nothing more comes to any object, and says which number the next segment has.
///
/// What cannot be read is left out and said in the log. Segments are removed in their order, so those before a gap were to be removed, and now are.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn recover(dir: &Path, table: &mut Table) -> io::Result<u64> {
    let mut numbers = numbers(dir)?;
    numbers.sort_unstable();
    // Something that lies far behind all others, and is no segment, is not ours: all others would be before a gap.
    while let [.., before, last] = numbers[..]
        && before.checked_add(1) != Some(last)
        && !is_segment(dir, last)?
    {
        tracing::warn!(path = %segment_path(dir, last).display(), "what is no segment of collected data is left where it is");
        numbers.pop();
    }
    let next = numbers.last().map_or(1, |last| last + 1);
    let whole =
        numbers.iter().rev().zip((0..next).rev()).take_while(|(number, wanted)| *number == wanted).count();
    let (stale, live) = numbers.split_at(numbers.len() - whole);
    for number in stale {
        fs::remove_file(segment_path(dir, *number))?;
    }
    for number in live {
        let segment = segment(dir, *number, *number + 1 == next, table)?;
        table.bytes += segment.bytes;
        table.segments.insert(*number, segment);
    }
    table.objects.retain(|_, object| object.records > 0);
    Ok(next)
}

fn is_segment(dir: &Path, number: u64) -> io::Result<bool> {
    Ok(Reader::of_segment(File::open(segment_path(dir, number))?, number, 0)?.is_some())
}

fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|name| name.parse().ok());
        // Another spelling of a number is nothing that was written here.
        let is_ours = |number: &u64| segment_path(dir, *number).file_name() == Some(&name);
        numbers.extend(number.filter(|number| *number < u64::MAX).filter(is_ours));
    }
    Ok(numbers)
}

/// Reads a segment. What is torn is cut off from the last one alone, which more is written to after it: of the others nobody was writing, so that what cannot
/// be read of them is damage, and stays as it is.
fn segment(dir: &Path, number: u64, is_last: bool, table: &mut Table) -> io::Result<Segment> {
    let path = segment_path(dir, number);
    let file = File::open(&path)?;
    let size = file.metadata()?.len();
    let input = BufReader::with_capacity(READ, file);
    let Some(mut reader) = Reader::of_segment(input, number, size)? else {
        tracing::warn!(path = %path.display(), size, "a segment of collected data has no beginning, and is left out");
        if !is_last {
            suspect(table);
        }
        return Ok(Segment { bytes: size, salt: 0 });
    };
    let damaged = frames(&mut reader, number, table)?;
    let (end, salt) = (reader.at(), reader.salt());
    if end < size {
        suspect(table);
    }
    if damaged > 0 || end < size {
        tracing::warn!(path = %path.display(), damaged, torn = size - end, "collected data on disk is not as it was written");
    }
    if end < size && is_last {
        OpenOptions::new().write(true).open(&path)?.set_len(end)?;
    }
    Ok(Segment { bytes: if is_last { end } else { size }, salt })
}

/// Puts the frames of a segment into a table; how many are damaged.
pub(super) fn frames<R: Read + Seek>(
    reader: &mut Reader<R>,
    number: u64,
    table: &mut Table,
) -> io::Result<u64> {
    let (mut damaged, mut skipped) = (0, 0);
    while let Some((offset, head, body)) = reader.next(|_| true)? {
        let at = Position { segment: number, offset };
        match (head.kind, body) {
            (Kind::Done, _) => {
                table.objects.remove(&head.object);
            }
            (Kind::Open, Body::Whole(body)) => begin(table, head.object, at, body),
            (Kind::Record, Body::Whole(body)) => {
                let Some(stored) = Stored::read(body) else { continue };
                if let Some(object) = table.objects.get_mut(&head.object) {
                    let length = super::frame::FRAME_HEAD as u64 + u64::from(head.length);
                    object.end = Position { offset: offset + length, ..at };
                    object.records += 1;
                    object.unsent_since.get_or_insert(stored.time);
                }
            }
            (_, Body::Damaged) => {
                damaged += 1;
                table.objects.entry(head.object).and_modify(|object| object.damaged = true);
            }
            (_, Body::Erased) => {
                table.objects.entry(head.object).and_modify(|object| object.erased = true);
            }
            (_, Body::Passed) => {}
        }
        if reader.skipped() > skipped {
            skipped = reader.skipped();
            damaged += 1;
            suspect(table);
        }
    }
    Ok(damaged)
}

/// Something was lost, and nobody knows of which objects.
fn suspect(table: &mut Table) {
    table.objects.values_mut().for_each(|object| object.damaged = true);
}

fn begin(table: &mut Table, number: u64, at: Position, body: &[u8]) {
    let Some(opened) = Opened::read(body) else { return };
    let Some(format) = Format::of(opened.format) else { return };
    let mut object = Object::new(opened.path.into(), format, opened.header.into(), at);
    (object.closed, object.recovered) = (true, true);
    table.objects.insert(number, object);
}
