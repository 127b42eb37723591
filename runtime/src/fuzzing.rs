//! What `fuzz/` sees of this crate's own parts.

use bytes::Bytes;
use outrigger_protocol::ErrorCode;

use crate::busy::Busy;
use crate::http::inflate::{Bounds, Coding, inflate_here};
pub use crate::models::fuzzing::manifest;

/// Inflates a body, of gzip or else of zlib, to so many bytes at most, and to so many times its length beyond 64 KiB; all bodies
/// together, of which there is no other, may have `all`.
///
/// # Errors
/// The code of what is said.
///
/// # Panics
/// If memory is counted that nobody holds.
pub fn inflate(gzip: bool, body: &[u8], bytes: usize, ratio: usize, all: usize) -> Result<Bytes, ErrorCode> {
    let (busy, coding) = (Busy::new(1), if gzip { Coding::Gzip } else { Coding::Zlib });
    let inflated = inflate_here(coding, body, Bounds { bytes, ratio, all }, &busy);
    let inflated = inflated.map(|(bytes, reserved)| {
        assert!(busy.bodies() >= bytes.len() as u64, "what is held is counted");
        drop(reserved);
        bytes
    });
    assert_eq!(busy.bodies(), 0, "what is not held is not counted");
    inflated.map_err(|error| error.code)
}
