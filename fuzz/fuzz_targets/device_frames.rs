//! Frames between the replica and a device host, both ways: what can be read is written and read again, in bounded memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_device_host::fuzzing;
use outrigger_fuzz::{Input, memory};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    if let Some(header) = data.first_chunk() {
        fuzzing::header(header);
    }
    let kind = input.byte();
    let bytes = input.rest();
    // A byte that stands for an element of a list is at most one tensor, and all is there up to four times: values, bytes, and texts of both.
    memory::within((1 << 20) + 2048 * bytes.len(), || fuzzing::payload(kind, bytes));
});
