//! Whether what is stored is what its manifest says.

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, ObjectStore as _};

use super::Registry;
use crate::digest::Hasher;
use crate::fetch::{FetchError, Watch};
use crate::location::Location;
use crate::manifest::{Manifest, ManifestFile};

/// Files that are read at once.
const AT_ONCE: usize = 8;
/// Longest time for which nothing may come.
const STALL: std::time::Duration = std::time::Duration::from_secs(60);

impl Registry {
    /// Reads every file of a version where it is stored, keeps nothing of it, and gives those that are missing or not what the manifest says, with what is
    /// wrong, in the order of their paths.
    ///
    /// # Errors
    /// If the storage cannot be asked.
    pub async fn verify(
        &self,
        manifest: &Manifest,
        watch: &dyn Watch,
    ) -> Result<Vec<FetchError>, FetchError> {
        let folder = self.folder(manifest.id());
        let wrong = stream::iter(manifest.files())
            .map(|file| {
                let at = folder.file(&file.path);
                async move { verify(&at, file, watch).await }
            })
            .buffered(AT_ONCE)
            .try_filter_map(|wrong| async { Ok(wrong) });
        wrong.try_collect().await
    }
}

/// What is wrong with a file, if anything.
async fn verify(
    at: &Location,
    file: &ManifestFile,
    watch: &dyn Watch,
) -> Result<Option<FetchError>, FetchError> {
    watch.begun(file, 0);
    let result = read(at, file, watch).await;
    watch.ended(file);
    match result {
        Ok(()) => Ok(None),
        Err(error @ (FetchError::NotFound { .. } | FetchError::Size { .. } | FetchError::Digest { .. })) => {
            Ok(Some(error))
        }
        Err(error) => Err(error),
    }
}

async fn read(at: &Location, file: &ManifestFile, watch: &dyn Watch) -> Result<(), FetchError> {
    let stalled = |_| FetchError::Stalled { at: at.to_string(), seconds: STALL.as_secs() };
    let failed = |error| FetchError::of(at, &error);
    let asked = at.store().get_opts(at.at(), GetOptions::default());
    let answer = tokio::time::timeout(STALL, asked).await.map_err(stalled)?.map_err(failed)?;
    if answer.meta.size != file.size {
        return Err(FetchError::Size { at: at.to_string(), found: answer.meta.size, wanted: file.size });
    }
    let mut stream = answer.into_stream();
    let (mut hasher, mut size) = (Hasher::default(), 0);
    while let Some(came) = tokio::time::timeout(STALL, stream.next()).await.map_err(stalled)? {
        let came = came.map_err(failed)?;
        hasher.update(&came);
        size += came.len() as u64;
        watch.came(file, came.len() as u64);
    }
    if size != file.size {
        return Err(FetchError::Storage { at: at.to_string(), said: "the answer ended too soon".into() });
    }
    let found = hasher.finish();
    if found == file.sha256 {
        Ok(())
    } else {
        Err(FetchError::Digest { at: at.to_string(), found, wanted: file.sha256 })
    }
}
