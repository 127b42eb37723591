//! Documents that are redacted: nothing is left that the rules take out, and what is left is JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_collect::fuzzing;
use outrigger_fuzz::memory;

fuzz_target!(|data: &[u8]| memory::within((4 << 20) + 512 * data.len(), || fuzzing::redaction(data)));
