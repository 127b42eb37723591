//! Manifests: what the files of one version of a model are. A manifest is written after all files, so a version that has none is none yet.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::archive::ArchiveKind;
use crate::digest::Digest;
use crate::id::{ModelId, ModelName};
use crate::path::FilePath;

/// The object that holds a version's manifest, beside its files.
pub const MANIFEST: &str = "outrigger-manifest.json";
/// The object that holds the manifest's signature, if it has one: see [`crate::signature`].
pub const SIGNATURE: &str = "outrigger-manifest.json.sig";

/// The object that says who is at a version that has no manifest yet.
pub const CLAIM: &str = "outrigger-push.json";

/// Largest manifest, bytes.
pub const MAX_MANIFEST: u64 = 8 << 20;
/// Most files of a version.
pub const MAX_FILES: usize = 10_000;
/// Most bytes of a version: 1 PiB.
pub const MAX_SIZE: u64 = 1 << 50;
/// Longest description, bytes.
pub const MAX_DESCRIPTION: usize = 4096;
/// Most tags...
pub const MAX_TAGS: usize = 64;
/// ...and the longest name or value of one, bytes.
pub const MAX_TAG: usize = 256;

/// The form of manifests that is written, and the only one that is read.
const FORM: u32 = 1;

/// The files of one version of a model, held against all rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// [`FORM`].
    outrigger: u32,
    /// Which model, and which version of it.
    #[serde(flatten)]
    id: ModelId,
    /// What it is for, in its owner's words.
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    /// What its owner says of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    /// In the order of their paths.
    files: Vec<ManifestFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Where it lies, below the version's folder.
    pub path: FilePath,
    /// Bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: Digest,
    /// Whether it is an archive whose members are to lie where it lies, instead of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpack: bool,
}

/// What a manifest is, or is not. Fields that are not known are refused: they may be what matters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(rename = "outrigger")]
    _form: u32,
    name: ModelName,
    version: u64,
    #[serde(default)]
    description: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    files: Vec<ManifestFile>,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// No JSON, or JSON of another form.
    #[error("it is no manifest: {said}")]
    Form {
        /// What is wrong with it, cut: it quotes what somebody else has written.
        said: String,
    },
    /// Of a later version of ours, or of nobody's.
    #[error("its form is {found}, and {FORM} is known here")]
    Later {
        /// What it says.
        found: u32,
    },
    /// Larger than [`MAX_MANIFEST`].
    #[error("it has {size} bytes, and {MAX_MANIFEST} is the limit")]
    Large {
        /// Bytes.
        size: u64,
    },
    /// It is that of another model, or another version.
    #[error("it is that of `{found}`, and `{wanted}` was asked for")]
    Other {
        /// Whose it is.
        found: ModelId,
        /// Whose it should be.
        wanted: ModelId,
    },
    /// No files, or too many.
    #[error("it has {count} files: at least 1 and at most {MAX_FILES} can be")]
    Count {
        /// How many.
        count: usize,
    },
    /// Two files by one path, or one where another needs a folder.
    #[error("`{path}` is in it twice, or as a file and as a folder")]
    Clash {
        /// Which.
        path: String,
    },
    /// A path that is ours.
    #[error("a file cannot be called `{path}`: that is where manifests are")]
    Reserved {
        /// Which.
        path: FilePath,
    },
    /// A file that is to be unpacked and is no archive.
    #[error("`{path}` is to be unpacked, and its name is none of an archive: .tar, .tar.gz, .tgz, .zip")]
    NoArchive {
        /// Which.
        path: FilePath,
    },
    /// More bytes than any file system takes.
    #[error("its files have more than {MAX_SIZE} bytes")]
    Size,
    /// Too much of what its owner says.
    #[error(
        "its description is longer than {MAX_DESCRIPTION} bytes, or it has more than {MAX_TAGS} tags, or one longer than {MAX_TAG}"
    )]
    Words,
}

impl From<serde_json::Error> for ManifestError {
    fn from(error: serde_json::Error) -> Self {
        Self::Form { said: error.to_string().chars().take(200).flat_map(char::escape_debug).collect() }
    }
}

impl Manifest {
    /// Of files, in whatever order.
    ///
    /// # Errors
    /// Says which rule they break.
    pub fn new(
        id: ModelId,
        description: String,
        tags: BTreeMap<String, String>,
        mut files: Vec<ManifestFile>,
    ) -> Result<Self, ManifestError> {
        if files.is_empty() || files.len() > MAX_FILES {
            return Err(ManifestError::Count { count: files.len() });
        }
        let long = |text: &String| text.len() > MAX_TAG;
        if description.len() > MAX_DESCRIPTION
            || tags.len() > MAX_TAGS
            || tags.iter().any(|(name, value)| long(name) || long(value))
        {
            return Err(ManifestError::Words);
        }
        files.sort_by(|left, right| left.path.cmp(&right.path));
        check_paths(&files)?;
        let sum = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
        sum.filter(|sum| *sum <= MAX_SIZE).ok_or(ManifestError::Size)?;
        Ok(Self { outrigger: FORM, id, description, tags, files })
    }

    /// Reads one.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(ManifestError::Large { size: bytes.len() as u64 });
        }
        /// The form alone: what else there is depends on it.
        #[derive(Deserialize)]
        struct Form {
            outrigger: u32,
        }
        let Form { outrigger: found } = serde_json::from_slice(bytes)?;
        if found != FORM {
            return Err(ManifestError::Later { found });
        }
        let Raw { _form: _, name, version, description, tags, files } = serde_json::from_slice(bytes)?;
        Self::new(ModelId { name, version }, description, tags, files)
    }

    /// As [`Manifest::read`], of a certain version.
    ///
    /// # Errors
    /// If it is that of another, too: nobody is given one model for another because somebody has copied a manifest.
    pub fn read_of(bytes: &[u8], wanted: &ModelId) -> Result<Self, ManifestError> {
        let manifest = Self::read(bytes)?;
        if manifest.id == *wanted {
            Ok(manifest)
        } else {
            Err(ManifestError::Other { found: manifest.id, wanted: wanted.clone() })
        }
    }

    /// As it is stored: JSON to be read by people, too.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("maps have texts for keys, and nothing else can fail");
        bytes.push(b'\n');
        bytes
    }

    /// Which model, and which version of it.
    pub fn id(&self) -> &ModelId {
        &self.id
    }

    /// What it is for, in its owner's words.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What its owner says of it.
    pub fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }

    /// In the order of their paths.
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// Bytes of all files, as they are stored.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// `files` in the order of their paths.
fn check_paths(files: &[ManifestFile]) -> Result<(), ManifestError> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let twice = files.windows(2).find(|pair| pair[0].path == pair[1].path).map(|pair| pair[0].path.as_str());
    let folder = files.iter().flat_map(|file| file.path.folders()).find(|folder| paths.contains(folder));
    if let Some(path) = twice.or(folder) {
        return Err(ManifestError::Clash { path: path.to_owned() });
    }
    for ManifestFile { path, unpack, .. } in files {
        if path.components().next().is_some_and(|first| matches!(first, MANIFEST | SIGNATURE | CLAIM)) {
            return Err(ManifestError::Reserved { path: path.clone() });
        }
        if *unpack && ArchiveKind::of(path.as_str()).is_none() {
            return Err(ManifestError::NoArchive { path: path.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> ManifestFile {
        let path = FilePath::new(path).expect("a path");
        ManifestFile { path, size: 3, sha256: Digest::of(b"abc"), unpack: false }
    }

    fn id() -> ModelId {
        "digits:3".parse().expect("an id")
    }

    fn of(files: Vec<ManifestFile>) -> Result<Manifest, ManifestError> {
        Manifest::new(id(), String::new(), BTreeMap::new(), files)
    }

    #[test]
    fn manifests_are_read_as_they_are_written() {
        let tags = BTreeMap::from([("team".into(), "vision".into())]);
        let files = vec![file("digits/z.bin"), ManifestFile { unpack: true, ..file("digits/more.TGZ") }];
        let manifest = Manifest::new(id(), "reads digits".into(), tags, files).expect("a manifest");
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::read(&bytes).expect("the same"), manifest);
        assert_eq!(manifest.files()[0].path.as_str(), "digits/more.TGZ");
        assert_eq!(manifest.size(), 6);
        let text = String::from_utf8(bytes).expect("JSON is UTF-8");
        assert!(
            text.starts_with("{\n  \"outrigger\": 1,\n  \"name\": \"digits\",\n  \"version\": 3,\n"),
            "{text}"
        );
    }

    #[test]
    fn files_that_cannot_lie_beside_each_other_are_refused() {
        let said = |files: Vec<ManifestFile>| of(files).expect_err("no manifest").to_string();
        assert!(said(vec![]).contains("0 files"));
        assert!(said(vec![file("a"), file("b"), file("a")]).contains("`a` is in it twice"));
        assert!(said(vec![file("a/b/c"), file("a/b"), file("a.b")]).contains("`a/b` is in it twice"));
        for reserved in [MANIFEST, SIGNATURE, CLAIM, "outrigger-manifest.json/x"] {
            assert!(said(vec![file(reserved)]).contains("cannot be called"));
        }
        assert!(said(vec![ManifestFile { unpack: true, ..file("a.onnx") }]).contains("is to be unpacked"));
        let huge = ManifestFile { size: u64::MAX, ..file("a") };
        assert!(said(vec![huge, file("b")]).contains("more than 1125899906842624 bytes"));
        assert!(said((0..=MAX_FILES).map(|n| file(&format!("{n}"))).collect()).contains("10001 files"));
        let words = Manifest::new(id(), "x".repeat(MAX_DESCRIPTION + 1), BTreeMap::new(), vec![file("a")]);
        assert!(matches!(words, Err(ManifestError::Words)));
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let check = |text: &str, said: &str| {
            let error = Manifest::read(text.as_bytes()).expect_err("no manifest").to_string();
            assert!(error.contains(said), "{text}: {error}");
        };
        let sha = Digest::of(b"");
        check("", "it is no manifest");
        check("{}", "missing field `outrigger`");
        check(r#"{"outrigger": 2, "news": []}"#, "its form is 2, and 1 is known here");
        check(
            r#"{"outrigger": 1, "name": "a", "version": 1, "files": [], "more": 1}"#,
            "unknown field `more`",
        );
        check(r#"{"outrigger": 1, "name": "../a", "version": 1, "files": []}"#, "no model name");
        let named = |path: &str| {
            format!(
                r#"{{"outrigger": 1, "name": "a", "version": 1, "files": [{{"path": "{path}", "size": 0, "sha256": "{sha}"}}]}}"#
            )
        };
        check(&named("../etc/passwd"), "a component `.` or `..`");
        check(&named("/etc/passwd"), "absolute");
        let error = Manifest::read_of(named("x").as_bytes(), &id()).expect_err("another's");
        assert_eq!(error.to_string(), "it is that of `a:1`, and `digits:3` was asked for");
        let large = Manifest::read(&vec![b' '; MAX_MANIFEST as usize + 1]).expect_err("too large");
        assert!(large.to_string().contains("is the limit"));
    }
}
