//! A disk that loses what was written to it: what blob storage has stays there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use outrigger_collect::{CollectionSettings, Format, Full, Kept, Reason, Sync};

use crate::support::{LONG, Mood, Moody, balance, ids, open, record, settings, text, until};

/// Bytes before the first frame, and before its body.
const HEADS: usize = 64;

fn collection() -> CollectionSettings {
    CollectionSettings { full: Full::Block(LONG), sync: Sync::Always, ..CollectionSettings::default() }
}

fn segments(spool: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(spool.join("logs/c")).expect("a folder");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("logs/c")).expect("a folder");
    fs::copy(from.join("instance.json"), to.join("instance.json")).expect("a file");
    for segment in segments(from) {
        fs::copy(&segment, to.join("logs/c").join(segment.file_name().expect("a name"))).expect("a file");
    }
}

/// What happens to segments.
const DAMAGES: [fn(&mut Vec<Vec<u8>>); 7] = [
    // A body, and a head.
    |segments| segments[0][HEADS + 1000] ^= 1,
    |segments| {
        let at = 32 + segments[0][32..].windows(4).position(|bytes| bytes == b"spec").expect("a line") - 50;
        segments[0][at] ^= 0xff;
    },
    // A page, once of the first segment and once of the last.
    |segments| segments[0][8192..12288].fill(0),
    |segments| segments.last_mut().expect("one")[4096..8192].fill(0),
    // The end.
    |segments| segments.iter_mut().for_each(|bytes| bytes.truncate(bytes.len() / 2)),
    // All but the beginning of the object.
    |segments| segments[0][2048..].fill(0),
    // All.
    |segments| segments.iter_mut().for_each(|bytes| bytes.fill(0)),
];

#[tokio::test]
async fn what_is_in_blob_is_there_after_a_start_whatever_became_of_the_log() {
    for (nth, damage) in DAMAGES.iter().enumerate() {
        for mood in [Mood::Fine, Mood::Down] {
            let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
            let mut of = settings(&dir.path().join("first"), collection());
            of.object_bytes = 1 << 20;
            let collections = open(of.clone(), store.target()).await;
            let first = collections.collection("c").expect("it is there");
            for id in 0..80 {
                assert_eq!(first.offer(record(id, text(1500))).kept().await, Kept::Logged);
            }
            assert!(collections.flush(LONG).await);
            let before: BTreeSet<_> = ids(&store.objects().await).into_iter().collect();
            assert_eq!(before.len(), 80);
            // Once with more in the log than blob has.
            store.set(mood);
            for id in 80..100 {
                assert_eq!(first.offer(record(id, text(1500))).kept().await, Kept::Logged);
            }
            if mood == Mood::Fine {
                assert!(collections.flush(LONG).await);
            }
            let known: BTreeSet<_> = ids(&store.objects().await).into_iter().collect();
            // As the machine has it that ends here.
            of.spool = dir.path().join("second");
            copy(&dir.path().join("first"), &of.spool);
            store.set(Mood::Down);
            drop(collections);
            let paths = segments(&of.spool);
            let mut bytes: Vec<_> = paths.iter().map(|path| fs::read(path).expect("a file")).collect();
            damage(&mut bytes);
            paths.iter().zip(bytes).for_each(|(path, bytes)| fs::write(path, bytes).expect("a file"));
            let store = {
                let fresh = Moody::new();
                fresh.copy_of(&store).await;
                fresh
            };
            let collections = open(of, store.target()).await;
            let collection = collections.collection("c").expect("it is there");
            for id in 200..210 {
                assert_eq!(collection.offer(record(id, text(100))).kept().await, Kept::Logged);
            }
            assert!(collections.flush(LONG).await);
            let there = ids(&store.objects().await);
            let once: BTreeSet<_> = there.iter().cloned().collect();
            assert_eq!(once.len(), there.len(), "damage {nth}, {mood:?}: something is there twice");
            let lost: Vec<_> = known.difference(&once).collect();
            assert!(lost.is_empty(), "damage {nth}, {mood:?}: {lost:?}");
            assert!((200..210).all(|id: i32| once.contains(&id.to_string())));
            balance(&collection.counts());
            assert_eq!(collections.stop(LONG).await.pending, 0);
        }
    }
}

/// What the disk does not give back in the same process is not lost in blob either, and what comes afterwards is kept.
#[tokio::test]
async fn an_object_of_which_the_log_has_lost_something_goes_on_as_another() {
    for format in [Format::Events, Format::Parquet] {
        let (dir, store) = (tempfile::tempdir().expect("a folder"), Moody::new());
        let collections =
            open(settings(dir.path(), CollectionSettings { format, ..collection() }), store.target()).await;
        let collection = collections.collection("c").expect("it is there");
        let offer = async |id: u64| collection.offer(record(id, text(500))).kept().await;
        for id in 0..5 {
            assert_eq!(offer(id).await, Kept::Logged);
        }
        assert!(collections.flush(LONG).await);
        let segment = segments(dir.path()).pop().expect("one");
        let mut bytes = fs::read(&segment).expect("a file");
        let at = bytes.windows(6).position(|bytes| bytes == b"777777").expect("a record");
        bytes[at] = b'8';
        fs::write(&segment, bytes).expect("a file");
        for ids in [5..12, 12..20] {
            for id in ids {
                assert_eq!(offer(id).await, Kept::Logged, "{format:?}");
            }
            assert!(collections.flush(LONG).await);
        }
        let counts = collection.counts();
        balance(&counts);
        assert_eq!((counts.persisted, counts.dropped(Reason::Damaged)), (20, 0), "{counts:?}");
        let objects = store.objects().await;
        assert_eq!(objects.len(), 2, "{:?}", objects.keys());
        if format == Format::Events {
            let mut there = ids(&objects);
            there.sort_by_key(|id| id.parse::<u64>().expect("a number"));
            assert_eq!(there, (0..20).map(|id| id.to_string()).collect::<Vec<_>>());
        }
        until("its segments are not needed", || collections.status()[0].lag.is_none()).await;
        assert_eq!(collections.stop(LONG).await.pending, 0);
    }
}
