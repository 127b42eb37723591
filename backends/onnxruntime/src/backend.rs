//! The backend and its devices.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use outrigger_backend::{
    Backend, BackendError, BackendInfo, Buffer, Device, DeviceMemory, DeviceStatus, Health, LoadOptions,
    Model,
};

use crate::cache::Cache;
use crate::kept::Told;
use crate::model::{self, Common, Home, OnnxModel};
use crate::provider::{Memory, Pool, Provider, Residence};
use crate::recordings::Beside;
use crate::runtime;
use crate::settings::Settings;
use crate::shrink::Pauses;
use crate::steps;

/// Opens the backend of a provider. `pool` is what all sessions of the process share, where this is the first to open.
///
/// # Errors
/// [`BackendError::Unavailable`] where the folder of optimised models cannot be used. A library that is missing and devices that are
/// missing are none: the backend says so in its [`BackendInfo::reason`].
pub fn open(
    provider: impl Provider,
    settings: &Settings,
    pool: &Pool,
) -> Result<Arc<dyn Backend>, BackendError> {
    let own = env!("CARGO_PKG_VERSION");
    let mut info = BackendInfo {
        name: provider.name().into(),
        version: own.into(),
        formats: vec!["onnx".into(), steps::FORMAT.into()],
        devices: Vec::new(),
        reason: None,
    };
    let mut devices = Vec::new();
    match runtime::start(settings.library.as_deref(), pool) {
        Ok(runtime) => {
            info.version = format!("{own} (ONNX Runtime {})", runtime.version());
            let open = |folder| {
                let (name, circumstances) = (provider.name(), provider.circumstances());
                Cache::open(folder, name, settings.cache_bytes, runtime.version(), &circumstances)
            };
            let cache = settings.cache.as_deref().map(open).transpose();
            let cache = cache.map_err(|error| BackendError::Unavailable {
                backend: provider.name().into(),
                reason: error.to_string(),
            })?;
            let beside = Beside::enter(provider.recordings());
            let found = provider.devices(runtime);
            drop(beside);
            match found {
                Ok(found) => info.devices = found,
                Err(reason) => info.reason = Some(reason),
            }
            let told = Told { provider: Arc::new(provider), runtime };
            let homes = (0..info.devices.len()).map(|index| home(&*told.provider, index));
            let homes = homes.collect::<Result<Vec<_>, _>>()?;
            devices = info
                .devices
                .iter()
                .zip(homes)
                .enumerate()
                .map(|(index, (device, home))| {
                    Arc::new(Common {
                        told: told.clone(),
                        name: device.name.clone(),
                        index,
                        cache: cache.clone(),
                        held: Arc::default(),
                        home,
                        shrink: told.provider.shrink(index).map(|shrink| (shrink, Pauses::default())),
                        lost: OnceLock::new(),
                    })
                })
                .collect();
        }
        Err(error) => info.reason = Some(error.to_string()),
    }
    Ok(Arc::new(OnnxBackend { info, devices }))
}

/// The version of ONNX Runtime's library, if that has the provider's execution provider. Opens the library and starts nothing: no environment with
/// its threads, and no device.
///
/// # Errors
/// Why it is not to be had, or which execution providers it has.
pub fn version(provider: &impl Provider, settings: &Settings) -> Result<String, String> {
    let version = runtime::version(settings.library.as_deref()).map_err(|error| error.to_string())?;
    if let Some(name) = provider.execution_provider() {
        runtime::has(&version, name)?;
    }
    Ok(version)
}

fn home(provider: &dyn Provider, index: usize) -> Result<Option<Home>, BackendError> {
    let Some(Residence { allocator, id, device }) = provider.residence(index) else { return Ok(None) };
    let place = AllocationDevice::new(&allocator);
    let memory = MemoryInfo::new(place, id, AllocatorType::Device, MemoryType::Default);
    match memory {
        Ok(memory) => Ok(Some(Home { memory, device })),
        Err(error) => Err(BackendError::Internal(error.message().to_owned())),
    }
}

struct OnnxBackend {
    info: BackendInfo,
    devices: Vec<Arc<Common>>,
}

impl Backend for OnnxBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        let Some(common) = self.devices.get(index) else {
            let there = self.info.devices.len();
            return Err(BackendError::Input(format!("there is no device number {index}, only {there}")));
        };
        common.is_well()?;
        Ok(Arc::new(OnnxDevice(Arc::clone(common))))
    }
}

struct OnnxDevice(Arc<Common>);

impl OnnxDevice {
    /// Whether memory is this device's, where it has any, and has as many bytes.
    fn check(&self, memory: &DeviceMemory, bytes: usize) -> Result<(), BackendError> {
        let Some(home) = &self.0.home else { return Ok(()) };
        if memory.device() != home.device {
            return Err(BackendError::Input(format!("{memory:?} is not of {}", self.0.name)));
        }
        if memory.len() != bytes {
            return Err(BackendError::Input(format!("{} bytes of a device for {bytes}", memory.len())));
        }
        Ok(())
    }
}

impl Device for OnnxDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let memory = match self.0.heard(self.0.told.provider.memory(self.0.index)) {
            // The health says so, and why.
            Err(BackendError::Lost(_)) => Memory::default(),
            memory => memory?,
        };
        Ok(DeviceStatus {
            memory_total: memory.total,
            memory_free: memory.free,
            memory_held: self.0.held.load(Ordering::Relaxed) + self.0.told.provider.unfreed(self.0.index),
            health: self.0.lost.get().map_or(Health::Healthy, |why| Health::Lost(why.clone())),
        })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        model::estimate(&self.0, options)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(OnnxModel::load(&self.0, options)?))
    }

    fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        self.0.heard(self.0.told.provider.pinned(self.0.index, bytes))
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        self.0.allocate(bytes)
    }

    fn upload(&self, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        self.check(to, from.len())?;
        self.0.heard(self.0.told.provider.upload(self.0.index, from, to))
    }

    fn download(&self, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        self.check(from, to.len())?;
        self.0.heard(self.0.told.provider.download(self.0.index, from, to))
    }
}
