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

/// Opens the backend. The setting `fail` makes that fail, `absent` leaves it without devices, `memory` is how many bytes the device
/// has.
pub fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
    let unavailable = |reason: String| BackendError::Unavailable { backend: "adder".into(), reason };
    let mut memory = MEMORY;
    let mut absent = None;
    for (key, value) in settings {
        match key.as_str() {
            "fail" => return Err(unavailable(value.clone())),
            "absent" => absent = Some(value.clone()),
            "memory" => {
                memory =
                    value.parse().map_err(|_| unavailable(format!("`memory` is `{value}`, not a number")))?;
            }
            "panic" => panic!("{value}"),
            _ => return Err(unavailable(format!("unknown setting `{key}`"))),
        }
    }
    let desk = DeviceInfo {
        name: "cpu:0".into(),
        kind: DeviceKind::Cpu,
        memory_total: memory,
        lanes: 0,
        resident: true,
    };
    let info = BackendInfo {
        name: "adder".into(),
        version: "1".into(),
        formats: vec!["text".into()],
        devices: if absent.is_none() { vec![desk] } else { Vec::new() },
        reason: absent,
    };
    Ok(Arc::new(Adder { info, heap: Arc::new(Heap::new(memory)) }))
}

outrigger_backend::export!(open, asynchronous);

struct Adder {
    info: BackendInfo,
    heap: Arc<Heap>,
}

impl Backend for Adder {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        if index >= self.info.devices.len() {
            return Err(BackendError::Input(format!("there is no device number {index}")));
        }
        Ok(Arc::new(Desk(Arc::clone(&self.heap))))
    }
}

struct Desk(Arc<Heap>);

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
        Ok(Text::read(options)?.weights)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(clerk::Loaded::new(Text::read(options)?, &self.0)?))
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
