//! Models out of storage to where their users look for them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::watch::Again;
use super::{FetchError, Fetcher, FileSet, Watch};
use crate::id::ModelId;
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
    /// in between are fetched again. One version may be given more than once. The files of each are given back, in the order of `models`. The map
    /// names those too that come `later`, if at all.
    ///
    /// # Errors
    /// Says what cannot be had or made; the old tree stays.
    pub async fn lay_out(
        &self,
        root: &Arc<TreeRoot>,
        models: &[(Location, Manifest)],
        later: &[ModelId],
        watch: &dyn Watch,
    ) -> Result<(Tree, Vec<FileSet>), LayOutError> {
        let again = Again(watch);
        let mut attempt = 1;
        loop {
            let watch = if attempt == 1 { watch } else { &again };
            let sets = self.models(models, watch).await?;
            match self.build(root, models, later, sets).await? {
                Err(TreeError::Gone { id, path }) if attempt < ATTEMPTS => {
                    tracing::warn!(model = %id, path, "a file made way in the cache before it was laid out; once more");
                    attempt += 1;
                }
                built => return Ok(built?),
            }
        }
    }

    /// The same for one version, which is put into the tree that is there ([`TreeRoot::add`]). Gives its folder and its files.
    ///
    /// # Errors
    /// Says what cannot be had or made; what was there of it stays.
    pub async fn lay_out_one(
        &self,
        root: &Arc<TreeRoot>,
        from: &Location,
        manifest: &Manifest,
        watch: &dyn Watch,
    ) -> Result<(PathBuf, FileSet), LayOutError> {
        let again = Again(watch);
        let mut attempt = 1;
        loop {
            let files = self.model(from, manifest, if attempt == 1 { watch } else { &again }).await?;
            let (root, cache, id) = (Arc::clone(root), self.cache().clone(), manifest.id().clone());
            let add = move || {
                let at = root.add(&cache, &TreeModel { id: &id, files: &files })?;
                Ok((at, files))
            };
            match tokio::task::spawn_blocking(add).await? {
                Err(TreeError::Gone { id, path }) if attempt < ATTEMPTS => {
                    tracing::warn!(model = %id, path, "a file made way in the cache before it was laid out; once more");
                    attempt += 1;
                }
                added => return Ok(added?),
            }
        }
    }

    async fn build(
        &self,
        root: &Arc<TreeRoot>,
        models: &[(Location, Manifest)],
        later: &[ModelId],
        sets: Vec<FileSet>,
    ) -> Result<Result<(Tree, Vec<FileSet>), TreeError>, tokio::task::JoinError> {
        let (root, cache) = (Arc::clone(root), self.cache().clone());
        let ids: Vec<_> = models.iter().map(|(_, manifest)| manifest.id().clone()).collect();
        let later = later.to_vec();
        let build = move || {
            let (mut seen, nothing) = (BTreeSet::new(), FileSet::default());
            let later = later.iter().map(|id| (id, &nothing));
            let models = ids.iter().zip(&sets).chain(later).filter(|(id, _)| seen.insert(*id));
            let models: Vec<_> = models.map(|(id, files)| TreeModel { id, files }).collect();
            let tree = root.build(&cache, &models)?;
            Ok((tree, sets))
        };
        tokio::task::spawn_blocking(build).await
    }
}
