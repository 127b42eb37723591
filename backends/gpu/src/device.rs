//! The backend and its devices.

use std::sync::Arc;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Device, DeviceInfo, DeviceKind, DeviceStatus, Health, LoadOptions,
    Model,
};

use wgpu::{Adapter, Features};

use crate::Gpu;
use crate::adapters::{AdapterInfo, Found, find};
use crate::format::Format;
use crate::model::{StepsModel, estimate};
use crate::onnx::{self, Onnx};
use crate::settings::Settings;

/// Runs that it is worth having under way at once: while one calculates, the next goes there.
const LANES: u32 = 2;

pub(crate) struct Gpus {
    info: BackendInfo,
    found: Found,
    idle_bytes: u64,
    memory: Option<u64>,
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
        let used: Vec<&AdapterInfo> = found.adapters.iter().map(|(_, adapter)| adapter).collect();
        let refused = onnx::refusal(&used, &found.unused, settings);
        let onnx = |(adapter, _): &(Adapter, AdapterInfo)| {
            let lacks_halves = !adapter.features().contains(Features::SHADER_F16);
            Arc::new(Onnx::new(settings, refused.clone(), lacks_halves))
        };
        let onnx: Vec<Arc<Onnx>> = found.adapters.iter().map(onnx).collect();
        let version = match onnx.first() {
            // The drivers that there are, for a bug is more often theirs.
            Some(first) => {
                let drivers = found
                    .adapters
                    .iter()
                    .map(|(_, adapter)| format!("{} on {}", adapter.name, adapter.driver));
                let said = drivers.chain([first.said()]).collect::<Vec<_>>().join(", ");
                format!("{own} ({said})")
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
        Self { info, found, idle_bytes: settings.idle_bytes, memory: settings.memory, onnx }
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
        let held = Arc::clone(onnx);
        let gpu = Gpu::of(adapter, info.clone())?.within(self.memory);
        let gpu = Arc::new(gpu.beside(move || held.status().map_or(0, |(held, _)| held)));
        Ok(Arc::new(GpuDevice { gpu, idle_bytes: self.idle_bytes, onnx: Arc::clone(onnx) }))
    }
}

struct GpuDevice {
    gpu: Arc<Gpu>,
    idle_bytes: u64,
    onnx: Arc<Onnx>,
}

impl GpuDevice {
    /// The device for an ONNX model. Where there is none, a file that is no model is still said to be none.
    fn onnx(&self, options: &LoadOptions) -> Result<Arc<dyn Device>, BackendError> {
        let of_the_file = |error| outrigger_onnxruntime::look_at(&options.path).err().unwrap_or(error);
        self.onnx.device().map_err(of_the_file)
    }
}

impl Device for GpuDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let (held_by_onnx, onnx) = self.onnx.status()?;
        let (total, held) = (self.gpu.info().memory, self.gpu.held().saturating_add(held_by_onnx));
        let health = match (self.gpu.lost(), onnx) {
            (Some(lost), _) => Health::Lost(lost.into()),
            // Told once: it was of no run, and those after it are none the worse.
            (None, Health::Healthy) => self.gpu.take_stray().map_or(Health::Healthy, Health::Degraded),
            (None, onnx) => onnx,
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
            Format::Steps => estimate(&self.gpu, options),
            Format::Onnx | Format::OnnxWithSteps => self.onnx(options)?.estimate(options),
        }
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        match Format::of(options)? {
            Format::Steps => Ok(Arc::new(StepsModel::load(&self.gpu, self.idle_bytes, options)?)),
            Format::Onnx | Format::OnnxWithSteps => {
                let device = self.onnx(options)?;
                // What runs have kept makes way for its weights.
                let _room = self.gpu.room(device.estimate(options)?)?;
                device.load(options)
            }
        }
    }
}
