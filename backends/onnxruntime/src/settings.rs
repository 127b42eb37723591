//! The settings that every backend on ONNX Runtime has.

use std::path::PathBuf;

use outrigger_backend::BackendError;

use crate::cache::{Cache, CacheError};

/// Bytes of optimised models that are kept.
const CACHE_BYTES: u64 = 1 << 30;

/// What can be set for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `onnxruntime`: the path of ONNX Runtime's library; `None` leaves it to the system's loader.
    pub library: Option<PathBuf>,
    /// `cache`: the folder of optimised models; `None` keeps none.
    pub cache: Option<PathBuf>,
    /// `cache_bytes`: bytes that they may have together.
    pub cache_bytes: u64,
}

/// A setting without a valid value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// A size that is none.
    #[error("setting `cache_bytes` is `{0}`, not a number of bytes")]
    Bytes(String),
    /// A library without a path.
    #[error("setting `onnxruntime` is empty; leave it out, or name ONNX Runtime's library")]
    EmptyLibrary,
    /// A folder without a name.
    #[error("setting `cache` is empty; leave it out to keep no optimised models")]
    EmptyCache,
}

impl Default for Settings {
    fn default() -> Self {
        Self { library: None, cache: None, cache_bytes: CACHE_BYTES }
    }
}

impl Settings {
    /// Takes a setting, if it is one of these; `false` leaves it to the backend.
    ///
    /// # Errors
    /// [`SettingsError`] if it has no valid value.
    pub fn take(&mut self, key: &str, value: &str) -> Result<bool, SettingsError> {
        match key {
            "onnxruntime" if value.is_empty() => return Err(SettingsError::EmptyLibrary),
            "onnxruntime" => self.library = Some(PathBuf::from(value)),
            "cache" if value.is_empty() => return Err(SettingsError::EmptyCache),
            "cache" => self.cache = Some(PathBuf::from(value)),
            "cache_bytes" => {
                self.cache_bytes = value.parse().map_err(|_| SettingsError::Bytes(value.to_owned()))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the folder of optimised models can be used, before there is a library: for a backend that starts it later than it opens.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if not.
    pub fn check(&self, backend: &str) -> Result<(), BackendError> {
        let Some(folder) = &self.cache else { return Ok(()) };
        let unavailable = |error: CacheError| BackendError::Unavailable {
            backend: backend.into(),
            reason: error.to_string(),
        };
        Cache::place(folder, backend).map(drop).map_err(unavailable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_taken_or_left() {
        let mut settings = Settings::default();
        assert_eq!(settings.cache_bytes, 1 << 30);
        for (key, value, taken) in [
            ("onnxruntime", "/lib/ort.so", true),
            ("cache", "/c", true),
            ("cache_bytes", "0", true),
            ("x", "", false),
        ] {
            assert_eq!(settings.take(key, value), Ok(taken));
        }
        let expected =
            Settings { library: Some("/lib/ort.so".into()), cache: Some("/c".into()), cache_bytes: 0 };
        assert_eq!(settings, expected);
        let mut fails = |key, value, expected: &str| {
            assert_eq!(settings.take(key, value).unwrap_err().to_string(), expected);
        };
        let empty = "setting `onnxruntime` is empty; leave it out, or name ONNX Runtime's library";
        fails("onnxruntime", "", empty);
        fails("cache", "", "setting `cache` is empty; leave it out to keep no optimised models");
        fails("cache_bytes", "1 GiB", "setting `cache_bytes` is `1 GiB`, not a number of bytes");
    }
}
