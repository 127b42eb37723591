//! A backend that tells when it was called: `t`, INT64 `[1]`, is the monotonic clock in nanoseconds as a run begins. The run then takes
//! 5 µs, as one of a small model does. For `run_start`.

use std::sync::Arc;
use std::time::Duration;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, DataType, Device, DeviceInfo, DeviceKind, DeviceStatus, Health,
    Instance, LoadOptions, Model, ModelInfo, Output, Run, Shape, Tensor, TensorInfo,
};
use outrigger_benches::clock::monotonic_ns;

outrigger_backend::export!(open);

const RUN: Duration = Duration::from_micros(5);

fn open(_settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let device = DeviceInfo {
        name: "cpu:0".into(),
        kind: DeviceKind::Cpu,
        memory_total: 0,
        lanes: 0,
        resident: false,
    };
    let info = BackendInfo {
        name: "clock".into(),
        version: "1".into(),
        formats: vec!["onnx".into()],
        devices: vec![device],
        reason: None,
    };
    Ok(Arc::new(Clock { info, model: model() }))
}

fn model() -> ModelInfo {
    let tensor = |name: &str, data_type| TensorInfo {
        name: name.into(),
        data_type,
        shape: vec![1],
        symbols: vec![String::new()],
    };
    ModelInfo { inputs: vec![tensor("x", DataType::Fp32)], outputs: vec![tensor("t", DataType::Int64)] }
}

struct Clock {
    info: BackendInfo,
    model: ModelInfo,
}

impl Backend for Clock {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, _index: usize) -> Result<Arc<dyn Device>, BackendError> {
        Ok(Arc::new(Face(self.model.clone())))
    }
}

#[derive(Clone)]
struct Face(ModelInfo);

impl Device for Face {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        Ok(DeviceStatus { memory_total: 0, memory_free: 0, memory_held: 0, health: Health::Healthy })
    }

    fn estimate(&self, _options: &LoadOptions) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn load(&self, _options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(self.clone()))
    }
}

impl Model for Face {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::new(Hand))
    }
}

struct Hand;

impl Instance for Hand {
    fn infer(&self, _inputs: &[Tensor], outputs: &mut [Output], _run: Run) -> Result<(), BackendError> {
        let begun = monotonic_ns();
        for output in outputs {
            let broken = |error: &dyn std::fmt::Display| BackendError::Internal(error.to_string());
            let shape = Shape::new([1]).map_err(|error| broken(&error))?;
            let data = (begun as i64).to_ne_bytes().to_vec().into();
            output.set(Tensor::new(DataType::Int64, shape, data).map_err(|error| broken(&error))?);
        }
        while u128::from(monotonic_ns() - begun) < RUN.as_nanos() {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn bytes_held(&self) -> u64 {
        0
    }
}
