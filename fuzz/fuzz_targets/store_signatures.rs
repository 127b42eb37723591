//! Signatures of manifests, and keys: only what the key has signed is believed.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_store::signature::{SigningKey, TrustedKey, check};

/// RFC 8032, section 7.1, test 2.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";
const MANIFEST: &[u8] = b"manifest";

static SIGNER: LazyLock<(SigningKey, [TrustedKey; 1])> = LazyLock::new(|| {
    let key = SigningKey::from_pem(KEY).expect("a key");
    let public = key.public();
    (key, [public])
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (key, trusted) = &*SIGNER;
    let kind = input.byte();
    let Some(text) = input.text() else { return };
    match kind % 3 {
        0 => {
            if check(MANIFEST, Some(text), trusted).is_ok() {
                // Ed25519 gives the same signature each time, and no other is valid.
                assert!(text.contains(key.sign(MANIFEST).trim()));
            }
        }
        1 => {
            let signature = key.sign(text.as_bytes());
            let signatures = format!("\n{signature}\n");
            assert_eq!(check(text.as_bytes(), Some(&signatures), trusted), Ok(()));
            let other = [text.as_bytes(), b" "].concat();
            assert!(check(&other, Some(&signatures), trusted).is_err());
        }
        _ => {
            let _ = TrustedKey::from_pem(text);
            if let Ok(key) = SigningKey::from_pem(text) {
                assert_eq!(check(MANIFEST, Some(&key.sign(MANIFEST)), &[key.public()]), Ok(()));
            }
        }
    }
});
