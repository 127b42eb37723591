//! Manifests by one request, and when they are asked for one by one all the same.

use std::sync::Arc;

use object_store::ObjectStoreExt as _;
use outrigger_store::registry::{INDEX, Indexed, Push, Tagged};
use outrigger_store::signature::{SigningKey, TrustedKey};
use outrigger_store::{Cache, Location, Manifest, ModelId};
use outrigger_testkit::faults::{Fault, On};

use crate::place::{Place, push};

/// As many as make an index worth its request.
const MODELS: usize = 16;
// RFC 8032, section 7.1, test 2, in PEM.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";

fn key() -> SigningKey {
    SigningKey::from_pem(PRIVATE).expect("a key")
}

async fn push_signed(place: &Place, name: &str) -> Manifest {
    let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
    let signed = Push { key: Some(key()), ..push(name, &file) };
    place.registry.push(signed, Arc::new(())).await.expect("pushed")
}

/// Storage that is asked by requests, with models, signed, and without an index.
async fn places() -> Vec<Place> {
    let places: Vec<_> = [Place::azure(), Place::s3()].into_iter().flatten().collect();
    for place in &places {
        for number in 0..MODELS {
            push_signed(place, &format!("model{number:02}")).await;
        }
    }
    places
}

/// A replica's start: one listing, what there is of an index, and the manifests of all. Gives how many were missing after the index, as well.
async fn start(place: &Place, cache: &Cache, trusted: &[TrustedKey]) -> (Vec<Manifest>, usize) {
    let listed = place.registry.list_tagged().await.expect("a list");
    let versions: Vec<_> = listed.into_iter().map(|Tagged { listed, tags }| (listed.id, tags)).collect();
    let missing = place.registry.keep_indexed(&versions, trusted, cache).await;
    let mut manifests = Vec::new();
    for (id, tags) in &versions {
        manifests.push(place.registry.manifest_of(id, tags, trusted, cache).await.expect("a manifest"));
    }
    (manifests, missing)
}

/// How often the index, and how many manifests and signatures were asked for.
fn asked(place: &Place) -> (usize, usize) {
    let of = |path| place.proxy().counts(&On::get().path(path)).requests;
    let asked = (of(INDEX), of("outrigger-manifest.json"));
    place.proxy().forget();
    asked
}

async fn index(place: &Place) -> Indexed {
    let indexed = place.registry.index().await.expect("an index").expect("of use");
    place.proxy().forget();
    indexed
}

fn at(place: &Place) -> Location {
    place.registry.at().below(INDEX)
}

async fn text(at: &Location) -> String {
    let bytes = at.store().get(at.at()).await.expect("there").bytes().await.expect("read");
    String::from_utf8(bytes.to_vec()).expect("a text")
}

async fn put(at: &Location, text: String) {
    at.store().put(at.at(), text.into()).await.expect("written");
}

#[tokio::test]
async fn all_manifests_come_by_one_request() {
    for place in places().await {
        place.proxy().forget();
        let (manifests, missing) = start(&place, &place.cache("without"), &[]).await;
        assert_eq!((asked(&place), missing), ((1, MODELS), MODELS), "there is none");
        let indexed = index(&place).await;
        assert_eq!((indexed.versions, indexed.models, indexed.left_out), (MODELS, MODELS, 0));
        assert_eq!(indexed.bytes, text(&at(&place)).await.len() as u64);
        place.proxy().forget();
        for (name, trusted) in [("plain", Vec::new()), ("signed", vec![key().public()])] {
            assert_eq!(start(&place, &place.cache(name), &trusted).await, (manifests.clone(), 0), "{name}");
            assert_eq!(asked(&place), (1, 0), "{name}");
            start(&place, &place.cache(name), &trusted).await;
            assert_eq!(asked(&place), (0, 0), "{name}: the cache has them");
        }
        // It is no model.
        assert_eq!(place.registry.list().await.expect("a list").len(), MODELS);
    }
}

#[tokio::test]
async fn what_is_not_as_it_was_copied_is_asked_for() {
    for place in places().await {
        index(&place).await;
        let manifest =
            place.registry.folder(&"model07:1".parse().expect("an id")).below("outrigger-manifest.json");
        let changed = text(&manifest).await.replace("model.onnx", "MODEL.onnx");
        put(&manifest, changed).await;
        place.proxy().forget();
        let (manifests, missing) = start(&place, &place.cache("cache"), &[]).await;
        assert_eq!((asked(&place), missing), ((1, 1), 1));
        assert_eq!(manifests[7].files()[0].path.as_str(), "MODEL.onnx");
        index(&place).await;
        start(&place, &place.cache("again"), &[]).await;
        assert_eq!(asked(&place), (1, 0));
    }
}

#[tokio::test]
async fn pushes_add_to_an_index_that_is_there() {
    for place in places().await {
        index(&place).await;
        let pushed = push_signed(&place, "model07").await;
        push_signed(&place, "new").await;
        place.proxy().forget();
        let (manifests, missing) = start(&place, &place.cache("cache"), &[key().public()]).await;
        assert_eq!((asked(&place), missing, manifests.len()), ((1, 0), 0, MODELS + 2));
        assert!(manifests.contains(&pushed));
    }
}

#[tokio::test]
async fn the_newest_versions_are_in_it_and_those_with_labels() {
    for place in [Place::azure(), Place::s3()].into_iter().flatten() {
        for _ in 0..6 {
            push_signed(&place, "digits").await;
        }
        let first: ModelId = "digits:1".parse().expect("an id");
        place.registry.label(&first, &"stable".parse().expect("a label")).await.expect("labelled");
        assert_eq!(index(&place).await.versions, 4);
        let text = text(&at(&place)).await;
        let has = |version| text.contains(&format!("digits/{version}/outrigger-manifest.json\""));
        assert_eq!([1, 2, 3, 4, 5, 6].map(has), [true, false, false, true, true, true]);
        push_signed(&place, "digits").await;
        let text = self::text(&at(&place)).await;
        let has = |version| text.contains(&format!("digits/{version}/outrigger-manifest.json\""));
        assert_eq!([1, 4, 5, 6, 7].map(has), [true, false, true, true, true], "a push adds, and clears");
    }
}

#[tokio::test]
async fn an_index_that_lies_is_believed_no_more_than_the_storage() {
    for place in places().await {
        index(&place).await;
        let honest = text(&at(&place)).await;
        // As large, in the same state, and another text: its signature is missing.
        put(&at(&place), honest.replace("model.onnx", "wrong.onnx")).await;
        place.proxy().forget();
        let (manifests, _) = start(&place, &place.cache("cache"), &[key().public()]).await;
        assert!(manifests.iter().all(|manifest| manifest.files()[0].path.as_str() == "model.onnx"));
        assert_eq!(asked(&place).0, 1);
        // Manifests of other models.
        put(&at(&place), honest.replace("\\\"model", "\\\"modem")).await;
        let (manifests, _) = start(&place, &place.cache("others"), &[]).await;
        assert!(manifests.iter().all(|manifest| manifest.id().name.as_str().starts_with("model")));
    }
}

#[tokio::test]
async fn what_is_no_index_or_does_not_come_holds_nothing_up() {
    let Some(place) = Place::azure() else { return };
    for number in 0..MODELS {
        push_signed(&place, &format!("model{number:02}")).await;
    }
    index(&place).await;
    let honest = text(&at(&place)).await;
    let torn = honest[..honest.len() / 2].to_owned();
    let other = honest.replace("\"format\":1", "\"format\":2");
    for (name, text) in
        [("torn", torn), ("other", other), ("empty", String::new()), ("binary", "\0".repeat(100))]
    {
        put(&at(&place), text).await;
        place.proxy().forget();
        let (manifests, missing) = start(&place, &place.cache(name), &[]).await;
        assert_eq!((asked(&place), missing, manifests.len()), ((1, MODELS), MODELS, MODELS), "{name}");
    }
    // A push leaves it as it is, and another one takes its place.
    push_signed(&place, "new").await;
    assert_eq!(index(&place).await.versions, MODELS + 1);
    for (name, fault) in [
        ("forbidden", Fault::Status { status: 403, retry_after: None }),
        ("stalled", Fault::Stall { after: 100 }),
    ] {
        place.proxy().inject(On::get().path(INDEX).always(), fault);
        let (_, missing) = start(&place, &place.cache(name), &[]).await;
        assert_eq!(missing, MODELS + 1, "{name}");
        place.proxy().forget();
    }
}

#[tokio::test]
async fn a_few_are_asked_for_one_by_one_and_a_folder_has_no_index() {
    let folder = Place::folder();
    push_signed(&folder, "digits").await;
    assert_eq!(folder.registry.index().await.expect("nothing to do"), None);
    let Some(place) = Place::azure() else { return };
    push_signed(&place, "digits").await;
    index(&place).await;
    start(&place, &place.cache("cache"), &[]).await;
    assert_eq!(asked(&place), (0, 1));
}
