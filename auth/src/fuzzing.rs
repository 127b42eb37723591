//! What `fuzz/` sees of files of keys.

use std::path::Path;
use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::ring::KeyPrint;
use crate::token::House;
use crate::{
    Algorithm, CallerId, IssuerRules, KeySet, KeyStore, Principals, Secret, TokenFault, TokenLimits, Tokens,
    file,
};

/// Whose tokens are taken here, for whom they are, and when it is.
pub const ISSUER: &str = "https://issuer.example";
/// For whom.
pub const AUDIENCE: &str = "service";
/// Seconds since 1970.
pub const NOW: u64 = 1_800_000_000;
/// By how many of them clocks may differ.
pub const SKEW: u64 = 60;

static TRUSTED: LazyLock<Option<(Ed25519KeyPair, Tokens)>> = LazyLock::new(trusted);

fn trusted() -> Option<(Ed25519KeyPair, Tokens)> {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).ok()?;
    let point = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let jwks = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": point }] }).to_string();
    let mut tokens = Tokens::new(TokenLimits { bytes: 8192, skew: SKEW, remembered: 100 }).ok()?;
    let issuer = tokens.trust(
        IssuerRules {
            name: "fuzz".into(),
            issuer: ISSUER.into(),
            audiences: vec![AUDIENCE.into()],
            algorithms: Algorithm::ALL.to_vec(),
            scopes: Vec::new(),
            roles: Vec::new(),
            claim: "sub".into(),
            principals: Principals::default(),
        },
        || {},
    );
    tokens.set_keys(issuer, KeySet::parse(jwks.as_bytes(), 1).ok()?);
    Some((pair, tokens))
}

struct Anybody;

impl House for Anybody {
    fn caller(&self, _: &str) -> Option<CallerId> {
        Some(CallerId::PRIMARY)
    }

    fn holds(&self, _: CallerId, _: u64, _: impl Fn(&KeyPrint) -> bool) -> bool {
        true
    }
}

/// Whether a token is taken.
///
/// # Errors
/// Why not.
pub fn token(token: &[u8]) -> Result<(), TokenFault> {
    let (_, tokens) = TRUSTED.as_ref().ok_or(TokenFault::NoKeys)?;
    tokens.check(token, NOW, &Anybody).map(drop)
}

/// The token of that header and these claims, whatever they are, signed as the issuer does.
pub fn signed(header: &[u8], claims: &[u8]) -> Vec<u8> {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = TRUSTED.as_ref().map(|(pair, _)| pair.sign(text.as_bytes()).as_ref().to_vec());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.unwrap_or_default())).into_bytes()
}

/// Reads the text of a file of keys: those that it has, or what is said of it.
///
/// # Errors
/// Why it is none, which says nothing of what is in it.
pub fn key_file(text: &str) -> Result<Vec<Secret>, String> {
    let keys = file::parse(Path::new("keys.toml"), text).map_err(|error| error.to_string())?;
    Ok(std::iter::once(keys.primary).chain(keys.secondary).collect())
}

/// Reads the text of a store of keys, and gives how many there are in it.
///
/// # Errors
/// Why it is none, which says nothing of what is in it.
pub fn key_store(text: &str) -> Result<usize, String> {
    let store = KeyStore::parse(Path::new("key-store.toml"), text).map_err(|error| error.to_string())?;
    Ok(store.keys().len())
}
