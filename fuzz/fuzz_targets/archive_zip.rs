//! Archives as zip: nothing leads outside, nothing is more than it may be, and the crate `zip` finds the same in what is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::archives;
use outrigger_store::archive::ArchiveKind;

fuzz_target!(|data: &[u8]| {
    if let Some(found) = archives::unpacked(ArchiveKind::Zip, data) {
        archives::check_zip(data, &found);
    }
});
