//! `./outputs`: what a script writes there is kept in a configured directory, by a symbolic link in the code's root.

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

/// The link, removed again when dropped if it was made here.
#[derive(Debug)]
pub(super) struct Link(Option<PathBuf>);

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(link) = &self.0 {
            // Gone already, or another replica's by now: either way nothing is left to do.
            let _ = std::fs::remove_file(link);
        }
    }
}

/// Leads `app_root/outputs` to `kept`.
pub(super) fn link(app_root: &Path, kept: &Path) -> Result<Link, OutputsError> {
    let make = |path: &Path| {
        let path = path.to_owned();
        move |source| OutputsError::Make { path, source }
    };
    std::fs::create_dir_all(kept).map_err(make(kept))?;
    let kept = kept.canonicalize().map_err(make(kept))?;
    let link = app_root.join("outputs");
    match std::os::unix::fs::symlink(&kept, &link) {
        Ok(()) => Ok(Link(Some(link))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if link.canonicalize().is_ok_and(|there| there == kept) {
                Ok(Link(None))
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
    fn a_directory_of_that_name_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outputs")).unwrap();
        let error = link(dir.path(), &dir.path().join("kept")).unwrap_err();
        assert!(matches!(error, OutputsError::Taken { .. }), "{error}");
    }
}
