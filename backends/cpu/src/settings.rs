//! The settings that the host passes.

use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What can be set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// ONNX Runtime's library; `None` leaves it to the system's loader.
    pub(crate) onnxruntime: Option<PathBuf>,
    /// Threads that share one run.
    pub(crate) intra_threads: NonZeroUsize,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{key}`; there are `onnxruntime` and `intra_threads`")]
    Unknown { key: String },
    #[error("setting `{key}` is `{value}`, not a number of threads")]
    Threads { key: String, value: String },
}

impl Settings {
    pub(crate) fn read(pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let (mut onnxruntime, mut threads) = (None, 0usize);
        for (key, value) in pairs {
            match key.as_str() {
                "onnxruntime" => onnxruntime = Some(PathBuf::from(value)),
                // ONNX Runtime takes a C int; nobody means more than this.
                "intra_threads" => {
                    threads =
                        value.parse().ok().filter(|threads| *threads <= 4096).ok_or_else(|| {
                            SettingsError::Threads { key: key.clone(), value: value.clone() }
                        })?;
                }
                _ => return Err(SettingsError::Unknown { key: key.clone() }),
            }
        }
        // Not left to ONNX Runtime, which counts the machine's cores and not those that this process may use.
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Ok(Self { onnxruntime, intra_threads: NonZeroUsize::new(threads).unwrap_or_else(cores) })
    }
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
        let settings = read(&[("onnxruntime", "/lib/ort.so"), ("intra_threads", "3")]).unwrap();
        assert_eq!(settings.onnxruntime, Some("/lib/ort.so".into()));
        assert_eq!(settings.intra_threads.get(), 3);
        assert!(read(&[("intra_threads", "0")]).unwrap().intra_threads.get() >= 1);
        assert_eq!(
            read(&[("onnx", "x")]).unwrap_err(),
            "unknown setting `onnx`; there are `onnxruntime` and `intra_threads`"
        );
        for value in ["-1", "many", "5000", ""] {
            let expected = format!("setting `intra_threads` is `{value}`, not a number of threads");
            assert_eq!(read(&[("intra_threads", value)]).unwrap_err(), expected);
        }
    }
}
