//! Loading a model: its archive looked at, its module, and what that takes and gives.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use outrigger_backend::{BackendError, Buffer, Instance, LoadOptions, Model, ModelInfo, TensorInfo};

use crate::archive::{self, Contents};
use crate::device::Common;
use crate::instance::ScriptInstance;
use crate::signature::{self, Came};
use crate::streams::{Lane, Stream};
use crate::sys::Module;
use crate::{FORMAT, error, run};

/// What a module takes beside its tensors, measured with libtorch 2.11 and many small models: the compiled code, and what the first
/// runs make of it.
const MODULE_BYTES: u64 = 256 * 1024;

pub(crate) struct ScriptModel(Arc<Loaded>);

/// What all instances of a model share.
pub(crate) struct Loaded {
    pub(crate) module: Module,
    pub(crate) common: Arc<Common>,
    pub(crate) info: ModelInfo,
    /// Threads that share one run.
    pub(crate) threads: usize,
    /// Whether any extent is free, so that a run can fail for its inputs.
    pub(crate) has_free_extents: bool,
    /// Whether inputs are copied, because the code might write to them or keep them.
    pub(crate) copies_inputs: bool,
    /// Held by a run where runs would get in each other's way.
    pub(crate) alone: Option<Mutex<()>>,
    /// The stream of such a model's, in which everything of it is on a GPU, whatever thread comes. What one run keeps for the next is memory of this
    /// stream's then, which libtorch's allocator gives to nobody before what uses it there is done.
    pub(crate) stream: Option<Stream>,
    /// Bytes of the model.
    pub(crate) bytes: Held,
    /// Instances that there are.
    pub(crate) instances: AtomicUsize,
    /// Dropped last.
    _gone: Gone,
}

/// Tells the device that a model has gone, when its module has.
struct Gone(Arc<Common>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.place.trim();
    }
}

/// A model's bytes, counted in the device's as long as they are held.
pub(crate) struct Held {
    pub(crate) bytes: u64,
    all: Arc<AtomicU64>,
}

impl Held {
    fn new(all: &Arc<AtomicU64>, bytes: u64) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, all: Arc::clone(all) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl ScriptModel {
    pub(crate) fn load(common: &Arc<Common>, options: &LoadOptions) -> Result<Self, BackendError> {
        let failed = |why: &dyn std::fmt::Display| error::load(&options.path, why);
        if let Some(format) = options.format.as_deref().filter(|format| *format != FORMAT) {
            return Err(failed(&format_args!("the format `{format}` is not known, only {FORMAT}")));
        }
        if let Some((key, _)) = options.settings.first() {
            return Err(failed(&format_args!(
                "there is no setting `{key}` for a model, there is none at all"
            )));
        }
        let contents = inspect(common, options)?;
        // Before the module is made: a mistake in a description should not cost the time of loading.
        let inputs =
            signature::inputs(&contents.forward, &options.signature).map_err(|error| failed(&error))?;
        let is_stateful = contents.habits.is_stateful();
        let stream = if is_stateful { common.place.stream()? } else { None };
        let lane = common.place.enter(stream)?;
        let module =
            Module::load(&contents.file.path(), common.place.number()).map_err(|error| failed(&error))?;
        // Weights have arrived on a GPU once this is left.
        lane.map_or(Ok(()), Lane::leave).map_err(|error| failed(&error))?;
        contents.file.is_as_it_was().map_err(|error| failed(&error))?;
        let mut loaded = Loaded {
            module,
            common: Arc::clone(common),
            info: ModelInfo { inputs, outputs: options.signature.outputs.clone() },
            threads: options.intra_threads.unwrap_or(common.settings.intra_threads.get()),
            has_free_extents: false,
            copies_inputs: contents.habits.touches_inputs(),
            alone: is_stateful.then(Mutex::default),
            stream,
            bytes: Held::new(&common.held, bytes(&contents)),
            instances: AtomicUsize::new(0),
            _gone: Gone(Arc::clone(common)),
        };
        if loaded.info.outputs.is_empty() {
            let why = |error: String| {
                failed(&format_args!(
                    "what comes out of it is not to be found out by running it on zeros, so describe its outputs in \
                     model.toml, as `[[outputs]]`; {error}"
                ))
            };
            loaded.info.outputs = found_out(&loaded).map_err(why)?;
        }
        loaded.has_free_extents = loaded.info.has_free_extents();
        Ok(Self(Arc::new(loaded)))
    }
}

/// Bytes that a model will take, as far as its file tells.
pub(crate) fn estimate(common: &Common, options: &LoadOptions) -> Result<u64, BackendError> {
    Ok(bytes(&inspect(common, options)?))
}

fn inspect(common: &Common, options: &LoadOptions) -> Result<Contents, BackendError> {
    let contents = archive::inspect(&options.path, common.settings.code_bytes)
        .map_err(|error| error::load(&options.path, error))?;
    if contents.habits.forks() && !common.place.is_host() {
        // libtorch begins such a task without the stream of its caller, so that the two would not wait for each other.
        let why = "its code calls `fork` (`torch.jit.fork`), whose tasks do not run in the stream of the call on a GPU; serve it on `cpu_torch`";
        return Err(error::load(&options.path, why));
    }
    Ok(contents)
}

fn bytes(contents: &Contents) -> u64 {
    contents.tensor_bytes.saturating_add(MODULE_BYTES)
}

/// The outputs, by two runs. These are also those in which libtorch looks at what the code does, to make better code of it.
fn found_out(loaded: &Loaded) -> Result<Vec<TensorInfo>, String> {
    let inputs = &loaded.info.inputs;
    let [first, second] = [try_out(loaded, 0)?, try_out(loaded, 1)?];
    signature::outputs(inputs, &first, &second).ok_or_else(|| "two runs gave different tensors".into())
}

fn try_out(loaded: &Loaded, round: i64) -> Result<Vec<Came>, String> {
    let zeros =
        loaded.info.inputs.iter().zip(signature::trial(&loaded.info.inputs, round)).map(|(info, extents)| {
            let shape = outrigger_backend::Shape::new(extents).map_err(|error| error.to_string())?;
            let bytes = shape.bytes(info.data_type).map_err(|error| error.to_string())?;
            let zeros = Buffer::zeroed(bytes)
                .map_err(|error| format!("{bytes} bytes for `{}`: {error}", info.name))?;
            outrigger_backend::Tensor::new(info.data_type, shape, zeros.freeze())
                .map_err(|error| error.to_string())
        });
    let zeros = zeros.collect::<Result<Vec<_>, String>>()?;
    let lane = loaded.common.place.enter(loaded.stream).map_err(|error| error.to_string())?;
    let results = run::forward(loaded, &zeros).map_err(|error| error.to_string())?;
    if let Some(lane) = &lane {
        lane.wait().map_err(|error| error.to_string())?;
    }
    let results = results.into_iter().map(|(name, tensor)| {
        let data_type = run::data_type(name.as_deref().unwrap_or("its result"), &tensor)?;
        let shape = tensor.shape().map_err(|error| error::run(&error, true))?;
        Ok((name, data_type, shape))
    });
    results.collect::<Result<_, BackendError>>().map_err(|error| error.to_string())
}

impl Model for ScriptModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::new(ScriptInstance::new(Arc::clone(&self.0))))
    }
}
