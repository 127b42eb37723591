//! What a start reads, out of memory.

use std::io::Cursor;

use super::frame::Reader;
use super::recover;
use super::table::{Position, Table};

/// Takes a segment up as a start does.
pub(crate) fn frames(segment: &[u8]) {
    let mut table = Table::default();
    let Ok(Some(mut reader)) = Reader::of_segment(Cursor::new(segment), 7, segment.len() as u64) else {
        return;
    };
    recover::frames(&mut reader, 7, &mut table).expect("memory");
    assert!(reader.at() <= segment.len() as u64);
    for object in table.objects.values() {
        let last = Position { segment: 7, offset: reader.at() };
        assert!(object.start <= object.end && object.end <= last && object.closed);
        assert!(object.records <= (object.end.offset - object.start.offset) / 32);
    }
}
