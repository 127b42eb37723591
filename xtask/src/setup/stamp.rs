//! Stamps: small files that say what something was made from, so that it is made again only when that has changed.

use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::Path;

use anyhow::{Context, Result};

/// What something is made from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stamp(String);

impl Stamp {
    /// The stamp of some files' contents.
    ///
    /// The hash only has to notice an edit. Should another Rust release hash differently, things are made once more.
    pub(crate) fn of(what: &str, files: &[&Path]) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        for file in files {
            let bytes = fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
            hasher.write_usize(bytes.len());
            hasher.write(&bytes);
        }
        Ok(Self(format!("{what} {:016x}\n", hasher.finish())))
    }

    /// The same, made with something more.
    pub(crate) fn with(&self, what: &str, value: &str) -> Self {
        let mut text = self.0.clone();
        let _ = writeln!(text, "{what} {value}");
        Self(text)
    }

    /// Whether the file holds exactly this stamp.
    pub(crate) fn is_in(&self, file: &Path) -> bool {
        fs::read_to_string(file).is_ok_and(|text| text == self.0)
    }

    /// Written last, when everything it speaks of is there.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, &self.0).with_context(|| format!("could not write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_an_edit() {
        let folder = tempfile::tempdir().unwrap();
        let (source, file) = (folder.path().join("source"), folder.path().join("stamp"));
        fs::write(&source, "one").unwrap();
        let one = Stamp::of("source", &[&source]).unwrap();
        assert!(!one.is_in(&file));
        one.write(&file).unwrap();
        assert!(one.is_in(&file) && Stamp::of("source", &[&source]).unwrap().is_in(&file));
        assert!(!one.with("python", "3.11.2").is_in(&file));
        fs::write(&source, "two").unwrap();
        assert!(!Stamp::of("source", &[&source]).unwrap().is_in(&file));
    }
}
