//! The backend and its one device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, LoadOptions,
    MachineMemory, Model,
};

use crate::model::{self, ScriptModel};
use crate::settings::Settings;
use crate::{FORMAT, LIBTORCH};

pub(crate) struct Torch {
    info: BackendInfo,
    common: Arc<Common>,
}

/// What a backend's models have in common.
pub(crate) struct Common {
    pub(crate) settings: Settings,
    /// Bytes that all of them hold.
    pub(crate) held: Arc<AtomicU64>,
}

impl Torch {
    pub(crate) fn new(name: &str, settings: Settings) -> Self {
        let device = DeviceInfo {
            name: format!("{name}:0"),
            kind: DeviceKind::Cpu,
            memory_total: MachineMemory::read().total,
            lanes: 0,
            resident: false,
        };
        let info = BackendInfo {
            name: name.into(),
            version: format!("{} (libtorch {LIBTORCH})", env!("CARGO_PKG_VERSION")),
            formats: vec![FORMAT.into()],
            devices: vec![device],
            reason: None,
        };
        Self { info, common: Arc::new(Common { settings, held: Arc::default() }) }
    }
}

impl Backend for Torch {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        if index == 0 {
            return Ok(Arc::new(TorchDevice(Arc::clone(&self.common))));
        }
        Err(BackendError::Input(format!(
            "there is no device number {index}, only {}",
            self.info.devices.len()
        )))
    }
}

struct TorchDevice(Arc<Common>);

impl Device for TorchDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let memory = MachineMemory::read();
        Ok(DeviceStatus {
            memory_total: memory.total,
            memory_free: memory.free,
            memory_held: self.0.held.load(Ordering::Relaxed),
            health: Health::Healthy,
        })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        model::estimate(&self.0, options)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(ScriptModel::load(&self.0, options)?))
    }
}
