//! Registered models that the configuration names: out of storage into the cache, and from there to where scripts and backends look for them.

mod progress;
mod storage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use outrigger_store::cache::RoomError;
use outrigger_store::fetch::LayOutError;
use outrigger_store::registry::{Tagged, Tags};
use outrigger_store::tree::{TreeError, TreeRoot};
use outrigger_store::{
    Cache, FetchError, Fetcher, Location, LocationError, LocationKind, Manifest, ModelId, ModelName,
    ModelWish, Registry, Which,
};

use crate::config::{Config, LoadTime, StoreConfig, StoreWish};
use progress::Progress;
pub(crate) use storage::{Announced, Brought, Storage};

/// Manifests that are read at once: as many as the client of the storage keeps connections for, since each takes little but the way there.
const MANIFESTS_AT_ONCE: usize = 64;
/// From how many models on that are named a listing is asked for: it tells which manifests are in the cache, or in the registry's index.
const LISTED_FROM: usize = 16;
/// How long that is waited for.
const LISTING: Duration = Duration::from_secs(5);

/// Why models cannot be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchingError {
    /// There is no such storage.
    #[error("store.registry: {0}")]
    Registry(#[from] LocationError),
    /// The cache cannot be opened.
    #[error("store.cache `{}` cannot be opened: {source}", path.display())]
    Cache {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory that has no default here is not named.
    #[error("`{key}` has no default here: neither its variable nor HOME is set")]
    Directory {
        /// Its key.
        key: &'static str,
    },
    /// More models than a replica serves. Nothing has been fetched.
    #[error(
        "{found} models are named, with those that `*` stands for; a replica takes {limit} (limits.models)"
    )]
    TooMany {
        /// How many.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A name that two models would be served by.
    #[error("two models would be served as `{name}`: {first} and {second}")]
    Twice {
        /// The name.
        name: String,
        /// One of them...
        first: String,
        /// ...and the other.
        second: String,
    },
    /// `*` of a registry that has nothing.
    #[error("no model is registered in `{at}`")]
    Nothing {
        /// Where.
        at: String,
    },
    /// The storage, or a file.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The file system.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It is not served any more.
    #[error("it is not served any more")]
    Unwanted,
    /// A task of ours ended by a panic.
    #[error("fetching was broken off")]
    Broken(#[from] tokio::task::JoinError),
}

impl FetchingError {
    /// Whether there is no room in the cache because of what is laid out.
    pub(crate) fn wants_room(&self) -> bool {
        matches!(self, Self::Fetch(FetchError::Room(RoomError::Full { .. })))
    }

    /// Whether there is no such version.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Fetch(FetchError::NotFound { .. }))
    }
}

impl From<LayOutError> for FetchingError {
    fn from(error: LayOutError) -> Self {
        match error {
            LayOutError::Fetch(error) => error.into(),
            LayOutError::Tree(error) => error.into(),
            LayOutError::Broken(error) => error.into(),
        }
    }
}

/// Models that have been fetched and laid out. What was laid out is nobody else's as long as this is there.
#[derive(Debug)]
pub struct Fetched {
    model_dir: PathBuf,
    served: BTreeMap<String, Registered>,
    storage: Arc<Storage>,
}

/// Which registered version something is, and the digest of all of its files.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) id: ModelId,
    pub(crate) digest: [u8; 32],
}

impl From<&Manifest> for Source {
    fn from(manifest: &Manifest) -> Self {
        // It has the digest of each.
        Self { id: manifest.id().clone(), digest: *blake3::hash(&manifest.to_bytes()).as_bytes() }
    }
}

/// A registered model that is to be served.
#[derive(Debug)]
pub(crate) struct Registered {
    /// Which.
    pub(crate) source: Source,
    /// What was asked for, of which it is the version.
    pub(crate) wish: ModelWish,
    /// The file or folder that it is, or will be.
    pub(crate) path: PathBuf,
    /// What is fetched when it is needed; nothing if it is here.
    pub(crate) later: Option<Arc<Manifest>>,
}

/// What is fetched, and as what it is served, if it is.
struct Asked {
    id: ModelId,
    /// What a listing has told of its manifest.
    tags: Tags,
    wish: ModelWish,
    served_as: Option<String>,
    /// It is not needed before it is used.
    later: bool,
}

/// How much is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    All,
    /// What is needed at the start; of what is loaded with its first call no more than what tells where it may be loaded.
    Start,
}

impl Fetched {
    /// The configuration with the places of what was fetched in it.
    pub fn config(&self, config: &Config) -> Config {
        let mut config = config.clone();
        if !config.store.models.is_empty() {
            config.model_dir = Some(self.model_dir.clone());
        }
        for (name, registered) in &self.served {
            let model = config.models.entry(name.clone()).or_default();
            model.path.clone_from(&registered.path);
            model.version = Some(registered.source.id.version.to_string());
        }
        config
    }

    /// What is served by a name, if it was fetched, or will be.
    pub(crate) fn served(&self, name: &str) -> Option<&Registered> {
        self.served.get(name)
    }

    /// What is served by each name, and what was asked for.
    pub(crate) fn registered(&self) -> BTreeMap<String, (ModelId, ModelWish)> {
        let registered = self.served.iter();
        registered.map(|(name, one)| (name.clone(), (one.source.id.clone(), one.wish.clone()))).collect()
    }

    /// Where more comes from.
    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }
}

/// Fetches what the configuration names; nothing if it names nothing.
///
/// # Errors
/// Says what cannot be had. What has come stays in the cache.
pub async fn fetch(config: &Config, extent: Extent) -> Result<Option<Fetched>, FetchingError> {
    let store = &config.store;
    let named = config.models.values().any(|model| model.source.is_some());
    let Some(registry) = store.registry.as_ref().filter(|_| named || !store.models.is_empty()) else {
        return Ok(None);
    };
    let started = Instant::now();
    let registry = Registry::new(Location::open(registry.as_str(), &store.base, &store.environment)?);
    let root = open_root(store).await?;
    let fetcher = Fetcher::new(open_cache(store).await?, store.fetch.clone());
    let storage = Storage::new(registry, fetcher, root, store.trusted.clone());
    let mut asked = asked(config, &storage.registry).await?;
    let manifests = manifests(&asked, &storage).await?;
    put_off(&mut asked, &manifests, extent);
    let (now, later) = divided(&asked, &manifests, &storage);
    let bytes = now.iter().fold(0_u64, |sum, (_, manifest)| sum.saturating_add(manifest.size()));
    let put_off = asked.iter().filter(|asked| asked.later).count();
    tracing::info!(models = asked.len(), later = put_off, bytes, registry = %storage.registry.at(), "fetching models");
    let progress = Progress::start(now.iter().map(|(_, manifest)| manifest.files().len()).sum(), bytes);
    let (tree, sets) = storage.fetcher.lay_out(&storage.root, &now, &later, progress.watch()).await?;
    progress.stop();
    let here: BTreeMap<_, _> = now.iter().map(|(_, manifest)| manifest.id()).zip(&sets).collect();
    for asked in &asked {
        storage.is_laid_out(&asked.id, !asked.later, config.leaves_models_to_others());
    }
    let mut served = BTreeMap::new();
    for (asked, manifest) in asked.into_iter().zip(manifests) {
        let Some(name) = asked.served_as else { continue };
        let source = Source::from(&manifest);
        let later = asked.later.then(|| Arc::new(manifest));
        let path = match (&later, here.get(&asked.id)) {
            (None, Some(files)) => storage.entry(&asked.id, files.files().iter().map(|file| &file.path)),
            (Some(manifest), _) => storage.entry(&asked.id, manifest.files().iter().map(|file| &file.path)),
            (None, None) => storage.root.version(&asked.id),
        };
        served.insert(name, Registered { source, wish: asked.wish, path, later });
    }
    let seconds = started.elapsed().as_secs_f64();
    let (linked, copied) = (tree.linked, tree.copied);
    tracing::info!(later = put_off, bytes, linked, copied, seconds, path = %tree.model_dir.display(), "models fetched");
    Ok(Some(Fetched { model_dir: tree.model_dir, served, storage: Arc::new(storage) }))
}

/// Leaves for later what may be: unless it is asked for more than once, and needed at the start for one of them.
fn put_off(asked: &mut [Asked], manifests: &[Manifest], extent: Extent) {
    for (asked, manifest) in asked.iter_mut().zip(manifests) {
        asked.later &= !storage::is_packed(manifest) && extent == Extent::Start;
    }
    let needed: BTreeSet<_> =
        asked.iter().filter(|asked| !asked.later).map(|asked| asked.id.clone()).collect();
    asked.iter_mut().for_each(|asked| asked.later &= !needed.contains(&asked.id));
}

/// What is fetched now, each once, and which versions come later. Of those what they say of themselves is fetched now.
fn divided(
    asked: &[Asked],
    manifests: &[Manifest],
    storage: &Storage,
) -> (Vec<(Location, Manifest)>, Vec<ModelId>) {
    let mut now: BTreeMap<&ModelId, Manifest> = BTreeMap::new();
    for (asked, manifest) in asked.iter().zip(manifests) {
        let manifest = if asked.later { storage::description(manifest) } else { Some(manifest.clone()) };
        if let Some(manifest) = manifest {
            now.entry(&asked.id).or_insert(manifest);
        }
    }
    let later = asked.iter().filter(|asked| asked.later).map(|asked| asked.id.clone()).collect();
    (now.into_iter().map(|(id, manifest)| (storage.registry.folder(id), manifest)).collect(), later)
}

async fn open_root(store: &StoreConfig) -> Result<Arc<TreeRoot>, FetchingError> {
    let path = store.root.clone().ok_or(FetchingError::Directory { key: "store.root" })?;
    Ok(Arc::new(tokio::task::spawn_blocking(move || TreeRoot::open(&path)).await??))
}

async fn open_cache(store: &StoreConfig) -> Result<Cache, FetchingError> {
    let path = store.cache.clone().ok_or(FetchingError::Directory { key: "store.cache" })?;
    let limit = store.cache_size;
    let open =
        move || Cache::open(&path, Some(limit)).map_err(|source| FetchingError::Cache { path, source });
    tokio::task::spawn_blocking(open).await?
}

/// Which versions are meant, and no more of them than there may be.
async fn asked(config: &Config, registry: &Registry) -> Result<Vec<Asked>, FetchingError> {
    let served = !config.leaves_models_to_others();
    let lazy = |load: Option<LoadTime>| load.unwrap_or(config.residency.load) == LoadTime::Use;
    let mut asked: Vec<Asked> = Vec::new();
    let named = config.models.values().filter(|model| model.source.is_some()).count();
    let listing = if config.store.models.contains(&StoreWish::All) {
        Some(Listing::of(registry).await?)
    } else if config.store.models.len() + named >= LISTED_FROM && registry.at().kind() != LocationKind::Folder
    {
        // It spares requests, where it may be had, and soon.
        let listing = tokio::time::timeout(LISTING, Listing::of(registry)).await;
        match listing {
            Ok(listing) => {
                listing.inspect_err(|error| tracing::debug!(%error, "the registry is not listed")).ok()
            }
            Err(_) => None,
        }
    } else {
        None
    };
    let tags = |id: &ModelId| listing.as_ref().and_then(|listing| listing.tags(id)).unwrap_or_default();
    let as_name = |id: ModelId, wish: ModelWish| {
        let served_as = served.then(|| id.name.to_string());
        // What a script, or an upstream, reads itself is there before it is.
        Asked { tags: tags(&id), id, wish, served_as, later: served && lazy(None) }
    };
    for wish in &config.store.models {
        if let StoreWish::Model(wish) = wish {
            asked.push(as_name(resolve(registry, wish, listing.as_ref()).await?, wish.clone()));
        }
    }
    // What is named by itself is not meant by `*`.
    let named: BTreeSet<_> = asked.iter().map(|asked| asked.id.name.clone()).collect();
    let all = listing.iter().flat_map(Listing::latest).filter(|id| !named.contains(&id.name));
    for id in all {
        let wish = ModelWish { name: id.name.clone(), which: Which::Latest };
        asked.push(as_name(id, wish));
    }
    for (name, model) in &config.models {
        if let Some(wish) = &model.source {
            let id = resolve(registry, wish, listing.as_ref()).await?;
            // With a script or an upstream, it is among what that may read.
            let (later, tags) = (served && lazy(model.load), tags(&id));
            asked.push(Asked { id, tags, wish: wish.clone(), served_as: Some(name.clone()), later });
        } else if let Some(other) = asked.iter().find(|asked| asked.served_as.as_ref() == Some(name)) {
            let second = format!("[models.{name}]");
            return Err(FetchingError::Twice { name: name.clone(), first: other.id.to_string(), second });
        }
    }
    let paths = config.models.values().filter(|model| model.source.is_none()).count();
    asked.sort_by(|left, right| (&left.served_as, &left.id).cmp(&(&right.served_as, &right.id)));
    asked.dedup_by(|left, right| (&left.id, &left.served_as) == (&right.id, &right.served_as));
    let twice = |pair: &&[Asked]| pair[0].served_as.is_some() && pair[0].served_as == pair[1].served_as;
    if let Some([first, second]) = asked.windows(2).find(twice) {
        let name = first.served_as.clone().unwrap_or_default();
        return Err(FetchingError::Twice {
            name,
            first: first.id.to_string(),
            second: second.id.to_string(),
        });
    }
    let found = asked.len() + paths;
    if found > config.limits.models {
        return Err(FetchingError::TooMany { found, limit: config.limits.models });
    }
    Ok(asked)
}

/// The version that is meant. Where a listing has been made it is looked up there.
async fn resolve(
    registry: &Registry,
    wish: &ModelWish,
    listing: Option<&Listing>,
) -> Result<ModelId, FetchingError> {
    let latest = listing.filter(|_| wish.which == Which::Latest);
    match latest.and_then(|listing| listing.latest_of(&wish.name)) {
        Some(id) => Ok(id),
        None => Ok(registry.resolve(wish).await?),
    }
}

/// What is registered.
struct Listing(BTreeMap<ModelName, BTreeMap<u64, Tags>>);

impl Listing {
    async fn of(registry: &Registry) -> Result<Self, FetchingError> {
        let mut all: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for Tagged { listed, tags } in registry.list_tagged().await? {
            all.entry(listed.id.name).or_default().insert(listed.id.version, tags);
        }
        if all.is_empty() {
            return Err(FetchingError::Nothing { at: registry.at().to_string() });
        }
        Ok(Self(all))
    }

    /// The latest version of each model.
    fn latest(&self) -> impl Iterator<Item = ModelId> {
        self.0.keys().filter_map(|name| self.latest_of(name))
    }

    fn latest_of(&self, name: &ModelName) -> Option<ModelId> {
        let (version, _) = self.0.get(name)?.last_key_value()?;
        Some(ModelId { name: name.clone(), version: *version })
    }

    fn tags(&self, id: &ModelId) -> Option<Tags> {
        self.0.get(&id.name)?.get(&id.version).cloned()
    }
}

/// Their manifests, each signed by whom it has to be.
async fn manifests(asked: &[Asked], storage: &Storage) -> Result<Vec<Manifest>, FetchingError> {
    let versions: Vec<_> = asked.iter().map(|asked| (asked.id.clone(), asked.tags.clone())).collect();
    storage.keep_indexed(&versions).await;
    let manifests = stream::iter(asked).map(|asked| storage.manifest(&asked.id, &asked.tags));
    manifests.buffered(MANIFESTS_AT_ONCE).try_collect().await
}
