//! The settings that the plug-in passes.

use std::num::NonZeroUsize;

/// Bytes that the compressed files of an archive, which are code, may have together when they are not.
const CODE_BYTES: u64 = 64 << 20;
/// PyTorch takes a C int; nobody means more than this.
const MOST_THREADS: usize = 4096;

/// What can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Threads that share one run.
    pub(crate) intra_threads: NonZeroUsize,
    /// Bytes of an archive's code.
    pub(crate) code_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{0}`; there are {names}", names = crate::SETTINGS)]
    Unknown(String),
    #[error(
        "setting `intra_threads` is `{0}`, not a number of threads from 0 (as many as there are cores) to {MOST_THREADS}"
    )]
    Threads(String),
    #[error("setting `code_bytes` is `{0}`, not a number of bytes")]
    Bytes(String),
}

impl Settings {
    pub(crate) fn read(pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let mut settings = Self { intra_threads: available(), code_bytes: CODE_BYTES };
        for (key, value) in pairs {
            match key.as_str() {
                "intra_threads" => {
                    let threads = value.parse().ok().filter(|threads| *threads <= MOST_THREADS);
                    let threads = threads.ok_or_else(|| SettingsError::Threads(value.clone()))?;
                    settings.intra_threads = NonZeroUsize::new(threads).unwrap_or_else(available);
                }
                "code_bytes" => {
                    settings.code_bytes = value.parse().map_err(|_| SettingsError::Bytes(value.clone()))?;
                }
                _ => return Err(SettingsError::Unknown(key.clone())),
            }
        }
        Ok(settings)
    }
}

/// As many as there are CPUs to run on: the affinity mask and the control group's quota count, which PyTorch does not look at.
fn available() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_strict() {
        let read = |key: &str, value: &str| {
            Settings::read(&[(key.to_owned(), value.to_owned())]).map_err(|error| error.to_string())
        };
        assert_eq!(read("intra_threads", "3").unwrap().intra_threads.get(), 3);
        assert_eq!(read("intra_threads", "0").unwrap().intra_threads, available());
        assert_eq!(read("code_bytes", "7").unwrap().code_bytes, 7);
        assert_eq!(Settings::read(&[]).unwrap().code_bytes, 64 << 20);
        for value in ["-1", "many", "5000", ""] {
            assert!(
                read("intra_threads", value).unwrap_err().contains(&format!("is `{value}`, not a number"))
            );
        }
        assert_eq!(
            read("code_bytes", "1 GiB").unwrap_err(),
            "setting `code_bytes` is `1 GiB`, not a number of bytes"
        );
        assert_eq!(
            read("colour", "red").unwrap_err(),
            "unknown setting `colour`; there are `libtorch`, `intra_threads` and `code_bytes`"
        );
    }
}
