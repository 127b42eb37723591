//! Where a model's files are looked for: on the disk, or among those that will be there once they have been fetched.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Files to look at.
#[derive(Debug)]
pub(super) enum Files {
    /// Those of the disk.
    Disk,
    /// These, which may not be there yet; their folders are those of their paths.
    Awaited(BTreeSet<PathBuf>),
}

impl Files {
    pub(super) fn is_file(&self, path: &Path) -> bool {
        match self {
            Self::Disk => path.is_file(),
            Self::Awaited(files) => files.contains(path),
        }
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        match self {
            Self::Disk => path.is_dir(),
            Self::Awaited(_) => self.below(path).next().is_some(),
        }
    }

    /// What is in a folder, in the order of names.
    pub(super) fn entries(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::Disk => {
                let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
                let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
                paths.sort();
                Ok(paths)
            }
            Self::Awaited(_) => {
                let first = |file: &Path| Some(folder.join(file.strip_prefix(folder).ok()?.iter().next()?));
                let names: BTreeSet<_> = self.below(folder).filter_map(|file| first(file)).collect();
                Ok(names.into_iter().collect())
            }
        }
    }

    /// A path of what is there, links followed.
    pub(super) fn real(&self, path: &Path) -> io::Result<PathBuf> {
        match self {
            Self::Disk => path.canonicalize(),
            Self::Awaited(_) => {
                // What has been fetched has no links.
                let path: PathBuf = path.components().collect();
                let there = self.is_file(&path) || self.is_dir(&path);
                there.then_some(path).ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    fn below<'a>(&'a self, folder: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        let awaited = match self {
            Self::Disk => None,
            Self::Awaited(files) => Some(files.range(folder.to_owned()..)),
        };
        let below = move |file: &&PathBuf| file.starts_with(folder);
        awaited.into_iter().flatten().filter(move |file| *file != folder).take_while(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_looks_as_it_will_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let names = ["a/model.toml", "a/x/1.bin", "a/x/2.bin", "a-b/y", "a.onnx", "b"];
        for name in names {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), "").unwrap();
        }
        let (disk, awaited) = (Files::Disk, Files::Awaited(names.map(|name| root.join(name)).into()));
        for path in ["", "a", "a/x", "a-b", "a/model.toml", "a/.", "a.onnx", "b", "c", "a/c", "a/x/1"] {
            let path = root.join(path);
            let seen = |files: &Files| {
                let entries = if files.is_dir(&path) { files.entries(&path).ok() } else { None };
                (files.is_file(&path), files.is_dir(&path), entries, files.real(&path).ok())
            };
            assert_eq!(seen(&awaited), seen(&disk), "{}", path.display());
        }
    }
}
