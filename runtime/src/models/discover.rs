//! Finds models in a directory: files side by side, or AzureML's `NAME/VERSION/FILE`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::files::Files;
use super::graph::GRAPH;
use super::{ModelsError, format};
use crate::config::check_model_name;

/// The name of a manifest in a model's directory.
const MANIFEST: &str = "model.toml";

/// Where a model is.
#[derive(Debug)]
pub(super) struct Located {
    /// What was looked at last: the file, or the directory that should hold it.
    pub(super) place: PathBuf,
    /// The file.
    pub(super) file: Option<PathBuf>,
    /// What describes it.
    pub(super) manifest: Option<PathBuf>,
    /// What it is made of, if it is an ensemble.
    pub(super) graph: Option<PathBuf>,
    /// The version whose folder that is, if it is one of such folders.
    pub(super) version: Option<String>,
}

/// The model at a path: a file, beside which `NAME.toml` may lie, or a directory, which holds it or whose highest version does. An ensemble is a
/// directory with a graph, or the graph.
pub(super) fn locate(path: &Path, files: &Files) -> io::Result<Located> {
    let there = |path: PathBuf| files.is_file(&path).then_some(path);
    if !files.is_dir(path) {
        if path.file_name().is_some_and(|name| name == GRAPH) {
            let manifest = path.parent().and_then(|folder| there(folder.join(MANIFEST)));
            return Ok(Located {
                place: path.into(),
                file: None,
                manifest,
                graph: Some(path.into()),
                version: None,
            });
        }
        let manifest = there(path.with_extension("toml")).filter(|manifest| manifest != path);
        return Ok(Located {
            place: path.into(),
            file: Some(path.into()),
            manifest,
            graph: None,
            version: None,
        });
    }
    let (newest, version) = match newest_version(path, files)? {
        Some((version, newest)) => (newest, Some(version.to_string())),
        None => (path.to_owned(), None),
    };
    let manifest = there(newest.join(MANIFEST)).or_else(|| there(path.join(MANIFEST)));
    let graph = there(newest.join(GRAPH));
    let file = match &graph {
        // Beside a graph there is to be none.
        Some(_) => files.entries(&newest)?.into_iter().find(|path| is_model(path, files)),
        None => only_model(&newest, manifest.is_some(), files)?,
    };
    Ok(Located { place: newest, file, manifest, graph, version })
}

/// What describes the model in a folder, if there is such a file.
pub(super) fn manifest(folder: &Path, files: &Files) -> Option<PathBuf> {
    Some(folder.join(MANIFEST)).filter(|path| files.is_file(path))
}

/// `NAME.onnx` (or another of [`format`]'s endings), `NAME/FILE.onnx`, and `NAME/VERSION/FILE.onnx` with the highest version; a directory must hold one model file, or a
/// manifest.
pub(super) fn models(directory: &Path, limit: usize) -> Result<BTreeMap<String, Located>, ModelsError> {
    let unreadable = |source| ModelsError::Directory { path: directory.into(), source };
    let mut found = BTreeMap::new();
    for path in Files::Disk.entries(directory).map_err(unreadable)? {
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let name = if is_model(&path, &Files::Disk) {
            let onnx = path.with_extension("onnx");
            if path != onnx && is_model(&onnx, &Files::Disk) {
                continue;
            }
            stem
        } else if path.is_dir() {
            path.file_name().and_then(|name| name.to_str()).unwrap_or(stem)
        } else {
            continue;
        };
        let located = locate(&path, &Files::Disk).map_err(unreadable)?;
        if located.file.is_none() && located.manifest.is_none() && located.graph.is_none() {
            continue;
        }
        let place = located.file.clone().unwrap_or_else(|| located.place.clone());
        if let Err(problem) = check_model_name(name) {
            tracing::warn!(path = %place.display(), %problem, "file skipped");
            continue;
        }
        if let Some(first) = found.insert(name.to_owned(), located) {
            let first = first.file.unwrap_or(first.place);
            return Err(ModelsError::Twice { name: name.into(), first, second: place });
        }
        if found.len() > limit {
            return Err(ModelsError::TooMany { found: found.len(), limit });
        }
    }
    if found.is_empty() { Err(ModelsError::Nothing(directory.into())) } else { Ok(found) }
}

fn is_model(path: &Path, files: &Files) -> bool {
    format::of(path).is_some() && files.is_file(path)
}

/// The subdirectory with the highest number for a name.
fn newest_version(directory: &Path, files: &Files) -> io::Result<Option<(u64, PathBuf)>> {
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str())?.parse::<u64>().ok();
    let newest = files
        .entries(directory)?
        .into_iter()
        .filter(|path| files.is_dir(path))
        .filter_map(|path| Some((version(&path)?, path)))
        .max();
    Ok(newest)
}

fn only_model(directory: &Path, described: bool, files: &Files) -> io::Result<Option<PathBuf>> {
    let models: Vec<_> = files.entries(directory)?.into_iter().filter(|path| is_model(path, files)).collect();
    let mut models = format::preferred(models);
    if models.len() > 1 {
        if described {
            // The manifest names one.
            return Ok(None);
        }
        tracing::warn!(directory = %directory.display(), files = models.len(), "more than one model file, none is served; name one by [models.NAME] or in a model.toml");
        return Ok(None);
    }
    Ok(models.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str]) -> Result<Vec<(String, String)>, ModelsError> {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let shown = |path: &Path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
        let place = |located: Located| shown(&located.file.or(located.graph).or(located.manifest).unwrap());
        Ok(models(dir.path(), 3)?.into_iter().map(|(name, located)| (name, place(located))).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn files_and_azureml_layout_are_found() {
        let found =
            check(&["a.onnx", "a.pt", "b/2/m.onnx", "b/10/m.onnx", "b/10/m.pt", "c/model.pt"]).unwrap();
        assert_eq!(found, pairs(&[("a", "a.onnx"), ("b", "b/10/m.onnx"), ("c", "c/model.pt")]));
    }

    #[test]
    fn a_manifest_makes_a_directory_a_model() {
        let found =
            check(&["a/model.toml", "a/x.txt", "b/3/model.toml", "b/3/x.onnx", "b/3/y.onnx"]).unwrap();
        assert_eq!(found, pairs(&[("a", "a/model.toml"), ("b", "b/3/model.toml")]));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1")).unwrap();
        for file in ["model.toml", "a.onnx", "a.toml", "1/m.onnx"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let at = |path: &str| {
            let found = locate(&dir.path().join(path), &Files::Disk).unwrap();
            [found.file, found.manifest].map(|path| Some(path?.strip_prefix(dir.path()).ok()?.to_owned()))
        };
        assert_eq!(at("a.onnx"), [Some("a.onnx".into()), Some("a.toml".into())]);
        assert_eq!(at(""), [Some("1/m.onnx".into()), Some("model.toml".into())], "that of all versions");
    }

    #[test]
    fn a_graph_makes_a_directory_an_ensemble() {
        let found =
            check(&["a/graph.toml", "b/2/graph.toml", "b/2/model.toml", "c/graph.toml", "c/1/m.onnx"]);
        let expected = [("a", "a/graph.toml"), ("b", "b/2/graph.toml"), ("c", "c/1/m.onnx")];
        assert_eq!(found.unwrap(), pairs(&expected));
        let dir = tempfile::tempdir().unwrap();
        for file in ["graph.toml", "model.toml", "m.onnx"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let found = locate(&dir.path().join("graph.toml"), &Files::Disk).unwrap();
        assert!(found.graph.is_some() && found.manifest.is_some() && found.file.is_none());
        let found = locate(dir.path(), &Files::Disk).unwrap();
        assert!(found.graph.is_some() && found.file.is_some(), "which is a mistake that is told");
    }

    #[test]
    fn what_cannot_be_served_is_skipped_or_said() {
        assert_eq!(check(&["a.onnx", "notes.txt", "two/a.onnx", "two/b.onnx", "-x.onnx"]).unwrap().len(), 1);
        assert!(matches!(check(&["readme.md"]), Err(ModelsError::Nothing(_))));
        assert!(matches!(check(&["a.onnx", "a/a.onnx"]), Err(ModelsError::Twice { .. })));
        assert!(matches!(check(&["a.onnx", "b.onnx", "c.onnx", "d.onnx"]), Err(ModelsError::TooMany { .. })));
        assert!(matches!(models(Path::new("/nonexistent"), 1), Err(ModelsError::Directory { .. })));
    }
}
