//! The names in an archive: each made a path, and no two at odds.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::path::FilePath;

use super::error::ArchiveError;
use super::shown::MemberName;

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File,
    Folder,
}

/// The names so far. Only those that the archive has are kept, not the folders that they imply: there could be 32 times as many.
#[derive(Default)]
pub(super) struct Names(BTreeMap<String, Entry>);

impl Names {
    /// Takes a file's name.
    pub(super) fn file(&mut self, raw: &[u8]) -> Result<FilePath, ArchiveError> {
        let member = MemberName::new(raw);
        let path = path(&member, text(&member, raw)?)?;
        self.add(&member, &path, Entry::File)?;
        Ok(path)
    }

    /// Takes a folder's name. The same one may come again, and `./` is the folder that all is in.
    pub(super) fn folder(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        let member = MemberName::new(raw);
        let name = match text(&member, raw)? {
            "." | "" if !raw.is_empty() => return Ok(()),
            name => name.strip_suffix('/').unwrap_or(name),
        };
        let path = path(&member, name)?;
        self.add(&member, &path, Entry::Folder)
    }

    fn add(&mut self, member: &MemberName, path: &FilePath, entry: Entry) -> Result<(), ArchiveError> {
        let name = path.as_str();
        let quarrel = |path: &str| {
            let (member, path) = (member.clone(), MemberName::new(path.as_bytes()));
            Err(ArchiveError::FileAndFolder { member, path })
        };
        match (self.0.get(name), entry) {
            (Some(Entry::File), Entry::File) => return Err(ArchiveError::Twice { member: member.clone() }),
            (Some(other), entry) if *other != entry => return quarrel(name),
            _ => {}
        }
        if let Some(folder) = path.folders().find(|folder| self.0.get(*folder) == Some(&Entry::File)) {
            return quarrel(folder);
        }
        if entry == Entry::File && self.beneath(name) {
            return quarrel(name);
        }
        self.0.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Whether a name is in the folder of that name.
    fn beneath(&self, folder: &str) -> bool {
        let folder = format!("{folder}/");
        let from = (Bound::Included(folder.as_str()), Bound::Unbounded);
        self.0.range::<str, _>(from).next().is_some_and(|(name, _)| name.starts_with(&folder))
    }
}

/// The text of a name, without the `./` that `tar -C folder .` puts before each.
fn text<'a>(member: &MemberName, raw: &'a [u8]) -> Result<&'a str, ArchiveError> {
    let text = std::str::from_utf8(raw).map_err(|_| ArchiveError::Encoding { member: member.clone() })?;
    Ok(text.trim_start_matches("./"))
}

fn path(member: &MemberName, name: &str) -> Result<FilePath, ArchiveError> {
    FilePath::new(name).map_err(|source| ArchiveError::Path { member: member.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files, and folders where a name ends in a slash, up to the first that is refused.
    fn check(names: &[&str]) -> Result<(), String> {
        let mut seen = Names::default();
        for name in names {
            let taken = match name.ends_with('/') {
                true => seen.folder(name.as_bytes()),
                false => seen.file(name.as_bytes()).map(drop),
            };
            taken.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    #[test]
    fn names_that_agree_are_taken() {
        for names in [
            &["a", "A", "b/c", "b/d", "b.c", "b-"][..],
            &["./", "./a/", "./a/b", "a/c", "a/", "./a/"],
            &["a/b/c", "a/b/", "a/"],
            &["././x"],
        ] {
            assert_eq!(check(names), Ok(()), "{names:?}");
        }
    }

    #[test]
    fn a_file_comes_once() {
        for names in [["a", "a"], ["a/b", "./a/b"]] {
            assert!(
                check(&names).is_err_and(|error| error.ends_with("is in the archive twice")),
                "{names:?}"
            );
        }
    }

    #[test]
    fn nothing_is_file_and_folder() {
        for names in [
            &["a", "a/"][..],
            &["a/", "a"],
            &["a", "a/b/c"],
            &["a/b/c", "a/b"],
            &["a", "a/b/"],
            &["a-", "a/b", "a.", "a"],
        ] {
            assert!(check(names).is_err_and(|error| error.ends_with("a file and a folder")), "{names:?}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for name in [
            "/a", "../a", "a/../b", "a\\b", "a\tb", "", ".//a", ".", "a//b", "/", "../", "a/./", ".//", "a//",
        ] {
            assert!(
                check(&[name]).is_err_and(|error| error.contains("has a name that is not taken")),
                "{name:?}"
            );
        }
        assert!(matches!(Names::default().file(b"a\xff"), Err(ArchiveError::Encoding { .. })));
        assert!(matches!(Names::default().folder(b""), Err(ArchiveError::Path { .. })));
    }
}
