//! All keys that hold: those of the configuration or the key file, and those of the store. Read at the start, and again when a file has changed.

use std::path::PathBuf;

use crate::store::SERVICE;
use crate::{
    EditError, FileStamp, KeyConfig, KeyError, KeyOrigin, KeySource, KeyStore, ResolvedKeys, StoreFile,
    StoredKey, Which, disk, file,
};

/// Where keys are.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    /// Those of the service itself.
    pub service: KeyConfig,
    /// Those that `outrigger keys` manages.
    pub store: StoreFile,
}

/// The keys that are there.
#[derive(Debug)]
pub struct Keys {
    /// Those of the service itself, unless all it has are in the store.
    pub service: Option<ResolvedKeys>,
    /// The store, if there is one.
    pub store: Option<KeyStore>,
}

/// In which places there were keys: what is to be remembered of them once hashes are made.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    service: bool,
    store: bool,
}

impl From<&Keys> for Places {
    fn from(keys: &Keys) -> Self {
        Self { service: keys.service.is_some(), store: keys.store.is_some() }
    }
}

/// What tells whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    service: Option<FileStamp>,
    store: Option<FileStamp>,
}

impl KeyFiles {
    /// What the files are now. Asked before they are read, so that a change meanwhile is seen the next time.
    pub fn stamps(&self) -> Stamps {
        let configured = self.service.primary.is_some();
        Stamps {
            service: (!configured).then(|| FileStamp::of(&self.service.file)).flatten(),
            store: FileStamp::of(self.store.path()),
        }
    }

    /// Those of the files that everybody in their surroundings may read or write, with their permissions.
    pub fn open_to_others(&self) -> Vec<(PathBuf, u32)> {
        let service = self.service.primary.is_none().then_some(self.service.file.as_path());
        let files = service.into_iter().chain([self.store.path()]);
        files.filter_map(|path| Some((path.to_owned(), disk::open_to_others(path)?))).collect()
    }

    /// Reads the keys at the start. Where there is none at all, neither in the configuration nor in a file, it makes the key file with two.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn start(&self) -> Result<Keys, KeyError> {
        // In this order: keys are taken from the file into the store before the file goes.
        let found = KeySource::find(&self.service)?;
        let store = self.store.read()?;
        let service = match (found, &store) {
            (None, None) => Some(KeySource::resolve(self.service.clone())?),
            (found, _) => found,
        };
        Ok(Keys { service, store })
    }

    /// Reads them again. The key file may have gone, if its keys have been taken into the store; a store that was there
    /// may not: whoever wants nobody in has an empty one.
    ///
    /// # Errors
    /// [`KeyError`]; the keys from before are to be kept then.
    pub fn again(&self, before: impl Into<Places>) -> Result<Keys, KeyError> {
        let before = before.into();
        let service = KeySource::find(&self.service)?;
        let store = self.store.read()?;
        if store.is_none() && before.store {
            return Err(KeyError::Gone { what: "store", path: self.store.path().into() });
        }
        let taken = store.as_ref().is_some_and(|store| store.has(SERVICE));
        if service.is_none() && !taken && (before.service || store.is_none()) {
            return Err(KeyError::Gone { what: "file", path: self.service.file.clone() });
        }
        Ok(Keys { service, store })
    }

    /// Takes the keys of the key file into the store, as hashes, and removes the file: they hold as before, and can be made anew and
    /// revoked there. Nothing is done where there is no file.
    ///
    /// # Errors
    /// [`KeyError`], and [`EditError`] if the store has other keys in their place; the file stays then.
    pub fn import<E: From<KeyError> + From<EditError>>(&self, now: u64) -> Result<Vec<StoredKey>, E> {
        let Some(keys) = file::read(&self.service.file, self.service.surroundings)? else {
            return Ok(Vec::new());
        };
        let taken = self.store.edit(|store| {
            let both = [(Which::Primary, Some(&keys.primary)), (Which::Secondary, keys.secondary.as_ref())];
            let mut taken = Vec::new();
            for (which, key) in both.into_iter().filter_map(|(which, key)| Some((which, key?))) {
                // What a broken-off import has taken already is there.
                if !store.holds(SERVICE, which, key) {
                    taken.push(store.add(SERVICE, Some(which), key, now, None)?.clone());
                }
            }
            Ok::<_, E>(taken)
        })?;
        disk::remove(&self.service.file)?;
        Ok(taken)
    }
}

impl Keys {
    /// Whether the service's keys were made just now.
    pub fn is_made(&self) -> bool {
        self.service.as_ref().is_some_and(|keys| matches!(keys.origin, KeyOrigin::Generated(_)))
    }
}
