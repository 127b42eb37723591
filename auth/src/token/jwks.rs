//! An issuer's public keys (RFC 7517), as it publishes them.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake3::Hash;
use serde::Deserialize;
use serde_json::Value;

use super::object::Object;
use super::parse::MAX_KID;
use super::{Algorithm, TokenFault};

/// Bytes of the modulus of an RSA key: 2048 to 8192 bits, as what verifies with it takes.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;
/// Public exponents that what verifies takes, if they are odd: up to 33 bits.
const EXPONENT: std::ops::Range<u64> = 3..1 << 33;

/// Why a text is no set of keys that tokens could be verified by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwksError {
    /// It is no JSON object with a list `keys`.
    #[error("it is no JSON object with a list of keys")]
    Form,
    /// It has more keys than are taken.
    #[error("it has {actual} keys, and {most} are the most (tokens.keys)")]
    TooMany {
        /// How many it has.
        actual: usize,
        /// How many may be.
        most: usize,
    },
}

/// Public keys of an issuer.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    /// Tells whether there are others, in whichever order they are.
    digest: Hash,
}

#[derive(Debug)]
struct PublicKey {
    kid: Option<String>,
    algorithm: Algorithm,
    /// Parsed once, so that a key which nothing can be verified by counts as none.
    key: ParsedPublicKey,
}

#[derive(Deserialize)]
struct Raw {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads what an issuer publishes. Keys for other uses and of other kinds are left out, and there may be none: an issuer that has withdrawn
    /// all of them says so like that.
    ///
    /// # Errors
    /// [`JwksError`].
    pub fn parse(text: &[u8], most: usize) -> Result<Self, JwksError> {
        let raw: Raw = serde_json::from_slice(text).map_err(|_| JwksError::Form)?;
        let actual = raw.keys.len();
        if actual > most {
            return Err(JwksError::TooMany { actual, most });
        }
        let keys: Vec<_> = raw.keys.iter().filter_map(read_key).collect();
        let mut hashes: Vec<_> = keys.iter().map(|key| *key.hash().as_bytes()).collect();
        hashes.sort_unstable();
        Ok(Self { keys, digest: blake3::hash(hashes.as_flattened()) })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Holds a signature against the key of that name; where none is named, against the only one of its kind.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), TokenFault> {
        let mut meant = self.keys.iter().filter(|key| {
            key.algorithm == algorithm && kid.is_none_or(|kid| key.kid.as_deref() == Some(kid))
        });
        let key = meant.next().ok_or(TokenFault::Key)?;
        if meant.next().is_some() {
            // Which of them is not said, and trying all would be work for who sends nonsense.
            return Err(TokenFault::Key);
        }
        key.key.verify_sig(signed, signature).map_err(|_| TokenFault::Signature)
    }
}

fn read_key(raw: &Value) -> Option<PublicKey> {
    // Names are held to be there once by who reads the text; here a key is one of a list.
    let text = |name: &str| raw.get(name).and_then(Value::as_str);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    let has = |name: &str| raw.get(name).is_some();
    // One that tells its private part is nobody's secret any more.
    if has("d") || has("k") || (has("use") && text("use") != Some("sig")) {
        return None;
    }
    if let Some(operations) = raw.get("key_ops") {
        let verifies = |operation: &Value| operation.as_str() == Some("verify");
        operations.as_array().filter(|operations| operations.iter().any(verifies))?;
    }
    let (algorithm, key) = match (text("kty")?, text("crv")) {
        ("RSA", _) => {
            let number = |name| {
                let bytes = bytes(name)?;
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                bytes.get(zeros..).map(<[u8]>::to_vec)
            };
            let (n, e) = (number("n")?, number("e")?);
            let exponent =
                (e.len() <= 8).then(|| e.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))?;
            let is_odd = |bytes: &[u8]| bytes.last().is_some_and(|byte| byte % 2 == 1);
            if !MODULUS.contains(&n.len()) || !EXPONENT.contains(&exponent) || !is_odd(&n) || !is_odd(&e) {
                return None;
            }
            let parts = RsaPublicKeyComponents { n, e };
            (Algorithm::Rs256, parts.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256))
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes("x")?, bytes("y")?);
            if (x.len(), y.len()) != (32, 32) {
                return None;
            }
            let point = [&[4], &x[..], &y[..]].concat();
            (Algorithm::Es256, ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point))
        }
        ("OKP", Some("Ed25519")) => {
            (Algorithm::EdDsa, ParsedPublicKey::new(&ED25519, bytes("x").filter(|x| x.len() == 32)?))
        }
        _ => return None,
    };
    if has("alg") && text("alg") != Some(algorithm.as_str()) {
        return None;
    }
    let kid = match raw.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str().filter(|kid| kid.len() <= MAX_KID)?.to_owned()),
    };
    Some(PublicKey { kid, algorithm, key: key.ok()? })
}

impl PublicKey {
    fn hash(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        // None is no empty name.
        part(&[u8::from(self.kid.is_some())]);
        part(self.kid.as_deref().unwrap_or_default().as_bytes());
        part(self.algorithm.as_str().as_bytes());
        part(self.key.as_ref());
        hasher.finalize()
    }
}

/// Where an issuer's keys are, by its discovery document (OpenID Connect Discovery 1.0, section 4).
///
/// # Errors
/// What is wrong with it: it is no such document, or one of another issuer.
pub fn jwks_uri(document: &[u8], issuer: &str) -> Result<String, &'static str> {
    let document = Object::parse(document).ok_or("the discovery document is no JSON object")?;
    if document.text("issuer") != Ok(Some(issuer)) {
        return Err("the discovery document is of another issuer");
    }
    match document.text("jwks_uri") {
        Ok(Some(uri)) => Ok(uri.to_owned()),
        _ => Err("the discovery document has no jwks_uri"),
    }
}
