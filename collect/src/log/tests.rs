//! A log that is damaged, wherever that is.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::frame::{Body, Head};
use super::*;

fn bounds() -> Bounds {
    Bounds { segment_bytes: 400, disk_bytes: 1 << 20, sync: Sync::Never }
}

/// The records of each object, by its name.
type Objects = BTreeMap<String, Vec<u64>>;

fn line(time: u64) -> Vec<u8> {
    format!("{time}{}", "x".repeat(time as usize % 40)).into_bytes()
}

/// Writes records that go to one of three objects each, until every one of these has some and begins anew.
fn write(dir: &Path, records: u64, batch: u64) -> Objects {
    let mut log = Log::open(dir, bounds()).expect("a folder");
    let (mut objects, mut open) = (Objects::new(), [0_u64; 3]);
    let mut next = 1;
    for time in 0..records {
        let nth = (time * time % 7 % 3) as usize;
        if open[nth] == 0 || time % 11 == 0 {
            if open[nth] > 0 {
                log.close(open[nth]);
            }
            open[nth] = next;
            next += 1;
            let path = format!("object {}", open[nth]).into();
            log.begin(open[nth], Beginning { path, format: Format::Events, header: Arc::from([]) });
        }
        log.append(open[nth], &Stored { time, correlation: b"c", line: &line(time), side: None });
        objects.entry(format!("object {}", open[nth])).or_default().push(time);
        if time % batch == 0 {
            log.commit().expect("there is room");
        }
    }
    log.commit().expect("there is room");
    objects
}

/// What a start finds, and brings to blob.
fn found(dir: &Path) -> Objects {
    let log = Log::open(dir, bounds()).expect("it opens whatever is in it");
    let table = log.shared().lock();
    let mut objects = Objects::new();
    for (number, object) in &table.objects {
        let mut records = Vec::new();
        let wants = |head: &Head| head.object == *number && head.kind == Kind::Record;
        for part in table.parts(object.start, object.end) {
            read(dir, &part, wants, |(_, head, body)| {
                if let Body::Whole(body) = body
                    && wants(&head)
                {
                    let stored = Stored::read(body).expect("it is as it was written");
                    assert_eq!(stored.line, line(stored.time));
                    records.push(stored.time);
                }
            })
            .expect("it is there");
        }
        assert_eq!(records.len() as u64, object.records, "what is counted is what is there");
        objects.insert(object.path.to_string(), records);
    }
    objects
}

fn is_part(part: &Objects, whole: &Objects) {
    for (name, records) in part {
        let mut all = whole[name].iter();
        assert!(records.iter().all(|record| all.any(|other| other == record)), "{name}: {records:?}");
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_start_finds_all_that_was_written_and_cuts_off_what_is_torn() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = write(dir.path(), 30, 4);
    assert_eq!(found(dir.path()), whole);
    assert!(segments(dir.path()).len() > 3);
    let last = segments(dir.path()).pop().expect("there is one");
    let size = fs::metadata(&last).expect("a file").len();
    let mut before = whole.values().map(Vec::len).sum::<usize>();
    for cut in (0..size).rev() {
        let copied = tempfile::tempdir().expect("a folder");
        copy(dir.path(), copied.path());
        let torn = copied.path().join(last.file_name().expect("a name"));
        OpenOptions::new().write(true).open(&torn).and_then(|file| file.set_len(cut)).expect("it is cut");
        let left = found(copied.path());
        is_part(&left, &whole);
        let count = left.values().map(Vec::len).sum::<usize>();
        // One byte is one record at most, and what a start has cut off does not come again.
        assert!(before - count <= 1, "cut at {cut}");
        before = count;
        assert_eq!(found(copied.path()), left);
    }
}

#[test]
fn what_was_removed_before_a_gap_stays_removed() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = write(dir.path(), 60, 1);
    let all = segments(dir.path());
    // The second one is gone, and the first is not: a machine has stopped while they were removed.
    fs::remove_file(&all[1]).expect("it is there");
    let left = found(dir.path());
    is_part(&left, &whole);
    assert!(!all[0].exists() && !left.is_empty());
    // Objects that began in those are over: nothing of them overwrites what is in blob.
    for (name, records) in &left {
        assert_eq!(records, &whole[name]);
    }
}

#[test]
fn a_log_that_is_full_is_written_again_at_the_same_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut log = Log::open(dir.path(), Bounds { disk_bytes: 300, ..bounds() }).expect("a folder");
    log.begin(1, Beginning { path: "object 1".into(), format: Format::Events, header: Arc::from([]) });
    log.append(1, &Stored { time: 0, correlation: b"", line: &line(0), side: None });
    log.commit().expect("there is room");
    for time in 1..10 {
        log.append(1, &Stored { time, correlation: b"", line: &line(time), side: None });
    }
    assert_eq!(log.commit().map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
    assert_eq!(log.shared().lock().objects[&1].records, 1);
    log.bounds.disk_bytes = 1 << 20;
    log.commit().expect("there is room");
    drop(log);
    assert_eq!(found(dir.path()), Objects::from([("object 1".to_owned(), (0..10).collect())]));
}

#[test]
fn what_is_no_segment_puts_none_before_a_gap() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = write(dir.path(), 30, 4);
    for name in ["999999999999.log", "000000000500.log", "7777.log", "18446744073709551615.log"] {
        fs::write(dir.path().join(name), "not a segment, though it is longer than the head of one")
            .expect("a file");
    }
    assert_eq!(found(dir.path()), whole);
    assert!(dir.path().join("000000000500.log").exists());
}

/// What the disk has not confirmed is not told as kept, and is written once more elsewhere.
#[test]
fn what_could_not_be_synced_stays_gathered() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut log = Log::open(dir.path(), Bounds { sync: Sync::Always, ..bounds() }).expect("a folder");
    let append = |log: &mut Log, time| {
        log.append(1, &Stored { time, correlation: b"", line: &line(time), side: None })
    };
    log.begin(1, Beginning { path: "object 1".into(), format: Format::Events, header: Arc::from([]) });
    append(&mut log, 0);
    log.commit().expect("there is room");
    append(&mut log, 1);
    // It takes what is written, and neither syncs it nor cuts it off.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").expect("it is there");
    let active = log.active.as_mut().expect("one is written");
    let file = std::mem::replace(&mut active.file, null);
    assert!(log.commit().is_err() && log.gathered() > 0);
    assert_eq!(log.shared().lock().objects[&1].records, 1);
    log.active.as_mut().expect("it is torn").file = file;
    log.commit().expect("it syncs again");
    assert_eq!((log.gathered(), log.shared().lock().objects[&1].records), (0, 2));
    drop(log);
    assert_eq!(found(dir.path()), Objects::from([("object 1".to_owned(), vec![0, 1])]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_damaged_a_start_finds_only_what_was_written(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..=255u8), 1..5),
        batch in 1..9u64,
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let whole = write(dir.path(), 40, batch);
        let paths = segments(dir.path());
        for (which, at, with) in damage {
            let path = which.get(&paths);
            let mut bytes = fs::read(path).expect("a file");
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            fs::write(path, bytes).expect("a file");
        }
        is_part(&found(dir.path()), &whole);
    }
}
