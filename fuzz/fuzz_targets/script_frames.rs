//! Frames of workers: headers, replies, lines for the log, and headers of answers.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{Input, memory};
use outrigger_runtime::scripts::frame::{
    HEADER, Header, REFERENCE, Reference, Reply, ReplyHead, decode_headers, decode_log, decode_reply,
};

const LIMIT: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = data.first_chunk::<HEADER>()
        && let Ok(header) = Header::decode(bytes, LIMIT)
    {
        assert!(header.length <= LIMIT && (!header.tail || header.length >= REFERENCE));
        assert_eq!(Header::decode(&header.encode(), LIMIT), Ok(header));
    }
    let mut payload = Bytes::copy_from_slice(data);
    if let Ok(reference) = Reference::split_off(&mut payload) {
        assert_eq!(payload.len() + REFERENCE, data.len());
        let mut again = Bytes::copy_from_slice(&reference.encode());
        assert_eq!(Reference::split_off(&mut again), Ok(reference));
    }
    let mut input = Input(data);
    let is_tailed = input.byte() & 1 == 1;
    let payload = Bytes::copy_from_slice(input.rest());
    let tail = is_tailed.then(|| Bytes::from_static(b"in a region"));
    memory::within(64 * 1024 + 32 * data.len(), || {
        if let Ok((reply, _)) = decode_reply(payload.clone(), tail) {
            check(&reply, &payload);
        }
        if let Ok(line) = decode_log(payload.clone()) {
            // A byte that is no text becomes three.
            assert!(line.logger.len() + line.text.len() <= 3 * payload.len());
        }
        let _ = decode_headers(&payload);
    });
});

fn check(reply: &Reply, payload: &Bytes) {
    match reply {
        Reply::Returned(text) => {
            let is_slice = payload.as_ptr_range().contains(&text.as_ptr()) || text.is_empty();
            assert!(is_slice || &text[..] == b"in a region", "what the script returned is not copied");
        }
        Reply::Answer(ReplyHead { status, headers, .. }, _)
        | Reply::Stream(ReplyHead { status, headers, .. }) => {
            assert!(status.as_u16() >= 200 && headers.len() <= 257);
            for name in ["connection", "content-length", "te", "trailer", "transfer-encoding", "upgrade"] {
                assert!(!headers.contains_key(name), "{name} is the server's to say");
            }
        }
        _ => {}
    }
}
