//! A disk that is full: a file system of 4 MB, which is there for one process.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use outrigger_collect::{CollectionSettings, Full, Kept, Reason, Sync};

use crate::support::{LONG, Mood, Moody, balance, ids, open, record, settings, text, until};

/// Says to the process that it has such a disk, and where.
const VARIABLE: &str = "OUTRIGGER_TEST_COLLECT_DISK";

/// Is run where there is little room: see below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(disk) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    starts(&disk.join("start"), &disk.join("filler")).await;
    let policies = [Full::DropNewest, Full::DropOldest, Full::Block(Duration::from_millis(20))];
    for (nth, policy) in policies.into_iter().enumerate() {
        fills(&disk.join(nth.to_string()), policy).await;
    }
}

/// A disk that is full before anything is on it.
async fn starts(spool: &Path, filler: &Path) {
    std::fs::create_dir(spool).expect("there is room");
    let mut file = std::fs::File::create(filler).expect("there is room");
    while file.write_all(&[1; 1024]).is_ok() {}
    let store = Moody::new();
    let collections = open(settings(spool, CollectionSettings::default()), store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    assert_eq!(collection.offer(record(1, "1")).kept().await, Kept::Queued);
    until("it stalls", || collections.status()[0].stalled).await;
    std::fs::remove_file(filler).expect("it is there");
    drop(file);
    until("it goes on", || !collections.status()[0].stalled).await;
    assert!(collections.flush(LONG).await);
    assert_eq!(ids(&store.objects().await), ["1"]);
    assert_eq!(collections.stop(LONG).await.pending, 0);
    std::fs::remove_dir_all(spool).expect("it is there");
}

async fn fills(spool: &Path, policy: Full) {
    let store = Moody::new();
    store.set(Mood::Down);
    let sync = if matches!(policy, Full::Block(_)) { Sync::Always } else { Sync::Never };
    let mut settings =
        settings(spool, CollectionSettings { full: policy, sync, ..CollectionSettings::default() });
    settings.ring_items = if policy == Full::DropOldest { 1 << 14 } else { 64 };
    let collections = open(settings, store.target()).await;
    let collection = collections.collection("c").expect("it is there");
    let is_full = || {
        let status = &collections.status()[0];
        balance(&status.counts);
        match policy {
            Full::DropNewest => status.stalled && status.counts.dropped(Reason::Full) > 100,
            Full::DropOldest => status.counts.dropped(Reason::Oldest) > 100,
            Full::Block(_) => status.stalled && status.counts.dropped(Reason::Timeout) > 3,
        }
    };
    let (start, mut id) = (std::time::Instant::now(), 0);
    while !is_full() {
        assert!(start.elapsed() < LONG, "{:?}", collections.status());
        let _ = collection.offer(record(id, text(10_000))).kept().await;
        id += 1;
        if id % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let status = &collections.status()[0];
    assert!(status.disk_bytes < 4 << 20, "{status:?}");
    assert!(!status.stalled || status.problem.is_some(), "{status:?}");
    store.set(Mood::Fine);
    until("it goes on", || !collections.status()[0].stalled).await;
    assert!(collections.flush(LONG).await, "{:?}", collections.status());
    let counts = collection.counts();
    balance(&counts);
    let mut there = ids(&store.objects().await);
    let count = there.len();
    there.sort();
    there.dedup();
    assert_eq!(
        (there.len(), count as u64, counts.pending),
        (count, counts.persisted, 0),
        "{policy:?}: {counts:?}"
    );
    assert!(count > 100, "{policy:?}: {counts:?}");
    assert_eq!(collections.stop(LONG).await.pending, 0);
}

#[test]
fn a_disk_that_is_full_drops_what_the_policy_says_and_goes_on_by_itself() {
    let dir = tempfile::tempdir().expect("a folder");
    let small = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        unshare.arg(format!("mount -t tmpfs -o size=4m tmpfs \"$0\" && {command}")).arg(dir.path());
        unshare
    };
    if !small("true").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no file system can be mounted here");
        return;
    }
    let status = small("exec \"$1\" disk::child --exact --nocapture --test-threads=1")
        .arg(std::env::current_exe().expect("this is one"))
        .env(VARIABLE, dir.path())
        .status();
    assert!(status.expect("it starts").success());
}
