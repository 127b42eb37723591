//! Archives as tar: nothing leads outside, nothing is more than it may be, and the crate `tar` finds the same in what is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{Input, archives};
use outrigger_store::archive::ArchiveKind;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let tar = match input.byte() {
        // Few would get past the checksums otherwise.
        1 => archives::summed(input.rest()),
        _ => data.to_vec(),
    };
    if let Some(found) = archives::unpacked(ArchiveKind::Tar, &tar) {
        archives::check_tar(&tar, &found);
    }
});
