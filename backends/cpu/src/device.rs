//! The backend and its one device.

use std::sync::Arc;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, LoadOptions,
    Model,
};

use crate::memory;
use crate::model::{self, OnnxModel};
use crate::runtime::{Runtime, StartError};

pub(crate) struct Cpu {
    info: BackendInfo,
    runtime: Option<&'static Runtime>,
}

impl Cpu {
    pub(crate) fn new(runtime: Result<&'static Runtime, StartError>) -> Self {
        let own = env!("CARGO_PKG_VERSION");
        let mut info = BackendInfo {
            name: "cpu".into(),
            version: own.into(),
            formats: vec!["onnx".into()],
            devices: Vec::new(),
            reason: None,
        };
        match &runtime {
            Ok(runtime) => {
                let memory = memory::read();
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
        Self { info, runtime: runtime.ok() }
    }
}

impl Backend for Cpu {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        match self.runtime {
            Some(runtime) if index == 0 => Ok(Arc::new(CpuDevice { runtime })),
            _ => Err(BackendError::Input(format!(
                "there is no device number {index}, only {}",
                self.info.devices.len()
            ))),
        }
    }
}

struct CpuDevice {
    runtime: &'static Runtime,
}

impl Device for CpuDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let memory = memory::read();
        Ok(DeviceStatus {
            memory_total: memory.total,
            memory_free: memory.free,
            memory_held: 0,
            health: Health::Healthy,
        })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        model::estimate(options)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(OnnxModel::load(self.runtime, options)?))
    }
}
