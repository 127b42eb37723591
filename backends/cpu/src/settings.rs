//! The settings that the host passes.

use outrigger_onnxruntime as onnxruntime;
use std::num::NonZeroUsize;

use crate::affinity::{Affinity, AffinityError};

/// ONNX Runtime takes a C int; nobody means more than this.
const MOST_THREADS: usize = 4096;

/// What can be set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// What others on ONNX Runtime have as well.
    pub(crate) common: onnxruntime::Settings,
    /// Threads that share one run.
    pub(crate) intra_threads: NonZeroUsize,
    /// The CPUs that the pool's threads run on.
    pub(crate) affinity: Option<Affinity>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{key}`; there are {}", Settings::NAMES)]
    Unknown { key: String },
    #[error("there is no setting `{key}` for a model, only `affinity`")]
    UnknownForModel { key: String },
    #[error(
        "setting `{key}` is `{value}`, not a number of threads from 0 (as many as there are cores) to {MOST_THREADS}"
    )]
    Threads { key: &'static str, value: String },
    #[error(transparent)]
    Common(#[from] onnxruntime::SettingsError),
    #[error(transparent)]
    Affinity(#[from] AffinityError),
}

impl Settings {
    const NAMES: &str = "`onnxruntime`, `intra_threads`, `affinity`, `cache` and `cache_bytes`";

    pub(crate) fn read(pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let mut settings = Self {
            common: onnxruntime::Settings::default(),
            intra_threads: NonZeroUsize::MIN,
            affinity: None,
        };
        let mut threads = None;
        for (key, value) in pairs {
            match key.as_str() {
                "intra_threads" => threads = read_threads("intra_threads", value)?,
                "affinity" => settings.affinity = Some(Affinity::read(value)?),
                _ if settings.common.take(key, value)? => {}
                _ => return Err(SettingsError::Unknown { key: key.clone() }),
            }
        }
        settings.intra_threads = threads.unwrap_or_else(|| default_threads(settings.affinity.as_ref()));
        Ok(settings)
    }
}

/// `None` for 0: the default.
fn read_threads(key: &'static str, value: &str) -> Result<Option<NonZeroUsize>, SettingsError> {
    let threads = value.parse().ok().filter(|threads| *threads <= MOST_THREADS);
    let threads = threads.ok_or_else(|| SettingsError::Threads { key, value: value.to_owned() })?;
    Ok(NonZeroUsize::new(threads))
}

/// What is set for one model: the CPUs of a pool of its own.
pub(crate) fn read_model(pairs: &[(String, String)]) -> Result<Option<Affinity>, SettingsError> {
    let mut affinity = None;
    for (key, value) in pairs {
        match key.as_str() {
            "affinity" => affinity = Some(Affinity::read(value)?),
            _ => return Err(SettingsError::UnknownForModel { key: key.clone() }),
        }
    }
    Ok(affinity)
}

/// As many as there are CPUs to run on. Not left to ONNX Runtime, which counts the machine's and not those that this process may
/// use: the affinity mask and the control group's quota, both of which `available_parallelism` heeds.
fn default_threads(affinity: Option<&Affinity>) -> NonZeroUsize {
    let available = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    affinity.map_or_else(available, Affinity::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_strict() {
        let read = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            Settings::read(&pairs).map_err(|error| error.to_string())
        };
        let settings =
            read(&[("onnxruntime", "/lib/ort.so"), ("intra_threads", "3"), ("cache", "/c")]).unwrap();
        let common = settings.common;
        assert_eq!((common.library, common.cache), (Some("/lib/ort.so".into()), Some("/c".into())));
        assert_eq!((settings.intra_threads.get(), common.cache_bytes), (3, 1 << 30));
        assert!(read(&[("intra_threads", "0")]).unwrap().intra_threads.get() >= 1);
        assert_eq!(read(&[("cache_bytes", "0")]).unwrap().common.cache_bytes, 0);
        let fails = |key, value, expected: &str| {
            assert_eq!(read(&[(key, value)]).unwrap_err(), expected);
        };
        fails(
            "onnx",
            "x",
            "unknown setting `onnx`; there are `onnxruntime`, `intra_threads`, `affinity`, `cache` and `cache_bytes`",
        );
        for value in ["-1", "many", "5000", ""] {
            let expected = format!(
                "setting `intra_threads` is `{value}`, not a number of threads from 0 (as many as there are cores) to 4096"
            );
            fails("intra_threads", value, &expected);
        }
        fails("cache", "", "setting `cache` is empty; leave it out to keep no optimised models");
        fails("cache_bytes", "1 GiB", "setting `cache_bytes` is `1 GiB`, not a number of bytes");
        assert!(read(&[("affinity", "x")]).unwrap_err().starts_with("setting `affinity` is `x`"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_list_of_cpus_says_how_many_threads() {
        let pairs = [("affinity".to_owned(), "0".to_owned())];
        // CPU 0 may be missing in the test's own set.
        if let Ok(settings) = Settings::read(&pairs) {
            assert_eq!(settings.intra_threads.get(), 1);
        }
    }
}
