//! Files out of storage into the cache: in parallel, in pieces, again where something fails, and never without being held against their digests.

mod error;
mod file;
mod hashed;
mod lay_out;
mod model;
mod throttle;
mod watch;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use error::FetchError;
pub use lay_out::LayOutError;
pub use model::FileSet;
pub use throttle::Throttle;
pub use watch::Watch;

use crate::archive::ArchiveLimits;
use crate::cache::Cache;

/// How files are fetched.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Requests at once.
    pub connections: usize,
    /// Files larger than this come in pieces of this size, bytes; some pieces by one request where there are more files than connections.
    pub piece: u64,
    /// How often a request is made before it counts as failed; what has come of a piece is not asked for again.
    pub attempts: usize,
    /// The pause after the first failure; it doubles, and is drawn from between it and its double.
    pub pause: Duration,
    /// For how long nothing may come of an answer.
    pub stall: Duration,
    /// Most bytes in a second, all together.
    pub bandwidth: Option<u64>,
    /// What archives may be.
    pub archives: ArchiveLimits,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            connections: 16,
            piece: 8 << 20,
            attempts: 6,
            pause: Duration::from_millis(200),
            stall: Duration::from_secs(15),
            bandwidth: None,
            archives: ArchiveLimits::default(),
        }
    }
}

/// Fetches files. Clones share connections and bandwidth.
#[derive(Clone, Debug)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cache: Cache,
    options: FetchOptions,
    connections: Semaphore,
    throttle: Throttle,
    /// Files that are being fetched.
    files: AtomicUsize,
}

impl Fetcher {
    /// Fetches into a cache.
    pub fn new(cache: Cache, mut options: FetchOptions) -> Self {
        options.connections = options.connections.clamp(1, Semaphore::MAX_PERMITS);
        let connections = Semaphore::new(options.connections);
        let throttle = Throttle::new(options.bandwidth);
        Self { inner: Arc::new(Inner { cache, options, connections, throttle, files: AtomicUsize::new(0) }) }
    }

    /// Where files come to lie.
    pub fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    /// How they are fetched.
    pub fn options(&self) -> &FetchOptions {
        &self.inner.options
    }

    /// Runs something that blocks on the cache's files where it may.
    async fn blocking<T, E>(
        &self,
        work: impl FnOnce(&Cache) -> Result<T, E> + Send + 'static,
    ) -> Result<T, FetchError>
    where
        T: Send + 'static,
        E: Send + 'static,
        FetchError: From<CacheFailure<E>>,
    {
        let cache = self.inner.cache.clone();
        let root = cache.root().to_owned();
        match tokio::task::spawn_blocking(move || work(&cache)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(CacheFailure { root, error }.into()),
            Err(ended) => Err(FetchError::Cache { root, source: std::io::Error::other(ended) }),
        }
    }
}

/// What failed, and in which cache.
struct CacheFailure<E> {
    root: std::path::PathBuf,
    error: E,
}

impl From<CacheFailure<std::io::Error>> for FetchError {
    fn from(CacheFailure { root, error: source }: CacheFailure<std::io::Error>) -> Self {
        Self::Cache { root, source }
    }
}

impl From<CacheFailure<crate::cache::RoomError>> for FetchError {
    fn from(failure: CacheFailure<crate::cache::RoomError>) -> Self {
        failure.error.into()
    }
}

impl From<CacheFailure<FetchError>> for FetchError {
    fn from(failure: CacheFailure<FetchError>) -> Self {
        failure.error
    }
}
