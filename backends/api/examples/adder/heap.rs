//! The device's own memory: bytes behind numbers that are no addresses, so that whoever reads through one ends the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_backend::{BackendError, DLDevice, DeviceMemory};

/// Where the numbers begin: no processor of today maps this.
const FIRST: usize = 1 << (usize::BITS - 9);
/// DLPack's type of a device that has none of its own.
const EXTENSION: DLDevice = DLDevice { device_type: 12, device_id: 0 };

pub(crate) struct Heap {
    total: u64,
    state: Mutex<State>,
}

struct State {
    held: u64,
    next: usize,
    blocks: BTreeMap<usize, Vec<u8>>,
}

/// A part of the memory that something takes; given back when dropped.
pub(crate) struct Part {
    heap: Arc<Heap>,
    bytes: u64,
    /// The block that it is, if there is something in it.
    address: Option<usize>,
}

impl Heap {
    pub(crate) fn new(total: u64) -> Self {
        Self { total, state: Mutex::new(State { held: 0, next: FIRST, blocks: BTreeMap::new() }) }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn held(&self) -> u64 {
        self.state().held
    }

    /// Checks before the bytes are made: nobody else checks what a caller asks for.
    pub(crate) fn fits(&self, bytes: usize) -> Result<usize, BackendError> {
        let held = self.held();
        if bytes as u64 > self.total.saturating_sub(held) {
            let text = format!("{bytes} bytes do not fit beside {held} of {}", self.total);
            return Err(BackendError::OutOfMemory(text));
        }
        Ok(bytes)
    }

    /// Takes memory of which nobody sees what is in it: weights.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Result<Part, BackendError> {
        let mut state = self.state();
        let free = self.total.saturating_sub(state.held);
        if bytes > free {
            return Err(BackendError::OutOfMemory(format!("{bytes} bytes do not fit into the {free} left")));
        }
        state.held += bytes;
        Ok(Part { heap: Arc::clone(self), bytes, address: None })
    }

    pub(crate) fn allocate(self: &Arc<Self>, bytes: Vec<u8>) -> Result<DeviceMemory, BackendError> {
        let len = bytes.len();
        let mut part = self.take(len as u64)?;
        let mut state = self.state();
        let address = state.next;
        state.next += len.next_multiple_of(64).max(64);
        state.blocks.insert(address, bytes);
        part.address = Some(address);
        drop(state);
        Ok(DeviceMemory::new(EXTENSION, address, len, Arc::new(part)))
    }

    pub(crate) fn read<T>(
        &self,
        memory: &DeviceMemory,
        reader: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, BackendError> {
        // By the address: over the table the owner is not the one that was given away.
        match self.state().blocks.get(&memory.address()) {
            Some(block) if memory.device() == EXTENSION && block.len() == memory.len() => Ok(reader(block)),
            _ => Err(foreign()),
        }
    }

    pub(crate) fn write(&self, memory: &DeviceMemory, bytes: &[u8]) -> Result<(), BackendError> {
        match self.state().blocks.get_mut(&memory.address()) {
            Some(block) if memory.device() == EXTENSION && block.len() == memory.len() => {
                if block.len() != bytes.len() {
                    let text = format!("{} bytes do not go to {}", bytes.len(), block.len());
                    return Err(BackendError::Input(text));
                }
                block.copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(foreign()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut state = self.heap.state();
        state.held -= self.bytes;
        if let Some(address) = self.address {
            state.blocks.remove(&address);
        }
    }
}

fn foreign() -> BackendError {
    BackendError::Input("the memory is not this device's".into())
}
