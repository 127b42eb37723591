//! Azure Blob Storage, as Azurite plays it.

use std::path::Path;

use outrigger_collect::{CollectionSettings, Format, Full, Kept, Sync, Target};
use outrigger_store::{Environment, Location};
use outrigger_testkit::faults::{Fault, On, Proxy};
use outrigger_testkit::storage::Azurite;

use crate::support::{LONG, balance, ids, objects, open, record, settings, text, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_come_to_azure_once_and_are_deleted_there() {
    let Some(azurite) = Azurite::found() else { return };
    azurite.create_container("collected");
    let proxy = Proxy::start(azurite.address());
    let environment: Environment = azurite.environment_at(proxy.address()).into_iter().collect();
    let location = Location::open("az://collected/data", Path::new("/"), &environment).expect("a location");
    let dir = tempfile::tempdir().expect("a folder");
    let block =
        CollectionSettings { full: Full::Block(LONG), sync: Sync::Always, ..CollectionSettings::default() };
    let mut settings = settings(dir.path(), block.clone());
    settings.collections.insert("columns".into(), CollectionSettings { format: Format::Parquet, ..block });
    let collections = open(settings, Target::from(&location)).await;
    let offer = async |range: std::ops::Range<usize>| {
        for id in range {
            for name in ["c", "columns"] {
                let mut record = record(id, text(if id % 50 == 0 { 40_000 } else { 400 }));
                record.correlation_id = Some(if id % 2 == 0 { "ann" } else { "bob" }.into());
                let collection = collections.collection(name).expect("it is there");
                assert_eq!(collection.offer(record).kept().await, Kept::Logged);
            }
        }
    };
    offer(0..150).await;
    assert!(collections.flush(LONG).await);
    // It does what it is asked, and the answers are lost.
    proxy.inject(On::method("PUT").always(), Fault::Hangup);
    offer(150..200).await;
    until("it tries", || collections.status().iter().any(|status| status.upload_failures > 0)).await;
    proxy.forget();
    assert!(collections.flush(LONG).await);
    let there = ids(&objects(&**location.store()).await);
    let once: std::collections::BTreeSet<_> = there.iter().collect();
    assert_eq!((there.len(), once.len()), (200, 200));
    collections.delete("ann").await.expect("it is there");
    let left = objects(&**location.store()).await;
    assert!(ids(&left).iter().all(|id| id.parse::<usize>().is_ok_and(|id| id % 2 == 1)));
    assert_eq!(ids(&left).len(), 100);
    // All that were objects of their own were those of even numbers.
    assert!(
        left.keys().all(|name| name.ends_with(".jsonl") || name.ends_with(".parquet")),
        "{:?}",
        left.keys()
    );
    for status in collections.status() {
        balance(&status.counts);
        assert_eq!((status.counts.persisted, status.counts.pending), (200, 0), "{status:?}");
    }
    assert_eq!(collections.stop(LONG).await.pending, 0);
}
