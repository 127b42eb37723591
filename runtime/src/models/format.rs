//! Formats of model files, by the names that backends have for them.

use std::path::{Path, PathBuf};

/// What files are that end so. A manifest can say it of any file.
const EXTENSIONS: [(&str, &str); 3] =
    [("onnx", "onnx"), ("pt", "torchscript"), ("torchscript", "torchscript")];

/// The format of a file, by the end of its name.
pub(super) fn of(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?;
    EXTENSIONS.into_iter().find(|(known, _)| *known == extension).map(|(_, format)| format)
}

/// Of model files that lie side by side those that count: where a model is there in ONNX, its other forms are what that was made from.
pub(super) fn preferred(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    if files.iter().any(|file| of(file) == Some("onnx")) {
        files.retain(|file| of(file) == Some("onnx"));
    }
    files
}
