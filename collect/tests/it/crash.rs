//! A process that is killed, at any moment: what it has acknowledged is in blob once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use outrigger_collect::{CollectionSettings, Collections, Full, Kept, Settings, Sync, Target};

use crate::support::{LONG, balance, ids, objects, record, settings};

/// Says to the process that it is the one that is killed, in which folder.
const VARIABLE: &str = "OUTRIGGER_TEST_COLLECT_CHILD";
/// How often it is killed.
const ROUNDS: &str = "OUTRIGGER_TEST_COLLECT_KILLS";

fn of(dir: &Path) -> (Settings, Target) {
    let block =
        CollectionSettings { full: Full::Block(LONG), sync: Sync::Always, ..CollectionSettings::default() };
    let mut settings = settings(&dir.join("spool"), block);
    // Records that are objects of their own are in it, too.
    settings.inline_bytes = 1500;
    settings.flush_interval = Duration::from_millis(10);
    let store = LocalFileSystem::new_with_prefix(dir.join("blob")).expect("a folder");
    (settings, Target::new(Arc::new(store), object_store::path::Path::from("data"), "file:///blob/data"))
}

/// Is killed: see below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(dir) = std::env::var(VARIABLE) else { return };
    let (settings, target) = of(Path::new(&dir));
    let collections = Arc::new(Collections::open(settings, target).await.expect("it opens"));
    let mut offering = tokio::task::JoinSet::new();
    for task in 0..8 {
        let collections = Arc::clone(&collections);
        offering.spawn(async move {
            let collection = collections.collection("c").expect("it is there");
            for number in 0.. {
                let id = format!("{}-{task}-{number}", std::process::id());
                if collection.offer(record(&id, data_of(&id))).kept().await == Kept::Logged {
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "kept {id}").expect("somebody reads it");
                    out.flush().expect("somebody reads it");
                }
            }
        });
    }
    offering.join_next().await;
}

#[test]
fn what_was_acknowledged_before_a_kill_is_in_blob_once() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("blob")).expect("a folder");
    let rounds = std::env::var(ROUNDS).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().expect("this is one"))
            .args(["crash::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut out = BufReader::new(child.stdout.take().expect("it is a pipe"));
        // As many as come until some record that is another one each round, and some time that is another one each round.
        let mut line = String::new();
        let mut left = 1 + (round * 7919) % 211;
        while left > 0 {
            line.clear();
            assert!(out.read_line(&mut line).expect("it is a pipe") > 0, "it has ended by itself");
            left -= usize::from(take(&line, &mut acknowledged));
        }
        std::thread::sleep(Duration::from_micros((round as u64 * 3571) % 25_000));
        child.kill().expect("it is there");
        child.wait().expect("it is there");
        // The last line may be torn; it was acknowledged, and nobody knows.
        loop {
            line.clear();
            if out.read_line(&mut line).expect("it is a pipe") == 0 {
                break;
            }
            if line.ends_with('\n') {
                take(&line, &mut acknowledged);
            }
        }
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let found = runtime.block_on(async {
        let (settings, target) = of(dir.path());
        let collections = Collections::open(settings, target).await.expect("it opens");
        assert!(collections.flush(LONG).await);
        let counts = collections.collection("c").expect("it is there").counts();
        balance(&counts);
        assert_eq!((counts.pending, counts.dropped_in_all()), (0, 0), "{counts:?}");
        assert_eq!(collections.stop(LONG).await.pending, 0);
        objects(&LocalFileSystem::new_with_prefix(dir.path().join("blob")).expect("a folder")).await
    });
    contents_are_whole(&found);
    let there = ids(&found);
    let once: BTreeSet<_> = there.iter().collect();
    assert_eq!(once.len(), there.len(), "a record is there twice");
    let lost: Vec<_> = acknowledged.iter().filter(|id| !once.contains(id)).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
    println!(
        "{rounds} kills, {} records acknowledged, {} in {} objects",
        acknowledged.len(),
        there.len(),
        found.len()
    );
}

fn take(line: &str, acknowledged: &mut Vec<String>) -> bool {
    // The harness may have written before it on the same line.
    let Some((_, id)) = line.trim_end().rsplit_once("kept ") else { return false };
    acknowledged.push(id.to_owned());
    true
}

/// What is offered under an identifier: other bytes each time, of another length.
fn data_of(id: &str) -> String {
    let number: usize = id.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number");
    format!("[\"{}\"]", id.repeat(30 * (number % 7)))
}

/// What is there is what was offered, be it in its line or an object of its own.
fn contents_are_whole(objects: &BTreeMap<String, bytes::Bytes>) {
    let lines = objects
        .iter()
        .filter(|(name, _)| name.ends_with(".jsonl"))
        .flat_map(|(_, object)| object.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()));
    let mut count = 0;
    for line in lines {
        let line: serde_json::Value = serde_json::from_slice(line).expect("JSON");
        let wanted = data_of(line["id"].as_str().expect("an id"));
        if line["datainblob"] == serde_json::json!(true) {
            let url = line["data"].as_str().expect("a URL");
            let side = objects.get(url.strip_prefix("file:///blob/data/").expect("it is in the target"));
            assert_eq!(side.map(|side| &side[..]), Some(wanted.as_bytes()), "{url}");
            count += 1;
        } else {
            assert_eq!(line["data"].to_string(), wanted);
        }
    }
    assert!(count > 0);
}
