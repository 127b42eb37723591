//! Which files have been saved.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// An editor saves in several steps, and a checkout many files: it is over when so long nothing has come.
const QUIET: Duration = Duration::from_millis(200);
/// A file that changes all the time does not hold it up longer than this.
const LONGEST: Duration = Duration::from_secs(2);
/// Changes that are remembered; one is enough, so that the others may be lost.
const REMEMBERED: usize = 256;
/// Folders that are watched; a system gives a user about 8000 such watches.
const FOLDERS: usize = 2048;

/// Changes of files below a folder.
pub(super) struct Changes {
    watcher: RecommendedWatcher,
    paths: mpsc::Receiver<PathBuf>,
    folders: usize,
}

impl Changes {
    /// Begins to watch.
    pub(super) fn below(folder: &Path) -> anyhow::Result<Self> {
        let (sender, paths) = mpsc::channel(REMEMBERED);
        let own = own_output();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            // Read or touched is not saved.
            if matches!(event.kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_))) {
                return;
            }
            for path in event.paths {
                if counts(&path) && !own.iter().any(|own| identity(&path).as_ref() == Some(own)) {
                    let _ = sender.try_send(path);
                }
            }
        });
        let watcher = watcher.context("files cannot be watched")?;
        let mut changes = Self { watcher, paths, folders: 0 };
        changes.watch(folder).with_context(|| format!("{} cannot be watched", folder.display()))?;
        Ok(changes)
    }

    /// Waits until something has been saved, and then until all of it is.
    pub(super) async fn next(&mut self) {
        let Some(path) = self.paths.recv().await else { return std::future::pending().await };
        self.note(&path);
        let rest = async {
            while let Ok(Some(path)) = tokio::time::timeout(QUIET, self.paths.recv()).await {
                self.note(&path);
            }
        };
        let _ = tokio::time::timeout(LONGEST, rest).await;
    }

    /// Forgets what has changed so far; tells whether Python code was among it.
    pub(super) fn source_changed_meanwhile(&mut self) -> bool {
        let mut changed = false;
        while let Ok(path) = self.paths.try_recv() {
            self.note(&path);
            changed |= path.extension().is_some_and(|extension| extension == "py");
        }
        changed
    }

    /// A new folder is watched too.
    fn note(&mut self, path: &Path) {
        if path.is_dir()
            && let Err(error) = self.watch(path)
        {
            tracing::warn!(%error, path = %path.display(), "a new folder cannot be watched");
        }
    }

    /// Watches a folder and those below it, each by itself, for an environment with its thousands of folders is passed over.
    fn watch(&mut self, folder: &Path) -> notify::Result<()> {
        if self.folders == FOLDERS {
            tracing::warn!(FOLDERS, "no more folders are watched");
        }
        self.folders += 1;
        if self.folders > FOLDERS {
            return Ok(());
        }
        self.watcher.watch(folder, RecursiveMode::NonRecursive)?;
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && counts(&path) && !path.join("pyvenv.cfg").is_file() {
                self.watch(&path)?;
            }
        }
        Ok(())
    }
}

/// Where this process writes its log to: that changes whenever something is said of a change.
fn own_output() -> Vec<(u64, u64)> {
    let copies =
        [std::io::stdout().as_fd().try_clone_to_owned(), std::io::stderr().as_fd().try_clone_to_owned()];
    let files = copies.into_iter().flatten().map(std::fs::File::from);
    files.filter_map(|file| file.metadata().ok()).map(|metadata| (metadata.dev(), metadata.ino())).collect()
}

/// Device and number of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether a file or folder of this name is somebody's work, rather than made by a program.
fn counts(path: &Path) -> bool {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy()) else { return false };
    let made = ["__pycache__", "outputs", "node_modules", "site-packages"].contains(&name.as_ref());
    let ends = ["~", ".pyc", ".log", ".tmp", ".swp", ".swx"].iter().any(|end| name.ends_with(end));
    // 4913: the name under which vim tries whether it may write.
    !(made || ends || name.starts_with('.') || name == "4913")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_make_does_not_count() {
        for (name, expected) in [
            ("score.py", true),
            ("config.json", true),
            ("weights.onnx", true),
            ("__pycache__", false),
            ("score.pyc", false),
            ("score.py~", false),
            (".score.py.swp", false),
            (".git", false),
            ("outputs", false),
            ("server.log", false),
            ("4913", false),
        ] {
            assert_eq!(counts(&Path::new("/app").join(name)), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn saved_files_are_seen_in_folders_that_are_new_too() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("__pycache__")).unwrap();
        let mut changes = Changes::below(root.path()).unwrap();
        std::fs::write(root.path().join("score.py"), "1").unwrap();
        changes.next().await;
        std::fs::create_dir(root.path().join("lib")).unwrap();
        changes.next().await;
        std::fs::write(root.path().join("lib/part.py"), "1").unwrap();
        changes.next().await;
        std::fs::write(root.path().join("__pycache__/part.pyc"), "1").unwrap();
        std::fs::write(root.path().join("notes.txt"), "1").unwrap();
        let Some(path) = changes.paths.recv().await else { panic!("the watcher is gone") };
        assert_eq!(path.file_name().unwrap(), "notes.txt", "the other one does not count");
    }
}
