//! Objects of which records are to be deleted: what is left has none of them, and all others as they were.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_collect::fuzzing;
use outrigger_fuzz::memory;

fuzz_target!(|data: &[u8]| memory::within((4 << 20) + 64 * data.len(), || fuzzing::erasing(data)));
