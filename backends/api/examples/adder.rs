//! A backend in one file, as small as one can be: models are text files that say what to do. It is the one that the tests of
//! the table use, in process and as a library.
#![allow(unreachable_pub, reason = "public where it is a library, private where tests take it in")]

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use outrigger_backend::{
    Backend, BackendError, BackendInfo, Buffer, DataType, Device, DeviceInfo, DeviceKind, DeviceStatus,
    Health, Instance, LoadOptions, Model, ModelInfo, Output, Run, Shape, Tensor, TensorInfo,
};

/// Opens the backend. The setting `fail` makes that fail, `absent` leaves it without devices.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let mut info = BackendInfo {
        name: "adder".into(),
        version: "1".into(),
        formats: vec!["text".into()],
        devices: vec![DeviceInfo {
            name: "cpu:0".into(),
            kind: DeviceKind::Cpu,
            memory_total: 2,
            lanes: 0,
            resident: false,
        }],
        reason: None,
    };
    for (key, value) in settings {
        match key.as_str() {
            "fail" => {
                return Err(BackendError::Unavailable { backend: "adder".into(), reason: value.clone() });
            }
            "absent" => {
                info.devices.clear();
                info.reason = Some(value.clone());
            }
            "panic" => panic!("{value}"),
            _ => {
                let reason = format!("unknown setting `{key}`");
                return Err(BackendError::Unavailable { backend: "adder".into(), reason });
            }
        }
    }
    Ok(Arc::new(Adder(info)))
}

outrigger_backend::export!(open);

struct Adder(BackendInfo);

impl Backend for Adder {
    fn info(&self) -> &BackendInfo {
        &self.0
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        if index >= self.0.devices.len() {
            return Err(BackendError::Input(format!("there is no device number {index}")));
        }
        Ok(Arc::new(Desk))
    }
}

struct Desk;

impl Device for Desk {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        Ok(DeviceStatus { memory_total: 2, memory_free: 1, memory_held: 1, health: Health::Healthy })
    }

    fn estimate(&self, _options: &LoadOptions) -> Result<u64, BackendError> {
        Ok(42)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        let broken = |why: String| BackendError::Load(format!("{}: {why}", options.path.display()));
        let text = std::fs::read_to_string(&options.path).map_err(|error| broken(error.to_string()))?;
        Ok(Arc::new(Text::parse(&text).ok_or_else(|| broken("no model".into()))?))
    }
}

#[derive(Clone, Copy)]
enum Task {
    Add,
    Identity,
    NonZero,
    Panic,
    Fail,
    Keep,
}

struct Text {
    task: Task,
    info: Arc<ModelInfo>,
}

impl Text {
    fn parse(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ')?;
        let row = |name: &str, data_type, width| TensorInfo {
            name: name.into(),
            data_type,
            shape: vec![-1, width],
            symbols: vec!["batch".into(), String::new()],
        };
        let (fp32, int64) = (DataType::Fp32, DataType::Int64);
        let add = || ModelInfo {
            inputs: vec![row("x", fp32, 3), row("y", fp32, 3)],
            outputs: vec![row("z", fp32, 3)],
        };
        let (task, info) = match word {
            "add" => (Task::Add, add()),
            "panic" => (Task::Panic, add()),
            "fail" => (Task::Fail, add()),
            "keep" => (Task::Keep, add()),
            "identity" => {
                let data_type = TYPES.into_iter().find(|data_type| data_type.name() == rest)?;
                let (inputs, outputs) = (vec![row("x", data_type, 2)], vec![row("y", data_type, 2)]);
                (Task::Identity, ModelInfo { inputs, outputs })
            }
            "nonzero" => {
                let vector = |name: &str, data_type, shape: &[i64]| TensorInfo {
                    name: name.into(),
                    data_type,
                    shape: shape.into(),
                    symbols: vec![String::new(); shape.len()],
                };
                let inputs = vec![vector("x", fp32, &[-1])];
                (Task::NonZero, ModelInfo { inputs, outputs: vec![vector("y", int64, &[1, -1])] })
            }
            _ => return None,
        };
        Some(Self { task, info: Arc::new(info) })
    }
}

/// What `identity` takes.
pub const TYPES: [DataType; 4] = [DataType::Fp32, DataType::Fp64, DataType::Uint8, DataType::Int64];

impl Model for Text {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::new(Clerk { task: self.task, info: Arc::clone(&self.info) }))
    }
}

struct Clerk {
    task: Task,
    info: Arc<ModelInfo>,
}

impl Instance for Clerk {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], _run: Run) -> Result<(), BackendError> {
        self.info.check_inputs(inputs)?;
        self.info.check_outputs(outputs)?;
        let floats =
            |number: usize| inputs[number].data().as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b));
        for output in outputs {
            match self.task {
                Task::Add => {
                    let sums = floats(0).zip(floats(1)).flat_map(|(x, y)| (x + y).to_ne_bytes());
                    fill(output, DataType::Fp32, inputs[0].shape().clone(), sums.collect())?;
                }
                // Without a place the input itself is the answer, and no byte of it is copied.
                Task::Identity => match output.place_mut() {
                    Some((.., place)) => place.copy_from_slice(inputs[0].data()),
                    None => output.set(inputs[0].clone()),
                },
                Task::NonZero => {
                    let indices = (0i64..).zip(floats(0)).filter(|(_, value)| *value != 0.);
                    let bytes: Vec<u8> = indices.flat_map(|(index, _)| index.to_ne_bytes()).collect();
                    let shape = Shape::new([1, bytes.len() as i64 / 8]).map_err(internal)?;
                    fill(output, DataType::Int64, shape, bytes)?;
                }
                Task::Panic => panic!("the clerk tripped"),
                Task::Keep => {
                    static KEPT: Mutex<Vec<Output>> = Mutex::new(Vec::new());
                    let kept = std::mem::replace(output, Output::allocate(0));
                    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
                }
                Task::Fail => return Err(BackendError::OutOfMemory("the desk is full".repeat(1000))),
            }
        }
        Ok(())
    }

    fn bytes_held(&self) -> u64 {
        42
    }
}

fn fill(output: &mut Output, data_type: DataType, shape: Shape, bytes: Vec<u8>) -> Result<(), BackendError> {
    match output.place_mut() {
        Some((_, place_shape, place)) if *place_shape == shape => place.copy_from_slice(&bytes),
        _ => {
            let mut buffer = Buffer::zeroed(bytes.len()).map_err(internal)?;
            buffer.copy_from_slice(&bytes);
            let data: Bytes = buffer.freeze();
            output.set(Tensor::new(data_type, shape, data).map_err(internal)?);
        }
    }
    Ok(())
}

fn internal(error: impl std::fmt::Display) -> BackendError {
    BackendError::Internal(error.to_string())
}
