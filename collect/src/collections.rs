//! All collections of a replica.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use outrigger_store::Location;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::collection::Collection;
use crate::erase::{Deleted, EraseError, Held};
use crate::lane::Lane;
use crate::layout::{Layout, csv};
use crate::log::table::Position;
use crate::log::{Bounds, Log};
use crate::redact::Redactor;
use crate::ring::Wake;
use crate::settings::{CollectionSettings, Format, Settings, SettingsError};
use crate::spool::{Spool, may_pass};
use crate::status::Status;
use crate::upload::{Asked, Source, Uploader};
use crate::writer::{Command, Writer};

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

impl OpenError {
    /// Whether it may be over by itself: a disk that is full, or fails.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Spool { source, .. } if may_pass(source))
    }
}

/// What a stop has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Records that are in the logs and not in blob: the next start goes on with them.
    pub pending: u64,
}

/// All collections of a replica: the writer's thread, the task that writes to blob, and who has them.
///
/// Dropped without [`Collections::stop`], what was offered is written to the logs, and goes to blob after the next start.
pub struct Collections {
    collections: BTreeMap<String, Arc<Collection>>,
    sources: Vec<Arc<Source>>,
    target: Target,
    instance: String,
    timeout: Duration,
    asked: Arc<Asked>,
    wake: Arc<Wake>,
    commands: mpsc::Sender<Command>,
    writer: Mutex<Option<JoinHandle<()>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Collections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collections").field("collections", &self.collections.keys()).finish_non_exhaustive()
    }
}

impl Drop for Collections {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::End);
        self.wake.urgent();
    }
}

/// What reading the spool has made.
struct Opened {
    lanes: Vec<Lane>,
    spool: Spool,
}

fn open_lanes(settings: &Settings, shown: &str, wake: &Arc<Wake>) -> Result<Opened, OpenError> {
    let mut spool = Spool::open(&settings.spool)?;
    let error = |path: PathBuf| |source| OpenError::Spool { path, source };
    let left = spool.logs().map_err(error(settings.spool.clone()))?;
    let mut names: Vec<(String, CollectionSettings)> =
        settings.collections.iter().map(|(name, of)| (name.clone(), of.clone())).collect();
    // What is not collected any more still goes to blob.
    let left = left.into_iter().filter(|name| !settings.collections.contains_key(name));
    let tables = |name: &str| if name == csv::ROOT { Format::Csv } else { Format::Events };
    names.extend(left.map(|name| {
        let format = tables(&name);
        (name, CollectionSettings { format, ..CollectionSettings::default() })
    }));
    let mut lanes = Vec::new();
    for (name, of) in names {
        let redactor = Redactor::new(&of.redaction).map_err(|(at, problem)| {
            OpenError::Settings(vec![SettingsError { at: format!("{name}.{at}"), problem }])
        })?;
        let layout = Arc::new(Layout::new(&name, settings, &of, redactor, shown));
        let dir = spool.log(&name);
        let bounds =
            Bounds { segment_bytes: settings.segment_bytes, disk_bytes: of.disk_bytes, sync: of.sync };
        let log = Log::open(&dir, bounds).map_err(error(dir))?;
        let collection = Arc::new(Collection::new(&name, settings, &of, Arc::clone(wake)));
        let recovered = {
            let table = log.shared().lock();
            table.objects.keys().last().into_iter().for_each(|number| spool.pass(*number));
            table.objects.values().map(|object| object.records).sum()
        };
        collection.counters.recovered(recovered);
        lanes.push(Lane::new(collection, layout, log, settings, &of));
    }
    Ok(Opened { lanes, spool })
}

impl Collections {
    /// Opens the spool, takes up what is in it, and begins. To be called in a Tokio runtime.
    ///
    /// # Errors
    /// If settings are wrong, or the spool cannot be used. Blob storage need not be there.
    pub async fn open(settings: Settings, target: Target) -> Result<Self, OpenError> {
        settings.check().map_err(OpenError::Settings)?;
        let wake = Arc::new(Wake::default());
        let (shown, woken, of) = (target.shown.clone(), Arc::clone(&wake), settings.clone());
        let opening = tokio::task::spawn_blocking(move || open_lanes(&of, &shown, &woken));
        let ended =
            |error| OpenError::Spool { path: settings.spool.clone(), source: std::io::Error::other(error) };
        let Opened { lanes, spool } = opening.await.map_err(ended)??;
        let instance = spool.instance().to_owned();
        let source = |lane: &Lane| {
            let name = lane.collection.name();
            Arc::new(Source {
                collection: Arc::clone(&lane.collection),
                layout: Arc::clone(&lane.layout),
                gauges: Arc::clone(&lane.gauges),
                table: lane.log.shared().clone(),
                dir: lane.log.dir().to_owned(),
                retention_days: settings.collections.get(name).and_then(|of| of.retention_days),
                instance: instance.as_str().into(),
                erasing: Arc::new(Semaphore::new(1)),
            })
        };
        let sources: Vec<_> = lanes.iter().map(source).collect();
        let known = |lane: &&Lane| settings.collections.contains_key(lane.collection.name());
        let collections = lanes
            .iter()
            .filter(known)
            .map(|lane| (lane.collection.name().to_owned(), Arc::clone(&lane.collection)));
        let collections = collections.collect();
        let (commands, receiver) = mpsc::channel();
        let writer = Writer { lanes, spool, wake: Arc::clone(&wake), commands: receiver };
        let writer = std::thread::Builder::new().name("collect".into()).spawn(move || writer.run());
        let writer = writer.map_err(|source| OpenError::Spool { path: settings.spool.clone(), source })?;
        let asked = Arc::new(Asked::default());
        let uploader = Uploader {
            sources: sources.clone(),
            target: target.clone(),
            bounds: (&settings).into(),
            wake: Arc::clone(&wake),
            asked: Arc::clone(&asked),
            turn: AtomicUsize::new(0),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(uploader.run());
        let timeout = settings.upload_timeout;
        if sources.iter().any(|source| source.retention_days.is_some()) {
            tasks.spawn(retain(sources.clone(), target.clone(), settings.retention_interval, timeout));
        }
        Ok(Self {
            collections,
            sources,
            target,
            instance,
            timeout,
            asked,
            wake,
            commands,
            writer: Mutex::new(Some(writer)),
            tasks: Mutex::new(tasks),
        })
    }

    /// One of them. Names are taken as they are: lower-case.
    pub fn collection(&self, name: &str) -> Option<&Arc<Collection>> {
        self.collections.get(name)
    }

    /// The name of this instance, in those of its objects. It is the spool's.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// How each is doing; those too that are not configured any more, as long as something of them is in the spool.
    pub fn status(&self) -> Vec<Status> {
        self.sources.iter().map(|source| source.status()).collect()
    }

    /// Writes what has been offered until now to blob, for so long at most; whether all of it is there.
    pub async fn flush(&self, longest: Duration) -> bool {
        let flushed = async {
            self.drained().await?;
            self.sent().await;
            Some(())
        };
        tokio::time::timeout(longest, flushed).await.is_ok_and(|flushed| flushed.is_some())
    }

    /// Asks the writer for something, and waits until it is done.
    async fn command<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (told, answer) = oneshot::channel();
        self.commands.send(command(told)).ok()?;
        self.wake.urgent();
        answer.await.ok()
    }

    /// Waits until what has been offered is in the logs.
    async fn drained(&self) -> Option<()> {
        while !self.command(Command::Drain).await? {
            tokio::time::sleep(LOOK).await;
        }
        Some(())
    }

    /// Waits until what is in the logs now is in blob.
    async fn sent(&self) {
        let _now = Now::of(&self.asked);
        let places = |source: &Arc<Source>| {
            let table = source.table.lock();
            table.objects.iter().map(|(number, object)| (*number, object.end)).collect::<Vec<_>>()
        };
        let wanted: Vec<_> = self.sources.iter().map(|source| (source, places(source))).collect();
        loop {
            let is_there = wanted.iter().all(|(source, objects)| {
                let table = source.table.lock();
                let is_sent = |(number, end): &(u64, Position)| {
                    table
                        .objects
                        .get(number)
                        .is_none_or(|object| object.sent.end >= *end || !object.is_behind())
                };
                table.doubts.is_empty() && objects.iter().all(is_sent)
            });
            if is_there {
                return;
            }
            self.asked.again.notify_one();
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Deletes what is known of a correlation id, from the logs of this replica and from blob; also that of the v1 SDK, which appends a UUID to what its user says.
    ///
    /// What other replicas have in their logs is theirs to delete: each of them has to be asked. It can be asked again, until it says that it is done.
    ///
    /// # Errors
    /// What may not be gone yet, of the first collection of which something may not; of the others all is done that can be.
    pub async fn delete(&self, correlation_id: &str) -> Result<Deleted, EraseError> {
        let (mut deleted, mut failed) = (Deleted::default(), None);
        for (lane, source) in self.sources.iter().enumerate() {
            match self.delete_of(lane, source, correlation_id).await {
                Ok(of_it) => deleted += of_it,
                Err(error) => {
                    tracing::warn!(collection = source.collection.name(), %error, "what is to be deleted may not be gone");
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(deleted), Err)
    }

    /// The same of one collection.
    async fn delete_of(
        &self,
        lane: usize,
        source: &Arc<Source>,
        correlation_id: &str,
    ) -> Result<Deleted, EraseError> {
        let (target, timeout) = (&self.target, self.timeout);
        let collection = || source.collection.name().to_owned();
        let correlation = source.layout.correlation(correlation_id).into_owned();
        let longest = timeout + timeout;
        let held = Held::of(source, longest).await;
        let held = held.ok_or_else(|| EraseError::Slow { collection: collection(), time: longest })?;
        let in_log = |error| EraseError::Log { collection: collection(), source: error };
        let sealed = self.command(|told| Command::Seal { lane, told }).await;
        let sealed = sealed.ok_or(EraseError::Ended)?.map_err(in_log)?;
        let (of, wanted) = (Arc::clone(source), correlation.clone());
        let erasing = tokio::task::spawn_blocking(move || {
            let found = of.erase(sealed, &wanted);
            // Whoever asked may be gone; until here nothing was written to blob.
            drop(held);
            found
        });
        let found = erasing.await.map_err(|error| in_log(std::io::Error::other(error)))?.map_err(in_log)?;
        self.asked.again.notify_one();
        source.delete_sides(target, &found.sides, timeout).await?;
        source.rewritten(timeout).await?;
        let in_blob = source.delete_in_blob(target, &correlation, timeout).await?;
        let again = source.delete_what_came_back(target, &correlation, timeout).await?;
        source.delete_sides(target, &found.sides, timeout).await?;
        let mut deleted = Deleted { records: found.records, objects: 0 };
        deleted += in_blob;
        deleted += again;
        Ok(deleted)
    }

    /// Deletes the objects that are older than their collections keep them; how many they were. It is done by itself every
    /// [`Settings::retention_interval`], too.
    ///
    /// # Errors
    /// If blob storage does not do it.
    pub async fn expire(&self) -> Result<u64, EraseError> {
        let mut count = 0;
        for source in &self.sources {
            count += source.expire(&self.target, self.timeout).await?;
        }
        Ok(count)
    }

    /// Takes nothing more, writes what there is to the logs, and as much of it to blob as there is time for.
    pub async fn stop(&self, longest: Duration) -> Stopped {
        self.sources.iter().for_each(|source| source.collection.stop());
        let sent = async {
            self.drained().await?;
            self.command(Command::Close).await?;
            self.sent().await;
            Some(())
        };
        let _ = tokio::time::timeout(longest, sent).await;
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        let _ = self.commands.send(Command::End);
        self.wake.urgent();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        Stopped { pending: self.sources.iter().map(|source| source.collection.counts().pending).sum() }
    }
}

/// How often it looks whether something is there.
const LOOK: Duration = Duration::from_millis(10);

/// Somebody waits, for as long as it is there.
struct Now<'a>(&'a Asked);

impl<'a> Now<'a> {
    fn of(asked: &'a Asked) -> Self {
        asked.now.fetch_add(1, Ordering::AcqRel);
        Self(asked)
    }
}

impl Drop for Now<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Deletes what is too old, from time to time.
async fn retain(sources: Vec<Arc<Source>>, target: Target, interval: Duration, timeout: Duration) {
    loop {
        for source in &sources {
            match source.expire(&target, timeout).await {
                Ok(0) => {}
                Ok(objects) => tracing::info!(
                    collection = source.collection.name(),
                    objects,
                    "collected data was deleted for its age"
                ),
                Err(error) => {
                    tracing::warn!(collection = source.collection.name(), %error, "collected data that is too old is not deleted")
                }
            }
        }
        tokio::time::sleep(interval).await;
    }
}
