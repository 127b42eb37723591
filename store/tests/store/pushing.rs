//! New versions.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt as _;
use outrigger_store::registry::{Push, PushError, Version};
use outrigger_store::signature::{SigningKey, TrustedKey};
use outrigger_store::{FetchError, ModelId, ModelWish};
use outrigger_testkit::faults::{Fault, On};

use crate::place::{Place, azurite, bytes, push};

// Made with `openssl genpkey -algorithm ed25519` for this test.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n";
const STRANGER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

fn id(text: &str) -> ModelId {
    text.parse().expect("an id")
}

#[tokio::test]
async fn versions_are_counted_listed_and_verified() {
    for place in Place::all() {
        let large = bytes(20 << 20, 1);
        let folder = place.write("digits", &[("model.onnx", &large), ("assets/labels.txt", b"one\ntwo\n")]);
        let file = place.write("faces", &[("face v1~é.onnx", b"weights")]).join("face v1~é.onnx");
        assert_eq!(*place.push("digits", &folder).await.expect("pushed").id(), id("digits:1"));
        let manifest = place.push("digits", &folder).await.expect("pushed");
        place.push("faces", &file).await.expect("pushed");
        let listed = place.registry.list().await.expect("a list");
        let seen: Vec<_> =
            listed.iter().map(|found| (found.id.to_string(), found.files, found.size)).collect();
        let digits = large.len() as u64 + 8;
        assert_eq!(
            seen,
            [("digits:1".into(), 2, digits), ("digits:2".into(), 2, digits), ("faces:1".into(), 1, 7)]
        );
        let wish: ModelWish = "digits".parse().expect("a wish");
        assert_eq!(place.registry.resolve(&wish).await.expect("the latest"), id("digits:2"));
        assert_eq!(place.registry.manifest(&id("digits:2"), &[]).await.expect("a manifest"), manifest);
        assert!(place.registry.verify(&manifest, &()).await.expect("verified").is_empty());
        // Somebody changes a file behind its back, and removes another.
        let at = |path: &str| place.registry.folder(manifest.id()).below(path).at().clone();
        let store = place.registry.at().store();
        store.put(&at("digits/assets/labels.txt"), "one\nTwo\n".into()).await.expect("written");
        store.delete(&at("digits/model.onnx")).await.expect("removed");
        let wrong = place.registry.verify(&manifest, &()).await.expect("verified");
        assert!(matches!(wrong[..], [FetchError::Digest { .. }, FetchError::NotFound { .. }]), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_version_that_is_there_does_not_change() {
    for place in Place::all() {
        let file = place.write("digits", &[("model.onnx", b"one")]);
        let exactly = |version| Push { version: Version::Exactly(version), ..push("digits", &file) };
        place.registry.push(exactly(7), Arc::new(())).await.expect("pushed");
        let error = place.registry.push(exactly(7), Arc::new(())).await.expect_err("it is there");
        assert_eq!(error.to_string(), "`digits:7` is there already, and versions do not change");
        assert_eq!(*place.push("digits", &file).await.expect("pushed").id(), id("digits:8"));
    }
}

#[tokio::test]
async fn those_who_push_at_once_get_versions_of_their_own() {
    for place in Place::all() {
        let folders: Vec<_> = (0..6_u8)
            .map(|seed| {
                let folder = place.write(&format!("{seed}/digits"), &[("model.onnx", &[seed; 100])]);
                (seed, folder)
            })
            .collect();
        let pushed = folders.iter().map(|(_, folder)| place.push("digits", folder));
        let pushed = futures_util::future::join_all(pushed).await;
        let mut versions: Vec<_> =
            pushed.iter().map(|pushed| pushed.as_ref().expect("pushed").id().version).collect();
        versions.sort_unstable();
        assert_eq!(versions, [1, 2, 3, 4, 5, 6]);
        for (manifest, (seed, _)) in pushed.iter().zip(&folders) {
            let manifest = manifest.as_ref().expect("pushed");
            assert_eq!(manifest.files()[0].sha256, outrigger_store::Digest::of(&[*seed; 100]));
            assert!(place.registry.verify(manifest, &()).await.expect("verified").is_empty());
        }
    }
}

#[tokio::test]
async fn what_is_half_there_is_not_seen_and_can_be_removed() {
    let Some(place) = Place::azure() else { return };
    let file = place.write("digits", &[("model.onnx", &bytes(100_000, 2)), ("model.toml", b"")]);
    // The storage refuses the manifest, whatever is tried.
    place.proxy().inject(
        On::method("PUT").path("manifest").always(),
        Fault::Status { status: 403, retry_after: None },
    );
    let error = place.push("digits", &file).await.expect_err("it cannot be written");
    assert!(matches!(error, PushError::Storage(FetchError::Denied { .. })), "{error}");
    place.proxy().forget();
    assert!(place.registry.list().await.expect("a list").is_empty());
    let missing = place.registry.manifest(&id("digits:1"), &[]).await.expect_err("there is none");
    assert!(matches!(missing, FetchError::NotFound { .. }), "{missing}");
    let taken = Push { version: Version::Exactly(1), ..push("digits", &file) };
    let taken = place.registry.push(taken, Arc::new(())).await.expect_err("somebody is at it");
    assert!(matches!(taken, PushError::Claimed { .. }), "{taken}");
    assert_eq!(*place.push("digits", &file).await.expect("pushed").id(), id("digits:2"));
    assert!(
        place.registry.unfinished(Duration::from_secs(3600)).await.expect("a list").is_empty(),
        "too young"
    );
    let left = place.registry.unfinished(Duration::ZERO).await.expect("a list");
    let [left] = &left[..] else { panic!("{left:?}") };
    assert_eq!((&left.id, left.objects.len()), (&id("digits:1"), 3));
    place.registry.remove_unfinished(left).await.expect("removed");
    assert!(place.registry.unfinished(Duration::ZERO).await.expect("a list").is_empty());
    let kept = place.registry.list().await.expect("a list");
    assert_eq!(kept.len(), 1, "{kept:?}");
}

#[tokio::test]
async fn only_what_somebody_has_signed_who_is_trusted_counts() {
    for place in Place::all() {
        let file = place.write("digits", &[("model.onnx", b"weights")]);
        let key = SigningKey::from_pem(PRIVATE).expect("a key");
        let trusted = [key.public()];
        let signed = Push { key: Some(key), ..push("digits", &file) };
        place.registry.push(signed, Arc::new(())).await.expect("pushed");
        place.push("digits", &file).await.expect("pushed");
        let manifest = async |text: &str, keys: &[TrustedKey]| {
            place.registry.manifest(&id(text), keys).await.map_err(|error| error.to_string())
        };
        manifest("digits:1", &trusted).await.expect("signed");
        let error = manifest("digits:2", &trusted).await.expect_err("not signed");
        assert!(error.ends_with("digits/2/outrigger-manifest.json`: it is not signed"), "{error}");
        let stranger = TrustedKey::from_pem(STRANGER).expect("a key");
        let error = manifest("digits:1", &[stranger]).await.expect_err("signed by another");
        assert!(
            error.ends_with("it is not signed by anybody who is trusted, or was changed since"),
            "{error}"
        );
        // Neither a manifest that was changed nor one of another version is taken for it.
        let folder = place.registry.folder(&id("digits:1"));
        let at = folder.below("outrigger-manifest.json");
        let bytes = at.store().get(at.at()).await.expect("there").bytes().await.expect("read");
        let text = String::from_utf8(bytes.to_vec()).expect("JSON");
        at.store().put(at.at(), text.replace("model.onnx", "modeL.onnx").into()).await.expect("written");
        manifest("digits:1", &trusted).await.expect_err("changed");
        let other = place.registry.folder(&id("digits:2"));
        for name in ["outrigger-manifest.json", "outrigger-manifest.json.sig"] {
            let from = folder.below(name);
            let bytes = if name.ends_with("sig") {
                from.store().get(from.at()).await.expect("there").bytes().await.expect("read")
            } else {
                text.clone().into()
            };
            let to = other.below(name);
            to.store().put(to.at(), bytes.into()).await.expect("written");
        }
        let error = manifest("digits:2", &trusted).await.expect_err("that of another");
        assert!(error.ends_with("it is that of `digits:1`, and `digits:2` was asked for"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_pushed_is_noticed() {
    struct Changing(std::path::PathBuf);
    impl outrigger_store::registry::PushWatch for Changing {
        fn claimed(&self, _: &ModelId) {
            fs::write(&self.0, vec![8; 100_000]).expect("ours");
        }
    }
    let place = Place::folder();
    let file = place.write("digits", &[("model.onnx", &[7; 100_000])]).join("model.onnx");
    let watch = Arc::new(Changing(file.clone()));
    let error = place.registry.push(push("digits", &file), watch).await.expect_err("it was changed");
    assert!(error.to_string().ends_with("model.onnx` was changed while it was read"), "{error}");
    assert!(place.registry.list().await.expect("a list").is_empty());
}

#[tokio::test]
async fn what_cannot_be_in_a_manifest_is_known_before_anything_is_sent() {
    let Some(place) = Place::azure() else { return };
    let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
    let tags: BTreeMap<_, _> = (0..65).map(|n| (n.to_string(), String::new())).collect();
    let error = place.registry.push(Push { tags, ..push("digits", &file) }, Arc::new(())).await;
    assert!(matches!(error, Err(PushError::Manifest(_))), "{error:?}");
    assert_eq!(place.proxy().counts(&On::any()).requests, 0);
}

#[tokio::test]
async fn a_file_that_the_storage_refuses_is_in_no_version() {
    for status in [409, 412] {
        let Some(place) = Place::azure() else { return };
        let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
        let refused = Fault::Status { status, retry_after: None };
        place.proxy().inject(On::method("PUT").path("model.onnx").always(), refused);
        place.push("digits", &file).await.expect_err("it was not written");
        assert!(place.registry.list().await.expect("a list").is_empty());
    }
}

#[tokio::test]
async fn a_version_that_somebody_finishes_meanwhile_is_left_alone() {
    let Some(place) = Place::azure() else { return };
    let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
    let (azurite, bucket) = (azurite().expect("it is there"), place.bucket.clone());
    // Between the look for a manifest and the claim.
    place.proxy().before(On::method("PUT").path("digits/1/outrigger-push.json"), move |_| {
        azurite.put_blob(&bucket, "models/digits/1/outrigger-manifest.json", b"{}");
    });
    assert_eq!(*place.push("digits", &file).await.expect("pushed").id(), id("digits:2"));
    let written = place.proxy().counts(&On::method("PUT").path("digits/1/model.onnx"));
    assert_eq!(written.requests, 0);
    let claim = place.registry.folder(&id("digits:1")).below("outrigger-push.json");
    assert!(claim.store().head(claim.at()).await.is_err(), "no claim is left");
}

#[tokio::test]
async fn a_push_behind_which_somebody_has_cleared_up_does_not_finish() {
    let Some(place) = Place::azure() else { return };
    let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
    let (azurite, bucket) = (azurite().expect("it is there"), place.bucket.clone());
    place.proxy().before(On::get().path("outrigger-push.json"), move |_| {
        azurite.put_blob(&bucket, "models/digits/1/outrigger-push.json", b"another's");
    });
    let error = place.push("digits", &file).await.expect_err("it is not ours any more");
    assert!(matches!(error, PushError::Removed { .. }), "{error}");
    assert!(place.registry.list().await.expect("a list").is_empty());
}

#[tokio::test]
async fn an_answer_that_is_lost_does_not_make_a_push_fail() {
    for object in ["outrigger-push.json", "outrigger-manifest.json"] {
        let Some(place) = Place::azure() else { return };
        let file = place.write("digits", &[("model.onnx", b"weights")]).join("model.onnx");
        place.proxy().inject(On::method("PUT").path(object), Fault::Hangup);
        assert_eq!(*place.push("digits", &file).await.expect("pushed").id(), id("digits:1"), "{object}");
        assert_eq!(place.proxy().counts(&On::method("PUT").path(object)).requests, 2, "{object}");
    }
}
