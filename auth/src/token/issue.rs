//! The issuer of one machine: a token in place of a key, for so long.

use std::path::Path;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use super::{Algorithm, IssuerRules, KeySet, Principals};
use crate::{HeldKey, KeyError, Secret, Surroundings, disk};

/// No file of such a key is longer, in bytes.
const MAX_FILE: u64 = 4096;
const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// In percent of a token's life, when the next one is to be asked for.
const REFRESH: u64 = 80;

/// What its tokens say.
#[derive(Clone, Debug)]
pub struct LocalRules {
    /// Who gives them.
    pub issuer: String,
    /// For whom they are.
    pub audience: String,
    /// For how long, seconds.
    pub lifetime: u64,
}

/// Gives tokens for keys.
pub struct LocalIssuer {
    pair: Ed25519KeyPair,
    kid: String,
    rules: LocalRules,
    /// Under which its tokens name the keys that they are given for.
    seal: [u8; 32],
}

/// A token that was given.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: Secret,
    /// When the next one is to be asked for, seconds since 1970.
    pub refresh_after: u64,
    /// When it ends, seconds since 1970.
    pub expires: u64,
}

impl LocalIssuer {
    /// Reads the key that tokens are signed with (Ed25519, PKCS #8 in PEM, open to nobody but its owner and its group), or makes it. Any number of processes may start
    /// with the same file at the same time: all get the same key.
    ///
    /// # Errors
    /// [`KeyError`] if the file is open to others, cannot be read or written, or is no such key.
    pub fn open(path: &Path, surroundings: Surroundings, rules: LocalRules) -> Result<Self, KeyError> {
        let pem = match disk::read(path, MAX_FILE, surroundings)? {
            Some(pem) => pem,
            None => {
                disk::create(path, make()?.expose())?;
                disk::read(path, MAX_FILE, surroundings)?
                    .ok_or_else(|| KeyError::Gone { what: "file", path: path.into() })?
            }
        };
        let (pair, seal) = parse(pem.expose()).ok_or_else(|| KeyError::NoSigningKey { path: path.into() })?;
        let public = public_members(&pair);
        // RFC 7638: the thumbprint of a key, with its members in this order.
        let print = digest::digest(&digest::SHA256, public.as_bytes());
        Ok(Self { pair, kid: URL_SAFE_NO_PAD.encode(print), rules, seal })
    }

    pub(super) fn seal(&self) -> &[u8; 32] {
        &self.seal
    }

    /// What is asked of its tokens.
    pub fn rules(&self) -> IssuerRules {
        IssuerRules {
            name: "local".into(),
            issuer: self.rules.issuer.clone(),
            audiences: vec![self.rules.audience.clone()],
            algorithms: vec![Algorithm::EdDsa],
            scopes: Vec::new(),
            roles: Vec::new(),
            claim: "sub".into(),
            principals: Principals { built_in: true, ..Principals::default() },
        }
    }

    /// Its public key as issuers publish theirs (RFC 7517).
    pub fn jwks(&self) -> String {
        let mut key = serde_json::from_str(&public_members(&self.pair)).unwrap_or_else(|_| json!({}));
        key["kid"] = json!(self.kid);
        key["use"] = json!("sig");
        key["alg"] = json!(Algorithm::EdDsa.as_str());
        json!({ "keys": [key] }).to_string()
    }

    /// The same for who verifies.
    ///
    /// # Errors
    /// None that could be met: what it publishes is what is read.
    pub fn key_set(&self) -> Result<KeySet, super::JwksError> {
        KeySet::parse(self.jwks().as_bytes(), 1)
    }

    /// Gives a token to a caller who came with that key, at that time. It ends with the key: it names it by its value, which only who has the
    /// key that tokens are signed with can hold against others.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub fn issue(&self, caller: &str, key: &HeldKey, now: u64) -> Result<Issued, getrandom::Error> {
        let ends = now.saturating_add(self.rules.lifetime);
        let expires = key.expires.map_or(ends, |end| ends.min(end));
        let refresh_after = now.saturating_add(expires.saturating_sub(now) * REFRESH / 100);
        let header = json!({ "alg": Algorithm::EdDsa.as_str(), "typ": "JWT", "kid": self.kid });
        let claims = json!({
            "iss": self.rules.issuer, "aud": self.rules.audience, "sub": caller, "key": key.print.sealed(&self.seal),
            "iat": now, "nbf": now, "exp": expires, "jti": format!("{:016x}", getrandom::u64()?),
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut token = format!("{}.{}", part(&header), part(&claims));
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(Issued { token: Secret::new(token), refresh_after, expires })
    }
}

impl std::fmt::Debug for LocalIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalIssuer")
            .field("kid", &self.kid)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// Members of a public key in the order of their names, without spaces.
fn public_members(pair: &Ed25519KeyPair) -> String {
    let point = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{point}"}}"#)
}

fn make() -> Result<Secret, KeyError> {
    let pair = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8());
    let pair = pair.map_err(|_| KeyError::NoRandomKey)?;
    Ok(Secret::new(format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(pair.as_ref()))))
}

/// The key, and a secret that all who have it share.
fn parse(pem: &str) -> Option<(Ed25519KeyPair, [u8; 32])> {
    let inner = pem.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let base64 = Secret::new(inner.split_ascii_whitespace().collect::<String>());
    let bytes = STANDARD.decode(base64.expose()).ok()?;
    let pair = Ed25519KeyPair::from_pkcs8(&bytes).ok()?;
    Some((pair, blake3::derive_key("outrigger 2026 keys that tokens are given for", &bytes)))
}
