//! Memory of a device's that a child holds for clients.

use std::any::Any;
use std::sync::Arc;

use outrigger_backend::{BackendError, DLDevice, DeviceMemory};

use super::device::OpenDevice;
use super::link::Link;

/// Memory of the device's, under its number in the child.
struct Remote {
    device: Arc<OpenDevice>,
    link: Arc<Link>,
    number: u64,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // What was in a child that is gone is gone with it.
        if self.device.host().link().is_ok_and(|now| Arc::ptr_eq(&now, &self.link)) {
            self.device.release(&self.link, self.number);
        }
    }
}

/// Memory that the child has under a number.
pub(super) fn remote(
    device: &Arc<OpenDevice>,
    link: &Arc<Link>,
    number: u64,
    dl: DLDevice,
    len: usize,
) -> DeviceMemory {
    let remote = Remote { device: Arc::clone(device), link: Arc::clone(link), number };
    // The number stands for the address: nothing but its child knows where it is.
    let address = usize::try_from(number).unwrap_or_default();
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(remote);
    DeviceMemory::new(dl, address, len, owner)
}

/// The child's number of memory of its device's.
pub(super) fn number_of(
    memory: &DeviceMemory,
    device: &Arc<OpenDevice>,
    link: &Arc<Link>,
) -> Result<u64, BackendError> {
    match memory.owner().downcast_ref::<Remote>() {
        Some(remote) if Arc::ptr_eq(&remote.link, link) => Ok(remote.number),
        Some(remote) if Arc::ptr_eq(&remote.device, device) => {
            Err(BackendError::Lost("memory of the device's was lost when its host ended".into()))
        }
        _ => Err(BackendError::Input("the memory is another device's".into())),
    }
}
