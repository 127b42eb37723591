//! `model.toml`: what it names lies inside its folder, and what is wrong is said.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_runtime::fuzzing;

fuzz_target!(|text: &[u8]| {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Err(said) = fuzzing::manifest(text) {
        assert!(!said.is_empty());
    }
});
