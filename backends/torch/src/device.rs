//! The backend and its devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Buffer, Device, DeviceStatus, LoadOptions, Model,
};

use crate::kind::Kind;
use crate::model::{self, ScriptModel};
use crate::place::Place;
use crate::settings::Settings;
use crate::{FORMAT, LIBTORCH};

pub(crate) struct Torch {
    info: BackendInfo,
    devices: Vec<Arc<Common>>,
}

/// What a device's models have in common.
pub(crate) struct Common {
    pub(crate) settings: Settings,
    pub(crate) place: Place,
    /// Bytes that all of them hold.
    pub(crate) held: Arc<AtomicU64>,
}

impl Torch {
    /// # Errors
    /// Why there are no devices.
    pub(crate) fn new(kind: Kind, settings: Settings) -> Result<Self, String> {
        let places = Place::all(kind, &settings)?;
        let devices = places
            .into_iter()
            .map(|place| Arc::new(Common { settings: settings.clone(), place, held: Arc::default() }));
        let devices: Vec<_> = devices.collect();
        let name = kind.backend();
        let info = BackendInfo {
            name: name.into(),
            version: format!("{} (libtorch {LIBTORCH})", env!("CARGO_PKG_VERSION")),
            formats: vec![FORMAT.into()],
            devices: devices
                .iter()
                .enumerate()
                .map(|(index, common)| common.place.info(format!("{name}:{index}")))
                .collect(),
            reason: None,
        };
        Ok(Self { info, devices })
    }
}

impl Backend for Torch {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        match self.devices.get(index) {
            Some(common) => Ok(Arc::new(TorchDevice(Arc::clone(common)))),
            None => Err(BackendError::Input(format!(
                "there is no device number {index}, only {}",
                self.info.devices.len()
            ))),
        }
    }
}

struct TorchDevice(Arc<Common>);

impl Device for TorchDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let (memory_total, memory_free, health) = self.0.place.status()?;
        let memory_held = self.0.held.load(Ordering::Relaxed);
        Ok(DeviceStatus { memory_total, memory_free, memory_held, health })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        model::estimate(&self.0, options)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        let loaded = ScriptModel::load(&self.0, options).map_err(|error| self.0.place.heard(error));
        Ok(Arc::new(loaded?))
    }

    fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        self.0.place.pinned(bytes)
    }
}
