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

use crate::cache::Cache;
use crate::contents::{self, Contents};
use crate::error;
use crate::graphs::Frames;
use crate::instance::OnnxInstance;
use crate::kept::{Kept, Told};
use crate::provider::Fault;
use crate::raw::{self, Names};
use crate::session::Maker;
use crate::shrink::{Pauses, Shrink};

/// What a session takes beside its weights, measured with ONNX Runtime 1.32 and many small models.
const SESSION_BYTES: u64 = 100 * 1024;

pub(crate) struct OnnxModel(Arc<Loaded>);

/// What all instances of a model share.
pub(crate) struct Loaded {
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
    /// Runs that are recorded, if any are; then all runs come one after the other.
    pub(crate) graphs: Option<Mutex<Frames>>,
    /// Bytes of the session, estimated: the file, which is mostly weights, and what comes with each session.
    pub(crate) bytes: Held,
    /// Instances that there are.
    pub(crate) instances: AtomicUsize,
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
        match self.device.told.provider.fault(error::said(error.message())) {
            None => error::run(error, self.has_free_extents),
            Some(fault) => self.device.faulty(fault, error::first_line(error.message())),
        }
    }
}

impl Common {
    /// What comes of a fault of the device: one that is lost is so for good, for the reason that came first.
    fn faulty(&self, fault: Fault, text: &str) -> BackendError {
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
            BackendError::Load(text) => match self.told.provider.fault(&error::said_of(path, &text)) {
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
        if let Some(format) = options.format.as_deref().filter(|format| *format != "onnx") {
            return Err(failed(&format_args!("the format `{format}` is not known, only onnx")));
        }
        let contents = contents::inspect(&options.path).map_err(|error| failed(&error))?;
        let Told { provider, runtime } = &common.told;
        let plan = provider.plan(common.index, options).map_err(|error| failed(&error))?;
        // The optimised form would have to hold what is in the other files.
        let cache = common.cache.as_ref().filter(|_| !contents.is_external && !plan.compiles());
        let cache = cache.map(|cache| cache.under(&plan));
        let graphs = plan.graphs.clone();
        let maker = Maker { runtime, plan, cache };
        let session = Kept::make(&common.told, || maker.make(&options.path));
        let session = session.map_err(|error| common.not_made(&options.path, error))?;
        let describe = |outlets: &[Outlet]| {
            let infos = outlets.iter().map(|outlet| describe(outlet).map_err(|error| failed(&error)));
            infos.collect::<Result<Vec<_>, _>>()
        };
        let info = ModelInfo { inputs: describe(session.inputs())?, outputs: describe(session.outputs())? };
        if let Some(why) = graphs.as_ref().and_then(|graphs| graphs.refuses(&info)) {
            return Err(failed(&why));
        }
        let graphs = graphs.map(|graphs| Frames::new(graphs).map(Mutex::new)).transpose();
        let names = |infos: &[TensorInfo]| {
            infos.iter().map(|info| CString::new(info.name.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let names = names(&info.inputs).and_then(|inputs| Ok(Names::new(inputs, names(&info.outputs)?)));
        let loaded = Loaded {
            session: Arc::new(session),
            names: names.map_err(|error| failed(&error))?,
            has_free_extents: info.inputs.iter().any(|info| info.shape.iter().any(|extent| *extent < 0)),
            passed_on: info
                .outputs
                .iter()
                .map(|output| info.inputs.iter().any(|input| input.name == output.name))
                .collect(),
            info,
            device: Arc::clone(common),
            promises_wrong_shapes: AtomicBool::new(false),
            graphs: graphs.map_err(|error| failed(&error.message()))?,
            bytes: Held::new(&common.held, bytes(&contents)),
            instances: AtomicUsize::new(0),
        };
        Ok(Self(Arc::new(loaded)))
    }
}

/// Bytes that a model will take, as far as its file tells.
///
/// Refuses settings that loading would refuse, so that a plan shows them.
pub(crate) fn estimate(common: &Common, options: &LoadOptions) -> Result<u64, BackendError> {
    let plan = common.told.provider.plan(common.index, options);
    plan.map_err(|error| error::load(&options.path, error))?;
    let contents = contents::inspect(&options.path).map_err(|error| error::load(&options.path, error))?;
    Ok(bytes(&contents))
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
enum OutletError {
    #[error("`{name}` is a {kind}, only tensors are carried (scikit-learn: convert with `zipmap=False`)")]
    NoTensor { name: String, kind: String },
    #[error("`{name}` has elements of type {element}, which is not carried")]
    Type { name: String, element: String },
}

fn describe(outlet: &Outlet) -> Result<TensorInfo, OutletError> {
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
