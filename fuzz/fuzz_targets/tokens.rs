//! Tokens, sets of keys and discovery documents: only what the issuer has signed is believed, and only what it says of the time, of whom it is for, and
//! of who calls.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_auth::fuzzing::{AUDIENCE, ISSUER, NOW, SKEW, signed, token};
use outrigger_auth::{KeySet, TokenFault, jwks_uri};
use outrigger_fuzz::Input;
use serde_json::Value;

/// The most keys of a set.
const KEYS: usize = 8;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.byte() % 4 {
        // Whatever is sent: that it is signed, nobody can come upon.
        0 => assert!(token(input.rest()).is_err()),
        // Signed by the issuer itself, whatever it says.
        1 => {
            let header = input.piece();
            believed(header, input.rest());
        }
        // One that is good but for a byte of its text.
        2 => {
            let claims = format!(
                "{{\"iss\":\"{ISSUER}\",\"aud\":\"{AUDIENCE}\",\"sub\":\"bob\",\"exp\":{}}}",
                NOW + 1
            );
            let mut good = signed(b"{\"alg\":\"EdDSA\",\"kid\":\"k\"}", claims.as_bytes());
            assert_eq!(token(&good), Ok(()));
            let at = usize::from(input.byte()) * 2 % good.len();
            let (before, byte) = (good[at], input.byte());
            good[at] = byte;
            assert_eq!(token(&good).is_ok(), byte == before);
        }
        _ => {
            let text = input.rest();
            if let Ok(keys) = KeySet::parse(text, KEYS) {
                assert!(keys.len() <= KEYS);
            }
            if jwks_uri(text, ISSUER).is_ok() {
                let document: Value = serde_json::from_slice(text).expect("it was read");
                assert_eq!(document["issuer"], ISSUER);
            }
        }
    }
});

fn believed(header: &[u8], claims: &[u8]) {
    let taken = token(&signed(header, claims));
    assert_ne!(taken, Err(TokenFault::Signature));
    if taken.is_err() {
        return;
    }
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("it was read");
    let (header, claims) = (read(header), read(claims));
    assert_eq!(header["alg"], "EdDSA");
    assert!(header["kid"].is_null() || header["kid"] == "k", "{header}");
    for name in ["crit", "jku", "jwk", "x5u", "x5c"] {
        assert!(header.get(name).is_none(), "{header}");
    }
    assert_eq!(claims["iss"], ISSUER);
    let audience = &claims["aud"];
    assert!(
        audience == AUDIENCE
            || audience.as_array().is_some_and(|list| list.iter().any(|one| one == AUDIENCE))
    );
    assert!(claims["exp"].as_f64().is_some_and(|exp| exp + 1.0 + SKEW as f64 > NOW as f64), "{claims}");
    assert!(claims["nbf"].as_f64().is_none_or(|nbf| nbf < (NOW + SKEW + 1) as f64), "{claims}");
    assert!(claims["sub"].is_string());
}
