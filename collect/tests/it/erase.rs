//! What is to be gone is gone, wherever it was.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::local::LocalFileSystem;
use outrigger_collect::{CollectionSettings, Designation, Format, Full, Kept, Record, Sync, Table, Target};

use crate::support::{LONG, Mood, Moody, balance, objects, open, record, settings};

const FORMATS: [Format; 3] = [Format::Events, Format::Csv, Format::Parquet];

fn of(id: usize, correlation: &str) -> Record {
    let mut record = record(id, format!("[[\"{correlation} said this\"]]"));
    record.correlation_id = Some(correlation.into());
    record.table = Some(Table {
        designation: Designation::Inputs,
        columns: vec![Arc::from("text")],
        correlated: true,
        workspace: None,
        service: None,
        name: None,
    });
    record
}

fn collection(format: Format) -> CollectionSettings {
    CollectionSettings {
        format,
        full: Full::Block(LONG),
        sync: Sync::Always,
        ..CollectionSettings::default()
    }
}

fn count(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

/// How often a text is in the spool.
fn on_disk(dir: &std::path::Path, text: &str) -> usize {
    let files = std::fs::read_dir(dir.join("logs/c")).expect("a folder");
    // A segment may be removed while this looks.
    let read = |file: std::io::Result<std::fs::DirEntry>| file.and_then(|file| std::fs::read(file.path()));
    files.filter_map(|file| read(file).ok()).map(|bytes| count(&bytes, text)).sum()
}

async fn in_blob(store: &Moody, text: &str) -> usize {
    store.objects().await.values().map(|object| count(object, text)).sum()
}

#[tokio::test]
async fn a_correlation_id_is_gone_from_log_and_blob_and_nothing_else_is() {
    for format in FORMATS {
        let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
        let collections = open(settings(dir.path(), collection(format)), store.target()).await;
        let collection = collections.collection("c").expect("it is there");
        let offer = async |ids: std::ops::Range<usize>| {
            for id in ids {
                let correlation = if id % 10 == 0 { "ann" } else { "bob" };
                assert_eq!(collection.offer(of(id, correlation)).kept().await, Kept::Logged);
            }
        };
        // Some are in blob, some in the log as well, some in the log alone.
        offer(0..300).await;
        assert!(collections.flush(LONG).await);
        offer(300..310).await;
        assert!(collections.flush(LONG).await);
        store.set(Mood::Mute);
        offer(310..330).await;
        store.set(Mood::Down);
        offer(330..340).await;
        assert!(on_disk(dir.path(), "ann said this") > 0);
        let failed = tokio::time::timeout(Duration::from_millis(300), collections.delete("ann")).await;
        assert!(failed.is_err() || failed.is_ok_and(|deleted| deleted.is_err()), "blob is down");
        assert_eq!(on_disk(dir.path(), "ann said this"), 0, "{format:?}");
        store.set(Mood::Fine);
        collections.delete("ann").await.expect("blob is there again");
        assert_eq!(in_blob(&store, "ann said this").await, 0, "{format:?}");
        assert!(collections.flush(LONG).await);
        assert_eq!(collections.delete("ann").await.expect("there is none").records, 0);
        if format != Format::Parquet {
            assert_eq!(in_blob(&store, "bob said this").await, 306, "{format:?}");
        }
        let counts = collection.counts();
        balance(&counts);
        assert_eq!((counts.pending, counts.offered), (0, 340), "{counts:?}");
        collections.delete("bob").await.expect("blob is there");
        assert!(store.objects().await.is_empty(), "{format:?}: objects without records are gone");
        assert_eq!(collections.stop(LONG).await.pending, 0);
    }
}

#[tokio::test]
async fn what_was_an_object_of_its_own_goes_along() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut settings = settings(dir.path(), collection(Format::Events));
    settings.object_bytes = 1024;
    let collections = open(settings, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    for id in 0..20 {
        let mut record = of(id, if id % 2 == 0 { "ann" } else { "bob" });
        record.content_type = Some("image/png".into());
        assert_eq!(collection.offer(record).kept().await, Kept::Logged);
    }
    assert!(collections.flush(LONG).await);
    assert_eq!((in_blob(&store, "ann said").await, in_blob(&store, "bob said").await), (10, 10));
    let deleted = collections.delete("ann").await.expect("blob is there");
    assert!(deleted.records >= 10, "{deleted:?}");
    assert_eq!((in_blob(&store, "ann said").await, in_blob(&store, "bob said").await), (0, 10));
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn objects_are_deleted_by_the_date_of_their_folders() {
    for format in FORMATS {
        let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
        let mut kept = collection(format);
        kept.retention_days = Some(30);
        let mut settings = settings(dir.path(), kept);
        // Done when it is asked for alone.
        settings.retention_interval = Duration::from_secs(1 << 30);
        let collections = open(settings, store.target()).await;
        let collection = collections.collection("c").expect("it is there");
        for days in [0, 29, 32, 400] {
            let mut record = of(days, "ann");
            record.time = SystemTime::now() - Duration::from_secs(days as u64 * 86_400);
            assert_eq!(collection.offer(record).kept().await, Kept::Logged);
        }
        assert!(collections.flush(LONG).await);
        assert_eq!(collections.stop(LONG).await.pending, 0);
        assert_eq!(store.objects().await.len(), 4);
        assert_eq!(collections.expire().await.expect("blob is there"), 2, "{format:?}");
        assert_eq!(collections.expire().await.expect("blob is there"), 0);
        assert_eq!(store.objects().await.len(), 2);
    }
}

/// Where storage cannot say whether an object is still the same, it is written all the same.
#[tokio::test]
async fn records_are_deleted_from_a_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let blob = dir.path().join("blob");
    std::fs::create_dir(&blob).expect("a folder");
    let store = LocalFileSystem::new_with_prefix(&blob).expect("a folder");
    let target = Target::new(Arc::new(store), object_store::path::Path::from("data"), "file:///data");
    let collections = open(settings(&dir.path().join("spool"), collection(Format::Events)), target).await;
    let collection = collections.collection("c").expect("it is there");
    for id in 0..100 {
        let correlation = if id % 2 == 0 { "ann" } else { "bob" };
        assert_eq!(collection.offer(of(id, correlation)).kept().await, Kept::Logged);
    }
    assert!(collections.flush(LONG).await);
    collections.delete("ann").await.expect("the folder is there");
    let objects = objects(&LocalFileSystem::new_with_prefix(&blob).expect("a folder")).await;
    let said = |text: &str| objects.values().map(|object| count(object, text)).sum::<usize>();
    assert_eq!((said("ann said this"), said("bob said this")), (0, 50));
    assert_eq!(collections.stop(LONG).await.pending, 0);
}
