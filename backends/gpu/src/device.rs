//! The backend and its devices.

use std::sync::Arc;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, LoadOptions,
    Model,
};

use crate::Gpu;
use crate::adapters::{Found, find};
use crate::model::{FORMAT, StepsModel, read};
use crate::settings::Settings;

/// Runs that it is worth having under way at once: while one calculates, the next goes there.
const LANES: u32 = 2;

pub(crate) struct Gpus {
    info: BackendInfo,
    found: Found,
    idle_bytes: u64,
}

impl Gpus {
    pub(crate) fn new(settings: &Settings) -> Self {
        let found = find(settings.software);
        let devices = found.adapters.iter().enumerate().map(|(index, (_, adapter))| DeviceInfo {
            name: format!("gpu:{index}"),
            kind: DeviceKind::Gpu,
            memory_total: adapter.memory,
            lanes: LANES,
            resident: false,
        });
        let own = env!("CARGO_PKG_VERSION");
        let version = match found.adapters.first() {
            // The drivers that there are, for a bug is more often theirs.
            Some(_) => {
                let drivers = found
                    .adapters
                    .iter()
                    .map(|(_, adapter)| format!("{} on {}", adapter.name, adapter.driver));
                format!("{own} ({})", drivers.collect::<Vec<_>>().join(", "))
            }
            None => own.into(),
        };
        let info = BackendInfo {
            name: "gpu".into(),
            version,
            formats: vec![FORMAT.into()],
            devices: devices.collect(),
            reason: found.reason.clone(),
        };
        Self { info, found, idle_bytes: settings.idle_bytes }
    }
}

impl Backend for Gpus {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        let there = self.found.adapters.len();
        let (adapter, info) =
            self.found.adapters.get(index).ok_or(crate::GpuError::NoDevice { index, there })?;
        let gpu = Arc::new(Gpu::of(adapter, info.clone())?);
        Ok(Arc::new(GpuDevice { gpu, idle_bytes: self.idle_bytes }))
    }
}

struct GpuDevice {
    gpu: Arc<Gpu>,
    idle_bytes: u64,
}

impl Device for GpuDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let (total, held) = (self.gpu.info().memory, self.gpu.held());
        let health = match (self.gpu.lost(), self.gpu.stray()) {
            (Some(lost), _) => Health::Lost(lost.into()),
            (None, Some(stray)) => Health::Degraded(stray),
            (None, None) => Health::Healthy,
        };
        // What others hold is not known.
        Ok(DeviceStatus {
            memory_total: total,
            memory_free: total.saturating_sub(held),
            memory_held: held,
            health,
        })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        // Steps have no weights, and what a run takes follows from what comes.
        read(options).map(|_| 0)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(StepsModel::load(&self.gpu, self.idle_bytes, options)?))
    }
}
