//! The entries for memory that the device reads fastest, and memory of its own.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::entries::{OpenDevice, broken, handle, store};
use super::guard;
use crate::abi::{self, DLManagedTensor, DLTensor, Message};
use crate::dlpack::{self, View};
use crate::{BackendError, DataType, DeviceMemory, Shape, Tensor};

pub(super) unsafe extern "C" fn buffer_allocate(
    device: *mut abi::DeviceHandle,
    memory: u32,
    bytes: usize,
    out: *mut *mut DLManagedTensor,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: made by `device_open`.
        let device = unsafe { handle::<OpenDevice, _>(device) }?;
        let internal = |error: &dyn std::fmt::Display| BackendError::Internal(error.to_string());
        let extent = i64::try_from(bytes).map_err(|error| internal(&error))?;
        let shape = Shape::new([extent]).map_err(|error| internal(&error))?;
        let given = match memory {
            abi::memory::PINNED => dlpack::give_memory(device.pinned(bytes)?, shape),
            abi::memory::DEVICE => {
                let tensor = Tensor::on_device(DataType::Uint8, shape, device.allocate(bytes)?);
                dlpack::give(tensor.map_err(|error| internal(&error))?)
            }
            _ => return Err(broken("there is no such kind of memory to give")),
        };
        // SAFETY: `out` is the host's place for the tensor.
        unsafe { store(out, given) }
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

pub(super) unsafe extern "C" fn buffer_copy(
    device: *mut abi::DeviceHandle,
    from: *const DLTensor,
    to: *const DLTensor,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: made by `device_open`.
        let device = unsafe { handle::<OpenDevice, _>(device) }?;
        // SAFETY: the host passes tensors that are valid during the call.
        let (from, to) = unsafe { (side(from)?, side(to)?) };
        if from.len != to.len {
            return Err(BackendError::Input(format!("{} bytes are to be copied to {}", from.len, to.len)));
        }
        match (from.device, to.device) {
            // SAFETY: the host's memory, as long as it says, which it lends for the call.
            (None, Some(_)) => device.upload(unsafe { bytes(&from) }, &memory(&to)),
            // SAFETY: as above, and nobody else touches it.
            (Some(_), None) => device.download(&memory(&from), unsafe { bytes_mut(to) }),
            _ => Err(BackendError::Unsupported(
                "one side of a copy is the host's memory, the other the device's".into(),
            )),
        }
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

/// # Safety
/// `tensor` is null or valid during the call.
unsafe fn side(tensor: *const DLTensor) -> Result<View, BackendError> {
    // SAFETY: promised by the caller.
    let tensor = unsafe { tensor.as_ref() }.ok_or_else(|| broken("one side of a copy is null"))?;
    // SAFETY: as above.
    let view = unsafe { dlpack::view(tensor) };
    view.map_err(|fault| broken(&format!("one side of a copy came broken: {fault}")))
}

/// # Safety
/// The view is memory of the host's, valid during the call.
unsafe fn bytes(view: &View) -> &[u8] {
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(view.data.as_ptr(), view.len) }
}

/// # Safety
/// As [`bytes`], and nobody else touches it.
unsafe fn bytes_mut<'a>(view: View) -> &'a mut [u8] {
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts_mut(view.data.as_ptr(), view.len) }
}

/// Memory that the device knows by its address; the host keeps it during the call.
fn memory(view: &View) -> DeviceMemory {
    let device = view.device.unwrap_or(abi::DLDevice { device_type: abi::KDL_EXT_DEV, device_id: 0 });
    let address = NonZeroUsize::from(view.data.addr()).get();
    DeviceMemory::new(device, address, view.len, Arc::new(()))
}
