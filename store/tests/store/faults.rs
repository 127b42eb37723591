//! What goes wrong on the way.

use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::Duration;

use outrigger_store::{FetchError, FetchOptions, Fetcher, Manifest, ManifestFile, Watch};
use outrigger_testkit::faults::{Fault, On};

use crate::place::{Place, azurite, bytes, content, options};

const SIZE: usize = 500_000;
const PIECE: u64 = 64 << 10;

/// A place with a model of one file in it.
async fn stored() -> Option<(Place, Manifest)> {
    let place = Place::azure()?;
    let file = place.write("digits", &[("model.onnx", &bytes(SIZE, 5))]).join("model.onnx");
    let manifest = place.push("digits", &file).await.expect("pushed");
    place.proxy().forget();
    Some((place, manifest))
}

/// What is said meanwhile.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Watch for Heard {
    fn again(&self, _: &ManifestFile, why: &str, _: Duration) {
        self.0.lock().expect("nobody panics").push(format!("again: {why}"));
    }

    fn anew(&self, _: &ManifestFile, lost: u64, why: &str) {
        self.0.lock().expect("nobody panics").push(format!("anew: {lost}: {why}"));
    }
}

#[tokio::test]
async fn whatever_happens_to_some_answers_the_file_comes() {
    let get = || On::get().path("model.onnx");
    let faults: [(&str, On, Fault); 8] = [
        ("hangup", get().times(3), Fault::Hangup),
        ("reset", get().times(3), Fault::Reset { after: 10_000 }),
        ("truncated", get().times(3), Fault::Truncate { after: 10_000 }),
        ("busy", get().times(5), Fault::Status { status: 503, retry_after: None }),
        ("throttled", get().times(2), Fault::Status { status: 429, retry_after: None }),
        ("stalled", get().after(2), Fault::Stall { after: 10_000 }),
        ("slow", get().after(1), Fault::Slow { bytes_per_second: NonZeroU32::new(200_000).expect("not 0") }),
        ("late", get().times(2), Fault::Delay(Duration::from_millis(300))),
    ];
    for (name, on, fault) in faults {
        let Some((place, manifest)) = stored().await else { return };
        place.proxy().inject(on, fault);
        let fetcher = Fetcher::new(place.cache("cache"), options());
        let set = place.fetch(&manifest, &fetcher).await;
        assert_eq!(content(fetcher.cache(), &set, "model.onnx"), bytes(SIZE, 5), "{name}");
        assert!(place.proxy().counts(&On::any()).faulty > 0, "{name}");
    }
}

#[tokio::test]
async fn wrong_bytes_are_caught_and_fetched_anew() {
    let Some((place, manifest)) = stored().await else { return };
    place.proxy().inject(On::get().range("bytes=65536-"), Fault::Corrupt { at: 1000 });
    let (fetcher, heard) = (Fetcher::new(place.cache("cache"), options()), Heard::default());
    let folder = place.registry.folder(manifest.id());
    let set = fetcher.model(&folder, &manifest, &heard).await.expect("it is fetched");
    assert_eq!(content(fetcher.cache(), &set, "model.onnx"), bytes(SIZE, 5));
    let heard = heard.0.into_inner().expect("nobody panics");
    assert!(
        matches!(&heard[..], [one] if one.starts_with("anew: 500000: ") && one.contains("has the SHA-256")),
        "{heard:?}"
    );
}

#[tokio::test]
async fn bytes_that_stay_wrong_never_get_a_name() {
    let Some((place, manifest)) = stored().await else { return };
    place.proxy().inject(On::get().range("bytes=65536-").always(), Fault::Corrupt { at: 1000 });
    let fetcher = Fetcher::new(place.cache("cache"), options());
    let error = place.try_fetch(&manifest, &fetcher).await.expect_err("wrong");
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    assert!(fetcher.cache().blobs().expect("blobs").is_empty());
    place.proxy().forget();
    let set = place.fetch(&manifest, &fetcher).await;
    assert_eq!(content(fetcher.cache(), &set, "model.onnx"), bytes(SIZE, 5), "nothing of it was kept");
}

#[tokio::test]
async fn a_file_that_is_replaced_meanwhile_is_noticed() {
    let Some((place, manifest)) = stored().await else { return };
    let (azurite, bucket) = (azurite().expect("it is there"), place.bucket.clone());
    let put = move |seed| azurite.put_blob(&bucket, "models/digits/1/model.onnx", &bytes(SIZE, seed));
    // Another file of the same size, and the right one again when it begins anew.
    let other = put.clone();
    place.proxy().before(On::get().path("model.onnx").after(2), move |_| other(6));
    place.proxy().before(On::get().range("bytes=0-").after(1), move |_| put(5));
    let (fetcher, heard) = (Fetcher::new(place.cache("cache"), options()), Heard::default());
    let folder = place.registry.folder(manifest.id());
    let set = fetcher.model(&folder, &manifest, &heard).await.expect("it is fetched");
    assert_eq!(content(fetcher.cache(), &set, "model.onnx"), bytes(SIZE, 5));
    let heard = heard.0.into_inner().expect("nobody panics");
    assert!(
        heard.iter().any(|said| said.starts_with("anew: ") && said.contains("was changed while it was read")),
        "{heard:?}"
    );
}

#[tokio::test]
async fn what_has_come_is_not_asked_for_again() {
    let Some((place, manifest)) = stored().await else { return };
    let one = FetchOptions { connections: 1, attempts: 1, ..options() };
    // The client of the storage has attempts of its own.
    place
        .proxy()
        .inject(On::get().range("bytes=262144-").always(), Fault::Status { status: 503, retry_after: None });
    let fetcher = Fetcher::new(place.cache("cache"), one);
    let error = place.try_fetch(&manifest, &fetcher).await.expect_err("the storage is busy");
    assert!(matches!(error, FetchError::Storage { .. }), "{error}");
    assert_eq!(place.proxy().counts(&On::get()).sent, 4 * PIECE);
    place.proxy().forget();
    let set = place.fetch(&manifest, &Fetcher::new(place.cache("cache"), options())).await;
    assert_eq!(content(fetcher.cache(), &set, "model.onnx"), bytes(SIZE, 5));
    assert_eq!(place.proxy().counts(&On::get()).sent, SIZE as u64 - 4 * PIECE);
}

#[tokio::test]
async fn what_has_come_is_gone_on_with_in_a_cache_that_is_full() {
    let Some((place, manifest)) = stored().await else { return };
    let cache = || {
        outrigger_store::Cache::open(place.folder.path().join("full"), Some(SIZE as u64)).expect("a cache")
    };
    place
        .proxy()
        .inject(On::get().range("bytes=262144-").always(), Fault::Status { status: 503, retry_after: None });
    let one = FetchOptions { connections: 1, attempts: 1, ..options() };
    place.try_fetch(&manifest, &Fetcher::new(cache(), one)).await.expect_err("the storage is busy");
    place.proxy().forget();
    let fetcher = Fetcher::new(cache(), options());
    let set = place.fetch(&manifest, &fetcher).await;
    assert_eq!(content(fetcher.cache(), &set, "model.onnx"), bytes(SIZE, 5));
    assert_eq!(place.proxy().counts(&On::get()).sent, SIZE as u64 - 4 * PIECE);
}

#[tokio::test]
async fn a_storage_that_refuses_is_not_asked_again() {
    let Some((place, manifest)) = stored().await else { return };
    place.proxy().inject(On::get().always(), Fault::Status { status: 403, retry_after: None });
    let fetcher = Fetcher::new(place.cache("cache"), FetchOptions { connections: 1, ..options() });
    let error = place.try_fetch(&manifest, &fetcher).await.expect_err("refused");
    assert!(matches!(error, FetchError::Denied { .. }), "{error}");
    assert_eq!(place.proxy().counts(&On::get()).requests, 1);
}

#[tokio::test]
async fn a_storage_that_is_not_there_is_an_error_in_bounded_time() {
    let Some((place, manifest)) = stored().await else { return };
    place.proxy().inject(On::get().always(), Fault::Hangup);
    let fetcher = Fetcher::new(place.cache("cache"), FetchOptions { attempts: 2, ..options() });
    let error = place.try_fetch(&manifest, &fetcher).await.expect_err("nothing comes");
    assert!(error.may_pass(), "{error}");
    assert!(error.to_string().contains("model.onnx`: Generic"), "{error}");
}

#[tokio::test]
async fn of_many_files_some_pieces_come_by_one_request() {
    let Some(place) = Place::azure() else { return };
    let files: Vec<_> = (0..6).map(|seed| (format!("{seed}.bin"), bytes(SIZE, seed))).collect();
    let list: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let manifest = place.push("digits", &place.write("digits", &list)).await.expect("pushed");
    place.proxy().forget();
    place.proxy().inject(On::get().path("3.bin").times(2), Fault::Truncate { after: 100_000 });
    let fetcher = Fetcher::new(place.cache("cache"), FetchOptions { connections: 2, ..options() });
    let set = place.fetch(&manifest, &fetcher).await;
    for (path, expected) in &files {
        assert_eq!(&content(fetcher.cache(), &set, &format!("digits/{path}")), expected, "{path}");
    }
    let counts = place.proxy().counts(&On::get().path(".bin"));
    let pieces = (SIZE as u64).div_ceil(PIECE) * 6;
    assert!(counts.faulty > 0 && (counts.requests as u64) < pieces, "{counts:?}");
}
