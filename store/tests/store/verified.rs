//! What is said of how long digests take.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_store::registry::Push;
use outrigger_store::{Cache, Fetcher, ManifestFile, Watch};
use outrigger_testkit::faults::{Fault, On};

use crate::place::{Place, bytes, make_way, options, push};

const SIZE: usize = 1_000_000;

/// What was hashed of each file, and how often that was said.
#[derive(Default)]
struct Verified(Mutex<BTreeMap<String, (usize, u64, Duration)>>);

/// The same of a file that is removed from the cache as soon as it is there, the first time.
struct Removed(Verified, Cache);

impl Watch for Removed {
    fn verified(&self, file: &ManifestFile, bytes: u64, took: Duration) {
        self.0.verified(file, bytes, took);
    }

    fn ended(&self, file: &ManifestFile) {
        make_way(&self.1, &file.sha256);
    }
}

impl Verified {
    fn of(self) -> BTreeMap<String, (usize, u64, Duration)> {
        self.0.into_inner().expect("nobody panics")
    }
}

impl Watch for Verified {
    fn verified(&self, file: &ManifestFile, bytes: u64, took: Duration) {
        let mut said = self.0.lock().expect("nobody panics");
        let said = said.entry(file.path.to_string()).or_default();
        *said = (said.0 + 1, said.1 + bytes, said.2 + took);
    }
}

#[tokio::test]
async fn each_file_that_comes_is_said_to_be_verified_once() {
    for place in Place::all() {
        let large = bytes(SIZE, 1);
        let files: [(&str, &[u8]); 4] =
            [("a.onnx", &large), ("same.onnx", &large), ("small", b"one"), ("empty", b"")];
        let manifest = place.push("digits", &place.write("digits", &files)).await.expect("pushed");
        let (fetcher, folder) =
            (Fetcher::new(place.cache("cache"), options()), place.registry.folder(manifest.id()));
        let first = Verified::default();
        fetcher.model(&folder, &manifest, &first).await.expect("it is fetched");
        let first = first.of();
        let said: Vec<_> =
            first.iter().map(|(path, (times, bytes, _))| (path.as_str(), *times, *bytes)).collect();
        assert_eq!(said, [("digits/a.onnx", 1, SIZE as u64), ("digits/empty", 1, 0), ("digits/small", 1, 3)]);
        assert!(first["digits/a.onnx"].2 > Duration::ZERO, "1 MB in no time");
        let again = Verified::default();
        fetcher.model(&folder, &manifest, &again).await.expect("it is here");
        assert!(again.of().is_empty(), "nothing was hashed");
    }
}

#[tokio::test]
async fn what_came_wrong_and_was_hashed_counts_too() {
    let Some(place) = Place::azure() else { return };
    let file = place.write("digits", &[("model.onnx", &bytes(SIZE, 2))]).join("model.onnx");
    let manifest = place.push("digits", &file).await.expect("pushed");
    place.proxy().inject(On::get().range("bytes=65536-"), Fault::Corrupt { at: 1000 });
    let (fetcher, folder) =
        (Fetcher::new(place.cache("cache"), options()), place.registry.folder(manifest.id()));
    let said = Verified::default();
    fetcher.model(&folder, &manifest, &said).await.expect("it is fetched");
    let (times, bytes, _) = said.of()["model.onnx"];
    assert_eq!((times, bytes), (1, 2 * SIZE as u64));
    let never = Verified::default();
    place.proxy().inject(On::get().range("bytes=65536-").always(), Fault::Corrupt { at: 1000 });
    let fetcher = Fetcher::new(place.cache("other"), options());
    fetcher.model(&folder, &manifest, &never).await.expect_err("it stays wrong");
    assert!(never.of().is_empty());
}

#[tokio::test]
async fn a_file_that_made_way_and_comes_again_is_counted_once() {
    let place = Place::folder();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    tar.append_data(&mut header, "a.bin", &b"one"[..]).expect("added");
    let folder = place.write("digits", &[("all.tar", &tar.into_inner().expect("an archive"))]);
    let unpack = Push { unpack: true, ..push("digits", &folder.join("all.tar")) };
    let manifest = place.registry.push(unpack, Arc::new(())).await.expect("pushed");
    let fetcher = Fetcher::new(place.cache("cache"), options());
    let removed = Removed(Verified::default(), fetcher.cache().clone());
    let set = fetcher.model(&place.registry.folder(manifest.id()), &manifest, &removed).await;
    assert_eq!(set.expect("it is unpacked").files()[0].path.as_str(), "a.bin");
    fetcher.cache().path(&manifest.files()[0].sha256).expect("it came a second time");
    let (times, bytes, _) = removed.0.of()["all.tar"];
    assert_eq!((times, bytes), (1, manifest.size()));
}
