//! The valid keys, as hashes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake3::Hash;
use http::HeaderValue;

use crate::key::MAX_KEY_CHARS;
use crate::store::{SERVICE, our_id};
use crate::{AuthError, CallerId, KeyOrigin, KeyStore, ResolvedKeys, Secret, Which};

/// Where a key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// In the configuration.
    Configuration,
    /// In the key file, as it is.
    File,
    /// In the store, as a hash.
    Store,
}

impl KeyPlace {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::File => "file",
            Self::Store => "store",
        }
    }
}

/// What may be told of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKey {
    /// What it may be called.
    pub id: String,
    /// Whose it is: [`SERVICE`], or a caller's name.
    pub principal: String,
    /// Which of the two.
    pub which: Which,
    /// Where it is kept.
    pub place: KeyPlace,
    /// When it was made, seconds since 1970, where that is known.
    pub made: Option<u64>,
    /// From when on it does not hold any more, seconds since 1970.
    pub expires: Option<u64>,
    /// When a request last came with it, seconds since 1970, as far as this process knows.
    pub used: Option<u64>,
    pub(crate) print: KeyPrint,
}

/// What tells a key from another one of the same name, and nothing of its value: the same at each start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyPrint([u8; 32]);

impl KeyPrint {
    /// Of a key that is kept as it is. There is no key to this hash, as there is none to keep it: the value has 128 random bits.
    fn of_value(value: &Secret) -> Self {
        Self(blake3::derive_key("outrigger 2026 print of a key", value.expose().as_bytes()))
    }

    /// Of one of which a hash is kept.
    fn of_hash(hash_key: &[u8; 32], hash: &Hash) -> Self {
        let parts = [&hash_key[..], &hash.as_bytes()[..]].concat();
        Self(blake3::derive_key("outrigger 2026 print of a stored key", &parts))
    }

    /// As it may be handed out, 128 bits under a secret of who does: nobody else can hold a guess against it.
    pub(crate) fn sealed(&self, secret: &[u8; 32]) -> String {
        let seal = blake3::keyed_hash(secret, &self.0);
        URL_SAFE_NO_PAD.encode(&seal.as_bytes()[..16])
    }
}

impl std::fmt::Debug for KeyPrint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Hashes of all callers' keys under one random key. The keys themselves are not kept.
pub struct KeyRing {
    hash_key: [u8; 32],
    /// A random value for a caller that has no key, so that comparing takes the same time with and without one.
    hashes: Vec<Hash>,
    /// What there is to each of them.
    about: Vec<About>,
}

struct About {
    caller: CallerId,
    /// In seconds since 1970; the largest number for never.
    expires: u64,
    /// Nothing for a value that is nobody's key.
    key: Option<HeldKey>,
    /// Seconds since 1970; 0 for never. The ring that takes this one's place has the same.
    used: Arc<AtomicU64>,
}

impl KeyRing {
    /// Hashes the service's keys and those of further callers.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub fn new<'a>(
        keys: &ResolvedKeys,
        others: impl IntoIterator<Item = (CallerId, &'a str, &'a Secret)>,
    ) -> Result<Self, getrandom::Error> {
        Self::of(Some(keys), None, others, |_| None)
    }

    /// Hashes the service's keys and those of further callers, and adds those of a store, whose callers `find` knows by name. Keys of
    /// others are left out.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub fn of<'a>(
        service: Option<&ResolvedKeys>,
        store: Option<&KeyStore>,
        others: impl IntoIterator<Item = (CallerId, &'a str, &'a Secret)>,
        find: impl Fn(&str) -> Option<CallerId>,
    ) -> Result<Self, getrandom::Error> {
        let (mut hash_key, mut nobody) = ([0; 32], [0; 32]);
        getrandom::fill(&mut hash_key)?;
        getrandom::fill(&mut nobody)?;
        if let Some(store) = store {
            // So one hash of what is sent is enough.
            hash_key = *store.hash_key();
        }
        let mut ring = Self { hash_key, hashes: Vec::new(), about: Vec::new() };
        if let Some(keys) = service {
            let place = match keys.origin {
                KeyOrigin::Configured => KeyPlace::Configuration,
                KeyOrigin::FromFile(_) | KeyOrigin::Generated(_) => KeyPlace::File,
            };
            ring.plain(CallerId::PRIMARY, SERVICE, Which::Primary, place, &keys.primary);
            match &keys.secondary {
                Some(key) => ring.plain(CallerId::SECONDARY, SERVICE, Which::Secondary, place, key),
                None => ring.push(Hash::from_bytes(nobody), CallerId::SECONDARY, None),
            }
        }
        for (caller, name, key) in others {
            ring.plain(caller, name, Which::Primary, KeyPlace::Configuration, key);
        }
        for key in store.map(KeyStore::keys).unwrap_or_default() {
            let caller = match (key.principal.as_str(), key.which) {
                (SERVICE, Which::Primary) => Some(CallerId::PRIMARY),
                (SERVICE, Which::Secondary) => Some(CallerId::SECONDARY),
                (name, _) => find(name),
            };
            let Some(caller) = caller else { continue };
            let held = HeldKey {
                id: key.id.clone(),
                principal: key.principal.clone(),
                which: key.which,
                place: KeyPlace::Store,
                made: Some(key.made),
                expires: key.expires,
                used: None,
                print: KeyPrint::of_hash(&ring.hash_key, &key.hash),
            };
            ring.push(key.hash, caller, Some(held));
        }
        Ok(ring)
    }

    fn plain(&mut self, caller: CallerId, principal: &str, which: Which, place: KeyPlace, key: &Secret) {
        let hash = blake3::keyed_hash(&self.hash_key, key.expose().as_bytes());
        // One that we did not make has a name that the next start has for it, too, whatever its hash is then.
        let id = our_id(key).map_or_else(|| format!("own_{principal}_{which}"), str::to_owned);
        let principal = principal.to_owned();
        let print = KeyPrint::of_value(key);
        let held = HeldKey { id, principal, which, place, made: None, expires: None, used: None, print };
        self.push(hash, caller, Some(held));
    }

    fn push(&mut self, hash: Hash, caller: CallerId, key: Option<HeldKey>) {
        // One caller may have a key in two places, while it is taken from the one into the other.
        let same = |(known, about): (&Hash, &About)| *known == hash && about.caller == caller;
        if self.hashes.iter().zip(&self.about).any(same) {
            return;
        }
        let expires = key.as_ref().and_then(|key| key.expires).unwrap_or(u64::MAX);
        self.hashes.push(hash);
        self.about.push(About { caller, expires, key, used: Arc::default() });
    }

    /// Goes on with what the ring before knew of when keys were used.
    pub(crate) fn inherit(&mut self, before: &Self) {
        for (hash, about) in self.hashes.iter().zip(&mut self.about) {
            // The same key, be it that it has another hash since there is a store.
            let same = |(known, old): &(&Hash, &About)| *known == hash || same_key(old, about);
            if let Some((_, old)) = before.hashes.iter().zip(&before.about).find(same) {
                about.used = Arc::clone(&old.used);
            }
        }
    }

    /// Two callers that have the same key, if there are any.
    pub fn double(&self) -> Option<(CallerId, CallerId)> {
        let (first, other) = pairs(&self.hashes).into_iter().next()?;
        Some((self.about.get(first)?.caller, self.about.get(other)?.caller))
    }

    /// Whether a caller has a key.
    pub(crate) fn has(&self, caller: CallerId) -> bool {
        self.about.iter().any(|about| about.caller == caller && about.key.is_some())
    }

    /// What may be told of the keys.
    pub fn keys(&self) -> impl Iterator<Item = HeldKey> {
        self.about.iter().filter_map(|about| {
            let used = Some(about.used.load(Ordering::Relaxed)).filter(|used| *used > 0);
            Some(HeldKey { used, ..about.key.clone()? })
        })
    }

    /// Says who sends `authorization`, the value of the header `Authorization`, which is `Bearer` in any
    /// case, spaces, and a key, at the time `now`, in seconds since 1970. The key is compared with all that there are, in a time that depends
    /// on its length and their number alone.
    ///
    /// # Errors
    /// [`AuthError`] if there is no header, or another scheme in it, or a key that is not valid.
    pub fn authenticate(&self, authorization: Option<&HeaderValue>, now: u64) -> Result<CallerId, AuthError> {
        self.check(bearer(authorization)?, now)
    }

    /// The same of what comes after `Bearer`.
    pub(crate) fn check(&self, key: &[u8], now: u64) -> Result<CallerId, AuthError> {
        self.about(key, now).map(|about| about.caller)
    }

    /// What may be told of a key that holds.
    pub(crate) fn find(&self, key: &[u8], now: u64) -> Result<HeldKey, AuthError> {
        self.about(key, now)?.key.clone().ok_or(AuthError::WrongKey)
    }

    /// Whether a caller has a key that holds and is the one that is meant.
    pub(crate) fn holds(&self, caller: CallerId, now: u64, is_meant: impl Fn(&KeyPrint) -> bool) -> bool {
        self.about.iter().any(|about| {
            about.caller == caller
                && now < about.expires
                && about.key.as_ref().is_some_and(|key| is_meant(&key.print))
        })
    }

    fn about(&self, key: &[u8], now: u64) -> Result<&About, AuthError> {
        if key.len() > MAX_KEY_CHARS {
            return Err(AuthError::WrongKey);
        }
        let hash = blake3::keyed_hash(&self.hash_key, key);
        // `Hash` compares in constant time; all comparisons are made, and which one held is put together without a branch.
        let mut found = 0;
        for (at, known) in self.hashes.iter().enumerate() {
            found |= usize::from(hash == *known).wrapping_neg() & (at + 1);
        }
        let about = found.checked_sub(1).and_then(|at| self.about.get(at)).ok_or(AuthError::WrongKey)?;
        if now >= about.expires {
            return Err(AuthError::ExpiredKey);
        }
        // Written once a second at most, so that threads do not take the word from each other.
        if about.used.load(Ordering::Relaxed) < now {
            about.used.store(now, Ordering::Relaxed);
        }
        Ok(about)
    }
}

/// Whether both are of one key of one principal. A name alone would not say so: one of our own making up goes from a key to the next.
fn same_key(one: &About, other: &About) -> bool {
    match (&one.key, &other.key) {
        (Some(one), Some(other)) => one.print == other.print && one.principal == other.principal,
        _ => false,
    }
}

/// What comes after `Bearer` and spaces.
pub(crate) fn bearer(authorization: Option<&HeaderValue>) -> Result<&[u8], AuthError> {
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
    if key.is_empty() { Err(AuthError::NoKey) } else { Ok(key) }
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
