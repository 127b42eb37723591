//! Loading a model: a session of ONNX Runtime, and what it takes and gives.

use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ort::memory::MemoryInfo;
use ort::value::{Outlet, ValueType};
use outrigger_backend::{
    BackendError, DLDevice, DeviceMemory, Instance, LoadOptions, Model, ModelInfo, Output, Tensor, TensorInfo,
};

use crate::append;
use crate::cache::Cache;
use crate::complaints;
use crate::contents::{self, Contents};
use crate::error;
use crate::graphs::{Frames, Graphs};
use crate::instance::OnnxInstance;
use crate::kept::{Kept, Told};
use crate::own::OwnThread;
use crate::provider::{Fault, Plan};
use crate::raw::{self, Names};
use crate::session::Maker;
use crate::shrink::{Pauses, Shrink};
use crate::steps::{self, Asked};

/// What a session takes beside its weights, measured with ONNX Runtime 1.32 and many small models.
const SESSION_BYTES: u64 = 100 * 1024;

pub(crate) struct OnnxModel(Arc<Loaded>);

/// What all instances of a model share.
pub(crate) struct Loaded {
    /// Runs that are recorded, if any are; then all runs come one after the other. Before the session, for its thread ends first.
    pub(crate) graphs: Option<Recorded>,
    pub(crate) session: Arc<Kept>,
    pub(crate) names: Names,
    pub(crate) info: ModelInfo,
    pub(crate) device: Arc<Common>,
    /// Whether any extent is free, so that a run can fail for its inputs.
    pub(crate) has_free_extents: bool,
    /// For each output whether it is an input under the same name. ONNX Runtime hands such an input through and leaves a
    /// place for it unwritten, without an error.
    pub(crate) passed_on: Vec<bool>,
    /// Set once a result did not have the shape that the model's text promises; from then on none is placed.
    pub(crate) promises_wrong_shapes: AtomicBool,
    /// Bytes of the session, estimated: the file, which is mostly weights, and what comes with each session.
    pub(crate) bytes: Held,
    /// Instances that there are.
    pub(crate) instances: AtomicUsize,
}

/// What a model has whose runs are recorded.
pub(crate) struct Recorded {
    pub(crate) frames: Mutex<Frames>,
    /// Makes all runs of the model.
    pub(crate) thread: OwnThread,
}

/// What a device's models have in common.
pub(crate) struct Common {
    pub(crate) told: Told,
    /// The device's name, and its number among the provider's.
    pub(crate) name: String,
    pub(crate) index: usize,
    pub(crate) cache: Option<Cache>,
    /// Bytes that all of them hold.
    pub(crate) held: Arc<AtomicU64>,
    /// Memory of the device's own, if it has any.
    pub(crate) home: Option<Home>,
    /// When its arena is shrunk, if it is, and what that takes.
    pub(crate) shrink: Option<(Shrink, Pauses)>,
    /// What said that nothing succeeds on it any more.
    pub(crate) lost: OnceLock<String>,
}

/// Memory of a device's own, as ONNX Runtime and DLPack describe it.
pub(crate) struct Home {
    pub(crate) memory: MemoryInfo<'static>,
    pub(crate) device: DLDevice,
}

/// A model's bytes, counted in the device's as long as they are held.
pub(crate) struct Held {
    pub(crate) bytes: u64,
    all: Arc<AtomicU64>,
}

impl Held {
    pub(crate) fn new(all: &Arc<AtomicU64>, bytes: u64) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, all: Arc::clone(all) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Loaded {
    /// Whether inputs are, and outputs are wanted, in memory that the device has.
    pub(crate) fn check_places(&self, inputs: &[Tensor], outputs: &[Output]) -> Result<(), BackendError> {
        let name = &self.device.name;
        let Some(home) = &self.device.home else {
            let stays = inputs.iter().any(|input| input.resident().is_some())
                || outputs.iter().any(Output::wants_resident);
            let text = || format!("{name} takes and gives tensors in the host's memory alone");
            return if stays { Err(BackendError::Unsupported(text())) } else { Ok(()) };
        };
        let mut elsewhere = inputs.iter().filter_map(Tensor::resident);
        match elsewhere.find(|memory| memory.device() != home.device) {
            Some(memory) => Err(BackendError::Unsupported(format!("{memory:?} is not of {name}"))),
            None => Ok(()),
        }
    }

    /// A run that failed.
    pub(crate) fn failed(&self, error: &ort::Error) -> BackendError {
        match self.device.fault(error::said(error.message())) {
            None => error::run(error, self.has_free_extents),
            Some(fault) => self.device.faulty(fault, error::first_line(error.message())),
        }
    }
}

impl Common {
    /// What a message says of the device, if it is so.
    fn fault(&self, said: &str) -> Option<Fault> {
        let Told { provider, runtime } = &self.told;
        let fault = provider.fault(said)?;
        let is_so =
            || self.lost.get().is_some() || !matches!(provider.ask(self.index, runtime), Some(Ok(())));
        (fault != Fault::Lost || is_so()).then_some(fault)
    }

    /// Whether it runs anything, where it can be asked.
    pub(crate) fn is_well(&self) -> Result<(), BackendError> {
        let Told { provider, runtime } = &self.told;
        match provider.ask(self.index, runtime) {
            Some(Err(why)) => Err(match provider.fault(&why) {
                Some(fault) => self.faulty(fault, &why),
                None => BackendError::Unavailable { backend: provider.name().into(), reason: why },
            }),
            _ => Ok(()),
        }
    }

    /// What comes of a fault of the device: one that is lost is so for good, for the reason that came first.
    pub(crate) fn faulty(&self, fault: Fault, text: &str) -> BackendError {
        match fault {
            Fault::OutOfMemory => BackendError::OutOfMemory(text.to_owned()),
            Fault::Lost => BackendError::Lost(self.lost.get_or_init(|| text.to_owned()).clone()),
        }
    }

    /// Takes memory of the device's own, which is counted.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        let memory = self.heard(self.told.provider.allocate(self.index, bytes))?;
        let (device, address, len) = (memory.device(), memory.address(), memory.len());
        let owner = Arc::new((memory, Held::new(&self.held, len as u64)));
        Ok(DeviceMemory::new(device, address, len, owner))
    }

    /// Passes on what the provider says, and remembers it if the device is lost.
    pub(crate) fn heard<T>(&self, told: Result<T, BackendError>) -> Result<T, BackendError> {
        told.map_err(|error| match error {
            BackendError::Lost(text) => self.faulty(Fault::Lost, &text),
            other => other,
        })
    }

    /// A session that was not made, which may be for the device and not for the model.
    fn not_made(&self, path: &Path, error: BackendError) -> BackendError {
        match error {
            BackendError::Load(text) => match self.fault(&error::said_of(path, &text)) {
                Some(fault) => self.faulty(fault, &text),
                None => BackendError::Load(text),
            },
            other => other,
        }
    }
}

impl OnnxModel {
    pub(crate) fn load(common: &Arc<Common>, options: &LoadOptions) -> Result<Self, BackendError> {
        let failed = |why: &dyn std::fmt::Display| error::load(&options.path, why);
        let (options, plan, steps) = prepare(common, options)?;
        if let Some(format) = options.format.as_deref().filter(|format| *format != "onnx") {
            return Err(failed(&format_args!("the format `{format}` is not known, only onnx")));
        }
        let contents = inspect(common, &options)?;
        check_names(&contents, steps.as_ref(), &options.path)?;
        let has_steps = steps.is_some();
        let Told { provider, runtime } = &common.told;
        // The optimised form would have to hold what is in the other files.
        let cache = common.cache.as_ref().filter(|_| !contents.is_external && !plan.compiles());
        let cache = cache.map(|cache| cache.under(&plan, steps.as_ref()));
        let has = |operator: &str, data_type| provider.has_operator(operator, data_type);
        let steps = steps.map(|steps| (steps, plan.device(&has)));
        let graphs = plan.graphs.clone();
        let maker = Maker { runtime, plan, cache, steps };
        let mut sides = [Vec::new(), Vec::new()];
        // Without a provider everything is read on the CPU, and nothing recorded.
        let asks_places = graphs.is_some() && !maker.plan.providers.is_empty();
        let mut on_device = None;
        let session = Kept::make(&common.told, || {
            // What somebody else's run left there says nothing of this.
            complaints::take();
            let made = maker.make(&options.path)?;
            if let Some((fault, said)) =
                complaints::take().and_then(|said| Some((provider.fault(&said)?, said)))
            {
                return Err(common.faulty(fault, &said));
            }
            if asks_places {
                let places = append::inputs_on_a_device(&made);
                on_device = Some(places.map_err(|error| failed(&error.message()))?);
            }
            sides = [made.inputs, made.outputs];
            Ok(made.session)
        });
        let session = session.map_err(|error: BackendError| common.not_made(&options.path, error))?;
        let [inputs, outputs] = sides;
        let names = |infos: &[TensorInfo]| {
            infos.iter().map(|info| CString::new(info.name.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let is_input = |output: &TensorInfo| inputs.iter().any(|input| input.name == output.name);
        let passed_on = outputs.iter().map(is_input).collect();
        let names = names(&inputs).and_then(|inputs| Ok(Names::new(inputs, names(&outputs)?)));
        let info = match has_steps {
            true => {
                ModelInfo { inputs: theirs(inputs, steps::INPUT), outputs: theirs(outputs, steps::OUTPUT) }
            }
            false => ModelInfo { inputs, outputs },
        };
        if let Some(why) = graphs.as_ref().and_then(|graphs| graphs.refuses(&info)) {
            return Err(failed(&why));
        }
        if let Some(why) = on_device.and_then(|places| Graphs::refuses_places(&info.inputs, &places)) {
            return Err(failed(&why));
        }
        let graphs = graphs.map(|graphs| {
            let frames = Frames::new(graphs).map_err(|error| failed(&error.message()))?;
            let thread = OwnThread::start().map_err(|error| failed(&format_args!("no thread: {error}")))?;
            Ok(Recorded { frames: Mutex::new(frames), thread })
        });
        let loaded = Loaded {
            session: Arc::new(session),
            names: names.map_err(|error| failed(&error))?,
            has_free_extents: info.has_free_extents(),
            passed_on,
            info,
            device: Arc::clone(common),
            promises_wrong_shapes: AtomicBool::new(false),
            graphs: graphs.transpose()?,
            bytes: Held::new(&common.held, bytes(&contents)),
            instances: AtomicUsize::new(0),
        };
        common.is_well()?;
        Ok(Self(Arc::new(loaded)))
    }
}

/// Bytes that a model will take, as far as its file tells.
///
/// Refuses settings that loading would refuse, so that a plan shows them.
pub(crate) fn estimate(common: &Common, options: &LoadOptions) -> Result<u64, BackendError> {
    let (options, plan, steps) = prepare(common, options)?;
    let contents = inspect(common, &options)?;
    check_names(&contents, steps.as_ref(), &options.path)?;
    let Told { provider, runtime } = &common.told;
    let has = |operator: &str, data_type| provider.has_operator(operator, data_type);
    if steps.is_some() {
        let steps = steps.map(|steps| (steps, plan.device(&has)));
        Maker { runtime, plan, cache: None, steps }.inspect(&options.path)?;
    }
    Ok(bytes(&contents))
}

/// What a model's file says of itself, if the device can run that.
fn inspect(common: &Common, options: &LoadOptions) -> Result<Contents, BackendError> {
    let contents = contents::inspect(&options.path).map_err(|error| error::load(&options.path, error))?;
    if contents.calculates_with_halves() && common.told.provider.lacks_halves(common.index) {
        let why = "it calculates with FP16, which the shaders of this device have not";
        return Err(error::load(&options.path, why));
    }
    Ok(contents)
}

/// Whether the names that steps have in a graph are theirs alone.
fn check_names(contents: &Contents, steps: Option<&Asked>, path: &Path) -> Result<(), BackendError> {
    match steps {
        Some(_) if contents.has_step_names => {
            let why = format!("it has names that begin with `{}`, as those of steps do", steps::NAMES);
            Err(error::load(path, why))
        }
        _ => Ok(()),
    }
}

/// The options of a load without its steps, how its sessions are made, and the steps.
fn prepare(
    common: &Common,
    options: &LoadOptions,
) -> Result<(LoadOptions, Plan, Option<Asked>), BackendError> {
    let failed = |why: &dyn std::fmt::Display| error::load(&options.path, why);
    let mut plain = options.clone();
    let steps = Asked::take(&mut plain).map_err(|error| failed(&error))?;
    let plan = common.told.provider.plan(common.index, &plain).map_err(|error| failed(&error))?;
    if steps.is_some() && plan.compiles() {
        return Err(failed(&"TensorRT may calculate steps less exactly than they are defined"));
    }
    Ok((plain, plan, steps))
}

/// A side of the graph by the names that callers have for it.
fn theirs(mut side: Vec<TensorInfo>, prefix: &str) -> Vec<TensorInfo> {
    for info in &mut side {
        if let Some(name) = info.name.strip_prefix(prefix) {
            info.name = name.to_owned();
        }
    }
    side
}

/// The constants, which are most of the files, and what comes with each session. What runs take in between is the arena's, which
/// all models share.
fn bytes(contents: &Contents) -> u64 {
    [contents.external_bytes, contents.dense_bytes, SESSION_BYTES]
        .into_iter()
        .fold(contents.bytes, u64::saturating_add)
}

/// Why an input or output cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutletError {
    #[error("`{name}` is a {kind}, only tensors are carried (scikit-learn: convert with `zipmap=False`)")]
    NoTensor { name: String, kind: String },
    #[error("`{name}` has elements of type {element}, which is not carried")]
    Type { name: String, element: String },
}

/// An input or output of a session.
pub(crate) fn describe(outlet: &Outlet) -> Result<TensorInfo, OutletError> {
    let name = outlet.name().to_owned();
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(OutletError::NoTensor { name, kind: outlet.dtype().to_string() });
    };
    let Some(data_type) = raw::data_type((*ty).into()) else {
        return Err(OutletError::Type { name, element: ty.to_string() });
    };
    Ok(TensorInfo {
        name,
        data_type,
        shape: shape.iter().map(|extent| (*extent).max(-1)).collect(),
        symbols: dimension_symbols.to_vec(),
    })
}

impl Model for OnnxModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::new(OnnxInstance::new(Arc::clone(&self.0))))
    }
}
