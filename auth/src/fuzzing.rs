//! What `fuzz/` sees of files of keys.

use std::path::Path;

use crate::{KeyStore, Secret, file};

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
