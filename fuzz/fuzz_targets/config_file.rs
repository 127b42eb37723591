//! Configuration files: what is wrong is said, and what is in force can be shown and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::configuration;
use outrigger_runtime::config::Sources;

fuzz_target!(|text: &[u8]| {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let sources = Sources {
        environment: vec![("HOME".into(), "/home/u".into())],
        file: Some(("/etc/o.toml".into(), text.to_owned())),
        working_directory: "/work".into(),
        ..Sources::default()
    };
    configuration::check(&sources);
});
