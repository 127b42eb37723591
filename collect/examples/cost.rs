//! What collection costs: `cargo run -p outrigger-collect --example cost -- FOLDER [events|csv|parquet] [RECORDS]`.
//!
//! Offers records of 1 kB from one thread, with the log and a folder as blob storage in FOLDER, and prints the CPU time of a record: of the thread that
//! offers it, and of all that happens until it is in blob.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::local::LocalFileSystem;
use outrigger_collect::{
    CollectionSettings, Collections, Designation, Format, Record, Settings, Table, Target,
};
use rustix::time::{ClockId, clock_gettime};

fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().expect("a folder"));
    let format = match arguments.next().as_deref() {
        Some("csv") => Format::Csv,
        Some("parquet") => Format::Parquet,
        _ => Format::Events,
    };
    let records: u32 = arguments.next().map_or(100_000, |records| records.parse().expect("a number"));
    let collection = CollectionSettings { format, ..CollectionSettings::default() };
    let settings = Settings {
        spool: dir.join("spool"),
        collections: [("request".to_owned(), collection)].into(),
        ring_items: 1 << 16,
        ..Settings::default()
    };
    std::fs::create_dir_all(dir.join("blob")).expect("a folder");
    let store = LocalFileSystem::new_with_prefix(dir.join("blob")).expect("a folder");
    let target = Target::new(Arc::new(store), object_store::path::Path::from(""), "file:///blob");
    let collections = Collections::open(settings, target).await.expect("it opens");
    let collection = Arc::clone(collections.collection("request").expect("it is there"));
    let values = vec!["0.123456789"; 84].join(",");
    let data = bytes::Bytes::from(match format {
        Format::Csv => format!("[[{values}]]"),
        Format::Events | Format::Parquet => format!("{{\"data\":[[{values}]]}}"),
    });
    let columns: Vec<Arc<str>> = (0..84).map(|number| format!("feature {number}").into()).collect();
    let before = cpu(ClockId::ProcessCPUTime);
    let offering = tokio::task::spawn_blocking(move || {
        let before = cpu(ClockId::ThreadCPUTime);
        let mut made = Duration::ZERO;
        for number in 0..records {
            let start = cpu(ClockId::ThreadCPUTime);
            let mut record = Record::new(format!("request-{number}"), SystemTime::now(), data.clone());
            record.content_type = Some("application/json".into());
            record.method = Some("POST".into());
            record.path = Some("/score".into());
            record.table = (format == Format::Csv).then(|| Table {
                designation: Designation::Inputs,
                columns: columns.clone(),
                correlated: true,
                workspace: None,
                service: None,
                name: None,
            });
            made += cpu(ClockId::ThreadCPUTime) - start;
            drop(collection.offer(record));
            if number % 64 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        (cpu(ClockId::ThreadCPUTime) - before, made)
    });
    let (offered, made) = offering.await.expect("it does not panic");
    assert!(collections.flush(Duration::from_secs(600)).await, "it takes longer than ten minutes");
    let all = cpu(ClockId::ProcessCPUTime) - before;
    let status = collections.status();
    collections.stop(Duration::from_secs(60)).await;
    println!(
        "{records} records of {} bytes: {:?} to make one and {:?} to offer it, {:?} in all; {:?}",
        1000,
        made / records,
        (offered - made) / records,
        all / records,
        status[0].counts
    );
}
