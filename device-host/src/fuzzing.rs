//! What `fuzz/` sees of the frames: whatever can be read of some bytes is written and read again.

use std::fmt::Debug;

use crate::frame::{self, Given, HEADER, Infer, LIMIT, MOST_FILES};
use crate::message::{self, Hello};
use crate::wire::{Reader, WireError};

type Result<T> = std::result::Result<T, WireError>;

/// Reads a header, which says no more than there may be.
///
/// # Panics
/// If it does.
pub fn header(bytes: &[u8; HEADER]) {
    let Ok(read) = frame::header(bytes) else { return };
    assert!(read.length <= LIMIT && read.files <= MOST_FILES);
    if read.length > 4096 {
        // What follows is made below, which takes its time.
        return;
    }
    let mut again = Vec::new();
    frame::begin(&mut again, read.kind, read.number);
    again.resize(HEADER + read.length, 0);
    frame::finish(&mut again, read.files).expect("it is within the limit");
    assert_eq!(again.get(..HEADER), Some(&bytes[..]));
}

/// Reads what follows a header, as the kind of that number.
///
/// # Panics
/// If what was read is another when it has been written and read again.
pub fn payload(kind: u8, bytes: &[u8]) {
    match kind % 8 {
        0 => again(bytes, Hello::read, |hello, out| hello.put(out)),
        1 => again(bytes, Infer::read, |infer, out| {
            Infer::write(infer.instance, infer.id, &infer.sent, &infer.asked, out);
        }),
        2 => again(bytes, Given::read, |given, out| given.put(out)),
        3 => again(bytes, message::error, |error, out| message::put_error(error, out)),
        4 => again(bytes, message::info, |info, out| message::put_info(info, out)),
        5 => again(bytes, message::status, |status, out| message::put_status(status, out)),
        6 => again(bytes, message::options, |options, out| message::put_options(options, out)),
        _ => again(bytes, message::model, |model, out| message::put_model(model, out)),
    }
}

fn again<T: Debug>(
    bytes: &[u8],
    read: impl Fn(&mut Reader<'_>) -> Result<T>,
    write: impl FnOnce(&T, &mut Vec<u8>),
) {
    let Ok(value) = read(&mut Reader(bytes)) else { return };
    let mut out = Vec::new();
    write(&value, &mut out);
    let mut reader = Reader(&out);
    let read = read(&mut reader).expect("what is written can be read");
    // Not all of them can be compared, and this shows all that they have.
    assert_eq!(format!("{read:?}"), format!("{value:?}"));
    reader.end().expect("no more is written than is read");
}
