//! Registered models that the configuration names: out of storage into the cache, and from there to where scripts and backends look for them.

mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use outrigger_store::fetch::LayOutError;
use outrigger_store::tree::{TreeError, TreeRoot};
use outrigger_store::{
    Cache, FetchError, Fetcher, FileSet, Location, LocationError, Manifest, ModelId, ModelWish, Registry,
    Which,
};

use crate::config::{Config, StoreConfig, StoreWish};
use progress::Progress;

/// Manifests that are read at once.
const MANIFESTS_AT_ONCE: usize = 16;

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
    /// A task of ours ended by a panic.
    #[error("fetching was broken off")]
    Broken(#[from] tokio::task::JoinError),
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
    /// For each model that is to be served, where it lies and which version it is.
    served: BTreeMap<String, (PathBuf, ModelId)>,
    _root: Arc<TreeRoot>,
}

/// What is fetched, and as what it is served, if it is.
struct Asked {
    id: ModelId,
    served_as: Option<String>,
}

impl Fetched {
    /// The configuration with the places of what was fetched in it.
    pub fn config(&self, config: &Config) -> Config {
        let mut config = config.clone();
        if !config.store.models.is_empty() {
            config.model_dir = Some(self.model_dir.clone());
        }
        for (name, (path, id)) in &self.served {
            let model = config.models.entry(name.clone()).or_default();
            model.path.clone_from(path);
            model.version = Some(id.version.to_string());
        }
        config
    }
}

/// Fetches what the configuration names; nothing if it names nothing.
///
/// # Errors
/// Says what cannot be had. What has come stays in the cache.
pub async fn fetch(config: &Config) -> Result<Option<Fetched>, FetchingError> {
    let store = &config.store;
    let named = config.models.values().any(|model| model.source.is_some());
    let Some(registry) = store.registry.as_ref().filter(|_| named || !store.models.is_empty()) else {
        return Ok(None);
    };
    let started = Instant::now();
    let registry = Registry::new(Location::open(registry.as_str(), &store.base, &store.environment)?);
    let root = open_root(store).await?;
    let fetcher = Fetcher::new(open_cache(store).await?, store.fetch.clone());
    let asked = asked(config, &registry).await?;
    let manifests = manifests(&asked, &registry, store).await?;
    let bytes = manifests.iter().fold(0_u64, |sum, (_, manifest)| sum.saturating_add(manifest.size()));
    tracing::info!(models = asked.len(), bytes, registry = %registry.at(), "fetching models");
    let progress = Progress::start(manifests.iter().map(|(_, manifest)| manifest.files().len()).sum(), bytes);
    let (tree, sets) = fetcher.lay_out(&root, &manifests, progress.watch()).await?;
    progress.stop();
    let models_dir = root.models();
    let served = asked.iter().zip(&sets).filter_map(|(asked, files)| {
        let name = asked.served_as.clone()?;
        let version = models_dir.join(asked.id.name.as_str()).join(asked.id.version.to_string());
        Some((name, (entry(version, files), asked.id.clone())))
    });
    let served = served.collect();
    let seconds = started.elapsed().as_secs_f64();
    let (linked, copied) = (tree.linked, tree.copied);
    tracing::info!(models = asked.len(), bytes, linked, copied, seconds, path = %tree.model_dir.display(), "models fetched");
    Ok(Some(Fetched { model_dir: tree.model_dir, served, _root: root }))
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
    let served = config.script.is_none();
    let as_name = |id: ModelId| Asked { served_as: served.then(|| id.name.to_string()), id };
    let (mut asked, mut listed): (Vec<Asked>, _) = (Vec::new(), None);
    let all = match config.store.models.contains(&StoreWish::All) {
        true => latest(registry, &mut listed).await?.to_vec(),
        false => Vec::new(),
    };
    for wish in &config.store.models {
        if let StoreWish::Model(wish) = wish {
            asked.push(as_name(resolve(registry, wish, &mut listed).await?));
        }
    }
    // What is named by itself is not meant by `*`.
    let named: BTreeSet<_> = asked.iter().map(|asked| asked.id.name.clone()).collect();
    asked.extend(all.into_iter().filter(|id| !named.contains(&id.name)).map(as_name));
    for (name, model) in &config.models {
        if let Some(wish) = &model.source {
            let id = resolve(registry, wish, &mut listed).await?;
            asked.push(Asked { id, served_as: Some(name.clone()) });
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
    listed: &mut Option<Vec<ModelId>>,
) -> Result<ModelId, FetchingError> {
    let known = listed.iter().flatten().find(|id| id.name == wish.name && wish.which == Which::Latest);
    match known {
        Some(id) => Ok(id.clone()),
        None => Ok(registry.resolve(wish).await?),
    }
}

/// The latest version of each model, listed once.
async fn latest<'a>(
    registry: &Registry,
    listed: &'a mut Option<Vec<ModelId>>,
) -> Result<&'a [ModelId], FetchingError> {
    if listed.is_none() {
        // In the order of versions, so the last one stays.
        let all = registry.list().await?.into_iter().map(|found| (found.id.name, found.id.version));
        let latest: BTreeMap<_, _> = all.collect();
        if latest.is_empty() {
            return Err(FetchingError::Nothing { at: registry.at().to_string() });
        }
        *listed = Some(latest.into_iter().map(|(name, version)| ModelId { name, version }).collect());
    }
    Ok(listed.as_deref().unwrap_or_default())
}

/// Their manifests, each signed by whom it has to be, with the folders that they are in.
async fn manifests(
    asked: &[Asked],
    registry: &Registry,
    store: &StoreConfig,
) -> Result<Vec<(Location, Manifest)>, FetchingError> {
    let manifests = stream::iter(asked).map(|asked| async {
        let manifest = registry.manifest(&asked.id, &store.trusted).await?;
        Ok::<_, FetchError>((registry.folder(&asked.id), manifest))
    });
    Ok(manifests.buffered(MANIFESTS_AT_ONCE).try_collect().await?)
}

/// What there is in a version's folder: the one file or folder, or, if it has more, the folder itself.
fn entry(version: PathBuf, files: &FileSet) -> PathBuf {
    let first = |path: &outrigger_store::FilePath| path.components().next().map(str::to_owned);
    let names: BTreeSet<_> = files.files().iter().filter_map(|member| first(&member.path)).collect();
    match names.into_iter().collect::<Vec<_>>().as_slice() {
        [only] => version.join(only),
        _ => version,
    }
}
