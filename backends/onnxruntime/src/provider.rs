//! What a backend on ONNX Runtime has of its own.

use outrigger_backend::{BackendError, Buffer, DLDevice, DataType, DeviceInfo, DeviceMemory, LoadOptions};

use crate::append;
use crate::graphs::Graphs;
use crate::recordings::Recordings;
use crate::runtime::Runtime;
use crate::shrink::Shrink;
use crate::steps;
use crate::turns::Turns;

/// One kind of device, as ONNX Runtime drives it. The devices of a provider are numbered as [`Provider::devices`] lists them.
pub trait Provider: Send + Sync + 'static {
    /// The backend's short name: `cpu`, `cuda`, `gpu`.
    fn name(&self) -> &'static str;

    /// The execution provider without which there is none of its devices; `None` for the CPU's, which every library has.
    fn execution_provider(&self) -> Option<&'static str> {
        None
    }

    /// The devices that are there.
    ///
    /// # Errors
    /// Why there are none, where there are none.
    fn devices(&self, runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String>;

    /// Reads the settings of a model, and says how its sessions are made.
    ///
    /// # Errors
    /// Whatever is wrong with the settings; the model does not load.
    fn plan(&self, device: usize, options: &LoadOptions) -> Result<Plan, PlanError>;

    /// The memory of a device, now. Cheap enough to ask every second.
    ///
    /// # Errors
    /// [`BackendError::Lost`] or [`BackendError::Internal`] if that cannot be told.
    fn memory(&self, device: usize) -> Result<Memory, BackendError>;

    /// Bytes of [`Provider::allocate`]'s that the device did not take back when their owner had gone: they are held for good.
    fn unfreed(&self, _device: usize) -> u64 {
        0
    }

    /// What an optimised model depends on beside the model and the versions of ONNX Runtime and of this: the processor, the device.
    fn circumstances(&self) -> String;

    /// What a run or a load that failed with this message says of the device, where that is more than ONNX Runtime's own messages do. It is
    /// what ONNX Runtime says itself, without the model's path and the names of its nodes.
    fn fault(&self, _message: &str) -> Option<Fault> {
        None
    }

    /// Asks a device by a run that is for nothing else, and says what it said where it did not succeed. Where a message says that it is lost,
    /// that is believed only if this fails as well: the words may be those of a model's author. `None` where there is no way to ask.
    fn ask(&self, _device: usize, _runtime: &'static Runtime) -> Option<Result<(), String>> {
        None
    }

    /// Where tensors may stay between runs; `None` where all are in the host's memory. [`DeviceInfo::resident`] says the same.
    fn residence(&self, _device: usize) -> Option<Residence> {
        None
    }

    /// Whether a device has an operator of ONNX's for elements of this type: asked where steps are to be in a model's graph. What is not known of
    /// all devices alike is not claimed; of a wrong yes the CPU takes the operator, or the load fails.
    fn has_operator(&self, _operator: &str, _data_type: DataType) -> bool {
        true
    }

    /// As [`Device::pinned`](outrigger_backend::Device::pinned).
    ///
    /// # Errors
    /// As there.
    fn pinned(&self, _device: usize, bytes: usize) -> Result<Buffer, BackendError> {
        Buffer::zeroed(bytes).map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes of host memory")))
    }

    /// As [`Device::allocate`](outrigger_backend::Device::allocate). What is held is counted by the caller.
    ///
    /// # Errors
    /// As there.
    fn allocate(&self, _device: usize, _bytes: usize) -> Result<DeviceMemory, BackendError> {
        Err(no_memory())
    }

    /// As [`Device::upload`](outrigger_backend::Device::upload), for memory of this device and as many bytes.
    ///
    /// # Errors
    /// As there.
    fn upload(&self, _device: usize, _from: &[u8], _to: &DeviceMemory) -> Result<(), BackendError> {
        Err(no_memory())
    }

    /// As [`Device::download`](outrigger_backend::Device::download), for memory of this device and as many bytes.
    ///
    /// # Errors
    /// As there.
    fn download(&self, _device: usize, _from: &DeviceMemory, _to: &mut [u8]) -> Result<(), BackendError> {
        Err(no_memory())
    }

    /// Copies between two blocks of a device's memory, which have as many bytes. What was copied has arrived.
    ///
    /// # Errors
    /// As those of [`Provider::upload`].
    fn copy(&self, _device: usize, _from: &DeviceMemory, _to: &DeviceMemory) -> Result<(), BackendError> {
        Err(no_memory())
    }

    /// Whether a device's arena is shrunk, and when.
    fn shrink(&self, _device: usize) -> Option<Shrink> {
        None
    }

    /// What is to be made, run and ended one after the other, if it is: sessions that share more than they can share at once, in all of the
    /// process. Runs of one session need no turns, for ONNX Runtime sees to those itself.
    fn turns(&self) -> Option<&'static Turns> {
        None
    }

    /// Where [`Plan::graphs`] are recorded, what a recording must have nothing beside: sessions that are made, run and ended are kept from it, and the
    /// provider keeps its own calls from it, the end of memory too.
    fn recordings(&self) -> Option<&'static Recordings> {
        None
    }

    /// Whether a run ends soon after its cancel. ONNX Runtime looks at it before each operator, which is too early where operators only
    /// put work into a queue of the device's.
    fn can_cancel(&self) -> bool {
        true
    }

    /// Whether a device cannot calculate with FP16, where that is known: a model that does would load, and its runs would fail.
    fn lacks_halves(&self, _device: usize) -> bool {
        false
    }

    /// Comes before a session is made, and before one ends, on any thread.
    fn before_change(&self) {}

    /// Comes after a session was made, or was not, and after one has ended: once for each [`Provider::before_change`].
    fn after_change(&self, _runtime: &'static Runtime) {}
}

fn no_memory() -> BackendError {
    BackendError::Unsupported("the device has no memory of its own".into())
}

/// A device's own memory, under its two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residence {
    /// What ONNX Runtime calls it: `Cuda`.
    pub allocator: String,
    /// Which of that name.
    pub id: i32,
    /// What DLPack calls it, as in [`DeviceMemory::device`].
    pub device: DLDevice,
}

/// What a failed run says of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing on it succeeds any more.
    Lost,
    /// The run needed more memory than there is.
    OutOfMemory,
}

/// Whatever is wrong with a model's settings.
pub type PlanError = Box<dyn std::error::Error + Send + Sync>;

/// How the sessions of one model are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What runs the operators, whoever is to be asked first in front. One that cannot be had fails the load. None is the CPU's.
    pub providers: Vec<ExecutionProvider>,
    /// Whether operators that none of them takes may run on the CPU. Where they take none at all the load fails in any case.
    pub leftovers: Leftovers,
    /// Threads of the model's own; `None` shares those of all.
    pub pool: Option<Pool>,
    /// More entries of the session's configuration, key and value.
    pub entries: Vec<(String, String)>,
    /// Runs that are recorded and replayed, for which the session has an arena of its own; the providers' options say that they are to record.
    pub graphs: Option<Graphs>,
}

impl Plan {
    /// Whether operators become something that no model file holds. ONNX Runtime refuses to write such a model.
    pub(crate) fn compiles(&self) -> bool {
        self.providers.iter().any(|provider| provider.name == append::TENSORRT)
    }

    /// What steps in a graph can ask of the device.
    pub(crate) fn device<'a>(&self, has: &'a dyn Fn(&str, DataType) -> bool) -> steps::Device<'a> {
        let may_leave_shapes = self.providers.is_empty() || self.leftovers == Leftovers::Allowed;
        steps::Device { has, may_leave_shapes }
    }
}

/// An execution provider of ONNX Runtime's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionProvider {
    /// As ONNX Runtime calls it: `CUDAExecutionProvider`, `TensorrtExecutionProvider`, `WebGpuExecutionProvider`.
    pub name: String,
    /// Its options, key and value.
    pub options: Vec<(String, String)>,
}

/// What is done with operators that no execution provider of the plan takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leftovers {
    /// They run on the CPU, with copies between: shapes are computed there on purpose.
    #[default]
    Allowed,
    /// The model does not load.
    Refused,
}

/// A pool of threads that share a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// How many, the caller's own counted in.
    pub threads: usize,
    /// The CPUs of each of the others, in ONNX Runtime's form: counted from 1, `1,2;1,2` for two threads on the first two.
    pub affinity: Option<String>,
}

/// Bytes of memory in all, and bytes that a new model could have; 0 where not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// Free, whoever has taken the rest.
    pub free: u64,
}
