//! Formats of model files, by the names that backends have for them.

use std::path::Path;

/// What files are that end so. A manifest can say it of any file.
const EXTENSIONS: [(&str, &str); 3] =
    [("onnx", "onnx"), ("pt", "torchscript"), ("torchscript", "torchscript")];

/// The format of a file, by the end of its name.
pub(super) fn of(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?;
    EXTENSIONS.into_iter().find(|(known, _)| *known == extension).map(|(_, format)| format)
}
