//! `./outputs`: what a script writes there is kept. It is a directory in the code's root, or, by a symbolic link, a configured one
//! elsewhere. It is there before the sandbox is made, which lets scripts write to it and not make it.

use std::io;
use std::path::{Path, PathBuf};

/// Why `./outputs` cannot be led to where it is kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputsError {
    /// There is something else at that place.
    #[error(
        "`{path}` exists and is not a link to script.outputs_dir; move it away or unset script.outputs_dir"
    )]
    Taken {
        /// `APP_ROOT/outputs`.
        path: PathBuf,
    },
    /// The directory or the link cannot be made.
    #[error("cannot make `{path}`")]
    Make {
        /// What was to be made.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What was made here; removed again when dropped.
#[derive(Debug)]
pub(super) enum Outputs {
    /// Nothing: it was there, or cannot be.
    Nothing,
    /// A link to a configured directory.
    Link(PathBuf),
    /// A directory, which stays if something is in it.
    Directory(PathBuf),
}

impl Drop for Outputs {
    fn drop(&mut self) {
        // Gone already, in use, or another replica's by now: either way nothing is left to do.
        let _ = match self {
            Self::Nothing => Ok(()),
            Self::Link(link) => std::fs::remove_file(link),
            Self::Directory(directory) => std::fs::remove_dir(directory),
        };
    }
}

/// Sees to it that there is `app_root/outputs`, and that it leads to `kept` where that is configured.
pub(super) fn prepare(app_root: &Path, kept: Option<&Path>) -> Result<Outputs, OutputsError> {
    if let Some(kept) = kept {
        return link(app_root, kept);
    }
    let directory = app_root.join("outputs");
    // Code that cannot be written to has no place for outputs.
    Ok(match std::fs::create_dir(&directory) {
        Ok(()) => Outputs::Directory(directory),
        Err(_) => Outputs::Nothing,
    })
}

fn link(app_root: &Path, kept: &Path) -> Result<Outputs, OutputsError> {
    let make = |path: &Path| {
        let path = path.to_owned();
        move |source| OutputsError::Make { path, source }
    };
    std::fs::create_dir_all(kept).map_err(make(kept))?;
    let kept = kept.canonicalize().map_err(make(kept))?;
    let link = app_root.join("outputs");
    match std::os::unix::fs::symlink(&kept, &link) {
        Ok(()) => Ok(Outputs::Link(link)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if link.canonicalize().is_ok_and(|there| there == kept) {
                Ok(Outputs::Nothing)
            } else {
                Err(OutputsError::Taken { path: link })
            }
        }
        Err(error) => Err(make(&link)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_lead_to_the_kept_directory_and_the_link_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        let (root, kept) = (dir.path().join("app"), dir.path().join("kept/deep"));
        std::fs::create_dir(&root).unwrap();
        let made = link(&root, &kept).unwrap();
        let again = link(&root, &kept).unwrap();
        drop(again);
        std::fs::write(root.join("outputs/a.txt"), "kept").unwrap();
        drop(made);
        assert!(!root.join("outputs").exists());
        assert_eq!(std::fs::read_to_string(kept.join("a.txt")).unwrap(), "kept");
    }

    #[test]
    fn a_directory_that_was_made_goes_when_nothing_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = dir.path().join("outputs");
        drop(prepare(dir.path(), None).unwrap());
        assert!(!outputs.exists());
        let made = prepare(dir.path(), None).unwrap();
        let again = prepare(dir.path(), None).unwrap();
        assert!(matches!(again, Outputs::Nothing));
        std::fs::write(outputs.join("a.txt"), "kept").unwrap();
        drop((made, again));
        assert_eq!(std::fs::read_to_string(outputs.join("a.txt")).unwrap(), "kept");
        assert!(matches!(prepare(Path::new("/nowhere"), None).unwrap(), Outputs::Nothing));
    }

    #[test]
    fn a_directory_of_that_name_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outputs")).unwrap();
        let error = link(dir.path(), &dir.path().join("kept")).unwrap_err();
        assert!(matches!(error, OutputsError::Taken { .. }), "{error}");
    }
}
