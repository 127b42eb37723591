//! Answers of native scripts: a head that the worker takes is one that the replica takes, and that HTTP has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_native::fuzzing;
use outrigger_runtime::scripts::frame::decode_headers;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let status = u32::from(input.byte()) * 4 + u32::from(input.byte());
    let content_type = input.piece();
    let mut headers = Vec::new();
    while !input.0.is_empty() {
        headers.push((input.piece(), input.piece()));
    }
    let Ok((status, block)) = fuzzing::head(status, &headers, content_type) else { return };
    assert!((200..600).contains(&status));
    let taken = decode_headers(&block).expect("what the worker takes the replica takes");
    assert!(taken.len() <= headers.len() + 1);
});
