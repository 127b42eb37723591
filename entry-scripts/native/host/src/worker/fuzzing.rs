//! What `fuzz/` sees of the frames.

use super::frame::{Call, HEADER, Header, REFERENCE, Reference};

/// Reads bytes as each of what can stand in a frame of the runtime's.
///
/// # Panics
/// If what was read is not what was there.
pub fn frames(bytes: &[u8]) {
    if let Some(first) = bytes.first_chunk::<HEADER>()
        && let Ok(header) = Header::decode(first)
    {
        let encoded = header.encode();
        // Two bytes in between are of no use.
        assert_eq!((&encoded[..6], &encoded[8..]), (&first[..6], &first[8..]));
    }
    if let Ok(reference) = Reference::decode(bytes) {
        let encoded = reference.encode();
        assert_eq!((&encoded[..4], &encoded[8..]), (&bytes[..4], &bytes[8..REFERENCE]));
    }
    let Ok(call) = Call::decode(7, bytes.to_vec(), None) else { return };
    let headers: usize = call.headers().iter().map(|(name, value)| 4 + name.len() + value.len()).sum();
    let parts = call.request_id().len() + call.query().len() + headers + call.body().len();
    assert_eq!(24 + parts, bytes.len(), "each byte is in one part");
    assert!(bytes.ends_with(call.body()));
}
