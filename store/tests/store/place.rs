//! What tests store in, and what they store.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use outrigger_store::registry::{LocalModel, Push, PushError, Version};
use outrigger_store::{
    Cache, Digest, Environment, FetchOptions, Fetcher, FileSet, Location, Manifest, ModelName, Registry,
};
use outrigger_testkit::faults::Proxy;
use outrigger_testkit::storage::{Azurite, Moto};
use tempfile::TempDir;

/// Storage with nothing in it, and a folder for everything else.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) registry: Registry,
    /// What stands in front of it, but for a folder.
    pub(crate) proxy: Option<Proxy>,
    /// The container or bucket.
    pub(crate) bucket: String,
    /// Those that were opened.
    caches: Mutex<Vec<Cache>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing is renamed any more, by a thread that nobody waits for, while the folder is removed.
        for cache in self.caches.get_mut().expect("nobody panics") {
            cache.sync().ok();
        }
    }
}

/// One for all tests of a kind: a start takes a second or two.
pub(crate) fn azurite() -> Option<&'static Azurite> {
    static AZURITE: OnceLock<Option<Azurite>> = OnceLock::new();
    AZURITE.get_or_init(Azurite::found).as_ref()
}

fn moto() -> Option<&'static Moto> {
    static MOTO: OnceLock<Option<Moto>> = OnceLock::new();
    MOTO.get_or_init(Moto::found).as_ref()
}

fn unused() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("models-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn open(url: &str, environment: Vec<(&'static str, String)>) -> Registry {
    let environment: Environment = environment.into_iter().collect();
    Registry::new(Location::open(url, Path::new("/"), &environment).expect("a location"))
}

impl Place {
    /// A folder.
    pub(crate) fn folder() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path().join("registry");
        fs::create_dir(&at).expect("a folder");
        let registry = open(at.to_str().expect("a path"), Vec::new());
        Self { folder, registry, proxy: None, bucket: String::new(), caches: Mutex::default() }
    }

    fn behind(proxy: Proxy, bucket: String, registry: Registry) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, registry, proxy: Some(proxy), bucket, caches: Mutex::default() }
    }

    /// Azure's storage, with a proxy in front of it.
    pub(crate) fn azure() -> Option<Self> {
        let azurite = azurite()?;
        let bucket = unused();
        azurite.create_container(&bucket);
        let proxy = Proxy::start(azurite.address());
        let registry = open(&format!("az://{bucket}/models"), azurite.environment_at(proxy.address()));
        Some(Self::behind(proxy, bucket, registry))
    }

    /// S3.
    pub(crate) fn s3() -> Option<Self> {
        let moto = moto()?;
        let bucket = unused();
        moto.create_bucket(&bucket);
        let proxy = Proxy::start(moto.address());
        let registry = open(&format!("s3://{bucket}/models"), moto.environment_at(proxy.address()));
        Some(Self::behind(proxy, bucket, registry))
    }

    /// All that there are.
    pub(crate) fn all() -> Vec<Self> {
        [Some(Self::folder()), Self::azure(), Self::s3()].into_iter().flatten().collect()
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("there is one in front of a server")
    }

    /// Writes files below a folder, and gives that.
    pub(crate) fn write(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let folder = self.folder.path().join("local").join(name);
        for (path, bytes) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, bytes).expect("a file");
        }
        folder
    }

    /// Pushes a file or folder as the next version of a model.
    pub(crate) async fn push(&self, name: &str, path: &Path) -> Result<Manifest, PushError> {
        self.registry.push(push(name, path), Arc::new(())).await
    }

    /// A cache of its own for a name.
    pub(crate) fn cache(&self, name: &str) -> Cache {
        let cache = Cache::open(self.folder.path().join(name), None).expect("a cache");
        self.caches.lock().expect("nobody panics").push(cache.clone());
        cache
    }

    /// Has all files of a version.
    pub(crate) async fn fetch(&self, manifest: &Manifest, fetcher: &Fetcher) -> FileSet {
        self.try_fetch(manifest, fetcher).await.expect("it is fetched")
    }

    pub(crate) async fn try_fetch(
        &self,
        manifest: &Manifest,
        fetcher: &Fetcher,
    ) -> Result<FileSet, outrigger_store::FetchError> {
        fetcher.model(&self.registry.folder(manifest.id()), manifest, &()).await
    }
}

/// Has a file that is in a cache be there no longer.
pub(crate) fn make_way(cache: &Cache, digest: &Digest) {
    // It stays where it is then.
    cache.sync().expect("it is on the disk");
    fs::remove_file(cache.path(digest).expect("it has come")).expect("ours");
}

/// The next version of a model.
pub(crate) fn push(name: &str, path: &Path) -> Push {
    Push {
        name: ModelName::new(name).expect("a name"),
        version: Version::Next,
        description: String::new(),
        tags: BTreeMap::new(),
        model: LocalModel::read(path).expect("a model"),
        unpack: false,
        key: None,
    }
}

/// Small pieces and no patience.
pub(crate) fn options() -> FetchOptions {
    FetchOptions {
        connections: 4,
        piece: 64 << 10,
        attempts: 4,
        pause: Duration::from_millis(1),
        stall: Duration::from_secs(2),
        ..FetchOptions::default()
    }
}

/// Bytes that are not the same anywhere.
pub(crate) fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // Marsaglia's xorshift64: nothing is to be guessed from it here.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// What a file of a set has in a cache.
pub(crate) fn content(cache: &Cache, files: &FileSet, path: &str) -> Vec<u8> {
    let member = files.files().iter().find(|member| member.path.as_str() == path);
    let mut file = cache.read(&member.expect("it is in the set").sha256).expect("it is in the cache");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("it is read");
    bytes
}
