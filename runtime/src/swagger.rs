//! The descriptions of the scoring route that users bring along as files.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use outrigger_protocol::swagger::{USER_FILES, Version};

/// A larger file is refused.
const FILE_LIMIT: u64 = 4 << 20;

/// A file of the user's that cannot be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwaggerFileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large.
    #[error("{} is larger than {FILE_LIMIT} bytes", .0.display())]
    TooLarge(PathBuf),
    /// It is not JSON.
    #[error("{} is not JSON", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// Reads `swagger.json` and its kin from the root of the user's code, those that are there; to be called once, at the start.
///
/// # Errors
/// A file is there and cannot be sent.
pub fn user_files(app_root: &Path) -> Result<Vec<(Version, Bytes)>, SwaggerFileError> {
    let mut files = Vec::new();
    for (version, name) in USER_FILES {
        let path = app_root.join(name);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(SwaggerFileError::Read { path, source }),
        };
        let mut text = Vec::new();
        if let Err(source) = file.take(FILE_LIMIT + 1).read_to_end(&mut text) {
            return Err(SwaggerFileError::Read { path, source });
        }
        if text.len() as u64 > FILE_LIMIT {
            return Err(SwaggerFileError::TooLarge(path));
        }
        if let Err(source) = serde_json::from_slice::<serde::de::IgnoredAny>(&text) {
            return Err(SwaggerFileError::NotJson { path, source });
        }
        files.push((version, Bytes::from(text)));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_there_are_read_in_order() {
        let root = tempfile::tempdir().unwrap();
        assert!(user_files(root.path()).unwrap().is_empty());
        for name in ["swagger3.1.json", "swagger2.json", "swagger.json"] {
            std::fs::write(root.path().join(name), format!("{{\"of\": \"{name}\"}}")).unwrap();
        }
        let files = user_files(root.path()).unwrap();
        let versions: Vec<_> = files.iter().map(|(version, _)| *version).collect();
        assert_eq!(versions, [Version::V2, Version::V2, Version::V3_1]);
        assert_eq!(files[0].1, r#"{"of": "swagger.json"}"#);
    }

    #[test]
    fn files_that_cannot_be_sent_are_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("swagger3.json");
        std::fs::write(&path, "{").unwrap();
        assert!(user_files(root.path()).unwrap_err().to_string().contains("swagger3.json is not JSON"));
        std::fs::write(&path, vec![b' '; FILE_LIMIT as usize + 1]).unwrap();
        assert!(user_files(root.path()).unwrap_err().to_string().contains("larger than 4194304 bytes"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(user_files(root.path()).unwrap_err().to_string().contains("cannot read"));
    }
}
