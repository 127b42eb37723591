//! Finds models in a directory: files side by side, or AzureML's `NAME/VERSION/FILE`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::ModelsError;
use crate::config::{ModelConfig, check_model_name};

/// `NAME.onnx`, `NAME/FILE.onnx`, and `NAME/VERSION/FILE.onnx` with the highest version; a directory must hold one model file.
pub(super) fn models(directory: &Path, limit: usize) -> Result<BTreeMap<String, ModelConfig>, ModelsError> {
    let unreadable = |source| ModelsError::Directory { path: directory.into(), source };
    let mut found = BTreeMap::new();
    for path in entries(directory).map_err(unreadable)? {
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let (name, file) = if is_model(&path) {
            (stem, Some(path.clone()))
        } else if path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(stem);
            (name, only_model(&newest_version(&path).map_err(unreadable)?).map_err(unreadable)?)
        } else {
            continue;
        };
        let Some(file) = file else { continue };
        if let Err(problem) = check_model_name(name) {
            tracing::warn!(path = %file.display(), %problem, "file skipped");
            continue;
        }
        let model = ModelConfig::of(file.clone());
        if let Some(first) = found.insert(name.to_owned(), model) {
            return Err(ModelsError::Twice { name: name.into(), first: first.path, second: file });
        }
        if found.len() > limit {
            return Err(ModelsError::TooMany { found: found.len(), limit });
        }
    }
    if found.is_empty() { Err(ModelsError::Nothing(directory.into())) } else { Ok(found) }
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths =
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn is_model(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "onnx") && path.is_file()
}

/// The subdirectory with the highest number for a name; the directory itself where there is none.
fn newest_version(directory: &Path) -> io::Result<PathBuf> {
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str())?.parse::<u64>().ok();
    let newest = entries(directory)?
        .into_iter()
        .filter(|path| path.is_dir())
        .filter_map(|path| Some((version(&path)?, path)))
        .max();
    Ok(newest.map_or_else(|| directory.to_owned(), |(_, path)| path))
}

fn only_model(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut models: Vec<_> = entries(directory)?.into_iter().filter(|path| is_model(path)).collect();
    if models.len() > 1 {
        tracing::warn!(directory = %directory.display(), files = models.len(), "more than one model file, none is served; name one by [models.NAME]");
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
        Ok(models(dir.path(), 3)?.into_iter().map(|(name, model)| (name, shown(&model.path))).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn files_and_azureml_layout_are_found() {
        let found = check(&["a.onnx", "b/2/m.onnx", "b/10/m.onnx", "c/model.onnx"]).unwrap();
        assert_eq!(found, pairs(&[("a", "a.onnx"), ("b", "b/10/m.onnx"), ("c", "c/model.onnx")]));
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
