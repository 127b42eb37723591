//! Where keys come from.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::caller::MAX_CALLERS;
use crate::file;
use crate::key::{KeyFault, check_key, generate_key};
use crate::{Secret, Surroundings};

/// What the configuration says about keys.
#[derive(Clone, Debug)]
pub struct KeyConfig {
    /// The primary key, if it is given.
    pub primary: Option<Secret>,
    /// The secondary key, if it is given.
    pub secondary: Option<Secret>,
    /// Where keys are kept that are not given: TOML with the members `primary` and `secondary`.
    pub file: PathBuf,
    /// Where that file is.
    pub surroundings: Surroundings,
}

/// The keys of a service.
#[derive(Clone, Debug)]
pub struct ResolvedKeys {
    /// The primary key.
    pub primary: Secret,
    /// The secondary key, where there is one.
    pub secondary: Option<Secret>,
    /// Where they came from.
    pub origin: KeyOrigin,
}

/// Where keys came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyOrigin {
    /// The configuration.
    Configured,
    /// This file, which was there.
    FromFile(PathBuf),
    /// Made just now, and written to this file.
    Generated(PathBuf),
}

/// One of the two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// The primary key.
    Primary,
    /// The secondary key.
    Secondary,
}

impl Which {
    /// By its word, which its `Display` gives.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Primary, Self::Secondary].into_iter().find(|which| which.as_str() == name)
    }

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there are no keys. No text holds a key or a part of one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A key in the configuration does not follow the rules.
    #[error("the configured {which} key is not usable: {fault}")]
    Configured {
        /// Which one.
        which: Which,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// The configuration has a secondary key and no primary one.
    #[error("a secondary key is configured without a primary key: configure both, or the primary key alone")]
    SecondaryAlone,
    /// Two callers have the same key.
    #[error("`{first}` and `{other}` have the same key, so nobody could tell who calls")]
    Double {
        /// The one.
        first: String,
        /// The other.
        other: String,
    },
    /// There are more callers than can be told apart.
    #[error("there are more callers than {MAX_CALLERS}")]
    TooManyCallers,
    /// A key in the file does not follow the rules.
    #[error("the {which} key in `{path}` is not usable: {fault}", path = .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// Which one.
        which: Which,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// The file may be read or written by others than its owner and its group.
    #[error(
        "the key file `{path}` has mode {mode:04o} and is open to others: run `chmod 600 {path}`, or 640 where it is its group's; a secret that Kubernetes \
         mounts has `defaultMode: 0440`, with `fsGroup`",
        path = .path.display()
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// There is something at the path that is no file, or the path names none.
    #[error("the key file `{path}` is not a regular file", path = .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is longer than any file of keys.
    #[error("the key file `{path}` is too large to be one", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what a file of keys looks like.
    #[error(
        "the key file `{path}` is wrong at line {line}: it holds `primary = \"...\"` and, if wanted, \
         `secondary = \"...\"`, nothing else",
        path = .path.display()
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// The line, the first being 1.
        line: usize,
    },
    /// The file cannot be read.
    #[error("the key file `{path}` cannot be read", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("the key file `{path}` cannot be written", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store of keys is not TOML of its form.
    #[error("the key store `{path}` is wrong at line {line}: only `outrigger keys` is to change it", path = .path.display())]
    StoreForm {
        /// The file.
        path: PathBuf,
        /// The line, the first being 1.
        line: usize,
    },
    /// The store of keys contradicts itself.
    #[error("the key store `{path}` is broken: {problem}", path = .path.display())]
    StoreBroken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The store of keys is of another version of this program.
    #[error("the key store `{path}` has version {version}, and this program reads version 1", path = .path.display())]
    StoreVersion {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// The keys that were there are gone.
    #[error("the key {what} `{path}` is gone", path = .path.display())]
    Gone {
        /// `file` or `store`.
        what: &'static str,
        /// Where it was.
        path: PathBuf,
    },
    /// Somebody else is at the file all the time.
    #[error("somebody else keeps `{path}` locked", path = .path.display())]
    Locked {
        /// What is locked.
        path: PathBuf,
    },
    /// The file is no key that tokens could be signed with.
    #[error("`{path}` holds no Ed25519 key (PKCS #8 in PEM) to sign tokens with: remove it, and one is made", path = .path.display())]
    NoSigningKey {
        /// The file.
        path: PathBuf,
    },
    /// No key could be made to sign tokens with.
    #[error("no key could be made to sign tokens with")]
    NoRandomKey,
    /// A mistake of ours.
    #[error("what is to be written has no form as TOML")]
    Unwritable,
    /// The operating system has no random numbers.
    #[error("there are no random numbers to make keys of")]
    Random(#[source] getrandom::Error),
}

/// Finds the keys of a service.
#[derive(Debug)]
pub struct KeySource;

impl KeySource {
    /// Takes the keys that are configured; else those in the file; else makes two and writes the file.
    ///
    /// A configured primary key stands alone if no secondary one is configured beside it; the file is not
    /// looked at then. Any number of processes may start with the same file at the same time: all get the
    /// same keys.
    ///
    /// # Errors
    /// [`KeyError`] if a key does not follow the rules, or the file is open to others, cannot be read, or
    /// cannot be written.
    pub fn resolve(config: KeyConfig) -> Result<ResolvedKeys, KeyError> {
        match Self::find(&config)? {
            Some(keys) => Ok(keys),
            None => make(&config),
        }
    }

    /// Takes the keys that are configured, else those in the file; makes none.
    ///
    /// # Errors
    /// [`KeyError`] as [`KeySource::resolve`].
    pub fn find(config: &KeyConfig) -> Result<Option<ResolvedKeys>, KeyError> {
        match (&config.primary, &config.secondary) {
            (Some(primary), secondary) => configured(primary.clone(), secondary.clone()).map(Some),
            (None, Some(_)) => Err(KeyError::SecondaryAlone),
            (None, None) => read(config),
        }
    }
}

fn configured(primary: Secret, secondary: Option<Secret>) -> Result<ResolvedKeys, KeyError> {
    let check = |which, key| check_key(key).map_err(|fault| KeyError::Configured { which, fault });
    check(Which::Primary, &primary)?;
    if let Some(secondary) = &secondary {
        check(Which::Secondary, secondary)?;
    }
    Ok(ResolvedKeys { primary, secondary, origin: KeyOrigin::Configured })
}

fn make(config: &KeyConfig) -> Result<ResolvedKeys, KeyError> {
    let path = config.file.as_path();
    let (primary, secondary) =
        (generate_key().map_err(KeyError::Random)?, generate_key().map_err(KeyError::Random)?);
    if file::create(path, &primary, &secondary)? {
        let origin = KeyOrigin::Generated(path.into());
        return Ok(ResolvedKeys { primary, secondary: Some(secondary), origin });
    }
    // Another process was first: its keys are the keys.
    read(config)?.ok_or_else(|| KeyError::Read { path: path.into(), source: io::ErrorKind::NotFound.into() })
}

fn read(config: &KeyConfig) -> Result<Option<ResolvedKeys>, KeyError> {
    let keys = file::read(&config.file, config.surroundings)?;
    let origin = KeyOrigin::FromFile(config.file.clone());
    Ok(keys.map(|keys| ResolvedKeys { primary: keys.primary, secondary: keys.secondary, origin }))
}
