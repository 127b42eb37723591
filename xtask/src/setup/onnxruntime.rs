//! ONNX Runtime's library: the wheel that Python uses carries the plain C library, so nothing else is downloaded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::repo::Repo;

/// Finds the library in `.venv`.
pub(crate) fn find(repo: &Repo) -> Result<PathBuf> {
    let libraries = repo.path(".venv/lib");
    let found = entries(&libraries, "python3")
        .into_iter()
        .flat_map(|python| entries(&python.join("site-packages/onnxruntime/capi"), "libonnxruntime.so."))
        .next_back();
    found.with_context(|| format!("there is no libonnxruntime.so.* under {}", libraries.display()))
}

/// What is in a folder and begins with `prefix`, sorted.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}
