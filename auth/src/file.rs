//! The file that the service's two keys are kept in as they are, made at the first start.

use std::path::Path;

use serde::Deserialize;

use crate::key::check_key;
use crate::source::{KeyError, Which};
use crate::{Secret, Surroundings, disk};

/// No file of keys is longer, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What the file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyFile {
    pub(crate) primary: Secret,
    pub(crate) secondary: Option<Secret>,
}

/// Reads the file; `None` if there is none.
pub(crate) fn read(path: &Path, surroundings: Surroundings) -> Result<Option<KeyFile>, KeyError> {
    let text = disk::read(path, MAX_FILE_BYTES, surroundings)?;
    text.map(|text| parse(path, text.expose())).transpose()
}

pub(crate) fn parse(path: &Path, text: &str) -> Result<KeyFile, KeyError> {
    let keys: KeyFile = toml::from_str(text)
        .map_err(|error| KeyError::Form { path: path.into(), line: line(text, &error) })?;
    for (which, key) in [(Which::Primary, Some(&keys.primary)), (Which::Secondary, keys.secondary.as_ref())] {
        if let Some(Err(fault)) = key.map(check_key) {
            return Err(KeyError::InFile { path: path.into(), which, fault });
        }
    }
    Ok(keys)
}

/// The line that a parser stumbled over, the first being 1. What it says may quote the file and with it a key, so this is all that is passed
/// on.
pub(crate) fn line(text: &str, error: &toml::de::Error) -> usize {
    let start = error.span().map_or(0, |span| span.start);
    text.get(..start).unwrap_or_default().matches('\n').count() + 1
}

/// Writes the file, unless somebody else was first: then `false`, and their file stands.
pub(crate) fn create(path: &Path, primary: &Secret, secondary: &Secret) -> Result<bool, KeyError> {
    let text = Secret::new(format!(
        "# The keys of this service; each of the two opens it. Nobody but its user may read this file (mode 0600).\n\
         primary = \"{}\"\nsecondary = \"{}\"\n",
        primary.expose(),
        secondary.expose()
    ));
    disk::create(path, text.expose())
}
