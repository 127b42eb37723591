//! When keys were last used, kept from one start to the next in a file beside the store.
//!
//! It is written now and then by replicas, and read by who lists keys. What is lost of it is lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{KeyError, Surroundings, disk};

/// No such file is longer, in bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// The most keys that it remembers; beyond, those that were not used for longest are forgotten.
const MAX_KEYS: usize = 1000;

/// By the identifier of a key, when it was last used, seconds since 1970.
pub type LastUsed = BTreeMap<String, u64>;

/// That file.
#[derive(Clone, Debug)]
pub struct UsedFile {
    path: PathBuf,
}

impl UsedFile {
    /// The one that is beside a store.
    pub fn beside(store: &Path) -> Self {
        Self { path: disk::beside(store, "used") }
    }

    /// Reads it; empty where there is none, or something else is there, which no call depends on.
    pub fn read(&self) -> LastUsed {
        let text = disk::read(&self.path, MAX_BYTES, Surroundings::Machine).ok().flatten();
        text.and_then(|text| toml::from_str(text.expose()).ok()).unwrap_or_default()
    }

    /// Adds what is later than what it says; several replicas may do so.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be written.
    pub fn merge(&self, used: &LastUsed) -> Result<(), KeyError> {
        let _lock = disk::lock(&self.path)?;
        let mut all = self.read();
        for (id, time) in used {
            let known = all.entry(id.clone()).or_default();
            *known = (*known).max(*time);
        }
        let mut times: Vec<_> = all.values().copied().collect();
        times.sort_unstable();
        if let Some(oldest) = times.len().checked_sub(MAX_KEYS).and_then(|at| times.get(at)) {
            all.retain(|_, time| *time >= *oldest);
        }
        let text = toml::to_string(&all).map_err(|_| KeyError::Unwritable)?;
        disk::replace(&self.path, &text)
    }
}
