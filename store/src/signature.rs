//! Signatures of manifests: Ed25519, over a manifest's bytes as they are stored. A manifest says its model's name and version, and the digest of each
//! file, so that is what is signed.
//!
//! Keys are PEM, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them. The signature's object has the 64 bytes in base64, one
//! line for each who has signed.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Largest object with signatures, bytes.
pub const MAX_SIGNATURES: u64 = 8 << 10;

/// What a public key begins with in DER: that it is one of Ed25519. 32 bytes follow. Source: RFC 8410, section 4.
const PUBLIC_DER: &[u8; 12] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// Why a signature does not count, or a key is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// There is none, and somebody's is asked for.
    #[error("it is not signed")]
    Missing,
    /// It is nobody's who is trusted, or the manifest is not what was signed.
    #[error("it is not signed by anybody who is trusted, or was changed since")]
    Untrusted,
    /// Not what a signature looks like.
    #[error("its signature is none: 64 bytes in base64, in each line")]
    Form,
    /// No key.
    #[error("it is no Ed25519 {kind} key in PEM")]
    Key {
        /// `private` or `public`.
        kind: &'static str,
    },
}

/// A key that manifests are signed with.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Reads one.
    ///
    /// # Errors
    /// If the text is none.
    pub fn from_pem(text: &str) -> Result<Self, SignatureError> {
        let error = SignatureError::Key { kind: "private" };
        let der = der(text, "PRIVATE KEY").ok_or(error)?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map(Self).map_err(|_| error)
    }

    /// A line for the signature's object.
    pub fn sign(&self, manifest: &[u8]) -> String {
        let mut line = STANDARD.encode(self.0.sign(manifest));
        line.push('\n');
        line
    }

    /// Whom signatures by this key are from.
    pub fn public(&self) -> TrustedKey {
        TrustedKey(self.0.public_key().as_ref().to_vec())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

/// The key of somebody whose signature counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey(Vec<u8>);

impl TrustedKey {
    /// Reads one.
    ///
    /// # Errors
    /// If the text is none.
    pub fn from_pem(text: &str) -> Result<Self, SignatureError> {
        let error = SignatureError::Key { kind: "public" };
        let der = der(text, "PUBLIC KEY").ok_or(error)?;
        let key = der.strip_prefix(PUBLIC_DER).filter(|key| key.len() == 32).ok_or(error)?;
        Ok(Self(key.to_vec()))
    }
}

/// Whether one of those who are trusted has signed. Where nobody is named, nothing is asked.
///
/// # Errors
/// If nobody of them has.
pub fn check(
    manifest: &[u8],
    signatures: Option<&str>,
    trusted: &[TrustedKey],
) -> Result<(), SignatureError> {
    if trusted.is_empty() {
        return Ok(());
    }
    let lines =
        signatures.ok_or(SignatureError::Missing)?.lines().map(str::trim).filter(|line| !line.is_empty());
    for line in lines {
        let signature = STANDARD.decode(line).ok().filter(|signature| signature.len() == 64);
        let signature = signature.ok_or(SignatureError::Form)?;
        let signed =
            |key: &TrustedKey| UnparsedPublicKey::new(&ED25519, &key.0).verify(manifest, &signature).is_ok();
        if trusted.iter().any(signed) {
            return Ok(());
        }
    }
    Err(SignatureError::Untrusted)
}

/// The bytes of the first PEM block with a label.
fn der(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8032, section 7.1, test 2, in the forms that OpenSSL 3.0 gives it.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn who_is_trusted_is_believed() {
        let key = SigningKey::from_pem(PRIVATE).expect("a key");
        let trusted = TrustedKey::from_pem(PUBLIC).expect("a key");
        assert_eq!(key.public(), trusted);
        assert_eq!(format!("{key:?}"), "SigningKey(***)");
        let expected = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        let signature = STANDARD.decode(key.sign(&[0x72]).trim()).expect("base64");
        assert_eq!(signature.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
        let other = TrustedKey(vec![7; 32]);
        let signed = format!("\n{}", key.sign(b"manifest"));
        assert_eq!(check(b"manifest", Some(&signed), &[other.clone(), trusted.clone()]), Ok(()));
        assert_eq!(check(b"manifest", None, &[]), Ok(()));
        assert_eq!(check(b"manifest", None, std::slice::from_ref(&trusted)), Err(SignatureError::Missing));
        assert_eq!(
            check(b"Manifest", Some(&signed), std::slice::from_ref(&trusted)),
            Err(SignatureError::Untrusted)
        );
        assert_eq!(check(b"manifest", Some(&signed), &[other]), Err(SignatureError::Untrusted));
        assert_eq!(
            check(b"manifest", Some(""), std::slice::from_ref(&trusted)),
            Err(SignatureError::Untrusted)
        );
        assert_eq!(check(b"manifest", Some("AAAA"), &[trusted]), Err(SignatureError::Form));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", PUBLIC, &PRIVATE.replace("MC4C", "AAAA"), &PRIVATE.replace("END", "FIN")] {
            assert!(SigningKey::from_pem(text).is_err(), "{text}");
        }
        for text in ["", PRIVATE, &PUBLIC.replace("MCow", "AAAA"), &PUBLIC.replace("Zgw=", "")] {
            assert!(TrustedKey::from_pem(text).is_err(), "{text}");
        }
    }
}
