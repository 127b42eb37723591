//! The settings that the host passes.

/// What can be set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Whether devices are used that calculate in software.
    pub(crate) software: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("unknown setting `{0}`; there is `software`")]
    Unknown(String),
    #[error("setting `software` is `{0}`, not `true` or `false`")]
    Software(String),
    #[error("there is no setting `{0}` for a model")]
    UnknownForModel(String),
}

impl Settings {
    pub(crate) fn read(pairs: &[(String, String)]) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        for (key, value) in pairs {
            match key.as_str() {
                "software" => {
                    settings.software = value.parse().map_err(|_| SettingsError::Software(value.clone()))?;
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
        assert_eq!(read("software", "true"), Ok(Settings { software: true }));
        assert_eq!(read("software", "false"), Ok(Settings { software: false }));
        assert_eq!(read("software", "yes"), Err("setting `software` is `yes`, not `true` or `false`".into()));
        assert_eq!(read("hardware", "x"), Err("unknown setting `hardware`; there is `software`".into()));
    }
}
