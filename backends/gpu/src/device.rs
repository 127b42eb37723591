//! The backend and its devices.

use std::sync::Arc;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, LoadOptions,
    Model,
};

use crate::Gpu;
use crate::adapters::{Found, find};
use crate::format::Format;
use crate::model::{StepsModel, read};
use crate::onnx::{self, Onnx};
use crate::settings::Settings;

/// Runs that it is worth having under way at once: while one calculates, the next goes there.
const LANES: u32 = 2;

pub(crate) struct Gpus {
    info: BackendInfo,
    found: Found,
    idle_bytes: u64,
    /// For each device.
    onnx: Vec<Arc<Onnx>>,
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
            formats: Format::ALL.map(|format| format.name().to_owned()).into(),
            devices: devices.collect(),
            reason: found.reason.clone(),
        };
        let onnx = (0..found.adapters.len())
            .map(|index| Arc::new(Onnx::new(settings, onnx::refusal(index, &found.unused, settings))))
            .collect();
        Self { info, found, idle_bytes: settings.idle_bytes, onnx }
    }
}

impl Backend for Gpus {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        let there = self.found.adapters.len();
        let found = self.found.adapters.get(index).zip(self.onnx.get(index));
        let ((adapter, info), onnx) = found.ok_or(crate::GpuError::NoDevice { index, there })?;
        let gpu = Arc::new(Gpu::of(adapter, info.clone())?);
        Ok(Arc::new(GpuDevice { gpu, idle_bytes: self.idle_bytes, onnx: Arc::clone(onnx) }))
    }
}

struct GpuDevice {
    gpu: Arc<Gpu>,
    idle_bytes: u64,
    onnx: Arc<Onnx>,
}

impl Device for GpuDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let (held_by_onnx, onnx) = self.onnx.status()?;
        let (total, held) = (self.gpu.info().memory, self.gpu.held().saturating_add(held_by_onnx));
        let health = match (self.gpu.lost(), onnx, self.gpu.stray()) {
            (Some(lost), ..) => Health::Lost(lost.into()),
            (None, Health::Lost(lost), _) => Health::Lost(lost),
            (None, _, Some(stray)) => Health::Degraded(stray),
            (None, onnx, None) => onnx,
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
        match Format::of(options)? {
            // Steps have no weights, and what a run takes follows from what comes.
            Format::Steps => read(options).map(|_| 0),
            Format::Onnx | Format::OnnxWithSteps => self.onnx.device(options)?.estimate(options),
        }
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        match Format::of(options)? {
            Format::Steps => Ok(Arc::new(StepsModel::load(&self.gpu, self.idle_bytes, options)?)),
            Format::Onnx | Format::OnnxWithSteps => self.onnx.device(options)?.load(options),
        }
    }
}
