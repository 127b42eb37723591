//! Files into the cache.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use outrigger_store::cache::{Begun, RoomError};
use outrigger_store::registry::Push;
use outrigger_store::tree::{TreeModel, TreeRoot};
use outrigger_store::{
    Cache, Digest, Environment, FetchError, FetchOptions, Fetcher, FilePath, Location, Manifest,
    ManifestFile, Watch,
};
use outrigger_testkit::faults::On;

use crate::place::{Place, bytes, content, make_way, options, push};

/// A gzipped tar.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o4755);
        tar.append_data(&mut header, path, *bytes).expect("added");
    }
    tar.into_inner().and_then(|gzip| gzip.finish()).expect("an archive")
}

/// Counts what is said, and removes a file from the cache each time that one has come, as often as it is to.
struct Thief {
    cache: Cache,
    digest: Digest,
    times: AtomicUsize,
    here: AtomicU64,
    ended: AtomicUsize,
}

impl Thief {
    fn new(cache: &Cache, digest: Digest, times: usize) -> Self {
        let times = AtomicUsize::new(times);
        Self { cache: cache.clone(), digest, times, here: AtomicU64::new(0), ended: AtomicUsize::new(0) }
    }
}

impl Watch for Thief {
    fn begun(&self, _: &ManifestFile, here: u64) {
        self.here.fetch_add(here, Ordering::Relaxed);
    }

    fn came(&self, _: &ManifestFile, bytes: u64) {
        self.here.fetch_add(bytes, Ordering::Relaxed);
    }

    fn anew(&self, _: &ManifestFile, lost: u64, _: &str) {
        self.here.fetch_sub(lost, Ordering::Relaxed);
    }

    fn ended(&self, file: &ManifestFile) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        let less = |times: usize| times.checked_sub(1);
        if file.sha256 == self.digest
            && self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        {
            make_way(&self.cache, &self.digest);
        }
    }
}

#[tokio::test]
async fn a_model_comes_whole_and_once() {
    for place in Place::all() {
        let large = bytes(1_000_000, 1);
        let files: [(&str, &[u8]); 4] =
            [("model.onnx", &large), ("same.onnx", &large), ("labels.txt", b"one\n"), ("empty", b"")];
        let folder = place.write("digits", &files);
        let manifest = place.push("digits", &folder).await.expect("pushed");
        let fetcher = Fetcher::new(place.cache("cache"), options());
        let set = place.fetch(&manifest, &fetcher).await;
        for (path, expected) in files {
            assert_eq!(content(fetcher.cache(), &set, &format!("digits/{path}")), expected, "{path}");
        }
        if let Some(proxy) = &place.proxy {
            let got = proxy.counts(&On::get().path("model.onnx"));
            assert_eq!((got.requests, got.sent), (1_000_000_usize.div_ceil(64 << 10), 1_000_000));
            assert_eq!(proxy.counts(&On::get().path("same.onnx")).requests, 0, "equal files come once");
            proxy.forget();
        }
        let again = Fetcher::new(place.cache("cache"), options());
        assert_eq!(place.fetch(&manifest, &again).await, set);
        if let Some(proxy) = &place.proxy {
            assert_eq!(proxy.counts(&On::any()).requests, 0, "all of it is here");
        }
        let root = TreeRoot::open(&place.folder.path().join("app")).expect("a root");
        let tree =
            root.build(fetcher.cache(), &[TreeModel { id: manifest.id(), files: &set }]).expect("a tree");
        assert_eq!(fs::read(tree.model_dir.join("digits/model.onnx")).expect("there"), large);
        assert_eq!(tree.linked, 4);
    }
}

#[tokio::test]
async fn many_who_want_the_same_fetch_it_once() {
    let Some(place) = Place::azure() else { return };
    let file = place.write("digits", &[("model.onnx", &bytes(600_000, 3))]).join("model.onnx");
    let manifest = place.push("digits", &file).await.expect("pushed");
    // As processes of their own would: nothing is shared but the folder.
    let fetchers: Vec<_> = (0..6).map(|_| Fetcher::new(place.cache("cache"), options())).collect();
    let sets =
        futures_util::future::join_all(fetchers.iter().map(|fetcher| place.fetch(&manifest, fetcher))).await;
    assert!(sets.iter().all(|set| *set == sets[0]));
    assert_eq!(place.proxy().counts(&On::get().path("model.onnx")).sent, 600_000);
}

#[tokio::test]
async fn archives_are_unpacked_once_and_where_they_lie() {
    for place in Place::all() {
        let tar = tar(&[("weights/a.bin", b"first"), ("weights/b.bin", b"second")]);
        let folder = place.write("digits", &[("more/all.tar.gz", &tar), ("model.onnx", b"weights")]);
        let unpack = Push { unpack: true, ..push("digits", &folder) };
        let manifest = place.registry.push(unpack, Arc::new(())).await.expect("pushed");
        let fetcher = Fetcher::new(place.cache("cache"), options());
        let set = place.fetch(&manifest, &fetcher).await;
        let paths: Vec<_> = set.files().iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["digits/model.onnx", "digits/more/weights/a.bin", "digits/more/weights/b.bin"]);
        assert_eq!(content(fetcher.cache(), &set, "digits/more/weights/b.bin"), b"second");
        // The archive may make way; what was in it is enough.
        let archive = manifest.files().iter().find(|file| file.unpack).expect("there").sha256;
        make_way(fetcher.cache(), &archive);
        if let Some(proxy) = &place.proxy {
            proxy.forget();
        }
        assert_eq!(place.fetch(&manifest, &fetcher).await, set);
        if let Some(proxy) = &place.proxy {
            assert_eq!(proxy.counts(&On::any()).requests, 0);
        }
    }
}

#[tokio::test]
async fn an_archive_that_would_write_elsewhere_is_refused_by_name() {
    let place = Place::folder();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let plain = zip::write::SimpleFileOptions::default();
    zip.start_file("../../escape", plain).expect("begun");
    zip.write_all(b"out").expect("written");
    let zip = zip.finish().expect("an archive").into_inner();
    let folder = place.write("digits", &[("all.zip", &zip)]);
    let manifest = place
        .registry
        .push(Push { unpack: true, ..push("digits", &folder) }, Arc::new(()))
        .await
        .expect("pushed");
    let fetcher = Fetcher::new(place.cache("cache"), options());
    let error = place.try_fetch(&manifest, &fetcher).await.expect_err("refused").to_string();
    assert!(error.contains("digits/all.zip` cannot be unpacked: member `../../escape`"), "{error}");
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_before_anything_comes() {
    let Some(place) = Place::azure() else { return };
    let file = place.write("digits", &[("model.onnx", &bytes(300_000, 4))]).join("model.onnx");
    let manifest = place.push("digits", &file).await.expect("pushed");
    place.proxy().forget();
    let cache = Cache::open(place.folder.path().join("cache"), Some(200_000)).expect("a cache");
    let error = place.try_fetch(&manifest, &Fetcher::new(cache, options())).await.expect_err("too large");
    assert!(error.to_string().contains("cannot take 300000 bytes more: 0 of the 200000"), "{error}");
    assert_eq!(place.proxy().counts(&On::any()).requests, 0);
}

#[tokio::test]
async fn what_was_not_used_for_longest_makes_way_for_the_next() {
    let place = Place::folder();
    let cache = Cache::open(place.folder.path().join("cache"), Some(250_000)).expect("a cache");
    let fetcher = Fetcher::new(cache, FetchOptions { piece: 1 << 20, ..options() });
    for (seed, name) in ["one", "two", "three"].into_iter().enumerate() {
        let file = place.write(name, &[("model.onnx", &bytes(100_000, seed as u64 + 10))]).join("model.onnx");
        let manifest = place.push(name, &file).await.expect("pushed");
        place.fetch(&manifest, &fetcher).await;
    }
    let usage = fetcher.cache().usage().expect("usage");
    assert_eq!((usage.files, usage.bytes), (2, 200_000));
    // The first is there again when it is wanted again.
    let manifest = place.registry.manifest(&"one:1".parse().expect("an id"), &[]).await.expect("a manifest");
    let set = place.fetch(&manifest, &fetcher).await;
    assert_eq!(content(fetcher.cache(), &set, "model.onnx"), bytes(100_000, 10));
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    for place in Place::all() {
        let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
        let manifest = place.push("digits", &file).await.expect("pushed");
        let at = place.registry.folder(manifest.id()).below("model.onnx");
        object_store::ObjectStoreExt::delete(at.store().as_ref(), at.at()).await.expect("removed");
        let fetcher = Fetcher::new(place.cache("cache"), options());
        let error = place.try_fetch(&manifest, &fetcher).await.expect_err("gone");
        assert_eq!(error.to_string(), format!("`{at}` is not there"));
        assert!(!error.may_pass());
        let other = place.write("digits", &[("model.onnx", b"more weights")]).join("model.onnx");
        object_store::ObjectStoreExt::put(
            at.store().as_ref(),
            at.at(),
            fs::read(other).expect("ours").into(),
        )
        .await
        .expect("written");
        let error = place.try_fetch(&manifest, &fetcher).await.expect_err("another size");
        assert!(matches!(error, FetchError::Size { found: 12, wanted: 7, .. }), "{error}");
    }
}

#[tokio::test]
async fn an_empty_file_that_is_not_there_is_named_too() {
    for place in Place::all() {
        let folder = place.write("digits", &[("model.onnx", b"weights"), ("empty", b"")]);
        let manifest = place.push("digits", &folder).await.expect("pushed");
        let at = place.registry.folder(manifest.id()).below("digits/empty");
        object_store::ObjectStoreExt::delete(at.store().as_ref(), at.at()).await.expect("removed");
        let fetcher = Fetcher::new(place.cache("cache"), options());
        let error = place.try_fetch(&manifest, &fetcher).await.expect_err("gone");
        assert_eq!(error.to_string(), format!("`{at}` is not there"));
    }
}

#[tokio::test]
async fn who_states_another_size_for_the_same_bytes_is_refused_and_takes_nothing_away() {
    let place = Place::folder();
    let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
    let right = place.push("digits", &file).await.expect("pushed");
    let fetcher = Fetcher::new(place.cache("cache"), options());
    place.fetch(&right, &fetcher).await;
    let wrong = ManifestFile { size: 8, ..right.files()[0].clone() };
    let wrong = Manifest::new("faces:1".parse().expect("an id"), String::new(), BTreeMap::new(), vec![wrong])
        .expect("a manifest");
    let folder = place.registry.folder(right.id());
    let both = [(folder.clone(), right.clone()), (folder.clone(), wrong.clone())];
    let error = fetcher.models(&both, &()).await.expect_err("two sizes");
    assert!(matches!(error, FetchError::Sizes { size: 8, other: 7, .. }), "{error}");
    let error = fetcher.model(&folder, &wrong, &()).await.expect_err("another size");
    assert!(matches!(error, FetchError::Size { found: 7, wanted: 8, .. }), "{error}");
    assert!(fetcher.cache().has(&right.files()[0].sha256, 7).expect("the cache"));
}

#[tokio::test]
async fn no_connections_are_one() {
    let place = Place::folder();
    let file = place.write("digits", &[("model.onnx", &bytes(300_000, 4))]).join("model.onnx");
    let manifest = place.push("digits", &file).await.expect("pushed");
    let fetcher = Fetcher::new(place.cache("cache"), FetchOptions { connections: 0, ..options() });
    place.fetch(&manifest, &fetcher).await;
    assert_eq!(fetcher.options().connections, 1);
}

#[tokio::test]
async fn all_files_are_counted_once_and_those_that_made_way_come_again() {
    let place = Place::folder();
    let large = bytes(300_000, 20);
    let tar = tar(&[("weights/a.bin", b"first")]);
    let folder = place
        .write("digits", &[("model.onnx", &large), ("same.onnx", &large), ("empty", b""), ("all.tgz", &tar)]);
    let unpack = Push { unpack: true, ..push("digits", &folder) };
    let manifest = place.registry.push(unpack, Arc::new(())).await.expect("pushed");
    let models = [(place.registry.folder(manifest.id()), manifest.clone())];
    for (name, path) in [("model", "digits/model.onnx"), ("archive", "digits/all.tgz")] {
        let fetcher = Fetcher::new(place.cache(name), options());
        let root =
            Arc::new(TreeRoot::open(&place.folder.path().join(format!("{name}-app"))).expect("a root"));
        let file = manifest.files().iter().find(|file| file.path.as_str() == path).expect("it is in it");
        let thief = Thief::new(fetcher.cache(), file.sha256, 1);
        let (tree, sets) = fetcher.lay_out(&root, &models, &[], &thief).await.expect("a tree");
        assert_eq!(fs::read(tree.model_dir.join("digits/model.onnx")).expect("there"), large);
        assert_eq!(fs::read(tree.model_dir.join("digits/weights/a.bin")).expect("there"), b"first");
        assert_eq!(sets[0].files().len(), 4);
        let counted = (thief.here.into_inner(), thief.ended.into_inner());
        assert_eq!(counted, (manifest.size(), 4), "{name}");
    }
}

#[tokio::test]
async fn what_is_in_an_archive_takes_room_as_any_file_does() {
    let place = Place::folder();
    let (first, second) = (bytes(100_000, 30), bytes(100_000, 31));
    let tar = tar(&[("a.bin", &first), ("b.bin", &second)]);
    let folder = place.write("packed", &[("all.tgz", &tar)]);
    let unpack = Push { unpack: true, ..push("packed", &folder) };
    let packed = place.registry.push(unpack, Arc::new(())).await.expect("pushed");
    let file = place.write("plain", &[("model.onnx", &bytes(150_000, 32))]).join("model.onnx");
    let plain = place.push("plain", &file).await.expect("pushed");
    let open = |name: &str, limit| {
        let cache = Cache::open(place.folder.path().join(name), Some(limit)).expect("a cache");
        Fetcher::new(cache, FetchOptions { piece: 1 << 20, ..options() })
    };
    let fetcher = open("enough", 450_000);
    place.fetch(&plain, &fetcher).await;
    place.fetch(&packed, &fetcher).await;
    let cache = fetcher.cache();
    assert!(!cache.has(&plain.files()[0].sha256, 150_000).expect("the cache"), "it has made way");
    assert!(cache.usage().expect("usage").bytes <= 450_000);
    // A record goes with what it is of.
    let records = || fs::read_dir(cache.root().join("unpacked")).expect("a folder").count();
    assert_eq!(records(), 1);
    cache.make_room(450_000).expect("room");
    assert_eq!(records(), 0);
    let fetcher = open("little", 300_000);
    let error = place.try_fetch(&packed, &fetcher).await.expect_err("too large");
    assert!(matches!(error, FetchError::Room(RoomError::Full { limit: 300_000, .. })), "{error}");
    assert!(fetcher.cache().usage().expect("usage").bytes <= 300_000);
}

/// Answers every request with all of a file, as often as it is asked.
fn gives_no_parts(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    // Ends with the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let _ = lines.by_ref().find(String::is_empty);
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", bytes.len());
            // Who has seen enough of it goes away.
            let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&bytes));
        }
    });
    url
}

#[tokio::test]
async fn a_part_that_a_server_without_ranges_cannot_complete_comes_anew() {
    let place = Place::folder();
    let bytes = bytes(300_000, 40);
    let file = ManifestFile {
        path: FilePath::new("model.onnx").expect("a path"),
        size: 300_000,
        sha256: Digest::of(&bytes),
        unpack: false,
    };
    let fetcher = Fetcher::new(place.cache("cache"), options());
    let piece = fetcher.options().piece;
    let begun = fetcher.cache().begin(&file.sha256, file.size, piece).expect("begun");
    let Begun::Ours(partial) = begun else { panic!("{begun:?}") };
    let writer = partial.writer();
    writer.write(0, &bytes[..piece as usize]).expect("written");
    writer.mark(0).expect("marked");
    drop((partial, writer));
    let url = gives_no_parts(bytes);
    let at = Location::open(&url, Path::new("/"), &Environment::default()).expect("a location");
    let thief = Thief::new(fetcher.cache(), Digest::of(b""), 0);
    fetcher.file(&at.file(&file.path), &file, &thief).await.expect("it is fetched");
    assert!(fetcher.cache().has(&file.sha256, file.size).expect("the cache"));
    assert_eq!(thief.here.into_inner(), 300_000);
}
