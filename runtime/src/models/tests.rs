//! Models that are not there, for tests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use outrigger_backend::{
    BackendError, DataType, Device, DeviceKind, DeviceStatus, Health, Instance, LoadOptions, Model,
    ModelInfo, Output, Run, RunId, Shape, Tensor, TensorInfo,
};
use prometheus::IntCounter;

use super::batch::{BatchMetrics, Former, Limits};
use super::files::Files;
use super::health::DeviceHealth;
use super::instance::Place;
use super::manifest::{self, Manifest};
use super::steps::{Processed, StepBytes, StepsPlace};
use super::survey::OpenDevice;
use super::threads::Threads;
use super::wanted::Wanted;
use super::{LoadedDevice, ModelInstance, Models};
use crate::config::BatchDelay;
use crate::placement::DeviceId;

/// A call with this for `k` makes the run fail.
pub(super) const POISON: i64 = 13;
/// A call with this for `k` makes the outputs have one row too many.
pub(super) const WIDE: i64 = 17;
/// A call with this for `k` waits in the run until it is let go.
pub(super) const GATE: i64 = 19;

/// `y = 2x + k`, `s` = the sum of `x` in each row, for `x`: FP32 `[batch, length]` and `k`: INT64 `[batch]`.
#[derive(Default)]
pub(super) struct Fake {
    /// The rows of each run so far.
    pub(super) runs: Mutex<Vec<usize>>,
    /// Whether who waits is let go.
    pub(super) open: AtomicBool,
    /// The run that was cancelled last.
    pub(super) cancelled: AtomicU64,
}

impl Fake {
    pub(super) fn runs(&self) -> Vec<usize> {
        self.runs.lock().unwrap().clone()
    }
}

impl Instance for Fake {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        let [x, k] = inputs else { return Err(BackendError::Input("two inputs".into())) };
        let values = |bytes: &Bytes| -> Vec<f32> {
            bytes.chunks_exact(4).map(|four| f32::from_ne_bytes(four.try_into().unwrap())).collect()
        };
        let (x, rows) = (values(x.data()), k.shape().elements());
        let k: Vec<i64> =
            k.data().chunks_exact(8).map(|eight| i64::from_ne_bytes(eight.try_into().unwrap())).collect();
        self.runs.lock().unwrap().push(rows);
        while k.contains(&GATE) && !self.open.load(Ordering::Acquire) {
            if run.id.is_some_and(|id| id.get() == self.cancelled.load(Ordering::Acquire)) {
                return Err(BackendError::Cancelled);
            }
            std::thread::yield_now();
        }
        if k.contains(&POISON) {
            return Err(BackendError::Run("a poisoned row".into()));
        }
        let length = x.len() / rows.max(1);
        let mut y: Vec<f32> = x.iter().enumerate().map(|(at, x)| 2.0 * x + k[at / length] as f32).collect();
        let mut s: Vec<f32> = x.chunks(length.max(1)).map(|row| row.iter().sum()).collect();
        s.resize(rows, 0.0);
        let mut rows = rows as i64;
        if k.contains(&WIDE) {
            rows += 1;
            y.resize(y.len() + length, 0.0);
            s.push(0.0);
        }
        for output in outputs {
            let (values, shape) = match output.index() {
                0 => (&y, vec![rows, length as i64]),
                _ => (&s, vec![rows]),
            };
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            output.set(Tensor::new(DataType::Fp32, Shape::new(shape).unwrap(), data.into()).unwrap());
        }
        Ok(())
    }

    fn cancel(&self, id: RunId) {
        self.cancelled.store(id.get(), Ordering::Release);
    }

    fn can_cancel(&self) -> bool {
        true
    }

    fn bytes_held(&self) -> u64 {
        0
    }
}

fn info(name: &str, data_type: DataType, dimensions: &[&str]) -> TensorInfo {
    TensorInfo {
        name: name.into(),
        data_type,
        shape: vec![-1; dimensions.len()],
        symbols: dimensions.iter().map(|symbol| (*symbol).into()).collect(),
    }
}

/// A model that batches like this, and what runs it.
pub(super) fn batching(max_batch: usize, max_delay: BatchDelay) -> (Arc<ModelInstance>, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let wanted = Wanted { max_batch, max_delay, ..Wanted::default() };
    (batched(&wanted, fake_info(), None, Arc::clone(&fake) as _), fake)
}

/// The same with a step before it, which makes `x` out of bytes and may take so many bytes for it.
pub(super) fn stepped(max_batch: usize, limit: usize) -> (Arc<ModelInstance>, Arc<Fake>) {
    let text = "
        inputs = [{name = 'x', datatype = 'UINT8', shape = ['batch', 'length']}, {name = 'k', datatype = 'INT64', shape = ['batch']}]
        before = [{step = 'convert', datatype = 'FP32', from = 'x'}]";
    let manifest = manifest(text).unwrap();
    let fake = Arc::new(Fake::default());
    let model = Arc::new(FakeModel(fake_info(), Arc::clone(&fake)));
    let model = Processed::new(model, &manifest, &StepsPlace::on_cpu(&manifest), limit).unwrap();
    let wanted = Wanted { max_batch, ..Wanted::default() };
    let (info, steps) = (model.info().clone(), Some(model.step_bytes()));
    (batched(&wanted, info, steps, model.instance().unwrap()), fake)
}

/// What a `model.toml` says.
pub(super) fn manifest(text: &str) -> Result<Manifest, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.toml");
    std::fs::write(&path, text).unwrap();
    manifest::read(&path, &std::collections::BTreeMap::new(), &Files::Disk)
}

fn batched(
    wanted: &Wanted,
    info: ModelInfo,
    steps: Option<StepBytes>,
    instance: Arc<dyn Instance>,
) -> Arc<ModelInstance> {
    let metrics = BatchMetrics::new(&prometheus::Registry::new()).unwrap();
    let limits = Limits { bytes: 1 << 20, steps, waiting: 10_000 };
    let former = Former::new("fake", wanted, &info, limits, &metrics).unwrap();
    let runs = IntCounter::new("runs", "runs").unwrap();
    let mut model = ModelInstance::new("fake", Arc::new(info), instance, None, runs);
    model.former = former;
    Arc::new(model)
}

fn fake_info() -> ModelInfo {
    ModelInfo {
        inputs: vec![info("x", DataType::Fp32, &["batch", "length"]), info("k", DataType::Int64, &["batch"])],
        outputs: vec![info("y", DataType::Fp32, &["batch", "length"]), info("s", DataType::Fp32, &["batch"])],
    }
}

struct FakeModel(ModelInfo, Arc<Fake>);

impl Model for FakeModel {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::clone(&self.1) as _)
    }
}

/// A model that does nothing.
pub(super) fn fake(name: &str) -> Arc<ModelInstance> {
    Arc::new(bare(name, None))
}

/// One on a device of its own, with this number.
pub(super) fn fake_on(name: &str, index: usize) -> ModelInstance {
    let (id, device) = (DeviceId { backend: "gpu".into(), index }, Arc::new(FakeDevice));
    let health =
        DeviceHealth::new(id.clone(), Arc::clone(&device) as _, device.status().unwrap(), Arc::default());
    bare(name, Some(Place::new(id, Arc::new(health), None)))
}

fn bare(name: &str, place: Option<Place>) -> ModelInstance {
    let runs = IntCounter::new("runs", "runs").unwrap();
    ModelInstance::new(name, Arc::default(), Arc::new(Fake::default()), place, runs)
}

/// A device that is well and holds nothing.
struct FakeDevice;

impl Device for FakeDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        Ok(DeviceStatus { memory_total: 0, memory_free: 0, memory_held: 0, health: Health::Healthy })
    }

    fn estimate(&self, _options: &LoadOptions) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn load(&self, _options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Err(BackendError::Load("not here".into()))
    }
}

/// A call with so many rows and values in a row.
pub(super) fn inputs(rows: usize, length: usize, seed: f32, k: i64) -> Vec<Tensor> {
    let x: Vec<u8> =
        (0..rows * length).flat_map(|at| (seed + at as f32 * 0.37).sin().to_ne_bytes()).collect();
    let k: Vec<u8> = (0..rows).flat_map(|_| k.to_ne_bytes()).collect();
    let shape = Shape::new([rows as i64, length as i64]).unwrap();
    vec![
        Tensor::new(DataType::Fp32, shape, x.into()).unwrap(),
        Tensor::new(DataType::Int64, Shape::new([rows as i64]).unwrap(), k.into()).unwrap(),
    ]
}

/// Waits for something that will be so soon.
pub(super) async fn until(is_so: impl Fn() -> bool) {
    let patience = tokio::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(tokio::time::Instant::now() < patience, "it does not come");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Models on so many devices, of which each has two threads and nothing is loaded on any.
pub(super) fn on_devices(count: usize) -> Models {
    let device = |index: usize| {
        let id = DeviceId { backend: "gpu".into(), index };
        let status =
            DeviceStatus { memory_total: 0, memory_free: 0, memory_held: 0, health: Health::Healthy };
        let open = OpenDevice {
            id: id.clone(),
            main: id.clone(),
            device: Arc::new(FakeDevice),
            kind: DeviceKind::Gpu,
            formats: Vec::new(),
            status: status.clone(),
            budget: None,
            threads: 2,
            resident: true,
        };
        let health = DeviceHealth::new(id, Arc::new(FakeDevice), status, Arc::default());
        let threads = Threads::start("fake", 2, 64, 1 << 20).unwrap();
        LoadedDevice { device: open, health: Arc::new(health), threads: Some(threads) }
    };
    let mut models = Models::none();
    models.devices = (0..count).map(device).collect();
    models.ensemble_bytes = 1 << 20;
    models.ensemble_runs = 8;
    models.run_bytes = 1 << 16;
    models
}
