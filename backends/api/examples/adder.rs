//! A backend as small as one can be that can do everything: models are text files that say what to do, and memory of the device's own
//! is a heap of its own. It is the one that the tests of the table use, in process and as a library.
#![allow(unreachable_pub, reason = "public where it is a library, private where tests take it in")]

#[path = "adder/clerk.rs"]
mod clerk;
#[path = "adder/heap.rs"]
mod heap;
#[path = "adder/text.rs"]
mod text;

use std::sync::Arc;

use outrigger_backend::{
    Backend, BackendError, BackendInfo, Buffer, Device, DeviceInfo, DeviceKind, DeviceMemory, DeviceStatus,
    Health, LoadOptions, Model,
};

use heap::Heap;
#[allow(unused_imports, reason = "for tests that take this in")]
pub use text::TYPES;
use text::Text;

/// The device's memory, unless the setting `memory` says otherwise.
const MEMORY: u64 = 64 << 20;

/// Opens the backend. The setting `fail` makes that fail, `absent` leaves it without devices, `devices` is how many it has else,
/// `memory` is how many bytes each of them has. With `onnx` it takes every ONNX file for `add 3`, and says beforehand that it takes so
/// many bytes. `load` is how loading fails: `memory`, `unsupported`, `broken`, `lost`, `exit`, which ends the process, `never`, which takes
/// for ever, or `held`, which succeeds once the file beside it is there that ends in `.go`; with `:NAME` after it, that of files of this name. `estimate` is the same of estimates; with `run=memory` runs find the device full.
/// `open=never` has it take for ever to open.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let unavailable = |reason: String| BackendError::Unavailable { backend: "adder".into(), reason };
    let mut memory = MEMORY;
    let (mut absent, mut count, mut manner) = (None, 1, Manner::default());
    for (key, value) in settings {
        match key.as_str() {
            "fail" => return Err(unavailable(value.clone())),
            "open" => never(),
            "absent" => absent = Some(value.clone()),
            "memory" | "devices" | "onnx" => {
                let number =
                    value.parse().map_err(|_| unavailable(format!("`{key}` is `{value}`, not a number")))?;
                match key.as_str() {
                    "memory" => memory = number,
                    "devices" => count = number,
                    _ => manner.onnx = Some(number),
                }
            }
            "load" => manner.loading = Some(value.clone()),
            "estimate" => manner.estimating = Some(value.clone()),
            "run" => manner.running = Some(value.clone()),
            "panic" => panic!("{value}"),
            _ => return Err(unavailable(format!("unknown setting `{key}`"))),
        }
    }
    let desk = |index: u64| DeviceInfo {
        name: format!("cpu:{index}"),
        kind: DeviceKind::Cpu,
        memory_total: memory,
        lanes: 0,
        resident: true,
    };
    let info = BackendInfo {
        name: "adder".into(),
        version: "1".into(),
        formats: ["text"].into_iter().chain(manner.onnx.map(|_| "onnx")).map(Into::into).collect(),
        devices: (0..count).filter(|_| absent.is_none()).map(desk).collect(),
        reason: absent,
    };
    let heaps = (0..count).map(|_| Arc::new(Heap::new(memory))).collect();
    Ok(Arc::new(Adder { info, heaps, manner: Arc::new(manner) }))
}

outrigger_backend::export!(open, asynchronous);

struct Adder {
    info: BackendInfo,
    /// Of each device.
    heaps: Vec<Arc<Heap>>,
    manner: Arc<Manner>,
}

/// What the settings say of models, and of how what is done with them fails.
#[derive(Default)]
struct Manner {
    onnx: Option<u64>,
    estimating: Option<String>,
    loading: Option<String>,
    running: Option<String>,
}

impl Manner {
    /// A model, and the bytes that it says it takes.
    fn read(&self, options: &LoadOptions) -> Result<(Text, u64), BackendError> {
        if let (Some(bytes), Some("onnx")) = (self.onnx, options.format.as_deref()) {
            return Ok((Text::sum(), bytes));
        }
        let text = Text::read(options)?;
        let bytes = text.weights;
        Ok((text, bytes))
    }

    fn check(fails: Option<&String>, options: &LoadOptions) -> Result<(), BackendError> {
        let Some(fails) = fails else { return Ok(()) };
        let (how, name) = fails.split_once(':').unwrap_or((fails, ""));
        if !name.is_empty() && options.path.file_name().is_none_or(|file| file != name) {
            return Ok(());
        }
        let why = "as it was told to".to_owned();
        Err(match how {
            "memory" => BackendError::OutOfMemory(why),
            "unsupported" => BackendError::Unsupported(why),
            "lost" => BackendError::Lost(why),
            "exit" => std::process::exit(0),
            "never" => never(),
            "held" => return held(&options.path.with_extension("go")),
            _ => BackendError::Load(format!("{}: {why}", options.path.display())),
        })
    }
}

/// Until a file is there.
fn held(file: &std::path::Path) -> Result<(), BackendError> {
    while !file.exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}

/// For as long as the process lives.
fn never() -> ! {
    loop {
        std::thread::park();
    }
}

impl Backend for Adder {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        match self.heaps.get(index).filter(|_| index < self.info.devices.len()) {
            Some(heap) => Ok(Arc::new(Desk(Arc::clone(heap), Arc::clone(&self.manner)))),
            None => Err(BackendError::Input(format!("there is no device number {index}"))),
        }
    }
}

struct Desk(Arc<Heap>, Arc<Manner>);

impl Device for Desk {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let held = self.0.held();
        Ok(DeviceStatus {
            memory_total: self.0.total(),
            memory_free: self.0.total().saturating_sub(held),
            memory_held: held,
            health: Health::Healthy,
        })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        Manner::check(self.1.estimating.as_ref(), options)?;
        Ok(self.1.read(options)?.1)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        let (mut text, _) = self.1.read(options)?;
        Manner::check(self.1.loading.as_ref(), options)?;
        if Manner::check(self.1.running.as_ref(), options).is_err() {
            text.task = text::Task::Fail;
        }
        Ok(Arc::new(clerk::Loaded::new(text, &self.0)?))
    }

    fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        Buffer::zeroed(bytes)
            .map_err(|_| BackendError::OutOfMemory(format!("the host has no {bytes} bytes for the desk")))
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        self.0.allocate(vec![0; self.0.fits(bytes)?])
    }

    fn upload(&self, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        self.0.write(to, from)
    }

    fn download(&self, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        self.0.read(from, |bytes| match bytes.len() == to.len() {
            true => {
                to.copy_from_slice(bytes);
                Ok(())
            }
            false => Err(BackendError::Input(format!("{} bytes do not go to {}", bytes.len(), to.len()))),
        })?
    }
}
