//! Manifests out of storage: what is taken can lie beside each other below a folder, and is the same when it is written and read.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::memory;
use outrigger_store::Manifest;
use outrigger_store::manifest::{MAX_FILES, MAX_SIZE};

fuzz_target!(|data: &[u8]| {
    let read = memory::within(256 * 1024 + 64 * data.len(), || Manifest::read(data));
    let manifest = match read {
        Ok(manifest) => manifest,
        Err(error) => {
            assert!(error.to_string().len() < 16 << 10, "what is said is short");
            return;
        }
    };
    let bytes = manifest.to_bytes();
    assert_eq!(Manifest::read_of(&bytes, manifest.id()).expect("it is its own"), manifest);
    let files = manifest.files();
    assert!((1..=MAX_FILES).contains(&files.len()) && manifest.size() <= MAX_SIZE);
    for file in files {
        let path = Path::new(file.path.as_str());
        assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
        // Nothing is both a file and a folder, and nothing is there twice.
        assert_eq!(files.iter().filter(|other| Path::new(other.path.as_str()).starts_with(path)).count(), 1);
    }
});
