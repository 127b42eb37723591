//! Indices of registries, and names of what lies in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::memory;
use outrigger_store::fuzzing;

fuzz_target!(|data: &[u8]| {
    memory::within(256 * 1024 + 64 * data.len(), || fuzzing::index(data));
    if let Ok(text) = std::str::from_utf8(data) {
        fuzzing::object(text);
    }
});
