//! The order of things as traits: backend → device → model → instance.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::lent::Lent;
use crate::{BackendError, Buffer, DataType, Shape, ShapeError, Tensor};

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
    /// Loads a model onto the device.
    ///
    /// # Errors
    /// [`BackendError::Load`] if the files are no model for this backend, [`BackendError::OutOfMemory`].
    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError>;
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
    /// the results are there. Inputs are read in place. An output that was given a place is written in that place; for one
    /// without, the backend allocates.
    ///
    /// # Errors
    /// [`BackendError::Input`] for a wrong count, type or shape, [`BackendError::OutOfMemory`], [`BackendError::Run`].
    /// After an error the outputs hold nothing of use.
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output]) -> Result<(), BackendError>;

    /// Bytes of device memory that this instance holds, its share of the weights counted in; 0 if not known.
    fn bytes_held(&self) -> u64;
}

/// What a backend says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct BackendInfo {
    /// Short name: `cpu`, `cuda`, `gpu`, `fpga`.
    pub name: String,
    /// The backend's version, and that of the library it drives.
    pub version: String,
    /// File formats it takes: `onnx`, `torchscript`.
    pub formats: Vec<String>,
    /// The devices that are there.
    pub devices: Vec<DeviceInfo>,
    /// Why there are no devices, where there are none.
    pub reason: Option<String>,
}

/// One device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceInfo {
    /// `cpu:0`, `cuda:1`.
    pub name: String,
    /// The kind.
    pub kind: DeviceKind,
    /// Memory in all, in bytes; 0 if not known.
    pub memory_total: u64,
    /// Memory free when asked, in bytes; 0 if not known.
    pub memory_free: u64,
    /// Whether it can be used now.
    pub healthy: bool,
}

/// The kinds of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The model file.
    pub path: PathBuf,
    /// Threads inside one run; `None` lets the backend decide.
    pub intra_threads: Option<usize>,
}

/// Inputs and outputs of a model.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// In the order in which [`Instance::infer`] takes them.
    pub inputs: Vec<TensorInfo>,
    /// In the order of [`Output::index`].
    pub outputs: Vec<TensorInfo>,
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
    Done(Tensor),
}

impl Output {
    /// Asks for output number `index` in memory of the backend's, for shapes that are known only after the run.
    pub fn allocate(index: usize) -> Self {
        Self { index, state: OutputState::Allocate }
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
            OutputState::Allocate | OutputState::Done(_) => None,
        }
    }

    /// For the backend: hands over a tensor of its own. For an output with a place this is the way out where the
    /// result turns out to have another shape than the place.
    pub fn set(&mut self, tensor: Tensor) {
        self.state = OutputState::Done(tensor);
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
            OutputState::Lent { .. } | OutputState::Allocate => None,
        }
    }
}
