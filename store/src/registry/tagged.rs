//! Manifests that need not be asked for: a listing shows that they are still those that were read before, and kept in the cache.

use object_store::ObjectMeta;

use super::{Listed, Read, Registry, Small};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::fetch::FetchError;
use crate::id::ModelId;
use crate::location::{Location, LocationKind};
use crate::manifest::{MANIFEST, Manifest, SIGNATURE};
use crate::signature::TrustedKey;

/// Longest tag that is taken for one, bytes.
const MAX_TAG: usize = 256;

/// A version that is in a registry, with what the listing tells of the state that its manifest is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The version.
    pub listed: Listed,
    /// The state.
    pub tags: Tags,
}

/// In which state a listing has shown a version's manifest and its signatures. There may be nothing of it, as where there was no listing ([`Default`]), or
/// where the storage says nothing of use: then they are asked for each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    pub(super) manifest: Option<Tag>,
    pub(super) signatures: Option<Tag>,
}

/// What a storage calls a state of an object, and how large it is then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    text: String,
    size: u64,
}

impl Tag {
    /// That of an object, from a listing or from an answer: both are to give the same, of which one may be in quotes. A weak one, which may be that of
    /// other bytes too, is none.
    pub(super) fn of(object: &ObjectMeta) -> Option<Self> {
        let text = object.e_tag.as_deref()?.trim();
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let weak = text.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("W/"));
        let usable = !text.is_empty() && text.len() <= MAX_TAG && !weak;
        usable.then(|| Self { text: text.to_owned(), size: object.size })
    }

    /// That of an object in a listing. Files of a folder have none: they are read as quickly as what is kept, and what is made of their times is not always
    /// another one when they are.
    pub(super) fn listed(object: &ObjectMeta, kind: LocationKind) -> Option<Self> {
        if kind == LocationKind::Folder { None } else { Self::of(object) }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is that of an object that is called so and is so large.
    pub(super) fn is(&self, text: &str, size: u64) -> bool {
        (self.text.as_str(), self.size) == (text, size)
    }

    /// What an object in this state is kept as.
    pub(super) fn name(&self, at: &Location) -> Digest {
        let (identity, size) = (at.identity().to_string(), self.size.to_string());
        Digest::of_all([identity.as_bytes(), self.text.as_bytes(), size.as_bytes()])
    }
}

impl Registry {
    /// As [`Registry::list`], without labels, which are a request each, for [`Registry::manifest_of`].
    ///
    /// # Errors
    /// If the location cannot be listed.
    pub async fn list_tagged(&self) -> Result<Vec<Tagged>, FetchError> {
        self.listed(self.at(), None, false).await
    }

    /// As [`Registry::manifest`], and without a request where the cache has what a listing has just shown. What is kept is held against the same rules as
    /// what comes, each time; where it breaks one, it is asked for. What comes is kept, if it is in a state that a listing shows, and if it can be.
    ///
    /// # Errors
    /// If there is none, or it does not count.
    pub async fn manifest_of(
        &self,
        id: &ModelId,
        tags: &Tags,
        trusted: &[TrustedKey],
        cache: &Cache,
    ) -> Result<Manifest, FetchError> {
        let folder = self.folder(id);
        if let Some(read) = Read::kept(&folder, tags, trusted, cache).await {
            match read.checked(&folder, id, trusted) {
                Ok(manifest) => return Ok(manifest),
                Err(error) => {
                    tracing::debug!(%error, "what is kept of a manifest does not count; it is asked for")
                }
            }
        }
        let read = Read::from(&folder, trusted).await?;
        let manifest = read.checked(&folder, id, trusted)?;
        if tags.manifest.is_some() {
            read.keep(&folder, cache).await;
        }
        Ok(manifest)
    }
}

impl Read {
    /// What is kept of a version in a state, if that is all that is needed.
    async fn kept(folder: &Location, tags: &Tags, trusted: &[TrustedKey], cache: &Cache) -> Option<Self> {
        let manifest = tags.manifest.clone()?;
        let signatures = if trusted.is_empty() { None } else { Some(tags.signatures.clone()?) };
        let (folder, cache) = (folder.clone(), cache.clone());
        let read = move || {
            let kept = |name, tag: Tag| {
                let bytes = cache.kept(&tag.name(&folder.below(name)), tag.size)?;
                Some(Small { bytes, tag: Some(tag) })
            };
            let manifest = kept(MANIFEST, manifest)?;
            let signatures = match signatures {
                Some(tag) => Some(kept(SIGNATURE, tag)?),
                None => None,
            };
            Some(Self { manifest, signatures })
        };
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    /// Keeps it, under the states that the answers were of, be they those of the listing or later ones. That it cannot be kept is nobody's failure.
    async fn keep(self, folder: &Location, cache: &Cache) {
        let (folder, cache) = (folder.clone(), cache.clone());
        let keep = move || {
            let all = [(MANIFEST, Some(self.manifest)), (SIGNATURE, self.signatures)];
            for (name, small) in all {
                let Some(Small { bytes, tag: Some(tag) }) = small else { continue };
                if bytes.len() as u64 == tag.size {
                    cache.keep(&tag.name(&folder.below(name)), &bytes)?;
                }
            }
            Ok::<_, std::io::Error>(())
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(keep).await {
            tracing::debug!(%error, "a manifest cannot be kept in the cache");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(e_tag: Option<&str>, size: u64) -> ObjectMeta {
        let e_tag = e_tag.map(str::to_owned);
        ObjectMeta { location: "a".into(), last_modified: Default::default(), size, e_tag, version: None }
    }

    #[test]
    fn a_tag_is_the_same_in_a_listing_and_in_an_answer() {
        let of = |text| Tag::of(&object(Some(text), 7)).map(|tag| tag.text);
        for text in ["\"0x8DB\"", "0x8DB", " \"0x8DB\" "] {
            assert_eq!(of(text).as_deref(), Some("0x8DB"), "{text}");
        }
        assert_eq!(of("a\"b").as_deref(), Some("a\"b"));
        assert_ne!(Tag::of(&object(Some("a"), 7)), Tag::of(&object(Some("a"), 8)));
        let long = "x".repeat(MAX_TAG + 1);
        for text in ["", "\"\"", " ", "W/\"0x8DB\"", "w/\"a\"", "\"W/a\"", long.as_str()] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(Tag::of(&object(None, 7)), None);
        assert_eq!(Tag::listed(&object(Some("a"), 7), LocationKind::Folder), None);
    }

    #[tokio::test]
    async fn what_somebody_has_put_into_the_cache_is_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = Location::open(folder.path().to_str().expect("a path"), folder.path(), &Default::default());
        let registry = Registry::new(at.expect("a location"));
        let cache = Cache::open(folder.path().join("cache"), None).expect("a cache");
        let id: ModelId = "digits:1".parse().expect("an id");
        let manifest = |path: &str| {
            let path = crate::path::FilePath::new(path).expect("a path");
            let file = crate::ManifestFile { path, size: 1, sha256: Digest::of(b"a"), unpack: false };
            Manifest::new(id.clone(), String::new(), Default::default(), vec![file]).expect("a manifest")
        };
        let (right, wrong) = (manifest("right.onnx"), manifest("wrong.onnx"));
        // RFC 8032, section 7.1, test 2.
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";
        let key = crate::signature::SigningKey::from_pem(key).expect("a key");
        let version = registry.folder(&id);
        let signature = key.sign(&right.to_bytes());
        std::fs::create_dir_all(folder.path().join("digits/1")).expect("a folder");
        std::fs::write(folder.path().join("digits/1").join(MANIFEST), right.to_bytes()).expect("a file");
        std::fs::write(folder.path().join("digits/1").join(SIGNATURE), &signature).expect("a file");
        let tag = |text, bytes: &[u8]| Tag::of(&object(Some(text), bytes.len() as u64)).expect("a tag");
        let tags = Tags {
            manifest: Some(tag("m", &right.to_bytes())),
            signatures: Some(tag("s", signature.as_bytes())),
        };
        let keep = |name, tag: &Option<Tag>, bytes: &[u8]| {
            let tag = tag.as_ref().expect("a tag");
            cache.keep(&tag.name(&version.below(name)), bytes).expect("kept");
        };
        keep(SIGNATURE, &tags.signatures, signature.as_bytes());
        // Signed by another; no manifest; that of another version.
        let other = right.to_bytes().len();
        for (bytes, trusted) in [
            (wrong.to_bytes(), vec![key.public()]),
            (vec![b'{'; other], Vec::new()),
            (
                String::from_utf8(right.to_bytes()).expect("JSON").replace("digits", "faces5").into(),
                Vec::new(),
            ),
        ] {
            keep(MANIFEST, &tags.manifest, &bytes);
            let found = registry.manifest_of(&id, &tags, &trusted, &cache).await.expect("as it is stored");
            assert_eq!(found, right);
        }
        // What is right is believed, and nothing else is looked at.
        keep(MANIFEST, &tags.manifest, &right.to_bytes());
        std::fs::remove_dir_all(folder.path().join("digits")).expect("ours");
        let found = registry.manifest_of(&id, &tags, &[key.public()], &cache).await;
        assert_eq!(found.expect("it is kept"), right);
    }

    #[test]
    fn each_state_of_each_object_is_kept_as_another() {
        let open = |text| Location::open(text, std::path::Path::new("/"), &Default::default());
        let at = open("/usr").expect("a location");
        let name = |below: &str, text, size| {
            Tag::of(&object(Some(text), size)).expect("a tag").name(&at.below(below))
        };
        let names = [
            name("a", "1", 7),
            name("b", "1", 7),
            name("a", "2", 7),
            name("a", "1", 8),
            name("a", "17", 7),
            name("a", "1", 77),
        ];
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
