//! Making a session: from the optimised form in the cache if there is one, else from the model's file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::Outlet;
use outrigger_backend::{BackendError, TensorInfo};

use crate::append::{self, RECORD};
use crate::cache::{Cache, Entry};
use crate::editor::AnySession;
use crate::error;
use crate::model::describe;
use crate::provider::{Leftovers, Plan};
use crate::runtime::Runtime;
use crate::steps::{self, Asked};

/// Has files read as ONNX, whatever their names end in.
pub(crate) const FORM: (&str, &str) = ("session.load_model_format", "ONNX");

/// What a session is made with.
pub(crate) struct Maker<'a> {
    pub(crate) runtime: &'static Runtime,
    pub(crate) plan: Plan,
    pub(crate) cache: Option<Cache>,
    /// Steps that are to be in the graph, and the device that is to have operators for them.
    pub(crate) steps: Option<(Asked, steps::Device<'a>)>,
}

/// A session, and its inputs and outputs. `ort` knows only those that a graph had before it was edited.
pub(crate) struct Made {
    pub(crate) session: AnySession,
    pub(crate) inputs: Vec<TensorInfo>,
    pub(crate) outputs: Vec<TensorInfo>,
}

impl Maker<'_> {
    /// The session of the model at `path`.
    pub(crate) fn make(&self, path: &Path) -> Result<Made, BackendError> {
        // `ort` panics on some types of inputs and outputs that it does not know.
        let made = catch_unwind(AssertUnwindSafe(|| self.with_cache(path)));
        let made = made
            .map_err(|_| error::load(path, "has an input or output of a type that cannot be read"))?
            .map_err(|error| error::load(path, error.message()))?;
        self.check(&made).map_err(|why| error::load(path, why))?;
        Ok(made)
    }

    /// Whether the steps can be in the graph of the model at `path`, without the plan's providers.
    pub(crate) fn inspect(&self, path: &Path) -> Result<(), BackendError> {
        let Some((asked, device)) = &self.steps else { return Ok(()) };
        let inspected = steps::inspect(self.runtime, path, asked, device);
        inspected.map(drop).map_err(|error| error::load(path, error.message()))
    }

    /// Makes a session of a model of one operator, which takes one number, runs it, and lets it go again.
    pub(crate) fn probe(&self, model: &[u8]) -> Result<(), String> {
        let said = |error: ort::Error| error::said(error.message()).to_owned();
        let session = self.builder().and_then(|mut builder| builder.commit_from_memory(model));
        let mut session = session.map_err(said)?;
        let mut run =
            || session.run(ort::inputs![ort::value::Tensor::from_array(([1], vec![0f32]))?]).map(drop);
        run().map_err(said)?;
        self.check(&Made::of(session).map_err(said)?)
    }

    /// Opens the plan's providers with their options, for nothing.
    pub(crate) fn can_append(&self) -> Result<(), String> {
        self.builder().map(drop).map_err(|error| error::first_line(error.message()).to_owned())
    }

    /// A session whose operators all run on the CPU, though others were to run them, would be a fallback that nobody asked for. One
    /// without operators is not.
    fn check(&self, made: &Made) -> Result<(), String> {
        let said = |error: ort::Error| error.message().to_owned();
        if self.plan.providers.is_empty() || append::is_on_a_device(made).map_err(said)? {
            return Ok(());
        }
        let taken = append::taken(&made.session).map_err(said)?;
        let names = || self.plan.providers.iter().map(|provider| provider.name.as_str());
        if taken.is_empty() || names().any(|name| taken.contains_key(name)) {
            return Ok(());
        }
        Err(format!("{} takes none of its operators", names().collect::<Vec<_>>().join(" or ")))
    }

    fn with_cache(&self, path: &Path) -> ort::Result<Made> {
        let before = stamp(path);
        // A file that cannot be read fails below, where it is said.
        let Some(entry) = self.cache.as_ref().and_then(|cache| cache.entry(path).ok()) else {
            return self.commit(self.builder()?, path);
        };
        if let Some(session) = self.cached(&entry, path) {
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
                Err(_) => self.commit(self.builder()?, path),
            },
            Err(_) => self.commit(self.builder()?, path),
        }
    }

    fn draft(&self, path: &Path, draft: &Path) -> ort::Result<Made> {
        self.commit(self.builder()?.with_optimized_model_path(draft)?, path)
    }

    fn commit(&self, mut builder: SessionBuilder, path: &Path) -> ort::Result<Made> {
        match &self.steps {
            None => Made::of(builder.commit_from_file(path)?),
            Some((asked, device)) => {
                let edited = steps::edit(self.runtime, &builder, path, asked, device)?;
                let (session, [inputs, outputs]) = edited;
                Ok(Made { session: AnySession::Edited(session), inputs, outputs })
            }
        }
    }

    fn cached(&self, entry: &Entry<'_>, path: &Path) -> Option<Made> {
        let file = entry.file()?;
        // A provider that cannot be had says nothing against the file; it fails the load of the model itself as well.
        let builder = self.builder().ok()?;
        // All that there is to optimise has been.
        let session = builder
            .with_optimization_level(GraphOptimizationLevel::Disable)
            .map_err(ort::Error::from)
            .and_then(|mut builder| Made::of(builder.commit_from_file(file)?))
            // What is kept has no names for the extents of its inputs and outputs.
            .and_then(|made| match &self.steps {
                None => Ok(made),
                Some((asked, device)) => {
                    let [inputs, outputs] = steps::inspect(self.runtime, path, asked, device)?;
                    Ok(Made { inputs, outputs, ..made })
                }
            });
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
            .with_config_entry(FORM.0, FORM.1)?;
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

impl Made {
    fn of(session: Session) -> ort::Result<Self> {
        let described = |outlets: &[Outlet]| {
            let infos = outlets
                .iter()
                .map(|outlet| describe(outlet).map_err(|error| ort::Error::new(error.to_string())));
            infos.collect::<ort::Result<Vec<_>>>()
        };
        let (inputs, outputs) = (described(session.inputs())?, described(session.outputs())?);
        Ok(Self { session: AnySession::Plain(session), inputs, outputs })
    }
}

/// What changes when a file is exchanged.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use outrigger_backend::{DataType, LoadOptions};
    use outrigger_processing::Around;
    use outrigger_testkit::onnx::{Dim, identity};
    use outrigger_testkit::webgpu;

    use super::*;
    use crate::provider::{Pool, Provider};
    use crate::{WebGpu, runtime};

    /// With nothing left for the CPU, the input of bytes is first read in memory of the device's.
    #[test]
    fn an_image_goes_to_webgpu_as_bytes() {
        let Some(library) = webgpu::alone("session::tests::an_image_goes_to_webgpu_as_bytes") else { return };
        let runtime = runtime::start(Some(&library), &Pool { threads: 1, affinity: None }).unwrap();
        let provider = WebGpu { leftovers: Leftovers::Refused, ..WebGpu::default() };
        let plan = provider.plan(0, &LoadOptions::default()).unwrap();
        let text =
            "before = [{step = 'normalize', scale = 0.5}, {step = 'layout', layout = 'NCHW', to = 'x'}]";
        let image = TensorInfo {
            name: "image".into(),
            data_type: DataType::Uint8,
            shape: vec![-1, -1, -1, 3],
            symbols: Vec::new(),
        };
        let asked =
            Asked { around: Around::of_text(text).unwrap(), inputs: vec![image], outputs: Vec::new() };
        let has = |operator: &str, data_type| provider.has_operator(operator, data_type);
        let steps = Some((asked, plan.device(&has)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let dims = [Dim::Named("n"), Dim::Fixed(3), Dim::Named("h"), Dim::Named("w")];
        std::fs::write(&path, identity(DataType::Fp32, &dims)).unwrap();
        let made = Maker { runtime, plan, cache: None, steps }.make(&path).unwrap();
        assert_eq!((made.inputs.len(), made.inputs[0].data_type), (1, DataType::Uint8));
        assert_eq!(append::inputs_on_a_device(&made).unwrap(), [true]);
    }
}
