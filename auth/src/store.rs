//! The store of keys: a file that holds keyed hashes of keys and never a key, made and changed by `outrigger keys`.
//!
//! Why hashes, and why keyed. Who can read the file could otherwise call as anybody, and so could who finds it in a backup or an image. A key
//! has 128 random bits and more, so none can be guessed from its hash, keyed or not; a slow hash as for passwords would cost each
//! request and gain nothing. The key of the hash is random and the file's own: the same key has another hash in each file, so that
//! files of several services do not tell who has the same key in both, and nothing computed beforehand fits. It stands in the same
//! file because it is no secret from who may read that: whoever may *write* the file lets in whom they like, which is why
//! it may be open to nobody but its owner, and a group that has been given it.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake3::Hash;
use serde::{Deserialize, Serialize};

use crate::caller::MAX_CALLERS;
use crate::file::line;
use crate::{KeyError, Secret, Surroundings, Which, disk};

/// The principal that is the service itself, whose keys are those of the callers `primary` and `secondary`.
pub const SERVICE: &str = "service";

/// The most keys of a store: two of each caller that may be named, and of the service.
pub const MAX_STORED_KEYS: usize = 2 * (MAX_CALLERS + 1);

/// No store is longer, in bytes.
const MAX_STORE_BYTES: u64 = 256 * 1024;
/// The form that is written, and the only one that is read.
const VERSION: u32 = 1;
/// The longest identifier of a key.
const MAX_ID: usize = 32;

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// Whose it is: [`SERVICE`], or a caller's name.
    pub principal: String,
    /// Which of the two.
    pub which: Which,
    /// What it may be called where keys are not shown.
    pub id: String,
    /// When it was made, seconds since 1970.
    pub made: u64,
    /// From when on it does not hold any more, seconds since 1970.
    pub expires: Option<u64>,
    pub(crate) hash: Hash,
}

/// Keyed hashes of keys.
#[derive(Clone)]
pub struct KeyStore {
    hash_key: [u8; 32],
    keys: Vec<StoredKey>,
}

/// Why a key of the store cannot be changed like that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The name can be no caller's.
    #[error(
        "`{name}` is no caller's name: a lower-case letter, then lower-case letters, digits or `-`, 63 at most"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The name is one of a built-in caller.
    #[error("`{name}` has no keys of its own here: the service's two are those of `{SERVICE}`")]
    BuiltIn {
        /// The name.
        name: String,
    },
    /// Both keys are there already.
    #[error(
        "`{principal}` has a primary and a secondary key: `outrigger keys regen` makes one anew, `outrigger keys revoke` takes it away"
    )]
    Both {
        /// Whose.
        principal: String,
    },
    /// That key is there already.
    #[error("`{principal}` has a {which} key: `outrigger keys regen` makes it anew")]
    Taken {
        /// Whose.
        principal: String,
        /// Which one.
        which: Which,
    },
    /// There is no such key.
    #[error("`{principal}` has no {which} key in the store")]
    Missing {
        /// Whose.
        principal: String,
        /// Which one.
        which: Which,
    },
    /// There is no key of that name at all.
    #[error("`{principal}` has no key in the store")]
    None {
        /// Whose.
        principal: String,
    },
    /// Somebody has the same key.
    #[error("this is already the {which} key of `{principal}`, and nobody could tell who calls")]
    Same {
        /// Who.
        principal: String,
        /// Which of the two.
        which: Which,
    },
    /// Another key is shown under the same identifier, so that nobody could tell them apart.
    #[error("the key begins with `{id}`, as the {which} key of `{principal}` does: choose another")]
    SameId {
        /// What both begin with.
        id: String,
        /// Whose the other is.
        principal: String,
        /// Which one.
        which: Which,
    },
    /// There are as many keys as there may be.
    #[error("the store holds {MAX_STORED_KEYS} keys, which are the most")]
    Full,
}

/// When a key that is made anew ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// After as long as the one before was to live, if that had an end.
    AsBefore,
    /// Then, seconds since 1970; or never.
    Until(Option<u64>),
}

impl KeyStore {
    /// A store of no keys.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub fn empty() -> Result<Self, getrandom::Error> {
        let mut hash_key = [0; 32];
        getrandom::fill(&mut hash_key)?;
        Ok(Self { hash_key, keys: Vec::new() })
    }

    /// Its keys.
    pub fn keys(&self) -> &[StoredKey] {
        &self.keys
    }

    pub(crate) fn hash_key(&self) -> &[u8; 32] {
        &self.hash_key
    }

    /// Adds a key: the primary one where there is none and nothing else is said, else the secondary one.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn add(
        &mut self,
        principal: &str,
        which: Option<Which>,
        key: &Secret,
        now: u64,
        expires: Option<u64>,
    ) -> Result<&StoredKey, EditError> {
        check_principal(principal)?;
        let free = |which: &Which| self.at(principal, *which).is_none();
        let which = match which {
            Some(which) if !free(&which) => {
                return Err(EditError::Taken { principal: principal.into(), which });
            }
            Some(which) => which,
            None => [Which::Primary, Which::Secondary]
                .into_iter()
                .find(free)
                .ok_or_else(|| EditError::Both { principal: principal.into() })?,
        };
        if self.keys.len() >= MAX_STORED_KEYS {
            return Err(EditError::Full);
        }
        let stored = self.made(principal, which, key, now, expires)?;
        let at = self.keys.len();
        self.keys.push(stored);
        // It was just put there.
        self.keys.get(at).ok_or(EditError::Full)
    }

    /// Puts a key in place of the one that is there, which does not hold any more.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn regen(
        &mut self,
        principal: &str,
        which: Which,
        key: &Secret,
        now: u64,
        lifetime: Lifetime,
    ) -> Result<&StoredKey, EditError> {
        check_principal(principal)?;
        let missing = || EditError::Missing { principal: principal.into(), which };
        let at = self.at(principal, which).ok_or_else(missing)?;
        let before = self.keys.get(at).ok_or_else(missing)?;
        let expires = match lifetime {
            Lifetime::Until(expires) => expires,
            Lifetime::AsBefore => {
                before.expires.map(|expires| now.saturating_add(expires.saturating_sub(before.made)))
            }
        };
        let stored = self.made(principal, which, key, now, expires)?;
        let place = self.keys.get_mut(at).ok_or_else(missing)?;
        *place = stored;
        Ok(place)
    }

    /// Takes keys away: one, or both of a principal.
    ///
    /// # Errors
    /// [`EditError`] if there is none.
    pub fn revoke(&mut self, principal: &str, which: Option<Which>) -> Result<Vec<StoredKey>, EditError> {
        let meant =
            |key: &StoredKey| key.principal == principal && which.is_none_or(|which| which == key.which);
        let revoked: Vec<_> = self.keys.iter().filter(|key| meant(key)).cloned().collect();
        if revoked.is_empty() {
            let principal = principal.into();
            return Err(match which {
                Some(which) => EditError::Missing { principal, which },
                None => EditError::None { principal },
            });
        }
        self.keys.retain(|key| !meant(key));
        Ok(revoked)
    }

    /// Whether a key is there, in that place.
    pub(crate) fn holds(&self, principal: &str, which: Which, key: &Secret) -> bool {
        let hash = blake3::keyed_hash(&self.hash_key, key.expose().as_bytes());
        self.keys
            .iter()
            .any(|known| known.principal == principal && known.which == which && known.hash == hash)
    }

    /// Whether there are keys of a principal.
    pub(crate) fn has(&self, principal: &str) -> bool {
        self.keys.iter().any(|key| key.principal == principal)
    }

    fn at(&self, principal: &str, which: Which) -> Option<usize> {
        self.keys.iter().position(|key| key.principal == principal && key.which == which)
    }

    fn made(
        &self,
        principal: &str,
        which: Which,
        key: &Secret,
        made: u64,
        expires: Option<u64>,
    ) -> Result<StoredKey, EditError> {
        let hash = blake3::keyed_hash(&self.hash_key, key.expose().as_bytes());
        if let Some(known) = self.keys.iter().find(|known| known.hash == hash) {
            return Err(EditError::Same { principal: known.principal.clone(), which: known.which });
        }
        let id = shown_id(key, &hash);
        if let Some(known) = self.keys.iter().find(|known| known.id == id) {
            return Err(EditError::SameId { id, principal: known.principal.clone(), which: known.which });
        }
        Ok(StoredKey { principal: principal.into(), which, id, made, expires, hash })
    }

    /// Reads the text of a store.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, KeyError> {
        let wrong = |line| KeyError::StoreForm { path: path.into(), line };
        let raw: Raw = toml::from_str(text).map_err(|error| wrong(line(text, &error)))?;
        let broken = |problem| KeyError::StoreBroken { path: path.into(), problem };
        if raw.version != VERSION {
            return Err(KeyError::StoreVersion { path: path.into(), version: raw.version });
        }
        let hash_key = URL_SAFE_NO_PAD.decode(&raw.hash_key).ok();
        let hash_key = hash_key.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let mut store =
            Self { hash_key: hash_key.ok_or(broken("its hash_key has another form"))?, keys: Vec::new() };
        if raw.keys.len() > MAX_STORED_KEYS {
            return Err(broken("it holds more keys than there may be"));
        }
        for raw in raw.keys {
            let key = raw.read().map_err(broken)?;
            let double = store.keys.iter().any(|known| known.hash == key.hash || known.id == key.id);
            if double || store.at(&key.principal, key.which).is_some() {
                return Err(broken("a key is there twice"));
            }
            store.keys.push(key);
        }
        Ok(store)
    }

    /// The text of the file.
    fn text(&self) -> Result<Secret, KeyError> {
        let raw = Raw {
            version: VERSION,
            hash_key: URL_SAFE_NO_PAD.encode(self.hash_key),
            keys: self.keys.iter().map(RawKey::of).collect(),
        };
        let text = toml::to_string(&raw).map_err(|_| KeyError::Unwritable)?;
        Ok(Secret::new(format!(
            "# Hashes of keys, made by `outrigger keys`, which changes this file whole. Nobody but its user, and a group that it is given to, may read or write it.\n{text}"
        )))
    }
}

impl std::fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyStore({} keys)", self.keys.len())
    }
}

/// What a key that we made may be called where it is not shown: what it says of itself.
pub(crate) fn our_id(key: &Secret) -> Option<&str> {
    let (id, _) = key.expose().split_once('.')?;
    let digits = id.strip_prefix("or_")?;
    (digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// The same of any key; of one that we did not make the beginning of its hash.
fn shown_id(key: &Secret, hash: &Hash) -> String {
    let own = || format!("own_{}", hash.to_hex().as_str().get(..8).unwrap_or_default());
    our_id(key).map_or_else(own, str::to_owned)
}

/// Whether a store may have keys under a name.
///
/// # Errors
/// [`EditError::Name`], [`EditError::BuiltIn`].
pub fn check_principal(name: &str) -> Result<(), EditError> {
    if crate::caller::BUILT_IN.contains(&name) {
        return Err(EditError::BuiltIn { name: name.into() });
    }
    if is_caller_name(name) { Ok(()) } else { Err(EditError::Name { name: name.into() }) }
}

/// Whether a text has the form of a caller's name: a lower-case letter, then also digits and `-`, 63 at most. So it stands in labels, logs
/// and variables as it is.
pub fn is_caller_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    first
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The file as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: u32,
    hash_key: String,
    #[serde(default)]
    keys: Vec<RawKey>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    principal: String,
    which: Which,
    id: String,
    hash: String,
    made: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

impl RawKey {
    fn of(key: &StoredKey) -> Self {
        Self {
            principal: key.principal.clone(),
            which: key.which,
            id: key.id.clone(),
            hash: key.hash.to_hex().to_string(),
            made: key.made,
            expires: key.expires,
        }
    }

    fn read(self) -> Result<StoredKey, &'static str> {
        check_principal(&self.principal).map_err(|_| "a principal is no caller's name")?;
        if self.id.is_empty()
            || self.id.len() > MAX_ID
            || !self.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            return Err("the id of a key has another form");
        }
        let hash = Hash::from_hex(&self.hash).map_err(|_| "the hash of a key has another form")?;
        let Self { principal, which, id, made, expires, .. } = self;
        Ok(StoredKey { principal, which, id, made, expires, hash })
    }
}

/// A store on the disk.
#[derive(Clone, Debug)]
pub struct StoreFile {
    path: PathBuf,
    surroundings: Surroundings,
}

impl StoreFile {
    /// That at this path, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), surroundings: Surroundings::default() }
    }

    /// The same there.
    #[must_use]
    pub fn within(self, surroundings: Surroundings) -> Self {
        Self { surroundings, ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; `None` if there is none.
    ///
    /// # Errors
    /// [`KeyError`] if it is open to others, cannot be read, or is no store.
    pub fn read(&self) -> Result<Option<KeyStore>, KeyError> {
        let text = disk::read(&self.path, MAX_STORE_BYTES, self.surroundings)?;
        text.map(|text| KeyStore::parse(&self.path, text.expose())).transpose()
    }

    /// Changes it, or makes it: nobody else does meanwhile, and whoever reads it sees what was before or what is after.
    ///
    /// # Errors
    /// What `change` says, and [`KeyError`]; then nothing is changed.
    pub fn edit<T, E: From<KeyError>>(
        &self,
        change: impl FnOnce(&mut KeyStore) -> Result<T, E>,
    ) -> Result<T, E> {
        let _lock = disk::lock(&self.path)?;
        let mut store = match self.read()? {
            Some(store) => store,
            None => KeyStore::empty().map_err(KeyError::Random)?,
        };
        let changed = change(&mut store)?;
        let text = store.text()?;
        // What nobody could read again is not written.
        KeyStore::parse(&self.path, text.expose())?;
        disk::replace(&self.path, text.expose())?;
        Ok(changed)
    }
}
