//! Models in a location, by name and version:
//!
//! ```text
//! digits/3/digits/model.onnx            files, as they are to lie
//! digits/3/digits/model.toml
//! digits/3/outrigger-manifest.json.sig  who says so, if anybody
//! digits/3/outrigger-manifest.json      what they are; written last
//! digits/labels/stable                  which version is called so
//! outrigger-index.json                  copies of manifests, if somebody has made that (`index`)
//! ```
//!
//! A version without a manifest is none: somebody is about to write it, or has given up.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod index;
mod labels;
mod local;
mod push;
mod small;
mod tagged;
mod unfinished;
mod verify;

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use object_store::{ObjectMeta, ObjectStore as _};

pub use index::{INDEX, Indexed};
pub use local::{LocalError, LocalFile, LocalModel};
pub use push::{Push, PushError, PushWatch, Version};
pub use tagged::{Tagged, Tags};
pub use unfinished::Unfinished;

use crate::fetch::FetchError;
use crate::id::{Label, ModelId, ModelName, ModelWish, Which, version_of};
use crate::location::{Location, LocationKind};
use crate::manifest::{CLAIM, MANIFEST, MAX_MANIFEST, Manifest, SIGNATURE};
use crate::signature::{self, MAX_SIGNATURES, TrustedKey};
use small::{Small, small};
use tagged::Tag;

/// Models in a location.
#[derive(Clone, Debug)]
pub struct Registry {
    at: Location,
}

/// A version that is in a registry, as far as a listing tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub id: ModelId,
    /// Files, the manifest apart.
    pub files: usize,
    /// Their bytes.
    pub size: u64,
    /// What it is called.
    pub labels: Vec<Label>,
    /// When its manifest was written, such as `2024-01-31T12:00:00Z` (RFC 3339).
    pub pushed: String,
}

impl Registry {
    /// The models in a location.
    pub fn new(at: Location) -> Self {
        Self { at }
    }

    /// Where it is.
    pub fn at(&self) -> &Location {
        &self.at
    }

    /// The folder of a version.
    pub fn folder(&self, id: &ModelId) -> Location {
        self.at.below(id.name.as_str()).below(&id.version.to_string())
    }

    /// Every version of every model, in the order of names and versions. It takes a request for each few thousand files, and none for each model.
    ///
    /// # Errors
    /// If the location cannot be listed.
    pub async fn list(&self) -> Result<Vec<Listed>, FetchError> {
        Ok(without_tags(self.listed(&self.at, None, true).await?))
    }

    /// Every version of a model.
    ///
    /// # Errors
    /// If the location cannot be listed.
    pub async fn versions(&self, name: &ModelName) -> Result<Vec<Listed>, FetchError> {
        Ok(without_tags(self.listed(&self.at.below(name.as_str()), Some(name), true).await?))
    }

    /// The version that is asked for, by its number or label, or else the latest.
    ///
    /// # Errors
    /// If there is none. Whether a version that is asked for by its number exists is not looked at.
    pub async fn resolve(&self, wish: &ModelWish) -> Result<ModelId, FetchError> {
        match &wish.which {
            Which::Version(version) => return Ok(ModelId { name: wish.name.clone(), version: *version }),
            Which::Label(label) => return self.labelled(&wish.name, label).await,
            Which::Latest => {}
        }
        let latest = self.versions(&wish.name).await?.pop();
        let at = || self.at.below(wish.name.as_str()).to_string();
        latest.map(|listed| listed.id).ok_or_else(|| FetchError::NotFound { at: at() })
    }

    /// The manifest of a version, signed by one of those who are trusted, if any are named.
    ///
    /// # Errors
    /// If there is none, or it does not count.
    pub async fn manifest(&self, id: &ModelId, trusted: &[TrustedKey]) -> Result<Manifest, FetchError> {
        let folder = self.folder(id);
        Read::from(&folder, trusted).await?.checked(&folder, id, trusted)
    }

    /// What is below a folder, by version. `name` is the folder's own, if it is that of a model. Each label is a request, if they are wanted.
    async fn listed(
        &self,
        at: &Location,
        name: Option<&ModelName>,
        with_labels: bool,
    ) -> Result<Vec<Tagged>, FetchError> {
        let mut versions: BTreeMap<ModelId, Found> = BTreeMap::new();
        let mut labels = Vec::new();
        self.each(at, name, |place, object| {
            let (id, path) = match place {
                Place::Version(id, path) => (id, path),
                Place::Label(..) if !with_labels => return,
                Place::Label(name, label) => return labels.push((name, label)),
            };
            versions.entry(id).or_default().add(path, object, at.kind());
        })
        .await?;
        let mut complete: Vec<_> = versions.into_iter().filter_map(|(id, found)| found.tagged(id)).collect();
        for (name, label) in labels {
            let id = match self.labelled(&name, &label).await {
                Ok(id) => id,
                // Somebody has just taken it away, or it says nothing of use, which whoever asks for it hears.
                Err(FetchError::NotFound { .. } | FetchError::Label { .. }) => continue,
                Err(error) => return Err(error),
            };
            complete
                .iter_mut()
                .filter(|found| found.listed.id == id)
                .for_each(|found| found.listed.labels.push(label.clone()));
        }
        Ok(complete)
    }

    /// Looks at each object that lies where one of a version would, and passes over what else there is.
    async fn each(
        &self,
        at: &Location,
        name: Option<&ModelName>,
        mut look: impl FnMut(Place<'_>, &ObjectMeta),
    ) -> Result<(), FetchError> {
        if at.kind() == LocationKind::Http {
            return Err(FetchError::Web { at: at.to_string() });
        }
        let prefix = Some(at.at()).filter(|path| !path.as_ref().is_empty());
        let mut objects = at.store().list(prefix);
        while let Some(object) = objects.next().await {
            let object = object.map_err(|error| FetchError::of(at, &error))?;
            let below = object
                .location
                .as_ref()
                .strip_prefix(at.at().as_ref())
                .map(|path| path.trim_start_matches('/'));
            let Some(place) = below.and_then(|below| place(below, name)) else { continue };
            look(place, &object);
        }
        Ok(())
    }
}

/// What an object is.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    /// Of a version; and what it is called there.
    Version(ModelId, &'a str),
    Label(ModelName, Label),
}

fn place<'a>(below: &'a str, name: Option<&ModelName>) -> Option<Place<'a>> {
    let (name, below) = match name {
        Some(name) => (name.clone(), below),
        None => {
            let (name, below) = below.split_once('/')?;
            (ModelName::new(name).ok()?, below)
        }
    };
    let (version, path) = below.split_once('/')?;
    if version == labels::LABELS {
        return Some(Place::Label(name, path.parse().ok()?));
    }
    Some(Place::Version(ModelId { name, version: version_of(version).ok()? }, path))
}

/// What has been found of a version.
#[derive(Default)]
struct Found {
    pushed: Option<String>,
    files: usize,
    size: u64,
    tags: Tags,
}

impl Found {
    fn add(&mut self, path: &str, object: &ObjectMeta, kind: LocationKind) {
        match path {
            MANIFEST => {
                self.pushed = Some(object.last_modified.format("%FT%TZ").to_string());
                self.tags.manifest = Tag::listed(object, kind);
            }
            SIGNATURE => self.tags.signatures = Tag::listed(object, kind),
            CLAIM => {}
            _ => {
                self.files += 1;
                self.size += object.size;
            }
        }
    }

    /// Nothing if it has no manifest.
    fn tagged(self, id: ModelId) -> Option<Tagged> {
        let Self { pushed, files, size, tags } = self;
        Some(Tagged { listed: Listed { id, files, size, labels: Vec::new(), pushed: pushed? }, tags })
    }
}

fn without_tags(tagged: Vec<Tagged>) -> Vec<Listed> {
    tagged.into_iter().map(|tagged| tagged.listed).collect()
}

/// A manifest and its signatures, as they were read.
struct Read {
    manifest: Small,
    /// Where they were asked for, and are there.
    signatures: Option<Small>,
}

impl Read {
    /// Those of a version's folder: the signatures where somebody is trusted.
    async fn from(folder: &Location, trusted: &[TrustedKey]) -> Result<Self, FetchError> {
        let manifest = small(&folder.below(MANIFEST), MAX_MANIFEST).await?;
        if trusted.is_empty() {
            return Ok(Self { manifest, signatures: None });
        }
        let signatures = match small(&folder.below(SIGNATURE), MAX_SIGNATURES).await {
            Ok(signatures) => Some(signatures),
            Err(FetchError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { manifest, signatures })
    }

    /// The manifest, if those who are trusted have signed it and it is that of the version.
    fn checked(
        &self,
        folder: &Location,
        id: &ModelId,
        trusted: &[TrustedKey],
    ) -> Result<Manifest, FetchError> {
        let at = || folder.below(MANIFEST).to_string();
        let signatures = self.signatures.as_ref().map(|found| String::from_utf8_lossy(&found.bytes));
        signature::check(&self.manifest.bytes, signatures.as_deref(), trusted)
            .map_err(|source| FetchError::Signature { at: at(), source })?;
        Manifest::read_of(&self.manifest.bytes, id)
            .map_err(|source| FetchError::Manifest { at: at(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_elsewhere_is_no_version() {
        let id = |text: &str| text.parse::<ModelId>().expect("an id");
        let digits = ModelName::new("digits").expect("a name");
        let version = |text: &str, path| Some(Place::Version(id(text), path));
        assert_eq!(place("digits/3/a/b.onnx", None), version("digits:3", "a/b.onnx"));
        assert_eq!(place("3/a", Some(&digits)), version("digits:3", "a"));
        let stable = || Some(Place::Label(digits.clone(), "stable".parse().expect("a label")));
        assert_eq!(
            [place("digits/labels/stable", None), place("labels/stable", Some(&digits))],
            [stable(), stable()]
        );
        for below in [
            "digits",
            "digits/3",
            "digits/latest/a",
            "digits/labels/7",
            "digits/labels/a/b",
            "digits/03/a",
            ".trash/3/a",
            "README.md",
        ] {
            assert_eq!(place(below, None), None, "{below}");
        }
    }
}
