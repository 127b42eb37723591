//! What `fuzz/` sees of manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::Files;
use super::manifest;

/// Reads the text of a `model.toml`. Its folder has the files `a.onnx`, `b.json` and `c/d.json`, and there is one beside it.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// If it names a file outside of its folder.
pub fn manifest(text: &str) -> Result<(), String> {
    let folder = Path::new("/models/m");
    let files: BTreeSet<PathBuf> =
        ["a.onnx", "b.json", "c/d.json", "../out"].iter().map(|file| folder.join(file)).collect();
    let files = Files::Awaited(files);
    let read = manifest::parse(&folder.join("model.toml"), text, &BTreeMap::new(), &files)?;
    let samples = read.samples.iter().flat_map(|sample| [Some(&sample.request), sample.expect.as_ref()]);
    for file in samples.chain([read.file.as_ref()]).flatten() {
        assert!(file.starts_with(folder) && !file.to_string_lossy().contains(".."), "{}", file.display());
    }
    for tensor in read.described.inputs.iter().chain(&read.described.outputs) {
        assert_eq!(tensor.shape.len(), tensor.symbols.len());
        assert!(tensor.shape.iter().all(|extent| *extent >= -1));
    }
    Ok(())
}
