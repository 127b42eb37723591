//! Where registered models come from, for as long as a replica lives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_store::registry::Tags;
use outrigger_store::signature::TrustedKey;
use outrigger_store::tree::TreeRoot;
use outrigger_store::{Fetcher, FilePath, Manifest, ManifestFile, ModelId, ModelWish, Registry, Watch};

use super::FetchingError;

/// The largest file that is fetched before its model is used because it may say where that is loaded, bytes.
const MAX_DESCRIPTION: u64 = 256 << 10;
/// From how many requests for manifests on it is said how there would be fewer.
const HINT_FROM: usize = 100;

/// A registry, and where its files come to lie.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(super) registry: Registry,
    pub(super) fetcher: Fetcher,
    /// Ours as long as this is there.
    pub(super) root: Arc<TreeRoot>,
    /// Whose signatures count; nobody's are asked for where there are none.
    trusted: Vec<TrustedKey>,
    /// What is in the tree.
    laid: Mutex<BTreeMap<ModelId, Laid>>,
    /// Had by who puts versions there that are not yet, or takes them away.
    order: tokio::sync::Mutex<()>,
}

/// A version in the tree.
#[derive(Clone, Copy, Debug, Default)]
struct Laid {
    /// All of it is there, not only what it says of itself.
    whole: bool,
    /// A script may read it, so that it stays.
    fixed: bool,
    /// Models that are it, by whatever names.
    users: usize,
}

/// A version that can be served as soon as it has been fetched.
#[derive(Debug)]
pub(crate) struct Announced {
    /// The file or folder that it is, or will be.
    pub(crate) path: PathBuf,
    /// Where its files will lie; nothing if they do.
    pub(crate) places: Option<BTreeSet<PathBuf>>,
    /// What has to be fetched; nothing if it has been.
    pub(crate) later: Option<Arc<Manifest>>,
}

/// A version that has been fetched and laid out.
#[derive(Debug)]
pub(crate) struct Brought {
    /// The file or folder that it is.
    path: PathBuf,
    /// Bytes of all its files.
    pub(crate) bytes: u64,
    /// How long it took.
    pub(crate) took: Duration,
    /// Bytes that came from the storage, the others having been here.
    pub(crate) came: u64,
    /// Bytes of which the digest was made, and how long threads worked on that, while others came.
    pub(crate) verified: (u64, Duration),
}

impl Storage {
    pub(super) fn new(
        registry: Registry,
        fetcher: Fetcher,
        root: Arc<TreeRoot>,
        trusted: Vec<TrustedKey>,
    ) -> Self {
        let (laid, order) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { registry, fetcher, root, trusted, laid, order }
    }

    fn laid<T>(&self, id: &ModelId, change: impl FnOnce(&mut Laid) -> T) -> T {
        let mut all = self.laid.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(id.clone()).or_default())
    }

    /// A model is that version, from the start on; all of which is there, or not yet. It stays for good, if a script may read it.
    pub(super) fn is_laid_out(&self, id: &ModelId, whole: bool, fixed: bool) {
        self.laid(id, |laid| {
            laid.users += 1;
            laid.whole |= whole;
            laid.fixed |= fixed;
        });
    }

    /// The manifest of a version that is to be served, with what must be in the cache before it can be announced. It may take long, and may be given up.
    ///
    /// # Errors
    /// As [`Storage::bring`].
    pub(crate) async fn prepare(&self, id: &ModelId) -> Result<Manifest, FetchingError> {
        let manifest = self.manifest(id, &Tags::default()).await?;
        let from = self.registry.folder(id);
        if is_packed(&manifest) {
            // What is in an archive is not known before it is here.
            self.fetcher.model(&from, &manifest, &Seen::default()).await?;
        } else if let Some(description) = description(&manifest) {
            self.fetcher.model(&from, &description, &Seen::default()).await?;
        }
        Ok(manifest)
    }

    /// A model is to be that version, for which all is prepared. Lays out what tells where it may be loaded, until [`Storage::let_go`].
    ///
    /// # Errors
    /// As [`Storage::bring`].
    pub(crate) async fn announce(&self, manifest: &Manifest) -> Result<Announced, FetchingError> {
        let id = manifest.id();
        let paths = || manifest.files().iter().map(|file| &file.path);
        let _order = self.order.lock().await;
        if is_packed(manifest) {
            let path = self.bring(manifest).await?.path;
            self.laid(id, |laid| laid.users += 1);
            return Ok(Announced { path, places: None, later: None });
        }
        let path = self.entry(id, paths());
        if self.laid(id, |laid| laid.whole) {
            self.laid(id, |laid| laid.users += 1);
            return Ok(Announced { path, places: None, later: None });
        }
        // There may be more of it by now, which is not to make way for less.
        if let Some(description) = description(manifest).filter(|_| !self.root.has(id)) {
            let from = self.registry.folder(id);
            self.fetcher.lay_out_one(&self.root, &from, &description, &Seen::default()).await?;
        }
        self.laid(id, |laid| laid.users += 1);
        let places = paths().map(|path| self.place(id, path)).collect();
        Ok(Announced { path, places: Some(places), later: Some(Arc::new(manifest.clone())) })
    }

    /// The version that is meant.
    ///
    /// # Errors
    /// If there is none, or the registry cannot be asked.
    pub(crate) async fn resolve(&self, wish: &ModelWish) -> Result<ModelId, FetchingError> {
        Ok(self.registry.resolve(wish).await?)
    }

    /// Has the cache have what it can of the manifests of versions by few requests.
    pub(super) async fn keep_indexed(&self, versions: &[(ModelId, Tags)]) {
        let missing = self.registry.keep_indexed(versions, &self.trusted, self.fetcher.cache()).await;
        if missing >= HINT_FROM {
            tracing::info!(
                requests = missing,
                "manifests are asked for one by one; `outrigger models index` has those of a registry come by one request"
            );
        }
    }

    /// The manifest of a version, signed by whom it has to be; out of the cache, if a listing has shown that it is still that one.
    ///
    /// # Errors
    /// If there is none, or it does not count.
    pub(super) async fn manifest(&self, id: &ModelId, tags: &Tags) -> Result<Manifest, FetchingError> {
        Ok(self.registry.manifest_of(id, tags, &self.trusted, self.fetcher.cache()).await?)
    }

    /// Fetches a version and lays it out.
    ///
    /// # Errors
    /// Says what cannot be had. What has come stays in the cache.
    pub(crate) async fn bring(&self, manifest: &Manifest) -> Result<Brought, FetchingError> {
        let (began, seen, id) = (Instant::now(), Seen::default(), manifest.id());
        let from = self.registry.folder(id);
        let (_, files) = self.fetcher.lay_out_one(&self.root, &from, manifest, &seen).await?;
        self.laid(id, |laid| laid.whole = true);
        let verified = (
            seen.verified.load(Ordering::Relaxed),
            Duration::from_nanos(seen.verifying.load(Ordering::Relaxed)),
        );
        Ok(Brought {
            path: self.entry(id, files.files().iter().map(|file| &file.path)),
            bytes: files.size(),
            took: began.elapsed(),
            came: seen.came.load(Ordering::Relaxed),
            verified,
        })
    }

    /// Whether nobody but one model has a version.
    pub(crate) fn has_one_user(&self, id: &ModelId) -> bool {
        self.laid(id, |laid| laid.users == 1 && !laid.fixed)
    }

    /// Has the files of a version leave the tree, but for what tells where it may be loaded, unless others have it meanwhile; says whether they
    /// did. Nobody may be loading it.
    ///
    /// # Errors
    /// As [`Storage::bring`], of that.
    pub(crate) async fn put_away(&self, manifest: &Manifest) -> Result<bool, FetchingError> {
        let (id, _order) = (manifest.id(), self.order.lock().await);
        if !self.has_one_user(id) {
            return Ok(false);
        }
        self.laid(id, |laid| laid.whole = false);
        match description(manifest) {
            Some(description) => {
                let from = self.registry.folder(id);
                self.fetcher.lay_out_one(&self.root, &from, &description, &Seen::default()).await?;
            }
            None => {
                let (root, id) = (Arc::clone(&self.root), id.clone());
                tokio::task::spawn_blocking(move || root.remove(&id)).await??;
            }
        }
        Ok(true)
    }

    /// A model is not that version any more. Where none is, its files leave the tree; they stay in the cache as long as there is room.
    ///
    /// # Errors
    /// If the file system does not let them.
    pub(crate) async fn let_go(&self, id: ModelId) -> Result<(), FetchingError> {
        let _order = self.order.lock().await;
        let goes = self.laid(&id, |laid| {
            laid.users = laid.users.saturating_sub(1);
            laid.users == 0 && !laid.fixed
        });
        if !goes {
            return Ok(());
        }
        self.laid.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let root = Arc::clone(&self.root);
        Ok(tokio::task::spawn_blocking(move || root.remove(&id)).await??)
    }

    /// Where a file of a version lies, or will.
    pub(crate) fn place(&self, id: &ModelId, file: &FilePath) -> PathBuf {
        self.root.version(id).join(file.as_path())
    }

    /// What there is in a version's folder: the one file or folder, or, if it has more, the folder itself.
    pub(super) fn entry<'a>(&self, id: &ModelId, files: impl Iterator<Item = &'a FilePath>) -> PathBuf {
        let version = self.root.version(id);
        let names: BTreeSet<_> = files.filter_map(|path| path.components().next()).collect();
        match names.into_iter().collect::<Vec<_>>().as_slice() {
            [only] => version.join(only),
            _ => version,
        }
    }
}

/// What tells where a model may be loaded, before its other files are here; nothing where there is none.
pub(super) fn description(manifest: &Manifest) -> Option<Manifest> {
    let describes = |file: &&ManifestFile| {
        let is_toml = file.path.as_path().extension().is_some_and(|extension| extension == "toml");
        is_toml && file.size <= MAX_DESCRIPTION
    };
    let files: Vec<_> = manifest.files().iter().filter(describes).cloned().collect();
    // A part of what keeps to the rules does.
    Manifest::new(manifest.id().clone(), String::new(), Default::default(), files).ok()
}

/// Whether some of it is only known once it has been unpacked.
pub(super) fn is_packed(manifest: &Manifest) -> bool {
    manifest.files().iter().any(|file| file.unpack)
}

/// What is seen of a fetch.
#[derive(Default)]
struct Seen {
    came: AtomicU64,
    verified: AtomicU64,
    /// Nanoseconds.
    verifying: AtomicU64,
}

impl Watch for Seen {
    fn came(&self, _: &ManifestFile, bytes: u64) {
        self.came.fetch_add(bytes, Ordering::Relaxed);
    }

    fn anew(&self, file: &ManifestFile, _: u64, why: &str) {
        tracing::warn!(path = %file.path, why, "a file is fetched from its beginning");
    }

    fn again(&self, file: &ManifestFile, why: &str, pause: Duration) {
        tracing::warn!(path = %file.path, why, pause_seconds = pause.as_secs_f64(), "the storage is asked again");
    }

    fn verified(&self, _: &ManifestFile, bytes: u64, took: Duration) {
        self.verified.fetch_add(bytes, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.verifying.fetch_add(nanos, Ordering::Relaxed);
    }
}
