//! The order of things as traits: backend → device → model → instance.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::lent::Lent;
use crate::{
    BackendError, Buffer, DataType, DeviceMemory, Run, RunId, Shape, ShapeError, Submission, Tensor,
};

/// A library that runs models on one kind of device.
pub trait Backend: Send + Sync {
    /// Name, version, formats, devices, and why there are none if so.
    fn info(&self) -> &BackendInfo;

    /// Opens device number `index` of [`BackendInfo::devices`].
    ///
    /// # Errors
    /// [`BackendError::Input`] if there is no such device, [`BackendError::Unavailable`] if it does not open.
    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError>;
}

/// An open device.
pub trait Device: Send + Sync {
    /// Memory and health, now. Cheap enough to ask every second.
    ///
    /// # Errors
    /// [`BackendError::Lost`] or [`BackendError::Internal`] if even that cannot be told.
    fn status(&self) -> Result<DeviceStatus, BackendError>;

    /// Bytes of the device's memory that an instance of a model would take, before it is loaded; 0 if that cannot be told.
    ///
    /// # Errors
    /// [`BackendError::Load`] if there is no such file.
    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError>;

    /// Loads a model onto the device.
    ///
    /// # Errors
    /// [`BackendError::Load`] if the files are no model for this backend, [`BackendError::OutOfMemory`].
    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError>;

    /// Takes host memory from which the device reads, and to which it writes, fastest. Plain memory where there is no
    /// such thing.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        Buffer::zeroed(bytes).map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes of host memory")))
    }

    /// Takes memory of the device's own. Given back when the last clone is dropped.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where the device works in host memory, [`BackendError::OutOfMemory`].
    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        Err(BackendError::Unsupported(format!(
            "the device has no memory of its own to give {bytes} bytes of"
        )))
    }

    /// Copies bytes into the device's memory, as many as it has.
    ///
    /// # Errors
    /// [`BackendError::Input`] for memory of another device or another number of bytes, [`BackendError::Lost`].
    fn upload(&self, _from: &[u8], _to: &DeviceMemory) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("the device has no memory of its own".into()))
    }

    /// Copies bytes out of the device's memory, as many as there are.
    ///
    /// # Errors
    /// As [`Device::upload`].
    fn download(&self, _from: &DeviceMemory, _to: &mut [u8]) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("the device has no memory of its own".into()))
    }
}

/// A model on a device.
pub trait Model: Send + Sync {
    /// Inputs and outputs.
    fn info(&self) -> &ModelInfo;

    /// Makes an instance: that which runs the model. Instances of one model may share its weights.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] or [`BackendError::Run`].
    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError>;
}

/// What runs a model. Calls from many threads at once are allowed.
pub trait Instance: Send + Sync {
    /// Runs the model on `inputs`, which are in the order of [`ModelInfo::inputs`], and fills `outputs`; returns when
    /// the results are there. Inputs are read in place. An output that was given a place is written in that place, all of it, for
    /// older bytes may lie there; for one without, the backend allocates.
    ///
    /// # Errors
    /// [`BackendError::Input`] for a wrong count, type or shape, [`BackendError::OutOfMemory`], [`BackendError::Run`],
    /// [`BackendError::Cancelled`] after [`Instance::cancel`], [`BackendError::Lost`], [`BackendError::Unsupported`] for
    /// tensors in memory that it does not take, and for results over a limit of its own. After an error the outputs hold nothing of use.
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError>;

    /// Begins a run and returns; the submission is finished, once, when the run is over, on any thread, also before this
    /// returns. Without a way of its own a backend runs it here, on the caller's thread.
    fn submit(self: Arc<Self>, mut submission: Submission) {
        let result = self.infer(&submission.inputs, &mut submission.outputs, submission.run);
        submission.finish(result);
    }

    /// Whether results come faster in memory that the backend takes than in a place of the caller's: where they would be copied there.
    fn allocates_best(&self) -> bool {
        false
    }

    /// Whether [`Instance::submit`] returns while the run is still under way.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Asks for the run of that number to end soon, with [`BackendError::Cancelled`]. It may still succeed, if it is too
    /// late. A run that is not under way is no error. Does not wait.
    fn cancel(&self, _id: RunId) {}

    /// Whether [`Instance::cancel`] does anything; does not change. Where it does, a run that goes on long after its cancel is taken to
    /// hang.
    fn can_cancel(&self) -> bool {
        false
    }

    /// Bytes of device memory that this instance holds, its share of the weights counted in; 0 if not known.
    fn bytes_held(&self) -> u64;
}

/// What a backend says of itself.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BackendInfo {
    /// Short name: `cpu`, `cuda`, `gpu`, `fpga`.
    pub name: String,
    /// The backend's version, and that of the library it drives.
    pub version: String,
    /// File formats it takes: `onnx`, `torchscript`. One whose name ends in `+steps` is another with steps before and after the model, which the setting
    /// `steps` has, as TOML; [`LoadOptions::signature`] then says what callers send and want.
    pub formats: Vec<String>,
    /// The devices that are there.
    pub devices: Vec<DeviceInfo>,
    /// Why there are no devices, where there are none.
    pub reason: Option<String>,
}

/// One device.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceInfo {
    /// `cpu:0`, `cuda:1`.
    pub name: String,
    /// The kind.
    pub kind: DeviceKind,
    /// Memory in all, in bytes; 0 if not known.
    pub memory_total: u64,
    /// Runs that it is worth having under way at once; 0 if the backend leaves it to the host.
    pub lanes: u32,
    /// Whether it has memory of its own in which tensors can stay.
    pub resident: bool,
}

/// A device, now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceStatus {
    /// Memory in all, in bytes; 0 if not known.
    pub memory_total: u64,
    /// Memory free, in bytes, whoever has taken the rest; 0 if not known.
    pub memory_free: u64,
    /// Bytes that models and buffers of this backend hold; 0 if not known.
    pub memory_held: u64,
    /// Whether it can be used.
    pub health: Health,
}

/// Whether a device can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
#[non_exhaustive]
pub enum Health {
    /// It can.
    Healthy,
    /// It can, but something is wrong with it.
    Degraded(String),
    /// It cannot now, and will be able to again: what serves it is being started anew.
    Recovering(String),
    /// Nothing on it succeeds any more.
    Lost(String),
}

/// The kinds of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A GPU reached through Vulkan, Metal or DX12.
    Gpu,
    /// An FPGA.
    Fpga,
}

/// What to load, and how.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The model file.
    pub path: PathBuf,
    /// One of [`BackendInfo::formats`]; `None` lets the backend see for itself.
    pub format: Option<String>,
    /// Threads inside one run; `None` lets the backend decide.
    pub intra_threads: Option<usize>,
    /// Settings for this model, key and value; which there are, the backend says.
    pub settings: Vec<(String, String)>,
    /// What is said of inputs and outputs beside the file: for formats that do not say it themselves, as TorchScript. A backend
    /// whose format does ignores it. Either list may be empty: nothing is said.
    pub signature: ModelInfo,
}

impl LoadOptions {
    /// A model of which nothing is said but where its file is.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

/// Inputs and outputs of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// In the order in which [`Instance::infer`] takes them.
    pub inputs: Vec<TensorInfo>,
    /// In the order of [`Output::index`].
    pub outputs: Vec<TensorInfo>,
}

impl ModelInfo {
    /// Whether an extent of an input is free: then a run can fail for shapes that were fine by the model's text.
    pub fn has_free_extents(&self) -> bool {
        self.inputs.iter().any(|info| info.shape.iter().any(|extent| *extent < 0))
    }
}

/// Name, type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name.
    pub name: String,
    /// The element type.
    pub data_type: DataType,
    /// The extents, −1 where free.
    pub shape: Vec<i64>,
    /// A name for each extent, empty where it has none. Free extents of one name are equal in one call.
    pub symbols: Vec<String>,
}

impl TensorInfo {
    /// From extents, −1 where free, each with its name, which is empty where it has none.
    pub fn new(name: impl Into<String>, data_type: DataType, dimensions: &[(i64, &str)]) -> Self {
        let dimensions = dimensions.iter().map(|(extent, symbol)| (*extent, (*symbol).to_owned()));
        let (shape, symbols) = dimensions.unzip();
        Self { name: name.into(), data_type, shape, symbols }
    }

    /// The same again.
    pub fn dimensions(&self) -> impl Iterator<Item = (i64, &str)> {
        let symbols = self.symbols.iter().map(String::as_str).chain(std::iter::repeat(""));
        self.shape.iter().copied().zip(symbols)
    }
}

/// One output asked for: where to put it, then what came.
#[derive(Debug)]
pub struct Output {
    index: usize,
    state: OutputState,
}

#[derive(Debug)]
enum OutputState {
    Place { data_type: DataType, shape: Shape, buffer: Buffer },
    Lent { data_type: DataType, shape: Shape, place: Lent },
    Allocate,
    Resident,
    Done(Tensor),
}

impl Output {
    /// Asks for output number `index` in memory of the backend's, for shapes that are known only after the run.
    pub fn allocate(index: usize) -> Self {
        Self { index, state: OutputState::Allocate }
    }

    /// Asks for output number `index` in the device's own memory, where the next run may read it.
    pub fn resident(index: usize) -> Self {
        Self { index, state: OutputState::Resident }
    }

    /// Asks for output number `index` in a buffer of the caller's.
    ///
    /// # Errors
    /// [`ShapeError`] if the buffer has not the size of type and shape.
    pub fn place(
        index: usize,
        data_type: DataType,
        shape: Shape,
        buffer: Buffer,
    ) -> Result<Self, ShapeError> {
        let expected = shape.bytes(data_type)?;
        if buffer.len() != expected {
            return Err(ShapeError::Length { expected, actual: buffer.len() });
        }
        Ok(Self { index, state: OutputState::Place { data_type, shape, buffer } })
    }

    /// Asks for output number `index` in memory of the other side's, whose size has been checked.
    pub(crate) fn lend(index: usize, data_type: DataType, shape: Shape, place: Lent) -> Self {
        Self { index, state: OutputState::Lent { data_type, shape, place } }
    }

    /// Which of [`ModelInfo::outputs`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// For the backend: the place to write to, if the caller gave one.
    pub fn place_mut(&mut self) -> Option<(DataType, &Shape, &mut [u8])> {
        match &mut self.state {
            OutputState::Place { data_type, shape, buffer } => Some((*data_type, shape, buffer)),
            OutputState::Lent { data_type, shape, place } => Some((*data_type, shape, place.as_mut())),
            OutputState::Allocate | OutputState::Resident | OutputState::Done(_) => None,
        }
    }

    /// For the backend: whether the result is to stay in the device's memory.
    pub fn wants_resident(&self) -> bool {
        matches!(self.state, OutputState::Resident)
    }

    /// For the backend: hands over a tensor of its own. For an output with a place this is the way out where the
    /// result turns out to have another shape than the place.
    pub fn set(&mut self, tensor: Tensor) {
        self.state = OutputState::Done(tensor);
    }

    /// The tensor that the backend has handed over, if it has.
    pub fn tensor(&self) -> Option<&Tensor> {
        match &self.state {
            OutputState::Done(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// Whether the backend has handed a tensor over.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, OutputState::Done(_))
    }

    /// The result; `None` if the backend has left an output without a place unset.
    pub fn into_tensor(self) -> Option<Tensor> {
        match self.state {
            // `place` has checked that the size fits, so `new` cannot fail.
            OutputState::Place { data_type, shape, buffer } => {
                Tensor::new(data_type, shape, buffer.freeze()).ok()
            }
            OutputState::Done(tensor) => Some(tensor),
            // What was lent is with its owner already.
            OutputState::Lent { .. } | OutputState::Allocate | OutputState::Resident => None,
        }
    }
}
