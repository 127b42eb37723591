//! The entries. Each handle is a box that is not written to after it is made, so calls on it may overlap.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use super::describe::{BackendText, ModelText};
use super::{Open, guard};
use crate::abi::{self, DLManagedTensor, Message, Setting, Text};
use crate::dlpack;
use crate::lent::Loan;
use crate::{Backend, BackendError, Device, Instance, LoadOptions, Model, Output, Tensor};

struct OpenBackend {
    backend: Arc<dyn Backend>,
    text: BackendText,
}

struct LoadedModel {
    model: Arc<dyn Model>,
    text: ModelText,
}

type OpenDevice = Arc<dyn Device>;
type LiveInstance = Arc<dyn Instance>;

pub(super) unsafe extern "C" fn backend_open<O: Open>(
    settings: *const Setting,
    count: usize,
    out: *mut *mut abi::BackendHandle,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: the host passes `count` settings, valid during this call.
        let settings = unsafe { list(settings, count) }?.iter().map(|setting| {
            // SAFETY: as above, their text too.
            unsafe { Ok((text(setting.key)?.to_owned(), text(setting.value)?.to_owned())) }
        });
        let settings = settings.collect::<Result<Vec<_>, BackendError>>()?;
        let backend = O::open(&settings)?;
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

pub(super) unsafe extern "C" fn model_load(
    device: *mut abi::DeviceHandle,
    request: *const abi::LoadRequest,
    out: *mut *mut abi::ModelHandle,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: the host passes a request that is valid during this call, and a handle of `device_open`.
        let (request, device) = unsafe { (request.as_ref(), handle::<OpenDevice, _>(device)?) };
        let request = request.ok_or_else(|| broken("the load request is null"))?;
        let options = LoadOptions {
            // SAFETY: as above, its text too.
            path: unsafe { path(request.path) }?,
            intra_threads: NonZeroUsize::new(request.intra_threads as usize).map(NonZeroUsize::get),
        };
        let model = device.load(&options)?;
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

pub(super) unsafe extern "C" fn instance_bytes_held(
    instance: *mut abi::InstanceHandle,
    out: *mut u64,
    message: *mut Message,
) -> i32 {
    // SAFETY: made by `instance_create`; `out` and `message` are the host's.
    unsafe { guard(message, || store(out, handle::<LiveInstance, _>(instance)?.bytes_held())) }
}

pub(super) unsafe extern "C" fn instance_infer(
    instance: *mut abi::InstanceHandle,
    inputs: *const *mut DLManagedTensor,
    input_count: usize,
    outputs: *mut abi::Output,
    output_count: usize,
    message: *mut Message,
) -> i32 {
    let body = || {
        // SAFETY: the host passes `input_count` tensors, which are ours from now on.
        let inputs = unsafe { take_all(inputs, input_count) }?;
        // SAFETY: made by `instance_create`.
        let instance = unsafe { handle::<LiveInstance, _>(instance) }?;
        // SAFETY: the host passes `output_count` outputs, and nobody else touches them during the call.
        let asked = unsafe { list_mut(outputs, output_count) }?;
        // Before `lent`, so that the loan ends after what it counts.
        let loan = Loan::default();
        // SAFETY: the places are lent for this call, which `loan` does not outlive.
        let lent = asked.iter().map(|output| unsafe { lend(&loan, output) });
        let mut lent = lent.collect::<Result<Vec<_>, _>>()?;
        instance.infer(&inputs, &mut lent)?;
        // First all, then give: an error in between would leave a tensor with nobody.
        let results = asked.iter().zip(lent).map(|(asked, output)| finish(asked, output));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        for (asked, result) in asked.iter_mut().zip(results) {
            asked.allocated = result.map_or(std::ptr::null_mut(), dlpack::give);
        }
        Ok(())
    };
    // SAFETY: `message` is the host's.
    unsafe { guard(message, body) }
}

/// Takes all, so that each is ended whatever happens; then looks whether one was broken.
///
/// # Safety
/// `inputs` has `count` tensors, which are this side's from now on.
unsafe fn take_all(inputs: *const *mut DLManagedTensor, count: usize) -> Result<Vec<Tensor>, BackendError> {
    // SAFETY: passed on.
    let inputs = unsafe { list(inputs, count) }?;
    // SAFETY: passed on.
    let taken: Vec<_> = inputs.iter().map(|input| unsafe { dlpack::take(*input, None) }).collect();
    let taken = taken.into_iter().enumerate().map(|(number, tensor)| {
        tensor.map_err(|fault| BackendError::Internal(format!("input number {number} came broken: {fault}")))
    });
    taken.collect()
}

/// # Safety
/// The place, if there is one, is lent until `loan` is dropped.
unsafe fn lend(loan: &Loan, output: &abi::Output) -> Result<Output, BackendError> {
    // SAFETY: a place is null or a tensor, valid during the call.
    let Some(place) = (unsafe { output.place.as_ref() }) else {
        return Ok(Output::allocate(output.index));
    };
    // SAFETY: as above, its shape too.
    let view = unsafe { dlpack::view(place) }.map_err(|fault| {
        BackendError::Internal(format!("the place of output number {} came broken: {fault}", output.index))
    })?;
    // SAFETY: promised by the caller.
    let lent = unsafe { loan.lend(view.data, view.len) };
    Ok(Output::lend(output.index, view.data_type, view.shape, lent))
}

/// What of an output goes back over the table; `None` if it was written in its place.
fn finish(asked: &abi::Output, output: Output) -> Result<Option<Tensor>, BackendError> {
    if output.index() != asked.index {
        return Err(broken("the outputs came back in another order"));
    }
    match output.into_tensor() {
        None if asked.place.is_null() => {
            Err(BackendError::Internal(format!("output number {} was not set", asked.index)))
        }
        result => Ok(result),
    }
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
unsafe fn store<T>(out: *mut T, value: T) -> Result<(), BackendError> {
    if out.is_null() {
        return Err(broken("there is no place for the result"));
    }
    // SAFETY: not null, and promised by the caller.
    unsafe { out.write(value) };
    Ok(())
}

/// # Safety
/// `handle` is null or came from [`hand_over`] with the same `T`, and has not been ended.
unsafe fn handle<'a, T, H>(handle: *mut H) -> Result<&'a T, BackendError> {
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
unsafe fn list<'a, T>(data: *const T, count: usize) -> Result<&'a [T], BackendError> {
    match (count, data.is_null() || !data.is_aligned()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(broken("a list has no address")),
        // SAFETY: neither null nor misaligned; promised by the caller.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts(data, count) }),
    }
}

/// # Safety
/// As [`list`], and nobody else touches the values.
unsafe fn list_mut<'a, T>(data: *mut T, count: usize) -> Result<&'a mut [T], BackendError> {
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

fn broken(what: &str) -> BackendError {
    BackendError::Internal(format!("the host broke the contract of the table: {what}"))
}
