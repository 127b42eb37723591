//! Memory of a GPU's, and memory of the host's that a GPU reaches by itself.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use crate::driver::{Address, Context, CudaError};

/// `CU_MEMHOSTALLOC_PORTABLE`: pinned for all contexts.
const PORTABLE: u32 = 1;

/// Bytes in a GPU's memory, given back when dropped.
pub struct DeviceBlock {
    context: Arc<Context>,
    address: Address,
    bytes: usize,
}

impl DeviceBlock {
    /// Takes zeroed memory; none at all has an address as well. The driver's addresses are multiples of 256.
    ///
    /// # Errors
    /// What the driver says.
    pub fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        context.call("cuMemAlloc", |functions| {
            // SAFETY: the pointer is a place of this frame.
            unsafe { (functions.memory_take)(&mut address, bytes.max(1)) }
        })?;
        let block = Self { context: Arc::clone(context), address, bytes };
        if bytes > 0 {
            // What was there before may be another call's. Waited for, as ONNX Runtime's streams do not wait for the one of this.
            context.call("cuMemsetD8", |functions| {
                // SAFETY: the memory is as long, and nobody else's.
                let set = unsafe { (functions.memory_set)(address, 0, bytes) };
                // SAFETY: null is the stream that calls without one are in.
                if set == 0 { unsafe { (functions.stream_wait)(null_mut()) } } else { set }
            })?;
        }
        Ok(block)
    }

    /// Where it lies on the device.
    pub fn address(&self) -> Address {
        self.address
    }
}

impl Drop for DeviceBlock {
    fn drop(&mut self) {
        // SAFETY: taken once, and given back only here.
        let freed =
            self.context.call("cuMemFree", |functions| unsafe { (functions.memory_free)(self.address) });
        // Where even that fails its memory goes with the process, and counts until then.
        if freed.is_err() {
            self.context.keep(self.bytes);
        }
    }
}

/// Copies to a GPU's memory, which is as long; the bytes are there when this returns.
///
/// # Errors
/// What the driver says.
pub fn copy_to_device(context: &Context, from: &[u8], to: Address) -> Result<(), CudaError> {
    if from.is_empty() {
        return Ok(());
    }
    context.call("cuMemcpyHtoD", |functions| {
        // SAFETY: the bytes are borrowed for the call, and the caller has checked that the memory is as long.
        let copied = unsafe { (functions.copy_to_device)(to, from.as_ptr().cast(), from.len()) };
        // From memory that is not pinned the call may return with the bytes under way, and ONNX Runtime's streams do not wait for them.
        // SAFETY: null is the stream that calls without one are in.
        if copied == 0 { unsafe { (functions.stream_wait)(null_mut()) } } else { copied }
    })
}

/// Copies out of a GPU's memory, which is as long.
///
/// # Errors
/// What the driver says.
pub fn copy_to_host(context: &Context, from: Address, to: &mut [u8]) -> Result<(), CudaError> {
    if to.is_empty() {
        return Ok(());
    }
    // SAFETY: the bytes are borrowed for the call, and the caller has checked that the memory is as long.
    context.call("cuMemcpyDtoH", |functions| unsafe {
        (functions.copy_to_host)(to.as_mut_ptr().cast(), from, to.len())
    })
}

/// Copies between blocks of a GPU's memory, which are as long; the bytes are there when this returns.
///
/// # Errors
/// What the driver says.
pub fn copy_on_device(context: &Context, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
    if bytes == 0 {
        return Ok(());
    }
    context.call("cuMemcpyDtoD", |functions| {
        // SAFETY: the caller has checked that both are as long.
        let copied = unsafe { (functions.copy_on_device)(to, from, bytes) };
        // The call does not wait, and ONNX Runtime's streams do not wait for the one of this.
        // SAFETY: null is the stream that calls without one are in.
        if copied == 0 { unsafe { (functions.stream_wait)(null_mut()) } } else { copied }
    })
}

/// Pinned memory of the host's, zeroed, given back when dropped.
pub struct HostBlock {
    context: Arc<Context>,
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: plain bytes of the host's, reached through this value alone.
unsafe impl Send for HostBlock {}
// SAFETY: as above; a shared reference allows reading only.
unsafe impl Sync for HostBlock {}

impl HostBlock {
    /// Takes `bytes`, at least one. Whole pages come, so the address is aligned to anything that tensors ask for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let mut data: *mut c_void = null_mut();
        // SAFETY: the pointer is a place of this frame.
        context.call("cuMemHostAlloc", |functions| unsafe {
            (functions.pinned_take)(&mut data, bytes.max(1), PORTABLE)
        })?;
        let data = NonNull::new(data.cast::<u8>()).ok_or_else(|| context.no_memory("cuMemHostAlloc"))?;
        let block = Self { context: Arc::clone(context), data, len: bytes };
        // SAFETY: as many bytes have come, and nobody else knows of them. The driver does not say what is in them.
        unsafe { data.as_ptr().write_bytes(0, bytes) };
        Ok(block)
    }
}

impl AsRef<[u8]> for HostBlock {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as many bytes, initialised, live until this is dropped.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl AsMut<[u8]> for HostBlock {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        let data = self.data.as_ptr().cast();
        // SAFETY: taken once, and given back only here; no view of it lives longer.
        let _ = self.context.call("cuMemFreeHost", |functions| unsafe { (functions.pinned_free)(data) });
    }
}
