//! Files and stores of keys, and the header that keys come in: what is said of them never has a key in it, and only a key opens.
#![no_main]

use std::sync::LazyLock;

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use outrigger_auth::{
    CallerId, KeyOrigin, KeyRing, MAX_KEY_CHARS, MAX_STORED_KEYS, MIN_KEY_CHARS, ResolvedKeys, Secret,
    check_key, fuzzing,
};

const KEYS: [&str; 2] = ["or_01234567.abcdefghijklmnopqrstuvwxyz", "or_89abcdef.zyxwvutsrqponmlkjihgfedcba"];

static RING: LazyLock<KeyRing> = LazyLock::new(|| {
    let [primary, secondary] = KEYS.map(Secret::new);
    let keys = ResolvedKeys { primary, secondary: Some(secondary), origin: KeyOrigin::Configured };
    KeyRing::new(&keys, []).expect("there are random numbers")
});

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = HeaderValue::from_bytes(data) {
        authenticate(&value);
    }
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
        Err(said) => tells_nothing(text, &said),
    }
    match fuzzing::key_store(text) {
        Ok(keys) => assert!(keys <= MAX_STORED_KEYS),
        Err(said) => tells_nothing(text, &said),
    }
});

fn tells_nothing(text: &str, said: &str) {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let leaked = words.find(|word| word.len() >= MIN_KEY_CHARS && said.contains(word));
    assert_eq!(leaked, None, "{said}");
}

fn authenticate(value: &HeaderValue) {
    let key = value.as_bytes().split_at_checked(7).and_then(|(scheme, key)| {
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| std::str::from_utf8(key.trim_ascii()).ok())?
    });
    let caller = match key {
        Some(key) if key == KEYS[0] => Some(CallerId::PRIMARY),
        Some(key) if key == KEYS[1] => Some(CallerId::SECONDARY),
        _ => None,
    };
    assert_eq!(RING.authenticate(Some(value), 0).ok(), caller);
}
