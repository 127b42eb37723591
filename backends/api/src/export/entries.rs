//! The entries. Each handle is a box that is not written to after it is made, so calls on it may overlap.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use super::describe::{BackendText, ModelText};
use super::{Open, guard};
use crate::abi::{self, Message, Setting, Text};
use crate::host::describe;
use crate::{Backend, BackendError, Device, Health, Instance, LoadOptions, Model, ModelInfo};

struct OpenBackend {
    backend: Arc<dyn Backend>,
    text: BackendText,
}

struct LoadedModel {
    model: Arc<dyn Model>,
    text: ModelText,
}

pub(super) type OpenDevice = Arc<dyn Device>;
pub(super) type LiveInstance = Arc<dyn Instance>;

pub(super) unsafe extern "C" fn backend_open<O: Open>(
    settings: *const Setting,
    count: usize,
    out: *mut *mut abi::BackendHandle,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: the host passes `count` settings, valid during this call.
        let backend = O::open(&unsafe { pairs(settings, count) }?)?;
        let text = BackendText::new(backend.info().clone());
        // SAFETY: `out` is the host's place for the handle.
        unsafe { hand_over(out, OpenBackend { backend, text }) }
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

pub(super) unsafe extern "C" fn backend_close(backend: *mut abi::BackendHandle) {
    // SAFETY: made by `backend_open`, and ended once.
    unsafe { end::<OpenBackend, _>(backend) }
}

pub(super) unsafe extern "C" fn backend_describe(
    backend: *mut abi::BackendHandle,
    out: *mut *const abi::Description,
    message: *mut Message,
) -> i32 {
    // SAFETY: made by `backend_open`; `out` and `message` are the host's.
    unsafe { guard(message, || store(out, handle::<OpenBackend, _>(backend)?.text.get())) }
}

pub(super) unsafe extern "C" fn device_open(
    backend: *mut abi::BackendHandle,
    index: usize,
    out: *mut *mut abi::DeviceHandle,
    message: *mut Message,
) -> i32 {
    // SAFETY: made by `backend_open`; `out` and `message` are the host's.
    unsafe { guard(message, || hand_over(out, handle::<OpenBackend, _>(backend)?.backend.open(index)?)) }
}

pub(super) unsafe extern "C" fn device_close(device: *mut abi::DeviceHandle) {
    // SAFETY: made by `device_open`, and ended once.
    unsafe { end::<OpenDevice, _>(device) }
}

pub(super) unsafe extern "C" fn device_status(
    device: *mut abi::DeviceHandle,
    out: *mut abi::DeviceStatus,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: made by `device_open`.
        let status = unsafe { handle::<OpenDevice, _>(device) }?.status()?;
        let (health, reason) = match &status.health {
            Health::Healthy => (abi::health::HEALTHY, ""),
            Health::Degraded(reason) => (abi::health::DEGRADED, reason.as_str()),
            Health::Recovering(reason) => (abi::health::RECOVERING, reason.as_str()),
            Health::Lost(reason) => (abi::health::LOST, reason.as_str()),
        };
        // SAFETY: `message` is the host's.
        unsafe { super::write(message, reason) };
        let status = abi::DeviceStatus {
            memory_total: status.memory_total,
            memory_free: status.memory_free,
            memory_held: status.memory_held,
            health,
            reserved: 0,
        };
        // SAFETY: `out` is the host's place for the value.
        unsafe { store(out, status) }
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

pub(super) unsafe extern "C" fn model_estimate(
    device: *mut abi::DeviceHandle,
    request: *const abi::LoadRequest,
    out: *mut u64,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: the host passes a request that is valid during this call, and a handle of `device_open`; `out` is the host's.
        unsafe { store(out, handle::<OpenDevice, _>(device)?.estimate(&options(request)?)?) }
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

pub(super) unsafe extern "C" fn model_load(
    device: *mut abi::DeviceHandle,
    request: *const abi::LoadRequest,
    out: *mut *mut abi::ModelHandle,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: the host passes a request that is valid during this call, and a handle of `device_open`.
        let model = unsafe { handle::<OpenDevice, _>(device)?.load(&options(request)?)? };
        let text = ModelText::new(model.info().clone());
        // SAFETY: `out` is the host's place for the handle.
        unsafe { hand_over(out, LoadedModel { model, text }) }
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

pub(super) unsafe extern "C" fn model_unload(model: *mut abi::ModelHandle) {
    // SAFETY: made by `model_load`, and ended once.
    unsafe { end::<LoadedModel, _>(model) }
}

pub(super) unsafe extern "C" fn model_info(
    model: *mut abi::ModelHandle,
    out: *mut *const abi::Signature,
    message: *mut Message,
) -> i32 {
    // SAFETY: made by `model_load`; `out` and `message` are the host's.
    unsafe { guard(message, || store(out, handle::<LoadedModel, _>(model)?.text.get())) }
}

pub(super) unsafe extern "C" fn instance_create(
    model: *mut abi::ModelHandle,
    out: *mut *mut abi::InstanceHandle,
    message: *mut Message,
) -> i32 {
    // SAFETY: made by `model_load`; `out` and `message` are the host's.
    unsafe { guard(message, || hand_over(out, handle::<LoadedModel, _>(model)?.model.instance()?)) }
}

pub(super) unsafe extern "C" fn instance_destroy(instance: *mut abi::InstanceHandle) {
    // SAFETY: made by `instance_create`, and ended once.
    unsafe { end::<LiveInstance, _>(instance) }
}

pub(super) unsafe extern "C" fn instance_status(
    instance: *mut abi::InstanceHandle,
    out: *mut abi::InstanceStatus,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: made by `instance_create`.
        let instance = unsafe { handle::<LiveInstance, _>(instance) }?;
        let status = abi::InstanceStatus {
            bytes_held: instance.bytes_held(),
            can_cancel: u32::from(instance.can_cancel()),
            reserved: 0,
        };
        // SAFETY: `out` is the host's place for the value.
        unsafe { store(out, status) }
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

/// # Safety
/// `request` is null or valid during this call, and all that it points to.
unsafe fn options(request: *const abi::LoadRequest) -> Result<LoadOptions, BackendError> {
    // SAFETY: promised by the caller.
    let request = unsafe { request.as_ref() }.ok_or_else(|| broken("the load request is null"))?;
    // SAFETY: as above, its texts and settings too.
    unsafe {
        let format = text(request.format)?;
        Ok(LoadOptions {
            path: path(request.path)?,
            format: (!format.is_empty()).then(|| format.to_owned()),
            intra_threads: NonZeroUsize::new(request.intra_threads as usize).map(NonZeroUsize::get),
            settings: pairs(request.settings, request.setting_count)?,
            signature: signature(request.signature)?,
        })
    }
}

/// # Safety
/// `signature` is null or valid during this call, and all that it points to.
unsafe fn signature(signature: *const abi::Signature) -> Result<ModelInfo, BackendError> {
    if signature.is_null() {
        return Ok(ModelInfo::default());
    }
    // SAFETY: promised by the caller.
    unsafe { describe::model(signature) }.map_err(|fault| broken(&format!("the signature: {fault}")))
}

/// # Safety
/// `settings` has `count` settings, valid during this call.
unsafe fn pairs(settings: *const Setting, count: usize) -> Result<Vec<(String, String)>, BackendError> {
    // SAFETY: promised by the caller.
    let settings = unsafe { list(settings, count) }?.iter().map(|setting| {
        // SAFETY: as above, their text too.
        unsafe { Ok((text(setting.key)?.to_owned(), text(setting.value)?.to_owned())) }
    });
    settings.collect()
}

/// Gives the host a handle.
///
/// # Safety
/// `out` is null or the host's place for it.
unsafe fn hand_over<T, H>(out: *mut *mut H, value: T) -> Result<(), BackendError> {
    if out.is_null() {
        return Err(broken("there is no place for the result"));
    }
    // SAFETY: not null, and promised by the caller.
    unsafe { out.write(Box::into_raw(Box::new(value)).cast()) };
    Ok(())
}

/// # Safety
/// `out` is null or the host's place for the value.
pub(super) unsafe fn store<T>(out: *mut T, value: T) -> Result<(), BackendError> {
    if out.is_null() {
        return Err(broken("there is no place for the result"));
    }
    // SAFETY: not null, and promised by the caller.
    unsafe { out.write(value) };
    Ok(())
}

/// # Safety
/// `handle` is null or came from [`hand_over`] with the same `T`, and has not been ended.
pub(super) unsafe fn handle<'a, T, H>(handle: *mut H) -> Result<&'a T, BackendError> {
    // SAFETY: promised by the caller.
    unsafe { handle.cast::<T>().as_ref() }.ok_or_else(|| broken("the handle is null"))
}

/// # Safety
/// As [`handle`], and it is not used again.
unsafe fn end<T, H>(handle: *mut H) {
    if let Some(handle) = NonNull::new(handle.cast::<T>()) {
        // There is nobody to tell of a panic; the handle is gone either way.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: promised by the caller.
            drop(unsafe { Box::from_raw(handle.as_ptr()) });
        }));
    }
}

/// # Safety
/// `data` is null or has `count` values, valid as long as the result is used.
pub(super) unsafe fn list<'a, T>(data: *const T, count: usize) -> Result<&'a [T], BackendError> {
    match (count, data.is_null() || !data.is_aligned()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(broken("a list has no address")),
        // SAFETY: neither null nor misaligned; promised by the caller.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts(data, count) }),
    }
}

/// # Safety
/// As [`list`], and nobody else touches the values.
pub(super) unsafe fn list_mut<'a, T>(data: *mut T, count: usize) -> Result<&'a mut [T], BackendError> {
    match (count, data.is_null() || !data.is_aligned()) {
        (0, _) => Ok(&mut []),
        (_, true) => Err(broken("a list has no address")),
        // SAFETY: neither null nor misaligned; promised by the caller.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts_mut(data, count) }),
    }
}

/// # Safety
/// `text` is valid as long as the result is used.
unsafe fn text<'a>(text: Text) -> Result<&'a str, BackendError> {
    // SAFETY: passed on.
    let bytes = unsafe { list(text.data, text.len) }?;
    std::str::from_utf8(bytes).map_err(|_| broken("a text is not UTF-8"))
}

/// # Safety
/// `path` is valid during this call.
unsafe fn path(path: Text) -> Result<PathBuf, BackendError> {
    // SAFETY: passed on.
    #[cfg(unix)]
    let path = unsafe {
        use std::os::unix::ffi::OsStrExt;
        PathBuf::from(std::ffi::OsStr::from_bytes(list(path.data, path.len)?))
    };
    // SAFETY: passed on.
    #[cfg(not(unix))]
    let path = PathBuf::from(unsafe { text(path) }?);
    Ok(path)
}

pub(super) fn broken(what: &str) -> BackendError {
    BackendError::Internal(format!("the host broke the contract of the table: {what}"))
}
