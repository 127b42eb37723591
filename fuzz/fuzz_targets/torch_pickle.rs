//! The pickles and the code in TorchScript archives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{Input, memory};
use outrigger_torch::fuzzing;

/// The setting `code_bytes`, and bytes that each tensor has.
const CODE_BYTES: u64 = 64 << 10;
const TENSOR_BYTES: u64 = 4096;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    if input.byte() == b'p' {
        let bytes = input.rest();
        // Values are limited by the setting, and a tuple has a list of its own.
        memory::within(2 * CODE_BYTES as usize + (64 << 10) + 8 * bytes.len(), || {
            let _ = fuzzing::pickle(bytes, CODE_BYTES, TENSOR_BYTES);
        });
        return;
    }
    let Some(source) = input.text() else { return };
    let arguments = memory::within((64 << 10) + 64 * source.len(), || fuzzing::code(source));
    for argument in arguments.into_iter().flatten() {
        assert!(source.contains(&argument) && !argument.contains(':'));
    }
});
