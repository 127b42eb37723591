//! The backend and its one device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, LoadOptions,
    MachineMemory, Model,
};

use crate::cache::{Cache, CacheError};
use crate::model::{self, Common, OnnxModel};
use crate::runtime::{Runtime, StartError};
use crate::settings::Settings;

pub(crate) struct Cpu {
    info: BackendInfo,
    common: Option<Arc<Common>>,
}

impl Cpu {
    pub(crate) fn new(
        settings: Settings,
        runtime: Result<&'static Runtime, StartError>,
    ) -> Result<Self, CacheError> {
        let own = env!("CARGO_PKG_VERSION");
        let mut info = BackendInfo {
            name: "cpu".into(),
            version: own.into(),
            formats: vec!["onnx".into()],
            devices: Vec::new(),
            reason: None,
        };
        let mut common = None;
        match runtime {
            Ok(runtime) => {
                let cache = settings.cache.as_deref();
                let cache = cache.map(|folder| Cache::open(folder, settings.cache_bytes, &runtime.version));
                let cache = cache.transpose()?;
                let held = Arc::default();
                common = Some(Arc::new(Common { runtime, affinity: settings.affinity, cache, held }));
                let memory = MachineMemory::read();
                info.version = format!("{own} (ONNX Runtime {})", runtime.version);
                info.devices.push(DeviceInfo {
                    name: "cpu:0".into(),
                    kind: DeviceKind::Cpu,
                    memory_total: memory.total,
                    lanes: 0,
                    resident: false,
                });
            }
            Err(error) => info.reason = Some(error.to_string()),
        }
        Ok(Self { info, common })
    }
}

impl Backend for Cpu {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        match &self.common {
            Some(common) if index == 0 => Ok(Arc::new(CpuDevice(Arc::clone(common)))),
            _ => Err(BackendError::Input(format!(
                "there is no device number {index}, only {}",
                self.info.devices.len()
            ))),
        }
    }
}

struct CpuDevice(Arc<Common>);

impl Device for CpuDevice {
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
        model::estimate(options)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(OnnxModel::load(&self.0, options)?))
    }
}
