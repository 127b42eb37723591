//! The valid keys, as hashes.

use blake3::Hash;
use http::HeaderValue;

use crate::key::MAX_KEY_CHARS;
use crate::{AuthError, Principal, ResolvedKeys};

/// Hashes of the primary and the secondary key under a random key of this process. The keys themselves are
/// not kept.
pub struct KeyRing {
    hash_key: [u8; 32],
    primary: Hash,
    /// A random value where there is no secondary key, so that comparing takes the same time with and without
    /// one.
    secondary: Hash,
}

impl KeyRing {
    /// Hashes `keys`.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub fn new(keys: &ResolvedKeys) -> Result<Self, getrandom::Error> {
        let (mut hash_key, mut nobody) = ([0; 32], [0; 32]);
        getrandom::fill(&mut hash_key)?;
        getrandom::fill(&mut nobody)?;
        let hash = |text: &str| blake3::keyed_hash(&hash_key, text.as_bytes());
        let primary = hash(keys.primary.expose());
        let secondary = keys.secondary.as_ref().map_or(Hash::from_bytes(nobody), |key| hash(key.expose()));
        Ok(Self { hash_key, primary, secondary })
    }

    /// Says who sends `authorization`, the value of the header `Authorization`, which is `Bearer` in any
    /// case, spaces, and a key. The key is compared with both in a time that depends on its length alone.
    ///
    /// # Errors
    /// [`AuthError`] if there is no header, or another scheme in it, or a key that is not valid.
    pub fn authenticate(&self, authorization: Option<&HeaderValue>) -> Result<Principal, AuthError> {
        let value = authorization.ok_or(AuthError::NoHeader)?.as_bytes();
        let (scheme, rest) = value.split_at_checked(b"bearer".len()).ok_or(AuthError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            return Err(AuthError::Scheme);
        }
        let key = match rest {
            [] => return Err(AuthError::NoKey),
            [b' ', ..] => rest.trim_ascii(),
            _ => return Err(AuthError::Scheme),
        };
        if key.is_empty() {
            return Err(AuthError::NoKey);
        }
        if key.len() > MAX_KEY_CHARS {
            return Err(AuthError::WrongKey);
        }
        let hash = blake3::keyed_hash(&self.hash_key, key);
        // `Hash` compares in constant time; both comparisons are made before either result is looked at.
        let (is_primary, is_secondary) = (hash == self.primary, hash == self.secondary);
        match (is_primary, is_secondary) {
            (true, _) => Ok(Principal::Primary),
            (false, true) => Ok(Principal::Secondary),
            (false, false) => Err(AuthError::WrongKey),
        }
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRing(***)")
    }
}
