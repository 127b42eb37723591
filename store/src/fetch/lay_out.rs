//! Models out of storage to where their users look for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::watch::Again;
use super::{FetchError, Fetcher, FileSet, Watch};
use crate::location::Location;
use crate::manifest::Manifest;
use crate::tree::{Tree, TreeError, TreeModel, TreeRoot};

/// How often files are fetched that made way, in a cache that others use, before they could be laid out.
const ATTEMPTS: usize = 3;

/// Why models are not laid out.
#[derive(Debug, thiserror::Error)]
pub enum LayOutError {
    /// The storage, or a file.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The file system.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A thread of ours ended by a panic.
    #[error("laying models out was broken off")]
    Broken(#[from] tokio::task::JoinError),
}

impl Fetcher {
    /// Has all files of some versions in the cache ([`Fetcher::models`]) and a tree of them in place of the one that is there. Files that make way
    /// in between are fetched again. One version may be given more than once. The files of each are given back, in the order of `models`.
    ///
    /// # Errors
    /// Says what cannot be had or made; the old tree stays.
    pub async fn lay_out(
        &self,
        root: &Arc<TreeRoot>,
        models: &[(Location, Manifest)],
        watch: &dyn Watch,
    ) -> Result<(Tree, Vec<FileSet>), LayOutError> {
        let again = Again(watch);
        let mut attempt = 1;
        loop {
            let watch = if attempt == 1 { watch } else { &again };
            let sets = self.models(models, watch).await?;
            match self.build(root, models, sets).await? {
                Err(TreeError::Gone { id, path }) if attempt < ATTEMPTS => {
                    tracing::warn!(model = %id, path, "a file made way in the cache before it was laid out; once more");
                    attempt += 1;
                }
                built => return Ok(built?),
            }
        }
    }

    async fn build(
        &self,
        root: &Arc<TreeRoot>,
        models: &[(Location, Manifest)],
        sets: Vec<FileSet>,
    ) -> Result<Result<(Tree, Vec<FileSet>), TreeError>, tokio::task::JoinError> {
        let (root, cache) = (Arc::clone(root), self.cache().clone());
        let ids: Vec<_> = models.iter().map(|(_, manifest)| manifest.id().clone()).collect();
        let build = move || {
            let mut seen = BTreeSet::new();
            let models = ids.iter().zip(&sets).filter(|(id, _)| seen.insert(*id));
            let models: Vec<_> = models.map(|(id, files)| TreeModel { id, files }).collect();
            let tree = root.build(&cache, &models)?;
            Ok((tree, sets))
        };
        tokio::task::spawn_blocking(build).await
    }
}
