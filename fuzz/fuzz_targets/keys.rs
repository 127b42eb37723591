//! Files of keys, and the header that keys come in: what is said of them never has a key in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_auth::{MAX_KEY_CHARS, MIN_KEY_CHARS, Secret, check_key, fuzzing};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = check_key(&Secret::new(text));
    match fuzzing::key_file(text) {
        Ok(keys) => {
            for key in keys {
                let key = key.expose();
                assert!((MIN_KEY_CHARS..=MAX_KEY_CHARS).contains(&key.len()));
                assert!(key.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
        Err(said) => {
            let leaked = text
                .split(|c: char| !c.is_ascii_alphanumeric())
                .find(|word| word.len() >= MIN_KEY_CHARS && said.contains(word));
            assert_eq!(leaked, None, "{said}");
        }
    }
});
