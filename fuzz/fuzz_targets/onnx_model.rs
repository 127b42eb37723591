//! ONNX models, as far as they are looked at before ONNX Runtime sees them: in next to no memory, whatever they claim.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{File, memory};
use outrigger_onnxruntime::look_at;

fuzz_target!(|data: &[u8]| {
    let file = File::with(data);
    let path = file.path();
    if let Err(error) = memory::within((1 << 20) + 64 * data.len(), || look_at(&path)) {
        assert!(error.to_string().len() < 64 << 10);
    }
});
