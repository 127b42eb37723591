//! All collections of a replica.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use outrigger_store::Location;

use crate::collection::Collection;
use crate::counts::Counts;
use crate::ring::Wake;
use crate::settings::{Settings, SettingsError};

/// Where collected data goes: a storage, and a folder in it.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) at: ObjectPath,
    pub(crate) shown: String,
}

impl Target {
    /// A storage, a folder in it, and how that is shown: what the URLs of separate objects begin with unless the settings say it.
    pub fn new(store: Arc<dyn ObjectStore>, at: ObjectPath, shown: impl Into<String>) -> Self {
        Self { store, at, shown: shown.into() }
    }
}

impl From<&Location> for Target {
    fn from(location: &Location) -> Self {
        Self::new(Arc::clone(location.store()), location.at().clone(), location.to_string())
    }
}

/// Why collection does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Something in the settings.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Settings(Vec<SettingsError>),
    /// Another process has the spool: each replica needs a folder of its own.
    #[error("`{}` is another process's spool: each replica needs one of its own", .0.display())]
    Taken(PathBuf),
    /// The spool cannot be made, read or written.
    #[error("the spool `{}` cannot be used: {source}", path.display())]
    Spool {
        /// Which file or folder of it.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// How a collection is doing.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What became of its records.
    pub counts: Counts,
    /// Records that wait for the writer.
    pub ring_items: usize,
    /// Bytes that wait for the writer.
    pub ring_bytes: usize,
    /// Bytes of its log on disk.
    pub disk_bytes: u64,
    /// How long the oldest record has been waiting that is not in blob; nothing where all are.
    pub lag: Option<Duration>,
    /// Objects of which not everything is in blob.
    pub objects_waiting: usize,
    /// Objects that were written to blob, each time they were.
    pub uploads: u64,
    /// Bytes of these.
    pub uploaded_bytes: u64,
    /// Attempts that failed.
    pub upload_failures: u64,
    /// Attempts to write to the disk that failed.
    pub disk_failures: u64,
    /// The log takes nothing, as there is no room for it.
    pub stalled: bool,
    /// What failed last, of blob or disk, until it works again.
    pub problem: Option<String>,
}

/// What a stop has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Records that are in the logs and not in blob: the next start goes on with them.
    pub pending: u64,
}

/// All collections of a replica: the writer's thread, the task that writes to blob, and who has them.
#[derive(Debug)]
pub struct Collections {
    collections: BTreeMap<String, Arc<Collection>>,
}

impl Collections {
    /// Opens the spool, takes up what is in it, and begins. To be called in a Tokio runtime.
    ///
    /// # Errors
    /// If settings are wrong, or the spool cannot be used. Blob storage need not be there.
    pub async fn open(settings: Settings, target: Target) -> Result<Self, OpenError> {
        settings.check().map_err(OpenError::Settings)?;
        let wake = Arc::new(Wake::default());
        let collections = settings.collections.iter().map(|(name, of)| {
            (name.clone(), Arc::new(Collection::new(name, &settings, of, Arc::clone(&wake))))
        });
        let _ = target;
        Ok(Self { collections: collections.collect() })
    }

    /// One of them. Names are taken as they are: lower-case.
    pub fn collection(&self, name: &str) -> Option<&Arc<Collection>> {
        self.collections.get(name)
    }

    /// How each is doing, in the order of their names; those too that are not configured any more, as long as something of them is in the spool.
    pub fn status(&self) -> Vec<Status> {
        let of = |collection: &Arc<Collection>| Status {
            name: collection.name().to_owned(),
            counts: collection.counts(),
            ring_items: collection.ring.items(),
            ring_bytes: collection.ring.bytes(),
            ..Status::default()
        };
        self.collections.values().map(of).collect()
    }

    /// Writes what has been offered until now to blob, for so long at most; whether all of it is there.
    pub async fn flush(&self, _longest: Duration) -> bool {
        self.collections.values().all(|collection| collection.counts().pending == 0)
    }

    /// Takes nothing more, writes what there is to the logs, and as much of it to blob as there is time for.
    pub async fn stop(&self, _longest: Duration) -> Stopped {
        self.collections.values().for_each(|collection| collection.close());
        Stopped { pending: self.collections.values().map(|collection| collection.counts().pending).sum() }
    }
}
