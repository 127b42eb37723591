//! Frames that a native worker gets from the replica: each byte of a call is in one of its parts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_native::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::frames(data));
