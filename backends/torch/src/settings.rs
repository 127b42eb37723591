//! The settings that the plug-in passes.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::kind::Kind;

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
    /// NVIDIA's driver, if it is not where the system's loader finds it.
    pub(crate) cuda_driver: Option<PathBuf>,
    /// The most bytes of a GPU; 0 is no limit.
    pub(crate) memory_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{key}`; there are {names}")]
    Unknown { key: String, names: &'static str },
    #[error(
        "setting `intra_threads` is `{0}`, not a number of threads from 0 (as many as there are cores) to {MOST_THREADS}"
    )]
    Threads(String),
    #[error("setting `{key}` is `{value}`, not a number of bytes")]
    Bytes { key: String, value: String },
    #[error("setting `cuda_driver` is empty; leave it out for the default")]
    Driver,
}

impl Settings {
    pub(crate) fn read(kind: Kind, pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let mut settings =
            Self { intra_threads: available(), code_bytes: CODE_BYTES, cuda_driver: None, memory_bytes: 0 };
        let bytes = |key: &String, value: &String| {
            value.parse().map_err(|_| SettingsError::Bytes { key: key.clone(), value: value.clone() })
        };
        for (key, value) in pairs {
            match key.as_str() {
                "intra_threads" => {
                    let threads = value.parse().ok().filter(|threads| *threads <= MOST_THREADS);
                    let threads = threads.ok_or_else(|| SettingsError::Threads(value.clone()))?;
                    settings.intra_threads = NonZeroUsize::new(threads).unwrap_or_else(available);
                }
                "code_bytes" => settings.code_bytes = bytes(key, value)?,
                "memory_bytes" if kind == Kind::Cuda => settings.memory_bytes = bytes(key, value)?,
                "cuda_driver" if kind == Kind::Cuda && value.is_empty() => return Err(SettingsError::Driver),
                "cuda_driver" if kind == Kind::Cuda => settings.cuda_driver = Some(value.into()),
                _ => return Err(SettingsError::Unknown { key: key.clone(), names: kind.settings() }),
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
            Settings::read(Kind::Cpu, &[(key.to_owned(), value.to_owned())])
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("intra_threads", "3").unwrap().intra_threads.get(), 3);
        assert_eq!(read("intra_threads", "0").unwrap().intra_threads, available());
        assert_eq!(read("code_bytes", "7").unwrap().code_bytes, 7);
        assert_eq!(Settings::read(Kind::Cpu, &[]).unwrap().code_bytes, 64 << 20);
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

    #[test]
    fn gpus_have_settings_of_their_own() {
        let read = |kind, key: &str, value: &str| {
            Settings::read(kind, &[(key.to_owned(), value.to_owned())]).map_err(|error| error.to_string())
        };
        let set = read(Kind::Cuda, "cuda_driver", "/libcuda.so").unwrap();
        assert_eq!((set.cuda_driver, set.memory_bytes), (Some("/libcuda.so".into()), 0));
        assert_eq!(read(Kind::Cuda, "memory_bytes", "4096").unwrap().memory_bytes, 4096);
        let fails = |kind, key, value, expected: &str| {
            assert_eq!(read(kind, key, value).unwrap_err(), expected);
        };
        fails(Kind::Cuda, "memory_bytes", "1GiB", "setting `memory_bytes` is `1GiB`, not a number of bytes");
        fails(Kind::Cuda, "cuda_driver", "", "setting `cuda_driver` is empty; leave it out for the default");
        fails(
            Kind::Cuda,
            "colour",
            "red",
            "unknown setting `colour`; there are `libtorch`, `intra_threads`, `code_bytes`, `cuda_driver` and `memory_bytes`",
        );
        for key in ["memory_bytes", "cuda_driver"] {
            assert!(read(Kind::Cpu, key, "1").unwrap_err().starts_with(&format!("unknown setting `{key}`")));
        }
    }
}
