//! What `fuzz/` sees of registries.

use super::index::Index;
use super::{Place, place};
use crate::id::ModelName;

/// Reads an index as it comes out of storage. What can be read is written and read again.
///
/// # Panics
/// If it is another then.
pub fn index(bytes: &[u8]) {
    let Ok(index) = serde_json::from_slice::<Index>(bytes) else { return };
    let written = serde_json::to_vec(&index).expect("texts and numbers have a form");
    let again: Index = serde_json::from_slice(&written).expect("what is written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("as before"), written);
    index.objects.iter().for_each(|entry| object(entry.path()));
}

/// Finds out what an object is that lies at a path below a registry.
///
/// # Panics
/// If its parts are not those of the path.
pub fn object(path: &str) {
    let parts = |found: Place<'_>| match found {
        Place::Version(id, below) => format!("{}/{}/{below}", id.name, id.version),
        Place::Label(name, label) => format!("{name}/labels/{}", label.as_str()),
    };
    if let Some(found) = place(path, None) {
        assert_eq!(parts(found), path);
    }
    let name = ModelName::new("digits").expect("a name");
    if let Some(found) = place(path, Some(&name)) {
        assert_eq!(parts(found), format!("digits/{path}"));
    }
}
