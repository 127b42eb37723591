//! The valid keys, as hashes.

use blake3::Hash;
use http::HeaderValue;

use crate::key::MAX_KEY_CHARS;
use crate::{AuthError, CallerId, ResolvedKeys, Secret};

/// Hashes of all callers' keys under a random key of this process. The keys themselves are not kept.
pub struct KeyRing {
    hash_key: [u8; 32],
    /// A random value for a caller that has no key, so that comparing takes the same time with and without one.
    hashes: Vec<(Hash, CallerId)>,
}

impl KeyRing {
    /// Hashes the service's keys and those of further callers.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub fn new<'a>(
        keys: &ResolvedKeys,
        others: impl IntoIterator<Item = (CallerId, &'a Secret)>,
    ) -> Result<Self, getrandom::Error> {
        let (mut hash_key, mut nobody) = ([0; 32], [0; 32]);
        getrandom::fill(&mut hash_key)?;
        getrandom::fill(&mut nobody)?;
        let hash = |key: &Secret| blake3::keyed_hash(&hash_key, key.expose().as_bytes());
        let secondary = keys.secondary.as_ref().map_or(Hash::from_bytes(nobody), hash);
        let service = [(hash(&keys.primary), CallerId::PRIMARY), (secondary, CallerId::SECONDARY)];
        let others = others.into_iter().map(|(caller, key)| (hash(key), caller));
        let hashes = service.into_iter().chain(others).collect();
        Ok(Self { hash_key, hashes })
    }

    /// Two callers that have the same key, if there are any.
    pub fn double(&self) -> Option<(CallerId, CallerId)> {
        let hashes: Vec<_> = self.hashes.iter().map(|(hash, _)| *hash).collect();
        let (first, other) = pairs(&hashes).into_iter().next()?;
        Some((self.hashes.get(first)?.1, self.hashes.get(other)?.1))
    }

    /// Says who sends `authorization`, the value of the header `Authorization`, which is `Bearer` in any
    /// case, spaces, and a key. The key is compared with all that there are, in a time that depends on its length and their
    /// number alone.
    ///
    /// # Errors
    /// [`AuthError`] if there is no header, or another scheme in it, or a key that is not valid.
    pub fn authenticate(&self, authorization: Option<&HeaderValue>) -> Result<CallerId, AuthError> {
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
        // `Hash` compares in constant time; all comparisons are made, and which one held is put together without a branch.
        let mut found = 0;
        for (known, caller) in &self.hashes {
            found |= usize::from(hash == *known).wrapping_neg() & (caller.index() + 1);
        }
        found.checked_sub(1).and_then(CallerId::new).ok_or(AuthError::WrongKey)
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRing(***)")
    }
}

/// Which keys are the same: for each that was there before, where first, and where again.
pub fn doubles<'a>(keys: impl IntoIterator<Item = &'a Secret>) -> Vec<(usize, usize)> {
    // Hashes, because comparing those takes a time that tells nothing.
    let hashes: Vec<_> = keys.into_iter().map(|key| blake3::hash(key.expose().as_bytes())).collect();
    pairs(&hashes)
}

fn pairs(hashes: &[Hash]) -> Vec<(usize, usize)> {
    let again = |(other, hash): (usize, &Hash)| {
        let first = hashes.iter().take(other).position(|known| known == hash)?;
        Some((first, other))
    };
    hashes.iter().enumerate().filter_map(again).collect()
}
