//! Names of models, versions, labels and files, and digests: each is shown as it is written, and none leads outside of a folder.
#![no_main]

use std::path::{Component, Path};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use outrigger_store::archive::ArchiveKind;
use outrigger_store::id::version_of;
use outrigger_store::{Digest, FilePath, Label, ModelId, ModelName, ModelWish};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    same::<ModelId>(text);
    same::<ModelWish>(text);
    same::<Label>(text);
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(version) = version_of(text) {
        assert!(version > 0 && version.to_string() == text);
    }
    if let Ok(name) = ModelName::new(text) {
        assert_eq!(name.as_str(), text);
        one_component(text);
    }
    if let Ok(label) = text.parse::<Label>() {
        one_component(label.as_str());
        assert!(version_of(text).is_err(), "a label is no version");
    }
    if let Ok(path) = FilePath::new(text) {
        assert_eq!(path.as_str(), text);
        assert_eq!(path.components().collect::<Vec<_>>().join("/"), text);
        let joined = Path::new("/models").join(path.as_path());
        let mut parts = joined.components();
        assert_eq!(
            (parts.next(), parts.next()),
            (Some(Component::RootDir), Some(Component::Normal("models".as_ref())))
        );
        assert!(parts.all(|part| matches!(part, Component::Normal(_))));
        assert_eq!(path.folders().count() + 1, path.components().count());
    }
    let _ = ArchiveKind::of(text);
});

/// What can be read is shown as it was written.
fn same<T: FromStr + ToString>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

fn one_component(text: &str) {
    let parts: Vec<Component<'_>> = Path::new(text).components().collect();
    assert_eq!(parts, [Component::Normal(text.as_ref())]);
}
