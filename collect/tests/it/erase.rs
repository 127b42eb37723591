//! What is to be gone is gone, wherever it was.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::local::LocalFileSystem;
use outrigger_collect::{
    CollectionSettings, Designation, EraseError, Format, Full, Kept, Record, Sync, Table, Target,
};

use crate::support::{LONG, Mood, Moody, balance, objects, open, record, settings, until};

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

/// Rows of another workspace and service, as a script may say it.
fn elsewhere(id: usize, correlation: &str) -> Record {
    let mut record = of(id, correlation);
    if let Some(table) = &mut record.table {
        (table.workspace, table.service) = (Some("s/g/other".into()), Some("another".into()));
    }
    record
}

#[tokio::test]
async fn rows_of_another_service_are_deleted_and_kept_as_long_as_others() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut kept = collection(Format::Csv);
    kept.retention_days = Some(30);
    let mut settings = settings(dir.path(), kept);
    settings.retention_interval = Duration::from_secs(1 << 30);
    let collections = open(settings, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    for (id, days) in [(1, 0), (2, 400)] {
        let mut record = elsewhere(id, if days == 0 { "ann" } else { "bob" });
        record.time = SystemTime::now() - Duration::from_secs(days * 86_400);
        assert_eq!(collection.offer(record).kept().await, Kept::Logged);
    }
    assert!(collections.flush(LONG).await);
    // What somebody else has there is not kept by our rules.
    let theirs = "modeldata/s/g/other/another/m/1/inputs/2020/01/01/inputs-0123-1.csv";
    store.put(theirs, "text,$aml_dc_correlation_id\r\nann said this,ann\r\nx,bob\r\n").await;
    assert_eq!(in_blob(&store, "ann said this").await, 2);
    collections.delete("ann").await.expect("blob is there");
    assert_eq!(in_blob(&store, "ann said this").await, 0);
    assert_eq!(store.objects().await[theirs], "text,$aml_dc_correlation_id\r\nx,bob\r\n");
    assert_eq!(collections.stop(LONG).await.pending, 0);
    assert_eq!(collections.expire().await.expect("blob is there"), 1);
    assert_eq!(store.objects().await.into_keys().collect::<Vec<_>>(), [theirs]);
}

#[tokio::test]
async fn a_deletion_is_not_done_while_there_is_something_that_cannot_be_read() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collections = open(settings(dir.path(), collection(Format::Events)), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    for (id, correlation) in ["ann", "bob"].into_iter().enumerate() {
        assert_eq!(collection.offer(of(id, correlation)).kept().await, Kept::Logged);
    }
    assert!(collections.flush(LONG).await);
    let folder = "modelDataCollector/iris/blue/c/2026/11/30/08";
    let torn = format!("{folder}/theirs-1.jsonl");
    store.put(&torn, "{\"correlationid\":\"ann").await;
    store.put(&format!("{folder}/theirs-2.parquet"), "ann").await;
    match collections.delete("ann").await {
        Err(EraseError::Unread { collection, objects, more: 0 }) => {
            assert_eq!((collection.as_str(), objects.len()), ("c", 2));
            assert!(objects[0].0.ends_with(&torn) && objects[0].1.contains("line 1"), "{objects:?}");
        }
        other => panic!("{other:?}"),
    }
    // What could be read is without it.
    assert_eq!((in_blob(&store, "ann said").await, in_blob(&store, "bob said").await), (0, 1));
    store.remove(&torn).await;
    assert!(
        collections.delete("ann").await.is_err_and(|error| error.to_string().contains("theirs-2.parquet"))
    );
    store.remove(&format!("{folder}/theirs-2.parquet")).await;
    collections.delete("ann").await.expect("all of it can be read");
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn what_storage_was_asked_before_does_not_bring_back_what_was_deleted() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collections = open(settings(dir.path(), collection(Format::Events)), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    store.set(Mood::Late);
    for (id, correlation) in ["ann", "bob"].into_iter().enumerate() {
        assert_eq!(collection.offer(of(id, correlation)).kept().await, Kept::Logged);
    }
    let failures = || collections.status()[0].upload_failures;
    until("an attempt is given up", || failures() > 0).await;
    assert!(store.late() > 0);
    store.set(Mood::Fine);
    assert!(collections.flush(LONG).await);
    let coming_back = async {
        let start = std::time::Instant::now();
        while in_blob(&store, "ann said").await > 0 {
            assert!(start.elapsed() < LONG);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        store.catch_up().await;
    };
    let (deleted, ()) = tokio::join!(collections.delete("ann"), coming_back);
    deleted.expect("blob is there");
    assert_eq!((in_blob(&store, "ann said").await, in_blob(&store, "bob said").await), (0, 1));
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

/// A start after a part of an object was erased writes it without that, and asks blob where all was.
#[tokio::test]
async fn what_was_left_by_an_earlier_process_is_deleted_too() {
    for others in [0, 3] {
        let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
        let of_it = settings(dir.path(), collection(Format::Events));
        let collections = open(of_it.clone(), store.target()).await;
        let collection = collections.collection("c").expect("it is there");
        store.set(Mood::Mute);
        for id in 0..3 + others {
            let correlation = if id < 3 { "ann" } else { "bob" };
            assert_eq!(collection.offer(of(id, correlation)).kept().await, Kept::Logged);
        }
        until("blob has them", || collections.status()[0].upload_failures > 2).await;
        // It ends without knowing that.
        store.set(Mood::Down);
        collections.stop(Duration::from_millis(1)).await;
        let collections = open(of_it, store.target()).await;
        store.set(Mood::Fine);
        collections.delete("ann").await.expect("blob is there");
        assert_eq!(in_blob(&store, "ann said").await, 0);
        assert!(collections.flush(LONG).await);
        assert_eq!((in_blob(&store, "ann said").await, in_blob(&store, "bob said").await), (0, others));
        balance(&collections.collection("c").expect("it is there").counts());
        assert_eq!(collections.stop(LONG).await.pending, 0);
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
