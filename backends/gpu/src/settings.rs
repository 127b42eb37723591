//! The settings that the host passes.

use crate::program::IDLE_BYTES;

/// What can be set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Whether devices are used that calculate in software.
    pub(crate) software: bool,
    /// Bytes that a model keeps on the device from one run to the next.
    pub(crate) idle_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{0}`; there are `software` and `idle_bytes`")]
    Unknown(String),
    #[error("setting `software` is `{0}`, not `true` or `false`")]
    Software(String),
    #[error("setting `idle_bytes` is `{0}`, not a number of bytes")]
    IdleBytes(String),
    #[error("there is no setting `{0}` for a model")]
    UnknownForModel(String),
}

impl Settings {
    pub(crate) fn read(pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let mut settings = Self { software: false, idle_bytes: IDLE_BYTES };
        for (key, value) in pairs {
            match key.as_str() {
                "software" => {
                    settings.software = value.parse().map_err(|_| SettingsError::Software(value.clone()))?;
                }
                "idle_bytes" => {
                    settings.idle_bytes =
                        value.parse().map_err(|_| SettingsError::IdleBytes(value.clone()))?;
                }
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
        assert_eq!(read("software", "true"), Ok(Settings { software: true, idle_bytes: 256 << 20 }));
        assert_eq!(read("software", "false"), Ok(Settings { software: false, idle_bytes: 256 << 20 }));
        assert_eq!(read("idle_bytes", "0"), Ok(Settings { software: false, idle_bytes: 0 }));
        let fails = |key: &str, value: &str, expected: &str| {
            assert_eq!(read(key, value), Err(expected.to_owned()));
        };
        fails("software", "yes", "setting `software` is `yes`, not `true` or `false`");
        fails("idle_bytes", "1 MiB", "setting `idle_bytes` is `1 MiB`, not a number of bytes");
        fails("hardware", "x", "unknown setting `hardware`; there are `software` and `idle_bytes`");
    }
}
