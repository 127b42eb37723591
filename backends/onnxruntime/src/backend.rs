//! The backend and its devices.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Device, DeviceStatus, Health, LoadOptions, Model,
};

use crate::cache::Cache;
use crate::kept::Told;
use crate::model::{self, Common, OnnxModel};
use crate::provider::{Pool, Provider};
use crate::runtime;
use crate::settings::Settings;

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
        formats: vec!["onnx".into()],
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
            match provider.devices(runtime) {
                Ok(found) => info.devices = found,
                Err(reason) => info.reason = Some(reason),
            }
            let told = Told { provider: Arc::new(provider), runtime };
            devices = info
                .devices
                .iter()
                .enumerate()
                .map(|(index, device)| {
                    Arc::new(Common {
                        told: told.clone(),
                        name: device.name.clone(),
                        index,
                        cache: cache.clone(),
                        held: Arc::default(),
                        lost: OnceLock::new(),
                    })
                })
                .collect();
        }
        Err(error) => info.reason = Some(error.to_string()),
    }
    Ok(Arc::new(OnnxBackend { info, devices }))
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
        match self.devices.get(index) {
            Some(common) => Ok(Arc::new(OnnxDevice(Arc::clone(common)))),
            None => Err(BackendError::Input(format!(
                "there is no device number {index}, only {}",
                self.info.devices.len()
            ))),
        }
    }
}

struct OnnxDevice(Arc<Common>);

impl Device for OnnxDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let memory = self.0.told.provider.memory(self.0.index)?;
        Ok(DeviceStatus {
            memory_total: memory.total,
            memory_free: memory.free,
            memory_held: self.0.held.load(Ordering::Relaxed),
            health: self.0.lost.get().map_or(Health::Healthy, |why| Health::Lost(why.clone())),
        })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        model::estimate(&self.0, options)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(OnnxModel::load(&self.0, options)?))
    }
}
