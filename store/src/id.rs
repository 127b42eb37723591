//! What models are called: names and versions, by AzureML's rules.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, bytes.
pub const MAX_NAME: usize = 255;

/// Highest version: numbers in JSON are exact up to there.
pub const MAX_VERSION: u64 = 1 << 53;

/// A model's name: a letter or digit, then letters, digits, `-`, `.` or `_`, [`MAX_NAME`] bytes at most. It can be a component of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// A text that is no name of a model, or no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoModel {
    /// The name.
    #[error(
        "`{shown}` is no model name: a letter or digit, then letters, digits, `-`, `.` or `_`, {MAX_NAME} at most"
    )]
    Name {
        /// Its beginning.
        shown: String,
    },
    /// The label.
    #[error(
        "`{shown}` is no label of a version: a lower-case letter, then lower-case letters, digits, `-` or `_`, {MAX_LABEL} at most"
    )]
    Label {
        /// Its beginning.
        shown: String,
    },
    /// The version.
    #[error("`{shown}` is no version of a model: a whole number from 1")]
    Version {
        /// Its beginning.
        shown: String,
    },
}

impl ModelName {
    /// Checks a text.
    ///
    /// # Errors
    /// If it is no name.
    pub fn new(text: impl Into<String>) -> Result<Self, NoModel> {
        let text = text.into();
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        if first && rest && text.len() <= MAX_NAME {
            Ok(Self(text))
        } else {
            Err(NoModel::Name { shown: shown(&text) })
        }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What of a text is shown in messages.
fn shown(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}

impl TryFrom<String> for ModelName {
    type Error = NoModel;

    fn try_from(text: String) -> Result<Self, NoModel> {
        Self::new(text)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One version of a model: `name:version`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ModelId {
    /// The name.
    pub name: ModelName,
    /// Counted from 1 as versions are registered; 0 for a model that was never registered.
    pub version: u64,
}

impl FromStr for ModelId {
    type Err = NoModel;

    fn from_str(text: &str) -> Result<Self, NoModel> {
        let (name, version) = text.split_once(':').ok_or(NoModel::Version { shown: String::new() })?;
        Ok(Self { name: ModelName::new(name)?, version: version_of(version)? })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.version)
    }
}

/// A version as it stands in a path or an id: digits, and no second way to write the same.
///
/// # Errors
/// If it is none.
pub fn version_of(text: &str) -> Result<u64, NoModel> {
    let version = text.parse().ok().filter(|version: &u64| version.to_string() == text);
    let version = version.filter(|version| (1..=MAX_VERSION).contains(version));
    version.ok_or_else(|| NoModel::Version { shown: shown(text) })
}

/// What a version is called that is to be used for something, such as `stable`: a lower-case letter, then lower-case letters, digits, `-` or
/// `_`, [`MAX_LABEL`] bytes at most. It can be a component of a path, and is no version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Label(String);

/// Longest label, bytes.
pub const MAX_LABEL: usize = 32;

impl Label {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NoModel;

    fn from_str(text: &str) -> Result<Self, NoModel> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
        let rest = bytes
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'));
        if first && rest && text.len() <= MAX_LABEL {
            Ok(Self(text.to_owned()))
        } else {
            Err(NoModel::Label { shown: shown(text) })
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model of which a version may be named: `name:version`, `name@label`, or `name` for the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelWish {
    /// The name.
    pub name: ModelName,
    /// Which version.
    pub which: Which,
}

/// Which version of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with the highest number.
    Latest,
    /// This one.
    Version(u64),
    /// The one that is called so.
    Label(Label),
}

impl FromStr for ModelWish {
    type Err = NoModel;

    fn from_str(text: &str) -> Result<Self, NoModel> {
        let (name, which) = if let Some((name, version)) = text.split_once(':') {
            (name, Which::Version(version_of(version)?))
        } else if let Some((name, label)) = text.split_once('@') {
            (name, Which::Label(label.parse()?))
        } else {
            (text, Which::Latest)
        };
        Ok(Self { name: ModelName::new(name)?, which })
    }
}

impl fmt::Display for ModelWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Latest => write!(f, "{}", self.name),
            Which::Version(version) => write!(f, "{}:{version}", self.name),
            Which::Label(label) => write!(f, "{}@{label}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_azuremls_rules() {
        for name in ["a", "0", "a.b-c_d", &"x".repeat(MAX_NAME)] {
            assert_eq!(ModelName::new(name).expect("a name").as_str(), name);
        }
        for name in ["", ".", "..", "-a", "_a", "a/b", "a:b", "a b", "é", &"x".repeat(MAX_NAME + 1)] {
            assert!(ModelName::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_version_is_written_in_one_way() {
        let id: ModelId = "digits:12".parse().expect("an id");
        assert_eq!((id.name.as_str(), id.version, id.to_string()), ("digits", 12, "digits:12".into()));
        for text in [
            "digits",
            "digits:",
            "digits:01",
            "digits:0",
            "digits:18446744073709551615",
            "digits:+1",
            "digits:-1",
            "digits:1.0",
            "digits:1:2",
            ":1",
        ] {
            assert!(text.parse::<ModelId>().is_err(), "{text}");
        }
        assert_eq!("digits".parse::<ModelWish>().expect("a wish").which, Which::Latest);
        for text in ["digits", "digits:2", "digits@stable", "digits@blue-2_b"] {
            assert_eq!(text.parse::<ModelWish>().expect("a wish").to_string(), text);
        }
        let long = format!("digits@{}", "x".repeat(MAX_LABEL + 1));
        for text in ["digits:x", "digits@", "digits@2", "digits@Stable", "digits@a/b", "digits:2@a", &long] {
            assert!(text.parse::<ModelWish>().is_err(), "{text}");
        }
    }
}
