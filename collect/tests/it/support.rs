//! A storage that fails when it is told to, and what is in it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use outrigger_collect::{CollectionSettings, Collections, Counts, Record, Settings, Target};

/// Nothing here takes as long.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What a storage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Fine,
    /// It refuses everything.
    Down,
    /// It does what it is asked to write, and says that it failed.
    Mute,
    /// It refuses the first object of each instance.
    Picky,
    /// It does not answer, and does what it is asked to write when it is told to.
    Late,
}

/// A storage in memory, or another, with moods.
#[derive(Debug)]
pub(crate) struct Moody {
    inner: Arc<dyn ObjectStore>,
    mood: AtomicU8,
    late: Mutex<Vec<(Path, PutPayload)>>,
}

impl fmt::Display for Moody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Moody({})", self.inner)
    }
}

fn refused() -> object_store::Error {
    object_store::Error::Generic { store: "moody", source: "it is not in the mood".into() }
}

impl Moody {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Arc::new(InMemory::new()), mood: AtomicU8::new(0), late: Mutex::default() })
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    fn is(&self, mood: Mood) -> bool {
        self.mood.load(Ordering::SeqCst) == mood as u8
    }

    fn check(&self) -> Result<()> {
        if self.is(Mood::Down) { Err(refused()) } else { Ok(()) }
    }

    pub(crate) fn target(self: &Arc<Self>) -> Target {
        Target::new(Arc::clone(self) as Arc<dyn ObjectStore>, Path::from("data"), "mem://data")
    }

    /// How many it has not carried out yet.
    pub(crate) fn late(&self) -> usize {
        self.late.lock().expect("nobody panics").len()
    }

    /// Carries out what it was asked to write when it did not answer.
    pub(crate) async fn catch_up(&self) {
        let late = std::mem::take(&mut *self.late.lock().expect("nobody panics"));
        for (at, payload) in late {
            self.inner.put(&at, payload).await.expect("memory");
        }
    }

    /// Has what somebody else has put there.
    pub(crate) async fn put(&self, name: &str, bytes: impl Into<Bytes>) {
        let at = Path::from(format!("data/{name}"));
        self.inner.put(&at, bytes.into().into()).await.expect("memory");
    }

    /// Has no object of this name any more.
    pub(crate) async fn remove(&self, name: &str) {
        self.inner.delete(&Path::from(format!("data/{name}"))).await.expect("it is there");
    }

    /// Has what another one has.
    pub(crate) async fn copy_of(&self, other: &Self) {
        for (name, bytes) in other.objects().await {
            self.put(&name, bytes).await;
        }
    }

    /// All objects, by their names below the target.
    pub(crate) async fn objects(&self) -> BTreeMap<String, Bytes> {
        objects(&*self.inner).await
    }
}

pub(crate) async fn objects(store: &dyn ObjectStore) -> BTreeMap<String, Bytes> {
    let listed: Vec<ObjectMeta> = store.list(None).try_collect().await.expect("it lists");
    let mut objects = BTreeMap::new();
    for meta in listed {
        let got = store.get(&meta.location).await.expect("it is there");
        let name = meta.location.as_ref().trim_start_matches("data/").to_owned();
        objects.insert(name, got.bytes().await.expect("it is there"));
    }
    objects
}

#[async_trait]
impl ObjectStore for Moody {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check()?;
        if self.is(Mood::Picky) && at.as_ref().ends_with("-0.jsonl") {
            return Err(refused());
        }
        if self.is(Mood::Late) {
            self.late.lock().expect("nobody panics").push((at.clone(), payload));
            std::future::pending::<()>().await;
            return Err(refused());
        }
        let put = self.inner.put_opts(at, payload, options).await;
        if self.is(Mood::Mute) { Err(refused()) } else { put }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check()?;
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.check()?;
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.check() {
            Ok(()) => self.inner.delete_stream(at),
            Err(error) => Box::pin(futures_util::stream::once(async { Err(error) })),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.check() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => Box::pin(futures_util::stream::once(async { Err(error) })),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.check()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check()?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// Settings in which everything is small and quick, with one collection `c`.
pub(crate) fn settings(spool: &std::path::Path, collection: CollectionSettings) -> Settings {
    Settings {
        spool: spool.to_owned(),
        endpoint: "iris".into(),
        deployment: "blue".into(),
        collections: BTreeMap::from([("c".to_owned(), collection)]),
        segment_bytes: 64 << 10,
        object_bytes: 16 << 10,
        record_bytes: 64 << 10,
        inline_bytes: 32 << 10,
        flush_interval: Duration::from_millis(20),
        upload_timeout: Duration::from_secs(5),
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(50),
        ..Settings::default()
    }
}

pub(crate) async fn open(settings: Settings, target: Target) -> Collections {
    Collections::open(settings, target).await.expect("it opens")
}

/// A record with an identifier, some time in 2026.
pub(crate) fn record(id: impl fmt::Display, data: impl Into<Bytes>) -> Record {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_025_600);
    let mut record = Record::new(id.to_string(), time, data.into());
    record.id = Some(id.to_string().into());
    record
}

/// JSON of so many bytes.
pub(crate) fn text(bytes: usize) -> String {
    format!("\"{}\"", "7".repeat(bytes - 2))
}

/// Whether it adds up.
pub(crate) fn balance(counts: &Counts) {
    let ended = counts.sampled_out + counts.dropped_in_all() + counts.persisted;
    assert_eq!(counts.offered, ended + counts.pending, "{counts:?}");
}

/// The `id` of each line of each object, in the order of the objects.
pub(crate) fn ids(objects: &BTreeMap<String, Bytes>) -> Vec<String> {
    let lines = objects.iter().filter(|(name, _)| name.ends_with(".jsonl")).flat_map(|(_, object)| {
        object.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
            let line: serde_json::Value = serde_json::from_slice(line).expect("a line is JSON");
            line["id"].as_str().expect("an id").to_owned()
        })
    });
    lines.collect()
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "{what}: not within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
