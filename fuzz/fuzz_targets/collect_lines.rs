//! Records as they are written for blob storage: each is one line, or rows of one width, in a folder of its own collection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_collect::fuzzing;
use outrigger_fuzz::memory;

fuzz_target!(|data: &[u8]| memory::within((4 << 20) + 512 * data.len(), || fuzzing::lines(data)));
