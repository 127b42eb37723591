//! TorchScript archives, as they are looked at before libtorch sees them: in memory that depends on the file and the setting alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{File, memory};
use outrigger_torch::fuzzing;

/// The setting `code_bytes`.
const CODE_BYTES: u64 = 16 << 10;

fuzz_target!(|data: &[u8]| {
    let file = File::with(data);
    let path = file.path();
    // A pickle takes three quarters of the setting once more, and what is compressed is there beside what it unpacks to.
    let result = memory::within((1 << 20) + 64 * data.len(), || fuzzing::archive(&path, CODE_BYTES));
    match result {
        Ok(tensor_bytes) => assert!(tensor_bytes <= data.len() as u64, "nothing is larger than the file"),
        Err(said) => assert!(!said.is_empty() && said.len() < 64 << 10),
    }
});
