//! A backend whose models misbehave in the ways that a device host is there for. A model is a file with one word: what its instances do.
//!
//! Two devices, `cpu:0` and `cpu:1`, with memory of their own. Every model takes `x`, FP32 `[n]`, and gives `y`, FP32 `[n]`: twice `x`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Buffer, DLDevice, DataType, Device, DeviceInfo, DeviceKind,
    DeviceMemory, DeviceStatus, Health, Instance, LoadOptions, Model, ModelInfo, Output, Run, RunId, Shape,
    Tensor, TensorInfo,
};

fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let mut shrunk = false;
    for (key, value) in settings {
        match key.as_str() {
            "print" => println!("{value}"),
            // Dies while the backend opens, if that file is there.
            "die_if" if std::path::Path::new(value).exists() => std::process::abort(),
            "die_if" => {}
            // Finds one device less, if that file is there.
            "shrunk_if" => shrunk |= std::path::Path::new(value).exists(),
            "environment" => {
                let found = std::env::var(value).is_ok();
                return Err(unavailable(format!("{value} is there: {found}")));
            }
            _ => return Err(unavailable(format!("unknown setting `{key}`"))),
        }
    }
    let device = |index: usize| DeviceInfo {
        name: format!("cpu:{index}"),
        kind: DeviceKind::Cpu,
        memory_total: 1 << 30,
        lanes: 0,
        resident: true,
    };
    Ok(Arc::new(Odd(BackendInfo {
        name: "odd".into(),
        version: "1".into(),
        formats: vec!["word".into()],
        devices: if shrunk { vec![device(0)] } else { vec![device(0), device(1)] },
        reason: None,
    })))
}

fn unavailable(reason: String) -> BackendError {
    BackendError::Unavailable { backend: "odd".into(), reason }
}

outrigger_backend::export!(open);

struct Odd(BackendInfo);

impl Backend for Odd {
    fn info(&self) -> &BackendInfo {
        &self.0
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        if index >= self.0.devices.len() {
            return Err(BackendError::Input(format!("there is no device number {index}")));
        }
        Ok(Arc::new(Place))
    }
}

struct Place;

/// Memory of the device's, which in truth is this process's.
type Bytes = Arc<Mutex<Vec<u8>>>;

const MEMORY: DLDevice = DLDevice { device_type: 12, device_id: 0 };

/// By its address, which is all that comes back over the table.
static MEMORIES: Mutex<BTreeMap<usize, Weak<Mutex<Vec<u8>>>>> = Mutex::new(BTreeMap::new());

fn on_device(bytes: Vec<u8>) -> DeviceMemory {
    let len = bytes.len();
    let bytes: Bytes = Arc::new(Mutex::new(bytes));
    let address = Arc::as_ptr(&bytes) as usize;
    MEMORIES.lock().unwrap_or_else(PoisonError::into_inner).insert(address, Arc::downgrade(&bytes));
    DeviceMemory::new(MEMORY, address, len, bytes)
}

fn bytes_of(memory: &DeviceMemory) -> Result<Bytes, BackendError> {
    let memories = MEMORIES.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = memories.get(&memory.address()).and_then(Weak::upgrade);
    bytes.ok_or_else(|| BackendError::Input("memory of another device".into()))
}

fn lock(bytes: &Bytes) -> std::sync::MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for Place {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        Ok(DeviceStatus {
            memory_total: 1 << 30,
            memory_free: 1 << 29,
            memory_held: 0,
            health: Health::Healthy,
        })
    }

    fn estimate(&self, _options: &LoadOptions) -> Result<u64, BackendError> {
        Ok(42)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        let text = std::fs::read_to_string(&options.path)
            .map_err(|error| BackendError::Load(format!("{}: {error}", options.path.display())))?;
        let word = text.split_whitespace().next().unwrap_or_default().to_owned();
        // The memory that a large model would take.
        let weights = if word == "large" { vec![1; 256 << 20] } else { Vec::new() };
        let row = |name: &str| TensorInfo {
            name: name.into(),
            data_type: DataType::Fp32,
            shape: vec![-1],
            symbols: vec!["n".into()],
        };
        let mut info = ModelInfo { inputs: vec![row("x")], outputs: vec![row("y")] };
        match word.as_str() {
            "broken" => return Err(BackendError::Load(format!("{}: broken", options.path.display()))),
            "greedy" => return Err(BackendError::OutOfMemory(format!("{}: greedy", options.path.display()))),
            // It takes until there is that file.
            "lazy" => {
                // Under another name first, so that no descriptor is open any more when it is there.
                let _ = std::fs::write(options.path.with_extension("new"), "");
                let _ =
                    std::fs::rename(options.path.with_extension("new"), options.path.with_extension("begun"));
                while !options.path.with_extension("go").exists() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            "pair" => info.outputs.push(row("z")),
            // The extent that it says its result has.
            "claim" => {
                info.outputs[0].shape =
                    vec![text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)]
            }
            _ => {}
        }
        let path = options.path.clone();
        Ok(Arc::new(Word { word, text, info, path, _weights: weights }))
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        Ok(on_device(vec![0; bytes]))
    }

    fn upload(&self, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        let to = bytes_of(to)?;
        let mut to = lock(&to);
        if to.len() != from.len() {
            return Err(BackendError::Input("another number of bytes".into()));
        }
        to.copy_from_slice(from);
        Ok(())
    }

    fn download(&self, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        let from = bytes_of(from)?;
        let from = lock(&from);
        if from.len() != to.len() {
            return Err(BackendError::Input("another number of bytes".into()));
        }
        to.copy_from_slice(&from);
        Ok(())
    }
}

struct Word {
    word: String,
    text: String,
    info: ModelInfo,
    path: PathBuf,
    _weights: Vec<u8>,
}

impl Model for Word {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        let (word, text) = (self.word.clone(), self.text.clone());
        Ok(Arc::new(Speaker {
            word,
            text,
            info: self.info.clone(),
            begun: self.path.with_extension("begun"),
            go: self.path.with_extension("go"),
            kept: Mutex::default(),
            cancelled: Mutex::default(),
            bell: Condvar::new(),
        }))
    }
}

struct Speaker {
    word: String,
    text: String,
    info: ModelInfo,
    /// A file that a model makes which hangs, and one for which a stubborn one waits.
    begun: PathBuf,
    go: PathBuf,
    kept: Mutex<Vec<Tensor>>,
    cancelled: Mutex<Vec<RunId>>,
    bell: Condvar,
}

impl Instance for Speaker {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], run: Run) -> Result<(), BackendError> {
        self.info.check_inputs(inputs)?;
        self.info.check_outputs(outputs)?;
        match self.word.as_str() {
            "abort" => std::process::abort(),
            "lost" => return Err(BackendError::Lost("a sticky error".into())),
            "hang" => {
                let _ = std::fs::write(&self.begun, "");
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            "wait" => self.wait(run)?,
            "stubborn" => {
                let _ = std::fs::write(&self.begun, "");
                while !self.go.exists() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            "where" => {
                let _ = std::fs::write(&self.begun, address_of(&inputs[0]));
            }
            "say" => {
                println!("{} out", self.text);
                eprintln!("{} err", self.text);
            }
            "slow" => std::thread::sleep(Duration::from_millis(20)),
            "keep" => self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(inputs[0].clone()),
            _ => {}
        }
        let bytes = match inputs[0].resident() {
            Some(memory) => lock(&bytes_of(memory)?).clone(),
            None => inputs[0].data().to_vec(),
        };
        // Whatever was kept says what it said when it came.
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for tensor in kept.iter() {
            let all_equal = tensor.data().windows(4).step_by(4).all(|value| value == &tensor.data()[..4]);
            assert!(all_equal, "an input that was kept has changed");
        }
        let first = kept.first().map(|tensor| tensor.data()[..4].to_vec());
        let double = |value: &[u8; 4]| (f32::from_ne_bytes(*value) * 2.).to_ne_bytes();
        let mut doubled: Vec<u8> = bytes.as_chunks().0.iter().flat_map(double).collect();
        if let Some(first) = first {
            doubled = doubled.chunks(4).flat_map(|_| first.clone()).collect();
        }
        for output in outputs {
            let shape = inputs[0].shape().clone();
            if output.wants_resident() {
                let tensor = Tensor::on_device(DataType::Fp32, shape, on_device(doubled.clone()));
                output.set(tensor.map_err(|error| BackendError::Internal(error.to_string()))?);
                continue;
            }
            match output.place_mut() {
                Some((_, place_shape, place)) if *place_shape == shape => place.copy_from_slice(&doubled),
                _ => output.set(tensor(shape, &doubled)?),
            }
        }
        Ok(())
    }

    fn cancel(&self, id: RunId) {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.bell.notify_all();
    }

    fn can_cancel(&self) -> bool {
        self.word != "stubborn"
    }

    fn bytes_held(&self) -> u64 {
        7
    }
}

impl Speaker {
    /// Waits to be cancelled.
    fn wait(&self, run: Run) -> Result<(), BackendError> {
        let cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = |ids: &mut Vec<RunId>| run.id.is_none_or(|id| !ids.contains(&id));
        let waited = self.bell.wait_timeout_while(cancelled, Duration::from_secs(60), asked);
        drop(waited);
        Err(BackendError::Cancelled)
    }
}

/// The line of this process's memory map in which a tensor's bytes lie.
fn address_of(tensor: &Tensor) -> String {
    let address = tensor.data().as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let holds = |line: &&str| {
        let bounds = line.split(' ').next().and_then(|range| range.split_once('-'));
        let bounds =
            bounds.map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
        matches!(bounds, Some((Ok(start), Ok(end))) if (start..end).contains(&address))
    };
    maps.lines().find(holds).unwrap_or_default().to_owned()
}

fn tensor(shape: Shape, bytes: &[u8]) -> Result<Tensor, BackendError> {
    let internal = |error: &dyn std::fmt::Display| BackendError::Internal(error.to_string());
    let mut buffer = Buffer::zeroed(bytes.len()).map_err(|error| internal(&error))?;
    buffer.copy_from_slice(bytes);
    Tensor::new(DataType::Fp32, shape, buffer.freeze()).map_err(|error| internal(&error))
}
