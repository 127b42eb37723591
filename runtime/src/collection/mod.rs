//! Data collection in the replica: what was asked and answered is tapped as it passes ([`tap`]), scripts hand over what they collect themselves
//! (`http/collect.rs`), and both go to [`outrigger_collect`], which keeps them on disk and brings them to blob storage.

mod bodies;
mod deletions;
mod held;
mod metrics;
mod scripts;
mod secrets;
mod tap;

use std::sync::Arc;

use outrigger_collect::{Collection, Collections, OpenError, Status, Target};
use outrigger_protocol::error::CallError;
use outrigger_store::{Location, LocationError, LocationKind};
use prometheus::Registry;

use crate::concerns::{Concern, Part};
use crate::config::{CollectConfig, MODELDATA, REQUEST, RESPONSE};
use deletions::Deletions;
use held::Held;

pub(crate) use deletions::Deletion;
pub(crate) use secrets::is_secret;
pub(crate) use tap::Tap;

/// Why nothing can be collected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// Where it is to go is no place.
    #[error("`collect.to`")]
    To(#[from] LocationError),
    /// A web server takes nothing.
    #[error(
        "`collect.to` is {to}, a web server, to which nothing can be written: name a folder, or a URL that begins with az://, s3:// or gs://"
    )]
    ReadOnly {
        /// Where it was to go, without credentials.
        to: String,
    },
    /// The spool cannot be used, or settings contradict each other.
    #[error("`collect`")]
    Open(#[from] OpenError),
    /// The metrics contradict each other.
    #[error("metrics")]
    Metrics(#[from] prometheus::Error),
}

/// What is collected of a replica.
pub(crate) struct Collecting {
    pub(crate) config: CollectConfig,
    collections: Arc<Collections>,
    pub(crate) deletions: Deletions,
    request: Option<Tapped>,
    response: Option<Tapped>,
    held: Held,
}

/// Where it goes. A folder begins as one that is not there yet.
fn location(config: &CollectConfig) -> Result<Location, LocationError> {
    let open = || Location::open(config.to.as_str(), &config.base, &config.environment);
    match open() {
        Err(LocationError::Folder { path, source }) if source.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(&path).map_err(|source| LocationError::Folder { path, source })?;
            open()
        }
        opened => opened,
    }
}

/// A collection of what passes.
struct Tapped {
    collection: Arc<Collection>,
    /// Whether only the end of a call says if it is kept.
    late: bool,
}

impl Collecting {
    /// Opens the spool, and goes on with what is in it. Blob storage need not be there.
    ///
    /// # Errors
    /// [`CollectError`].
    pub(crate) async fn open(config: &CollectConfig, registry: &Registry) -> Result<Arc<Self>, CollectError> {
        let location = location(config)?;
        if location.kind() == LocationKind::Http {
            return Err(CollectError::ReadOnly { to: location.to_string() });
        }
        let collections =
            Arc::new(Collections::open(config.settings.clone(), Target::from(&location)).await?);
        let tapped = |name: &str| {
            let settings = config.settings.collections.get(name)?;
            let late = settings.keep_errors || settings.keep_slower.is_some();
            Some(Tapped { collection: Arc::clone(collections.collection(name)?), late })
        };
        let (request, response) = (tapped(REQUEST), tapped(RESPONSE));
        let names: Vec<_> = config.settings.collections.keys().map(String::as_str).collect();
        tracing::info!(to = %location, collections = names.join(", "), "collecting");
        let held = Held::new(config.body, config.bodies);
        let (config, deletions) = (config.clone(), Deletions::default());
        let collecting = Arc::new(Self { config, collections, deletions, request, response, held });
        registry.register(Box::new(metrics::Shown::new(Arc::clone(&collecting))?))?;
        Ok(collecting)
    }

    /// A collection of a script's own events.
    pub(crate) fn events(&self, name: &str) -> Option<&Arc<Collection>> {
        let is_scripts = ![REQUEST, RESPONSE, MODELDATA].contains(&name);
        self.collections.collection(name).filter(|_| is_scripts)
    }

    /// The collection of a script's rows.
    pub(crate) fn rows(&self) -> Option<&Arc<Collection>> {
        self.collections.collection(MODELDATA)
    }

    /// How each collection is doing.
    pub(crate) fn status(&self) -> Vec<Status> {
        self.collections.status()
    }

    /// Begins to delete what has a correlation id, or what is too old.
    ///
    /// # Errors
    /// `overloaded` where too many deletions are under way.
    pub(crate) fn delete(&self, wanted: Option<String>) -> Result<Deletion, CallError> {
        self.deletions.begin(&self.collections, wanted)
    }

    /// What is wrong with where it goes, by collection.
    pub(crate) fn concerns(&self) -> Vec<Concern> {
        let wrong = self.status().into_iter().filter_map(|status| {
            let reason =
                status.problem.or_else(|| status.stalled.then(|| "there is no room on disk".into()))?;
            Some(Concern { part: Part::Storage, name: status.name, reason })
        });
        wrong.collect()
    }

    /// Takes nothing more, and brings to blob storage what there is time for.
    pub(crate) async fn stop(&self) {
        self.deletions.stop().await;
        let stopped = self.collections.stop(self.config.stop).await;
        if stopped.pending > 0 {
            let pending = stopped.pending;
            tracing::warn!(
                pending,
                "collected records are on disk and not in blob storage: the next start goes on with them"
            );
        }
    }
}
