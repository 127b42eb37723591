//! Paths of files inside a model: what comes from a manifest, an archive or a listing, before it may name anything on disk.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Longest path, bytes.
pub const MAX_LENGTH: usize = 1024;
/// Longest component, bytes: what file systems take.
pub const MAX_COMPONENT: usize = 255;
/// Most components.
pub const MAX_DEPTH: usize = 32;

/// The path of a file inside a model: relative, with `/` between components of which none is empty, `.` or `..`, and without control
/// characters or backslashes. It names nothing outside the folder that it is joined to, as long as there are no links in that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(String);

/// Why a text is no path of a file inside a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing, or nothing between two slashes.
    #[error("it has an empty component")]
    Empty,
    /// It begins with a slash.
    #[error("it is absolute")]
    Absolute,
    /// `.` or `..`.
    #[error("it has a component `.` or `..`")]
    Dots,
    /// A character that is a separator elsewhere, or none that can be seen.
    #[error("it has a backslash or a control character")]
    Character,
    /// More than one of the limits.
    #[error(
        "it is longer than {MAX_LENGTH} bytes, or has a component of more than {MAX_COMPONENT}, or more than {MAX_DEPTH} components"
    )]
    Long,
}

impl FilePath {
    /// Checks a text.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(text: impl Into<String>) -> Result<Self, PathError> {
        let text = text.into();
        if text.len() > MAX_LENGTH {
            return Err(PathError::Long);
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        if text.chars().any(|character| character == '\\' || character.is_control()) {
            return Err(PathError::Character);
        }
        for (index, component) in text.split('/').enumerate() {
            match component {
                "" => return Err(PathError::Empty),
                "." | ".." => return Err(PathError::Dots),
                component if component.len() > MAX_COMPONENT || index >= MAX_DEPTH => {
                    return Err(PathError::Long);
                }
                _ => {}
            }
        }
        Ok(Self(text))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For joining to a folder.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The components, first to last.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Every folder above the file, nearest last.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

impl TryFrom<String> for FilePath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        Self::new(text)
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_stay_beneath_are_taken() {
        for text in ["model.onnx", "a/b/c.bin", "…/é.txt", "..a", "a..", " ", "a b/c"] {
            assert_eq!(FilePath::new(text).map(String::from).as_deref(), Ok(text));
        }
        assert_eq!(FilePath::new("a/b/c").expect("a path").folders().collect::<Vec<_>>(), ["a", "a/b"]);
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        for (text, error) in [
            ("", PathError::Empty),
            ("a//b", PathError::Empty),
            ("a/", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("..", PathError::Dots),
            ("a/../../b", PathError::Dots),
            ("./a", PathError::Dots),
            ("a\\b", PathError::Character),
            ("a\0b", PathError::Character),
            ("a\nb", PathError::Character),
            (&"x".repeat(MAX_COMPONENT + 1), PathError::Long),
            (&"x/".repeat(MAX_DEPTH + 1), PathError::Long),
            (&vec!["x".repeat(200); 6].join("/"), PathError::Long),
        ] {
            assert_eq!(FilePath::new(text), Err(error), "{text:?}");
        }
    }
}
