//! What an earlier process has left in a log of collected data: what is read is what was written, whatever has become of the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_collect::fuzzing;
use outrigger_fuzz::memory;

fuzz_target!(|data: &[u8]| memory::within((4 << 20) + 512 * data.len(), || fuzzing::log(data)));
