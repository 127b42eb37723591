//! Blob storage that is not there, that does not say what it does, and a replica that ends in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger_collect::{CollectionSettings, Full, Kept, Offered, Reason, Sync};

use crate::support::{LONG, Mood, Moody, balance, ids, open, record, settings, text, until};

fn blocking() -> CollectionSettings {
    CollectionSettings { full: Full::Block(LONG), sync: Sync::Always, ..CollectionSettings::default() }
}

fn once(mut ids: Vec<String>) -> BTreeSet<String> {
    let count = ids.len();
    ids.sort();
    let set: BTreeSet<_> = ids.into_iter().collect();
    assert_eq!(set.len(), count, "a record is there twice");
    set
}

#[tokio::test]
async fn what_waits_for_blob_waits_on_disk_and_goes_there_once() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let collections = open(settings(dir.path(), blocking()), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let all: BTreeSet<_> = (0..300).map(|id| id.to_string()).collect();
    for (nth, mood) in [Mood::Fine, Mood::Down, Mood::Mute].into_iter().enumerate() {
        store.set(mood);
        for id in nth * 100..(nth + 1) * 100 {
            assert_eq!(collection.offer(record(id, text(500))).kept().await, Kept::Logged);
        }
        let failures = || collections.status()[0].upload_failures;
        let before = failures();
        if mood != Mood::Fine {
            until("it tries", || failures() > before + 3).await;
            let status = &collections.status()[0];
            assert!(
                status.lag.is_some() && status.problem.is_some() && status.counts.pending >= 100,
                "{status:?}"
            );
            balance(&status.counts);
        }
    }
    store.set(Mood::Fine);
    assert!(collections.flush(LONG).await);
    let status = &collections.status()[0];
    assert_eq!((status.lag, status.counts.persisted, status.counts.pending), (None, 300, 0), "{status:?}");
    assert_eq!(once(ids(&store.objects().await)), all);
    until("the disk is free", || collections.status()[0].disk_bytes < 80 << 10).await;
    assert_eq!(collections.stop(LONG).await.pending, 0);
    assert_eq!(once(ids(&store.objects().await)), all);
}

#[tokio::test]
async fn an_object_that_is_refused_holds_up_no_other() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut settings = settings(dir.path(), blocking());
    settings.collections.insert("other".into(), blocking());
    settings.retry_max = Duration::from_secs(2);
    let collections = open(settings, store.target()).await;
    store.set(Mood::Picky);
    for id in 0..200 {
        for name in ["c", "other"] {
            let collection = collections.collection(name).expect("it is there");
            assert_eq!(
                collection.offer(record(format!("{name}-{id}"), text(500))).kept().await,
                Kept::Logged
            );
        }
    }
    let pending = |name: &str| collections.collection(name).expect("it is there").counts().pending;
    // The first object that was begun is one of the two; it has what goes into 16 kB.
    until("others are there", || pending("c") + pending("other") < 40).await;
    assert!(pending("c") + pending("other") > 0);
    store.set(Mood::Fine);
    assert!(collections.flush(LONG).await);
    assert_eq!(once(ids(&store.objects().await)).len(), 400);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[tokio::test]
async fn the_next_start_goes_on_where_the_last_one_ended() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut offered = 0_u64;
    for (round, mood) in [Mood::Down, Mood::Mute, Mood::Fine, Mood::Down].into_iter().enumerate() {
        store.set(mood);
        let collections = open(settings(dir.path(), blocking()), store.target()).await;
        let collection = collections.collection("c").expect("it is there");
        let counts = collection.counts();
        balance(&counts);
        assert_eq!(counts.offered, counts.recovered);
        for id in offered..offered + 50 {
            assert_eq!(collection.offer(record(id, text(700))).kept().await, Kept::Logged);
        }
        offered += 50;
        let stopped =
            collections.stop(if mood == Mood::Fine { LONG } else { Duration::from_millis(100) }).await;
        assert_eq!(stopped.pending == 0, mood == Mood::Fine, "round {round}: {stopped:?}");
        let counts = collection.counts();
        balance(&counts);
        assert_eq!(counts.dropped_in_all(), 0);
        assert!(matches!(collection.offer(record("late", "1")), Offered::Dropped(Reason::Stopped)));
    }
    store.set(Mood::Fine);
    let mut settings = settings(dir.path(), blocking());
    // What is not collected any more still goes to blob.
    settings.collections.clear();
    let collections = open(settings, store.target()).await;
    assert!(collections.collection("c").is_none());
    assert_eq!(collections.status()[0].counts.recovered, 50);
    assert!(collections.flush(LONG).await);
    assert_eq!(collections.stop(LONG).await.pending, 0);
    assert_eq!(once(ids(&store.objects().await)), (0..offered).map(|id| id.to_string()).collect());
    let left: Vec<_> = std::fs::read_dir(dir.path().join("logs/c")).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counts_add_up_at_every_moment_and_to_the_record_at_the_end() {
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
    let mut settings =
        settings(dir.path(), CollectionSettings { sampling: 0.8, ..CollectionSettings::default() });
    settings.ring_items = 64;
    settings
        .collections
        .insert("oldest".into(), CollectionSettings { full: Full::DropOldest, ..Default::default() });
    let bound = Duration::from_millis(1);
    settings
        .collections
        .insert("block".into(), CollectionSettings { full: Full::Block(bound), ..Default::default() });
    let collections = Arc::new(open(settings, store.target()).await);
    let names = ["c", "oldest", "block"];
    let ended = Arc::new(AtomicBool::new(false));
    let mut offering = tokio::task::JoinSet::new();
    for task in 0..6 {
        let collections = Arc::clone(&collections);
        offering.spawn(async move {
            for id in 0..1500 {
                for name in names {
                    let collection = collections.collection(name).expect("it is there");
                    let record = record(format!("{task}-{id}"), text(100));
                    let _ = collection.offer(record).kept().await;
                }
            }
        });
    }
    let watching = {
        let (collections, ended) = (Arc::clone(&collections), Arc::clone(&ended));
        tokio::task::spawn_blocking(move || {
            let mut last = vec![0; names.len()];
            while !ended.load(Ordering::Acquire) {
                for (name, last) in names.iter().zip(&mut last) {
                    let counts = collections.collection(name).expect("it is there").counts();
                    balance(&counts);
                    let ended = counts.offered - counts.pending;
                    assert!(ended >= *last, "{name}: what has ended begins again");
                    *last = ended;
                }
            }
        })
    };
    let moods = [Mood::Mute, Mood::Down, Mood::Fine];
    for mood in moods.iter().cycle().take(30) {
        store.set(*mood);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    store.set(Mood::Fine);
    while let Some(done) = offering.join_next().await {
        done.expect("it does not panic");
    }
    assert!(collections.flush(LONG).await);
    ended.store(true, Ordering::Release);
    watching.await.expect("it adds up");
    let objects = store.objects().await;
    for name in names {
        let counts = collections.collection(name).expect("it is there").counts();
        assert_eq!((counts.offered, counts.pending), (9000, 0), "{name}: {counts:?}");
        balance(&counts);
        let of_it = objects.iter().filter(|(path, _)| path.contains(&format!("/{name}/")));
        let there = once(ids(&of_it.map(|(path, object)| (path.clone(), object.clone())).collect()));
        assert_eq!(there.len() as u64, counts.persisted, "{name}: {counts:?}");
    }
    assert!(collections.collection("c").expect("it").counts().sampled_out > 1000);
    assert_eq!(collections.stop(LONG).await.pending, 0);
}
