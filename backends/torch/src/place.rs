//! Where models run: on the processor, or on one of NVIDIA's GPUs.

use std::ffi::CString;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use outrigger_backend::{BackendError, Buffer, DeviceInfo, DeviceKind, Health, MachineMemory, chain};
use outrigger_cuda_driver::{Card, Driver, Fault, HostBlock, LIBRARY, faults, usable};

use crate::error;
use crate::kind::Kind;
use crate::settings::Settings;
use crate::streams::{self, Lane, Stream};
use crate::sys;

/// Runs that it is worth having under way at once on a GPU: while one computes, another's tensors are copied.
const LANES: u32 = 2;

pub(crate) enum Place {
    Cpu,
    Gpu(Gpu),
}

pub(crate) struct Gpu {
    card: Card,
    /// What said that nothing succeeds on it any more.
    lost: OnceLock<String>,
}

impl Place {
    /// All that there are of a kind.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn all(kind: Kind, settings: &Settings) -> Result<Vec<Self>, String> {
        if kind == Kind::Cpu {
            return Ok(vec![Self::Cpu]);
        }
        if !streams::is_loaded() {
            return Err("libtorch is loaded without its part for CUDA".into());
        }
        let library = settings.cuda_driver.as_deref().unwrap_or(Path::new(LIBRARY));
        let driver = Driver::open(library).map_err(|error| chain(&error))?;
        let cards = usable(&driver, "PyTorch")?;
        let largest = cards.iter().map(|card| card.gpu().memory).max().unwrap_or(0);
        limit(settings.memory_bytes, largest)?;
        Ok(cards.into_iter().map(|card| Self::Gpu(Gpu { card, lost: OnceLock::new() })).collect())
    }

    /// As the C interface numbers devices.
    pub(crate) fn number(&self) -> i32 {
        match self {
            Self::Cpu => sys::CPU,
            Self::Gpu(gpu) => gpu.card.gpu().number,
        }
    }

    /// Whether inputs are read where the caller has them.
    pub(crate) fn is_host(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    pub(crate) fn info(&self, name: String) -> DeviceInfo {
        match self {
            Self::Cpu => DeviceInfo {
                name,
                kind: DeviceKind::Cpu,
                memory_total: MachineMemory::read().total,
                lanes: 0,
                resident: false,
            },
            Self::Gpu(gpu) => DeviceInfo {
                name,
                kind: DeviceKind::Cuda,
                memory_total: gpu.card.gpu().memory,
                lanes: LANES,
                resident: false,
            },
        }
    }

    /// Bytes in all and free, and how the device is.
    pub(crate) fn status(&self) -> Result<(u64, u64, Health), BackendError> {
        match self {
            Self::Cpu => {
                let memory = MachineMemory::read();
                Ok((memory.total, memory.free, Health::Healthy))
            }
            Self::Gpu(gpu) => match gpu.driver_says() {
                // The health says so, and why.
                Err(BackendError::Lost(why)) => Ok((0, 0, Health::Lost(why))),
                Err(error) => Err(error),
                Ok(memory) => {
                    let health = gpu.lost.get().map_or(Health::Healthy, |why| Health::Lost(why.clone()));
                    Ok((memory.total, memory.free, health))
                }
            },
        }
    }

    /// Memory of the host's that copies are fastest from.
    pub(crate) fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        match self {
            Self::Cpu => Buffer::zeroed(bytes)
                .map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes of host memory"))),
            Self::Gpu(gpu) => {
                let block = gpu.card.context().and_then(|context| HostBlock::zeroed(&context, bytes));
                Ok(Buffer::over(block.map_err(|error| gpu.heard(error.into()))?))
            }
        }
    }

    /// A stream that is not a thread's, where there are any.
    pub(crate) fn stream(&self) -> Result<Option<Stream>, BackendError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Gpu(gpu) => {
                streams::stream(gpu.card.gpu().number).map(Some).map_err(|error| error::run(&error, false))
            }
        }
    }

    /// Makes a stream the one that this thread works in, its own unless another is named, where there are any.
    pub(crate) fn enter(&self, stream: Option<Stream>) -> Result<Option<Lane>, BackendError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Gpu(gpu) => {
                let lane =
                    Lane::enter(gpu.card.gpu().number, stream).map_err(|error| error::run(&error, false))?;
                Ok(Some(lane))
            }
        }
    }

    /// What a failure comes to, once the device has been asked how it is.
    pub(crate) fn heard(&self, error: BackendError) -> BackendError {
        match self {
            Self::Cpu => error,
            Self::Gpu(gpu) => gpu.heard(error),
        }
    }

    /// A model has gone.
    pub(crate) fn trim(&self) {
        if let Self::Gpu(_) = self {
            // What stays is used by later models.
            let _ = streams::trim_allocator();
        }
    }
}

impl Gpu {
    fn driver_says(&self) -> Result<outrigger_cuda_driver::Memory, BackendError> {
        let memory = self.card.context().and_then(|context| context.memory());
        memory.map_err(|error| self.remembered(error.into()))
    }

    /// An error that stays comes back from every call of the driver's, so that is asked, whatever libtorch says.
    fn heard(&self, error: BackendError) -> BackendError {
        let asked = || match self.driver_says() {
            Err(BackendError::Lost(why)) => Some(why),
            _ => None,
        };
        let lacks_memory = |text: &str| faults::of_message(text) == Some(Fault::OutOfMemory);
        self.remembered(error::on_cuda(error, lacks_memory, asked))
    }

    /// One that is lost is so for good, for the reason that came first.
    fn remembered(&self, error: BackendError) -> BackendError {
        match error {
            BackendError::Lost(why) => BackendError::Lost(self.lost.get_or_init(|| why).clone()),
            other => other,
        }
    }
}

/// Holds PyTorch's allocator to so many bytes of each GPU. It takes a part of a GPU's memory and the same for all: where they differ, the smaller
/// ones get less. A process has one limit, so that another one is an error.
fn limit(bytes: u64, largest: u64) -> Result<(), String> {
    static SET: Mutex<Option<u64>> = Mutex::new(None);
    let mut set = SET.lock().unwrap_or_else(PoisonError::into_inner);
    if set.is_some() {
        return error::is_that_limit(*set, bytes);
    }
    let Some(fraction) = error::fraction(bytes, largest) else {
        *set = Some(bytes);
        return Ok(());
    };
    let settings =
        CString::new(format!("per_process_memory_fraction:{fraction}")).map_err(|error| error.to_string())?;
    streams::set_allocator(&settings)
        .map_err(|error| format!("PyTorch's allocator takes no limit: {error}"))?;
    *set = Some(bytes);
    Ok(())
}
