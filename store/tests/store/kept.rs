//! Manifests that are kept, and when they are asked for all the same.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStoreExt as _;
use outrigger_store::registry::{Push, Tagged};
use outrigger_store::signature::{SigningKey, TrustedKey};
use outrigger_store::{Cache, FetchError, Location, Manifest};
use outrigger_testkit::faults::{Fault, On};

use crate::place::{Place, bytes, push};

// RFC 8032, section 7.1, test 2, and the public key of test 1, in PEM.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";
const STRANGER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

/// Storage that is asked by requests, each with a model in two versions, signed.
async fn places() -> Vec<(Place, TrustedKey)> {
    let key = || SigningKey::from_pem(PRIVATE).expect("a key");
    let mut places = Vec::new();
    for place in [Place::azure(), Place::s3()].into_iter().flatten() {
        let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
        for _ in 0..2 {
            let signed = Push { key: Some(key()), ..push("digits", &file) };
            place.registry.push(signed, Arc::new(())).await.expect("pushed");
        }
        places.push((place, key().public()));
    }
    places
}

/// A replica's start: one listing, and the manifests of all that it shows.
async fn start(place: &Place, cache: &Cache, trusted: &[TrustedKey]) -> Result<Vec<Manifest>, FetchError> {
    let listed = place.registry.list_tagged().await?;
    let mut manifests = Vec::new();
    for Tagged { listed, tags } in &listed {
        manifests.push(place.registry.manifest_of(&listed.id, tags, trusted, cache).await?);
    }
    Ok(manifests)
}

/// How many manifests and signatures have been asked for.
fn asked(place: &Place) -> (usize, usize) {
    let all = place.proxy().counts(&On::get().path("outrigger-manifest.json")).requests;
    let signatures = place.proxy().counts(&On::get().path("outrigger-manifest.json.sig")).requests;
    place.proxy().forget();
    (all - signatures, signatures)
}

fn kept(cache: &Cache) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache.root().join("manifests")).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

async fn put(at: &Location, text: String) {
    at.store().put(at.at(), text.into()).await.expect("written");
}

async fn text(at: &Location) -> String {
    let bytes = at.store().get(at.at()).await.expect("there").bytes().await.expect("read");
    String::from_utf8(bytes.to_vec()).expect("a text")
}

#[tokio::test]
async fn what_a_listing_shows_unchanged_is_not_asked_for_again() {
    for (place, key) in places().await {
        for (name, trusted, first) in
            [("plain", &[][..], (2, 0)), ("signed", std::slice::from_ref(&key), (2, 2))]
        {
            place.proxy().forget();
            let manifests = start(&place, &place.cache(name), trusted).await.expect("manifests");
            assert_eq!(asked(&place), first, "{name}");
            // As another process would: nothing is shared but the folder.
            let again = start(&place, &place.cache(name), trusted).await.expect("manifests");
            let listings = place.proxy().counts(&On::any()).requests;
            assert_eq!((asked(&place), listings), ((0, 0), 1), "{name}");
            assert_eq!(again, manifests);
            assert_eq!(again[1].id().to_string(), "digits:2");
        }
        // Who asks for signatures, for the first time, in a cache without.
        start(&place, &place.cache("plain"), std::slice::from_ref(&key)).await.expect("manifests");
        assert_eq!(asked(&place), (2, 2));
        start(&place, &place.cache("plain"), &[key]).await.expect("manifests");
        assert_eq!(asked(&place), (0, 0));
    }
}

#[tokio::test]
async fn what_has_changed_is_asked_for_again() {
    for (place, key) in places().await {
        let (cache, trusted) = (place.cache("cache"), [key]);
        start(&place, &cache, &[]).await.expect("manifests");
        // Another text of the same size, as nobody should write it.
        let at = place.registry.folder(&"digits:2".parse().expect("an id")).below("outrigger-manifest.json");
        let written = text(&at).await;
        put(&at, written.replace("model.onnx", "MODEL.onnx")).await;
        asked(&place);
        let manifests = start(&place, &cache, &[]).await.expect("manifests");
        assert_eq!(asked(&place), (1, 0), "the one that has changed");
        assert_eq!(manifests[1].files()[0].path.as_str(), "MODEL.onnx");
        start(&place, &cache, &trusted).await.expect_err("its signature is no longer its");
        put(&at, written).await;
        start(&place, &cache, &trusted).await.expect("manifests");
        asked(&place);
        start(&place, &cache, &trusted).await.expect("manifests");
        assert_eq!(asked(&place), (0, 0));
    }
}

#[tokio::test]
async fn what_is_kept_and_torn_or_gone_is_asked_for_again() {
    for (place, key) in places().await {
        let (cache, trusted) = (place.cache("cache"), [key]);
        let manifests = start(&place, &cache, &trusted).await.expect("manifests");
        let damages: [fn(&PathBuf); 4] = [
            |path| {
                fs::write(path, fs::read(path).expect("there").split_last().expect("some").1).expect("ours")
            },
            |path| {
                let mut bytes = fs::read(path).expect("there");
                *bytes.last_mut().expect("some") ^= 1;
                fs::write(path, bytes).expect("ours");
            },
            |path| fs::write(path, b"").expect("ours"),
            |path| fs::remove_file(path).expect("ours"),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let files = kept(&cache);
            assert_eq!(files.len(), 4);
            for path in files {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
                damage(&path);
            }
            asked(&place);
            assert_eq!(start(&place, &cache, &trusted).await.expect("manifests"), manifests, "{number}");
            assert_eq!(asked(&place), (2, 2), "{number}");
            assert_eq!(start(&place, &cache, &trusted).await.expect("manifests"), manifests, "{number}");
            assert_eq!(asked(&place), (0, 0), "{number}");
        }
    }
}

#[tokio::test]
async fn a_kept_signature_counts_for_no_more_than_one_that_comes() {
    for (place, key) in places().await {
        let (cache, stranger) = (place.cache("cache"), TrustedKey::from_pem(STRANGER).expect("a key"));
        start(&place, &cache, std::slice::from_ref(&key)).await.expect("manifests");
        // Whoever was trusted then is not any more.
        let error = start(&place, &cache, std::slice::from_ref(&stranger)).await.expect_err("a stranger's");
        assert!(matches!(error, FetchError::Signature { .. }), "{error}");
        start(&place, &cache, &[stranger, key.clone()]).await.expect("one of them");
        // Of a manifest that is not signed, and of which nothing can be asked now.
        let file = place.write("faces", &[("model.onnx", b"weights")]).join("model.onnx");
        place.push("faces", &file).await.expect("pushed");
        start(&place, &cache, &[]).await.expect("manifests");
        place
            .proxy()
            .inject(On::get().path(".json").always(), Fault::Status { status: 403, retry_after: None });
        assert_eq!(start(&place, &cache, &[]).await.expect("all of it is kept").len(), 3);
        let error = start(&place, &cache, &[key]).await.expect_err("nobody has signed it");
        assert!(matches!(error, FetchError::Denied { .. }), "{error}");
    }
}

#[tokio::test]
async fn what_breaks_a_rule_is_not_kept() {
    for (place, _) in places().await {
        let cache = place.cache("cache");
        // A byte that is another on the way: what is in the storage is right.
        place.proxy().inject(On::get().path("2/outrigger-manifest.json"), Fault::Corrupt { at: 0 });
        let error = start(&place, &cache, &[]).await.expect_err("no manifest");
        assert!(matches!(error, FetchError::Manifest { .. }), "{error}");
        assert_eq!(kept(&cache).len(), 1, "the other one");
        asked(&place);
        start(&place, &cache, &[]).await.expect("manifests");
        assert_eq!(asked(&place), (1, 0));
    }
}

#[tokio::test]
async fn without_a_state_of_use_it_is_asked_for_and_not_kept() {
    for place in Place::all() {
        let file = place.write("digits", &[("model.onnx", &bytes(1000, 1))]).join("model.onnx");
        let manifest = place.push("digits", &file).await.expect("pushed");
        let cache = place.cache("cache");
        for _ in 0..2 {
            let tags = Default::default();
            let found = place.registry.manifest_of(manifest.id(), &tags, &[], &cache).await;
            assert_eq!(found.expect("a manifest"), manifest);
        }
        assert!(kept(&cache).is_empty());
        if place.proxy.is_some() {
            assert_eq!(asked(&place).0, 2);
        }
        assert_eq!(start(&place, &cache, &[]).await.expect("manifests"), std::slice::from_ref(&manifest));
        assert_eq!(
            kept(&cache).len(),
            usize::from(place.proxy.is_some()),
            "a folder's are read where they are"
        );
        let [Tagged { listed, .. }] = &place.registry.list_tagged().await.expect("a list")[..] else {
            panic!("not one")
        };
        assert_eq!(place.registry.list().await.expect("a list"), std::slice::from_ref(listed));
    }
}

#[tokio::test]
async fn a_cache_that_keeps_nothing_is_nobodys_failure() {
    for (place, _) in places().await {
        let cache = place.cache("cache");
        fs::remove_dir(cache.root().join("manifests")).expect("it is empty");
        for _ in 0..2 {
            asked(&place);
            start(&place, &cache, &[]).await.expect("manifests");
            assert_eq!(asked(&place), (2, 0));
        }
        let small = Cache::open(place.folder.path().join("small"), Some(1000)).expect("a cache");
        start(&place, &small, &[]).await.expect("manifests");
        assert!(kept(&small).is_empty(), "a part of so little is nothing");
    }
}
