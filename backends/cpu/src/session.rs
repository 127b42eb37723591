//! Making a session: from the optimised form in the cache if there is one, else from the model's file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use outrigger_backend::BackendError;

use crate::affinity::Affinity;
use crate::cache::{Cache, Entry};
use crate::error;
use crate::runtime::Runtime;

/// The threads of a pool that a model has for itself.
pub(crate) struct Pool {
    pub(crate) threads: usize,
    pub(crate) affinity: Option<Affinity>,
}

/// What a session is made with.
pub(crate) struct Maker<'a> {
    pub(crate) runtime: &'static Runtime,
    /// The shared pool where there is none.
    pub(crate) pool: Option<Pool>,
    pub(crate) cache: Option<&'a Cache>,
}

impl Maker<'_> {
    /// The session of the model at `path`.
    pub(crate) fn make(&self, path: &Path) -> Result<Session, BackendError> {
        // `ort` panics on some types of inputs and outputs that it does not know.
        let made = catch_unwind(AssertUnwindSafe(|| self.with_cache(path)));
        made.map_err(|_| error::load(path, "has an input or output of a type that cannot be read"))?
            .map_err(|error| error::load(path, error.message()))
    }

    fn with_cache(&self, path: &Path) -> ort::Result<Session> {
        let before = stamp(path);
        // A file that cannot be read fails below, where it is said.
        let Some(entry) = self.cache.and_then(|cache| cache.entry(path).ok()) else {
            return self.builder()?.commit_from_file(path);
        };
        if let Some(session) = self.cached(&entry) {
            return Ok(session);
        }
        match entry.draft() {
            // What does not load at all fails here too, and then below, which tells why. What only cannot be written goes on there.
            Ok(draft) => match self.draft(path, draft.path()) {
                Ok(session) => {
                    // A file that was exchanged meanwhile must not get the other's name.
                    if before.is_some() && before == stamp(path) {
                        let _ = draft.keep();
                    }
                    Ok(session)
                }
                Err(_) => self.builder()?.commit_from_file(path),
            },
            Err(_) => self.builder()?.commit_from_file(path),
        }
    }

    fn draft(&self, path: &Path, draft: &Path) -> ort::Result<Session> {
        self.builder()?.with_optimized_model_path(draft)?.commit_from_file(path)
    }

    fn cached(&self, entry: &Entry<'_>) -> Option<Session> {
        let bytes = entry.read()?;
        // All that there is to optimise has been.
        let session = self.builder().and_then(|builder| {
            builder.with_optimization_level(GraphOptimizationLevel::Disable)?.commit_from_memory(&bytes)
        });
        if session.is_err() {
            entry.remove();
        }
        session.ok()
    }

    fn builder(&self) -> ort::Result<SessionBuilder> {
        let builder = Session::builder(&self.runtime.environment)?
            .with_env_allocators()?
            // Whatever the file's name ends in: only this form has been looked through.
            .with_config_entry("session.load_model_format", "ONNX")?;
        let Some(Pool { threads, affinity }) = &self.pool else { return Ok(builder) };
        // A number of its own means threads of its own: the shared pool has one size for all.
        let builder = builder
            .with_independent_thread_pool()?
            .with_intra_threads(*threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?;
        match affinity.as_ref().and_then(|affinity| affinity.for_pool(*threads)) {
            Some(text) => Ok(builder.with_config_entry("session.intra_op_thread_affinities", text)?),
            None => Ok(builder),
        }
    }
}

/// What changes when a file is exchanged.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}
