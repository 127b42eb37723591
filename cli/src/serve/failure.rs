//! What is said when a replica does not come up: the cause, where the script was expected, what the model directory holds.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use outrigger_runtime::ReplicaError;
use outrigger_runtime::config::Config;
use outrigger_runtime::scripts::{ScriptError, StartError};

/// As many lines of a model directory are shown.
const TREE_LINES: usize = 200;

/// Logs why the replica does not come up.
pub(crate) fn report(error: &ReplicaError, config: &Config) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    if let ReplicaError::Script(error) = error {
        match error {
            ScriptError::Start(StartError::Script(failure)) => {
                let _ = write!(text, "\n{}", failure.traceback.trim_end());
            }
            ScriptError::Start(StartError::Died(death) | StartError::Timeout { death, .. }) => {
                for line in &death.tail {
                    let _ = write!(text, "\n  {line}");
                }
            }
            _ => {}
        }
        if let Some(script) = &config.script {
            let (what, path) = match &script.native {
                Some(library) => ("native script", library),
                None => ("entry script", &script.entry),
            };
            let there = if path.is_file() { "" } else { " (not there)" };
            let _ = write!(text, "\nexpected {what}: {}{there}", path.display());
        }
        let fetched = config.store.root.as_ref().filter(|_| !config.store.models.is_empty());
        match config.model_dir.clone().or_else(|| Some(fetched?.join(outrigger_store::tree::MODELS))) {
            Some(directory) => {
                let _ = write!(text, "\nmodel directory {}:", directory.display());
                let mut lines = 0;
                tree(&directory, 1, &mut lines, &mut text);
            }
            None => text.push_str("\nno model directory (model_dir, AZUREML_MODEL_DIR) is set"),
        }
    }
    tracing::error!("{text}");
}

/// Writes a directory's entries, sorted, four spaces deeper for each level, directories with a slash at the end.
fn tree(directory: &Path, depth: usize, lines: &mut usize, text: &mut String) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        let _ = write!(text, "\n{}(cannot be read)", "    ".repeat(depth));
        return;
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if *lines == TREE_LINES {
            let _ = write!(text, "\n{}...", "    ".repeat(depth));
            *lines += 1;
        }
        if *lines > TREE_LINES {
            return;
        }
        *lines += 1;
        // Links are shown, not followed, so that a circle of them ends.
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let slash = if is_directory { "/" } else { "" };
        let _ = write!(text, "\n{}{}{slash}", "    ".repeat(depth), entry.file_name().to_string_lossy());
        if is_directory {
            tree(&entry.path(), depth + 1, lines, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_shown_as_a_tree_and_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("digits/1")).unwrap();
        std::fs::write(dir.path().join("digits/1/model.joblib"), "").unwrap();
        std::fs::write(dir.path().join("a.onnx"), "").unwrap();
        let mut text = String::new();
        tree(dir.path(), 1, &mut 0, &mut text);
        assert_eq!(text, "\n    a.onnx\n    digits/\n        1/\n            model.joblib");
        for number in 0..300 {
            std::fs::write(dir.path().join(format!("{number:03}")), "").unwrap();
        }
        let mut text = String::new();
        tree(dir.path(), 1, &mut 0, &mut text);
        assert_eq!(text.lines().count(), 1 + TREE_LINES + 1);
        assert!(text.ends_with("..."));
    }
}
