//! Memory of a device's own, in which tensors stay between runs.

use std::any::Any;
use std::sync::Arc;

use crate::dlpack::DLDevice;

/// Bytes in a device's own memory. Cloning shares them; they are given back with the last clone. Nothing here reads or writes
/// them: [`crate::Device::upload`] and [`crate::Device::download`] do, and runs on the same device.
#[derive(Clone)]
pub struct DeviceMemory {
    device: DLDevice,
    address: usize,
    len: usize,
    owner: Arc<dyn Any + Send + Sync>,
}

impl DeviceMemory {
    /// For the backend: `len` bytes at `address`, an address or a handle by which the device knows them, until `owner` is dropped.
    pub fn new(device: DLDevice, address: usize, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { device, address, len, owner }
    }

    /// Which device's, in DLPack's terms.
    pub fn device(&self) -> DLDevice {
        self.device
    }

    /// The address or handle by which the device knows the bytes. Not to be read through.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What keeps the bytes. Over the table it is another than what the backend gave, which knows its memory by the address.
    pub fn owner(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.owner
    }
}

impl std::fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "DeviceMemory({} bytes on device {}:{})",
            self.len, self.device.device_type, self.device.device_id
        )
    }
}
