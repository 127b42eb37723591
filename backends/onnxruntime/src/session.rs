//! Making a session: from the optimised form in the cache if there is one, else from the model's file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use outrigger_backend::BackendError;

use crate::append::{self, RECORD};
use crate::cache::{Cache, Entry};
use crate::error;
use crate::provider::{Leftovers, Plan};
use crate::runtime::Runtime;

/// What a session is made with.
pub(crate) struct Maker {
    pub(crate) runtime: &'static Runtime,
    pub(crate) plan: Plan,
    pub(crate) cache: Option<Cache>,
}

impl Maker {
    /// The session of the model at `path`.
    pub(crate) fn make(&self, path: &Path) -> Result<Session, BackendError> {
        // `ort` panics on some types of inputs and outputs that it does not know.
        let made = catch_unwind(AssertUnwindSafe(|| self.with_cache(path)));
        let session = made
            .map_err(|_| error::load(path, "has an input or output of a type that cannot be read"))?
            .map_err(|error| error::load(path, error.message()))?;
        self.check(&session).map_err(|why| error::load(path, why))?;
        Ok(session)
    }

    /// Makes a session of a model of one operator, and lets it go again.
    pub(crate) fn probe(&self, model: &[u8]) -> Result<(), String> {
        let session = self.builder().and_then(|mut builder| builder.commit_from_memory(model));
        self.check(&session.map_err(|error| error::first_line(error.message()).to_owned())?)
    }

    /// Opens the plan's providers with their options, for nothing.
    pub(crate) fn can_append(&self) -> Result<(), String> {
        self.builder().map(drop).map_err(|error| error::first_line(error.message()).to_owned())
    }

    /// A session whose operators all run on the CPU, though others were to run them, would be a fallback that nobody asked for. One
    /// without operators is not.
    fn check(&self, session: &Session) -> Result<(), String> {
        let said = |error: ort::Error| error.message().to_owned();
        if self.plan.providers.is_empty() || append::is_on_a_device(session).map_err(said)? {
            return Ok(());
        }
        let taken = append::taken(session).map_err(said)?;
        let names = || self.plan.providers.iter().map(|provider| provider.name.as_str());
        if taken.is_empty() || names().any(|name| taken.contains_key(name)) {
            return Ok(());
        }
        Err(format!("{} takes none of its operators", names().collect::<Vec<_>>().join(" or ")))
    }

    fn with_cache(&self, path: &Path) -> ort::Result<Session> {
        let before = stamp(path);
        // A file that cannot be read fails below, where it is said.
        let Some(entry) = self.cache.as_ref().and_then(|cache| cache.entry(path).ok()) else {
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
        let file = entry.file()?;
        // A provider that cannot be had says nothing against the file; it fails the load of the model itself as well.
        let builder = self.builder().ok()?;
        // All that there is to optimise has been.
        let session = builder
            .with_optimization_level(GraphOptimizationLevel::Disable)
            .map_err(ort::Error::from)
            .and_then(|mut builder| builder.commit_from_file(file));
        if session.is_err() {
            entry.remove();
        }
        session.ok()
    }

    fn builder(&self) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&self.runtime.environment)?;
        for (key, value) in &self.plan.entries {
            builder = builder.with_config_entry(key, value)?;
        }
        // What a run has recorded are addresses, which no other model's run may have.
        let builder = if self.plan.graphs.is_some() { builder } else { builder.with_env_allocators()? };
        let builder = builder
            // Whatever the file's name ends in, and whatever the plan says: only this form has been looked through.
            .with_config_entry("session.load_model_format", "ONNX")?;
        self.with_providers(self.with_pool(builder)?)
    }

    fn with_pool(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        let Some(pool) = &self.plan.pool else { return Ok(builder) };
        // A number of its own means threads of its own: the shared pool has one size for all.
        let builder = builder
            .with_independent_thread_pool()?
            .with_intra_threads(pool.threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?;
        match &pool.affinity {
            Some(text) => Ok(builder.with_config_entry("session.intra_op_thread_affinities", text)?),
            None => Ok(builder),
        }
    }

    fn with_providers(&self, mut builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        if self.plan.providers.is_empty() {
            return Ok(builder);
        }
        builder = builder.with_config_entry(RECORD.0, RECORD.1)?;
        if self.plan.leftovers == Leftovers::Refused {
            builder = builder.with_disable_cpu_fallback()?;
        }
        for provider in &self.plan.providers {
            append::append(&builder, provider)?;
        }
        Ok(builder)
    }
}

/// What changes when a file is exchanged.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}
