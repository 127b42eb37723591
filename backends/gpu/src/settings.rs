//! The settings that the host passes.

use outrigger_onnxruntime::{self as onnxruntime, Leftovers};

use crate::program::IDLE_BYTES;

/// What can be set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Whether devices are used that calculate in software.
    pub(crate) software: bool,
    /// Bytes that a model keeps on the device from one run to the next.
    pub(crate) idle_bytes: u64,
    /// Bytes that models may hold on a device; the host passes `backends.gpu.memory` on.
    pub(crate) memory: Option<u64>,
    /// What others on ONNX Runtime have as well.
    pub(crate) onnxruntime: onnxruntime::Settings,
    /// Whether operators that the device has not may run on the CPU.
    pub(crate) leftovers: Leftovers,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{0}`; there are {names}", names = Settings::NAMES)]
    Unknown(String),
    #[error("setting `software` is `{0}`, not `true` or `false`")]
    Software(String),
    #[error("setting `idle_bytes` is `{0}`, not a number of bytes")]
    IdleBytes(String),
    #[error("setting `memory` is `{0}`, not a number of bytes")]
    Memory(String),
    #[error("setting `leftovers` is `{0}`, not `allowed` or `refused`")]
    Leftovers(String),
    #[error(transparent)]
    OnnxRuntime(#[from] onnxruntime::SettingsError),
    #[error("there is no setting `{0}` for a model")]
    UnknownForModel(String),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            software: false,
            idle_bytes: IDLE_BYTES,
            memory: None,
            onnxruntime: onnxruntime::Settings::default(),
            leftovers: Leftovers::default(),
        }
    }
}

impl Settings {
    const NAMES: &str =
        "`software`, `idle_bytes`, `memory`, `onnxruntime`, `leftovers`, `cache` and `cache_bytes`";

    pub(crate) fn read(pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        for (key, value) in pairs {
            match key.as_str() {
                "software" => {
                    settings.software = value.parse().map_err(|_| SettingsError::Software(value.clone()))?;
                }
                "idle_bytes" => {
                    settings.idle_bytes =
                        value.parse().map_err(|_| SettingsError::IdleBytes(value.clone()))?;
                }
                "memory" => {
                    let bytes = value.parse().map_err(|_| SettingsError::Memory(value.clone()))?;
                    settings.memory = Some(bytes);
                }
                "leftovers" => {
                    settings.leftovers = match value.as_str() {
                        "allowed" => Leftovers::Allowed,
                        "refused" => Leftovers::Refused,
                        _ => return Err(SettingsError::Leftovers(value.clone())),
                    }
                }
                _ if settings.onnxruntime.take(key, value)? => {}
                _ => return Err(SettingsError::Unknown(key.clone())),
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_strict() {
        let read = |key: &str, value: &str| {
            Settings::read(&[(key.into(), value.into())]).map_err(|error| error.to_string())
        };
        let set = |change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            Ok(settings)
        };
        assert_eq!(Settings::default().idle_bytes, 256 << 20);
        assert_eq!(read("software", "true"), set(&|settings| settings.software = true));
        assert_eq!(read("software", "false"), set(&|_| ()));
        assert_eq!(read("idle_bytes", "0"), set(&|settings| settings.idle_bytes = 0));
        assert_eq!(read("memory", "7"), set(&|settings| settings.memory = Some(7)));
        assert_eq!(read("leftovers", "refused"), set(&|settings| settings.leftovers = Leftovers::Refused));
        assert_eq!(read("leftovers", "allowed"), set(&|_| ()));
        let library = |settings: &mut Settings| settings.onnxruntime.library = Some("/lib/ort.so".into());
        assert_eq!(read("onnxruntime", "/lib/ort.so"), set(&library));
        assert_eq!(read("cache_bytes", "1"), set(&|settings| settings.onnxruntime.cache_bytes = 1));
        let fails = |key: &str, value: &str, expected: &str| {
            assert_eq!(read(key, value), Err(expected.to_owned()));
        };
        fails("software", "yes", "setting `software` is `yes`, not `true` or `false`");
        fails("idle_bytes", "1 MiB", "setting `idle_bytes` is `1 MiB`, not a number of bytes");
        fails("memory", "-1", "setting `memory` is `-1`, not a number of bytes");
        fails("leftovers", "", "setting `leftovers` is ``, not `allowed` or `refused`");
        fails("cache", "", "setting `cache` is empty; leave it out to keep no optimised models");
        fails(
            "hardware",
            "x",
            "unknown setting `hardware`; there are `software`, `idle_bytes`, `memory`, `onnxruntime`, `leftovers`, `cache` and `cache_bytes`",
        );
    }
}
