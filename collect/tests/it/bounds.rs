//! What there is no room for.

use std::time::Duration;

use outrigger_collect::{CollectionSettings, Full, Kept, OpenError, Reason, Rolling, Sync};

use crate::support::{LONG, Mood, Moody, balance, ids, open, record, settings, text, until};

/// Room for a few segments.
const DISK: u64 = 3 << 20;

fn full(full: Full) -> CollectionSettings {
    CollectionSettings { full, disk_bytes: DISK, sync: Sync::Never, ..CollectionSettings::default() }
}

/// Offers records of 10 kB until something is so, and 8 MB have been: more than there is room for.
async fn flood(
    collection: &std::sync::Arc<outrigger_collect::Collection>,
    is_so: impl Fn() -> bool,
) -> usize {
    let mut id = 0;
    until("it is full", || {
        for _ in 0..16 {
            let _ = collection.offer(record(format_args!("{id:06}"), text(10_000)));
            id += 1;
        }
        id >= 800 && is_so()
    })
    .await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_room_the_newest_are_dropped_and_the_log_stays_in_its_bound() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    store.set(Mood::Down);
    let mut settings = settings(dir.path(), full(Full::DropNewest));
    settings.ring_items = 128;
    let collections = open(settings, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let is_full = || {
        let status = &collections.status()[0];
        status.stalled && status.counts.dropped(Reason::Full) > 300
    };
    flood(collection, is_full).await;
    let status = &collections.status()[0];
    balance(&status.counts);
    assert!(status.disk_bytes <= DISK && status.counts.dropped(Reason::Full) > 300, "{status:?}");
    assert_eq!(status.counts.dropped_in_all(), status.counts.dropped(Reason::Full));
    // With room again it goes on by itself.
    store.set(Mood::Fine);
    until("it goes on", || !collections.status()[0].stalled).await;
    assert_eq!(collection.offer(record("after", "1")).kept().await, Kept::Queued);
    assert!(collections.flush(LONG).await);
    let counts = collection.counts();
    balance(&counts);
    let there = ids(&store.objects().await);
    assert_eq!((there.len() as u64, counts.pending), (counts.persisted, 0));
    assert!(there.contains(&"000000".to_owned()) && there.contains(&"after".to_owned()));
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_room_the_oldest_are_dropped_where_that_is_the_policy() {
    for mood in [Mood::Down, Mood::Mute] {
        let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
        store.set(mood);
        // The ring has room for all of them: what is dropped is dropped from the log.
        let mut settings = settings(dir.path(), full(Full::DropOldest));
        settings.ring_items = 1 << 14;
        settings.ring_bytes = 1 << 40;
        let collections = open(settings, store.target()).await;
        let collection = collections.collection("c").expect("it is there");
        let offered = flood(collection, || collection.counts().dropped(Reason::Oldest) > 300).await;
        let status = &collections.status()[0];
        balance(&status.counts);
        assert!(status.disk_bytes <= DISK && status.counts.dropped(Reason::Oldest) > 300, "{status:?}");
        store.set(Mood::Fine);
        assert!(collections.flush(LONG).await);
        let counts = collection.counts();
        balance(&counts);
        let mut there = ids(&store.objects().await);
        assert!(there.contains(&format!("{:06}", offered - 1)), "{counts:?}");
        let count = there.len();
        there.sort();
        there.dedup();
        assert_eq!(
            (there.len(), count as u64, counts.pending),
            (count, counts.persisted, 0),
            "{mood:?}: {counts:?}"
        );
        assert_eq!(collections.stop(LONG).await.pending, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_room_waits_no_longer_than_the_policy_says() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    store.set(Mood::Down);
    let mut few = settings(dir.path(), full(Full::Block(Duration::from_millis(50))));
    few.ring_items = 32;
    let collections = open(few, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let (mut logged, mut late, mut dropped) = (0, 0, 0);
    while dropped < 5 {
        match collection.offer(record(logged + late + dropped, text(10_000))).kept().await {
            Kept::Logged => logged += 1,
            Kept::Late => late += 1,
            Kept::Dropped(Reason::Timeout) => dropped += 1,
            other => panic!("{other:?}"),
        }
    }
    let status = &collections.status()[0];
    balance(&status.counts);
    assert!(logged > 50 && late > 0 && status.stalled && status.disk_bytes <= DISK, "{logged} {status:?}");
    // A record that nobody waits for any more is dropped, too, if there is no room for it.
    drop(collection.offer(record("gone", "1")));
    assert_eq!(collection.counts().dropped(Reason::Timeout), 6);
    store.set(Mood::Fine);
    until("it goes on", || !collections.status()[0].stalled).await;
    assert!(collections.flush(LONG).await);
    let counts = collection.counts();
    balance(&counts);
    assert_eq!((counts.persisted, counts.pending), (logged + late, 0));
    assert_eq!(ids(&store.objects().await).len() as u64, counts.persisted);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_holds_up_nobody_and_is_tried_until_it_does() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collections = open(settings(dir.path(), CollectionSettings::default()), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    // The folder of the log is a file: not even root can write a segment in it.
    let log = dir.path().join("logs/c");
    std::fs::remove_dir(&log).expect("it is empty");
    std::fs::write(&log, "").expect("a file");
    let _ = collection.offer(record(1, "1"));
    until("it stalls", || collections.status()[0].stalled).await;
    let status = &collections.status()[0];
    assert!(status.disk_failures > 0 && status.problem.is_some() && status.counts.pending == 1, "{status:?}");
    assert_eq!(collection.offer(record(2, "1")).kept().await, Kept::Queued);
    std::fs::remove_file(&log).expect("it is there");
    std::fs::create_dir(&log).expect("a folder");
    until("it goes on", || !collections.status()[0].stalled).await;
    assert!(collections.flush(LONG).await);
    assert_eq!(collection.counts().persisted, 2);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn what_is_too_large_is_dropped() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collections = open(settings(dir.path(), CollectionSettings::default()), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let kept = collection.offer(record(1, text(64 << 10))).kept().await;
    assert_eq!(kept, Kept::Dropped(Reason::Large));
    assert_eq!(collection.offer(record(2, text(60 << 10))).kept().await, Kept::Queued);
    // As text it would be six times as long.
    let mut escaped = record(3, vec![1; 31 << 10]);
    escaped.content_type = Some("text/plain".into());
    assert_eq!(collection.offer(escaped).kept().await, Kept::Queued);
    assert!(collections.flush(LONG).await);
    let counts = collection.counts();
    assert_eq!((counts.persisted, counts.dropped(Reason::Large)), (1, 2));
    balance(&counts);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn settings_that_cannot_be_kept_are_refused_all_at_once_and_a_spool_has_one_owner() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut wrong =
        settings(dir.path(), CollectionSettings { sampling: 1.5, disk_bytes: 1, ..Default::default() });
    wrong.endpoint = "../up".into();
    wrong.collections.insert("Upper".into(), CollectionSettings::default());
    match outrigger_collect::Collections::open(wrong, store.target()).await {
        Err(OpenError::Settings(mistakes)) => {
            let at: Vec<_> = mistakes.iter().map(|mistake| mistake.at.as_str()).collect();
            assert_eq!(at, ["endpoint", "Upper", "c.sampling", "c.disk_bytes"]);
        }
        other => panic!("{other:?}"),
    }
    let first = open(settings(dir.path(), CollectionSettings::default()), store.target()).await;
    let second = outrigger_collect::Collections::open(
        settings(dir.path(), CollectionSettings::default()),
        store.target(),
    )
    .await;
    assert!(matches!(second, Err(OpenError::Taken(_))), "{second:?}");
    assert_eq!(first.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn few_objects_are_open_at_a_time_and_records_are_there_once_all_the_same() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut settings =
        settings(dir.path(), CollectionSettings { rolling: Rolling::Minute, ..Default::default() });
    settings.open_objects = 2;
    let collections = open(settings, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    for id in 0..50 {
        let mut record = record(id, "1");
        record.time += Duration::from_secs(60 * (id % 5));
        assert_eq!(collection.offer(record).kept().await, Kept::Queued);
    }
    assert!(collections.flush(LONG).await);
    let objects = store.objects().await;
    let mut there = ids(&objects);
    there.sort();
    there.dedup();
    // Each of the five folders comes again when its object has been closed for others.
    assert_eq!((there.len(), objects.len()), (50, 50));
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_wait_are_bounded_in_number() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    store.set(Mood::Down);
    let mut settings =
        settings(dir.path(), CollectionSettings { rolling: Rolling::Minute, ..Default::default() });
    settings.waiting_objects = 1024;
    settings.ring_items = 64;
    let collections = open(settings, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let mut id = 0;
    until("it is full", || {
        for _ in 0..32 {
            let mut record = record(id, "1");
            record.time += Duration::from_secs(60 * id);
            let _ = collection.offer(record);
            id += 1;
        }
        let status = &collections.status()[0];
        assert!(status.objects_waiting <= 1024, "{status:?}");
        status.stalled && status.counts.dropped(Reason::Full) > 0
    })
    .await;
    store.set(Mood::Fine);
    until("it goes on", || !collections.status()[0].stalled).await;
    assert!(collections.flush(LONG).await);
    let counts = collection.counts();
    balance(&counts);
    assert_eq!(ids(&store.objects().await).len() as u64, counts.persisted);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}
