//! Files of this machine that are to become a version of a model.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Hasher};
use crate::manifest::{MAX_FILES, ManifestFile};
use crate::path::{FilePath, PathError};

/// A file or a folder, as a version of a model would have it: by the name of the file, or below the name of the folder.
#[derive(Clone, Debug)]
pub struct LocalModel {
    /// In the order of their paths.
    pub files: Vec<LocalFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub from: PathBuf,
    /// Where it would lie in a version.
    pub path: FilePath,
    /// Bytes.
    pub size: u64,
}

/// Why files cannot become a version of a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// It cannot be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its path is none that a version can have.
    #[error("`{}` cannot be in a model: {source}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: PathError,
    },
    /// Its name is no text.
    #[error("`{}` cannot be in a model: its name is no UTF-8", path.display())]
    Text {
        /// Which.
        path: PathBuf,
    },
    /// A link to somewhere outside the folder.
    #[error("`{}` is a link out of the folder that is pushed", path.display())]
    Outside {
        /// Which.
        path: PathBuf,
    },
    /// A device, a socket, or the like.
    #[error("`{}` is neither a file nor a folder", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// Too many.
    #[error("`{}` has more than {MAX_FILES} files", path.display())]
    Count {
        /// Which.
        path: PathBuf,
    },
    /// It changed while it was looked at.
    #[error("`{}` was changed while it was read", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
}

impl LocalModel {
    /// Looks at a file, or at all files of a folder. Links are followed as long as they stay in the folder.
    ///
    /// # Errors
    /// Says which file cannot be in a model, and why.
    pub fn read(path: &Path) -> Result<Self, LocalError> {
        let io = |source| LocalError::Io { path: path.to_owned(), source };
        let root = path.canonicalize().map_err(io)?;
        // What the caller calls it, unless that is `.` or `..`.
        let name = path.file_name().or(root.file_name());
        let name =
            name.and_then(|name| name.to_str()).ok_or_else(|| LocalError::Text { path: path.to_owned() })?;
        let found = fs::metadata(&root).map_err(io)?;
        let mut model = Self { files: Vec::new() };
        if found.is_file() {
            model.add(&root, name.to_owned(), found.len())?;
        } else {
            model.walk(&root, &root, name)?;
        }
        model.files.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(model)
    }

    fn walk(&mut self, root: &Path, folder: &Path, below: &str) -> Result<(), LocalError> {
        // A link to a folder above would go on for ever.
        if below.matches('/').count() > crate::path::MAX_DEPTH {
            return Err(LocalError::Path { path: folder.to_owned(), source: PathError::Long });
        }
        let io = |source| LocalError::Io { path: folder.to_owned(), source };
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let io = |source| LocalError::Io { path: path.clone(), source };
            let name = path.file_name().and_then(|name| name.to_str());
            let below = format!("{below}/{}", name.ok_or_else(|| LocalError::Text { path: path.clone() })?);
            let real = path.canonicalize().map_err(io)?;
            if !real.starts_with(root) {
                return Err(LocalError::Outside { path });
            }
            let found = fs::metadata(&real).map_err(io)?;
            if found.is_dir() {
                self.walk(root, &path, &below)?;
            } else if found.is_file() {
                self.add(&path, below, found.len())?;
            } else {
                return Err(LocalError::Kind { path });
            }
            if self.files.len() > MAX_FILES {
                return Err(LocalError::Count { path: root.to_owned() });
            }
        }
        Ok(())
    }

    fn add(&mut self, from: &Path, below: String, size: u64) -> Result<(), LocalError> {
        let path =
            FilePath::new(below).map_err(|source| LocalError::Path { path: from.to_owned(), source })?;
        self.files.push(LocalFile { from: from.to_owned(), path, size });
        Ok(())
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl LocalFile {
    /// Reads it for its digest.
    ///
    /// # Errors
    /// If it cannot be read, or has another size than when it was looked at.
    pub fn described(&self, unpack: bool, mut came: impl FnMut(u64)) -> Result<ManifestFile, LocalError> {
        let io = |source| LocalError::Io { path: self.from.clone(), source };
        let mut file = File::open(&self.from).map_err(io)?;
        let mut hasher = Hasher::default();
        let mut bytes = vec![0; 1 << 20];
        let mut size = 0_u64;
        loop {
            let read = io::Read::read(&mut file, &mut bytes).map_err(io)?;
            if read == 0 {
                break;
            }
            hasher.update(&bytes[..read]);
            size += read as u64;
            came(read as u64);
        }
        if size != self.size {
            return Err(LocalError::Changed { path: self.from.clone() });
        }
        let sha256: Digest = hasher.finish();
        Ok(ManifestFile { path: self.path.clone(), size, sha256, unpack })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_called_by_its_name_and_files_of_a_folder_below_its() {
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("digits");
        fs::create_dir_all(model.join("assets")).expect("a folder");
        fs::write(model.join("model.onnx"), b"abc").expect("a file");
        fs::write(model.join("assets/labels.txt"), b"one").expect("a file");
        symlink("model.onnx", model.join("link.onnx")).expect("a link");
        let paths = |path: &Path| {
            let files = LocalModel::read(path).expect("a model").files;
            files.into_iter().map(|file| file.path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths(&model.join("model.onnx")), ["model.onnx"]);
        let all = ["digits/assets/labels.txt", "digits/link.onnx", "digits/model.onnx"];
        assert_eq!(paths(&model), all);
        assert_eq!(paths(&model.join("assets/..")), all);
        let file = LocalModel::read(&model.join("model.onnx")).expect("a model").files.remove(0);
        let described = file.described(false, |_| {}).expect("a file");
        assert_eq!((described.size, described.sha256), (3, Digest::of(b"abc")));
        fs::write(model.join("model.onnx"), b"abcd").expect("a file");
        assert!(matches!(file.described(false, |_| {}), Err(LocalError::Changed { .. })));
    }

    #[test]
    fn what_cannot_be_in_a_model_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("digits");
        fs::create_dir(&model).expect("a folder");
        let refused = |what: &str| {
            let error = LocalModel::read(&model).expect_err("refused").to_string();
            assert!(error.contains(what), "{error}");
        };
        symlink("/etc/hostname", model.join("out")).expect("a link");
        refused("out` is a link out of the folder");
        fs::remove_file(model.join("out")).expect("ours");
        symlink(".", model.join("loop")).expect("a link");
        refused("cannot be in a model: it is longer than");
        fs::remove_file(model.join("loop")).expect("ours");
        fs::write(model.join("a\\b"), b"").expect("a file");
        refused("a\\b` cannot be in a model: it has a backslash");
        fs::remove_file(model.join("a\\b")).expect("ours");
        let _socket = std::os::unix::net::UnixListener::bind(model.join("socket")).expect("a socket");
        refused("socket` is neither a file nor a folder");
        let error = LocalModel::read(&folder.path().join("none")).expect_err("nothing").to_string();
        assert!(error.contains("none` cannot be read"), "{error}");
    }
}
