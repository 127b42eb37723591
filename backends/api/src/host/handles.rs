//! The traits over the table. Each handle keeps what it was made from, so that the ends come in the reverse order.

use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use super::library::Entries;
use super::{broken, call, describe};
use crate::abi::{self, LoadRequest, Setting, Text};
use crate::{
    Backend, BackendError, BackendInfo, Device, Instance, LoadOptions, Model, ModelInfo, Output, Tensor,
    dlpack,
};

/// A handle of the library's.
struct Handle<T>(NonNull<T>);

// SAFETY: the table's entries may be called from any thread.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: calls on one handle may overlap; the entry that ends it is called from `Drop` only, when nobody else has it.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

/// Calls an entry that makes a handle.
fn make<T>(
    name: &str,
    entry: impl FnOnce(*mut *mut T, *mut abi::Message) -> i32,
) -> Result<Handle<T>, BackendError> {
    let mut out = std::ptr::null_mut();
    call(name, |message| entry(&mut out, message))?;
    NonNull::new(out).map(Handle).ok_or_else(|| broken(name, "it made a handle that is null"))
}

pub(super) struct HostBackend {
    shared: Arc<OpenBackend>,
    info: BackendInfo,
}

struct OpenBackend {
    raw: Handle<abi::BackendHandle>,
    entries: Entries,
    name: String,
}

impl HostBackend {
    pub(super) fn open(entries: Entries, name: &str, settings: &[Setting]) -> Result<Self, BackendError> {
        let raw = make(name, |out, message| {
            // SAFETY: all pointers are valid for the call.
            unsafe { (entries.backend_open)(settings.as_ptr(), settings.len(), out, message) }
        })?;
        let shared = Arc::new(OpenBackend { raw, entries, name: name.into() });
        let mut description = std::ptr::null();
        call(name, |message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (entries.backend_describe)(shared.raw.get(), &mut description, message) }
        })?;
        // SAFETY: the description belongs to the open handle.
        let info = unsafe { describe::backend(description) }.map_err(|fault| broken(name, fault))?;
        Ok(Self { shared, info })
    }
}

impl Drop for OpenBackend {
    fn drop(&mut self) {
        // SAFETY: the handle is ended only here, after all devices, which keep this alive.
        unsafe { (self.entries.backend_close)(self.raw.get()) }
    }
}

impl Backend for HostBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        let backend = Arc::clone(&self.shared);
        let raw = make(&backend.name, |out, message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (backend.entries.device_open)(backend.raw.get(), index, out, message) }
        })?;
        Ok(Arc::new(HostDevice(Arc::new(OpenDevice { raw, backend }))))
    }
}

struct HostDevice(Arc<OpenDevice>);

struct OpenDevice {
    raw: Handle<abi::DeviceHandle>,
    backend: Arc<OpenBackend>,
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        // SAFETY: the handle is ended only here, after all models, which keep this alive.
        unsafe { (self.backend.entries.device_close)(self.raw.get()) }
    }
}

impl Device for HostDevice {
    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        let OpenDevice { raw: device, backend } = &*self.0;
        let request = LoadRequest {
            path: path_text(&options.path)?,
            intra_threads: u32::try_from(options.intra_threads.unwrap_or(0)).unwrap_or(u32::MAX),
            reserved: 0,
        };
        let raw = make(&backend.name, |out, message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (backend.entries.model_load)(device.get(), &request, out, message) }
        })?;
        let mut model = LoadedModel { raw, device: Arc::clone(&self.0), info: ModelInfo::default() };
        let mut signature = std::ptr::null();
        call(&backend.name, |message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (backend.entries.model_info)(model.raw.get(), &mut signature, message) }
        })?;
        // SAFETY: the signature belongs to the loaded model.
        model.info = unsafe { describe::model(signature) }.map_err(|fault| broken(&backend.name, fault))?;
        Ok(Arc::new(HostModel(Arc::new(model))))
    }
}

#[cfg(unix)]
fn path_text(path: &Path) -> Result<Text, BackendError> {
    use std::os::unix::ffi::OsStrExt;
    Ok(Text::of_bytes(path.as_os_str().as_bytes()))
}

#[cfg(not(unix))]
fn path_text(path: &Path) -> Result<Text, BackendError> {
    let text = path.to_str();
    text.map(Text::of).ok_or_else(|| BackendError::Load(format!("path `{}` is not UTF-8", path.display())))
}

struct HostModel(Arc<LoadedModel>);

struct LoadedModel {
    raw: Handle<abi::ModelHandle>,
    device: Arc<OpenDevice>,
    info: ModelInfo,
}

impl LoadedModel {
    fn backend(&self) -> &OpenBackend {
        &self.device.backend
    }
}

impl Drop for LoadedModel {
    fn drop(&mut self) {
        // SAFETY: the handle is ended only here, after all instances, which keep this alive.
        unsafe { (self.backend().entries.model_unload)(self.raw.get()) }
    }
}

impl Model for HostModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        let model = Arc::clone(&self.0);
        let raw = make(&model.backend().name, |out, message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (model.backend().entries.instance_create)(model.raw.get(), out, message) }
        })?;
        Ok(Arc::new(HostInstance { raw, model }))
    }
}

struct HostInstance {
    raw: Handle<abi::InstanceHandle>,
    model: Arc<LoadedModel>,
}

impl Drop for HostInstance {
    fn drop(&mut self) {
        // SAFETY: the handle is ended only here; no call on it is under way, for they borrow this.
        unsafe { (self.model.backend().entries.instance_destroy)(self.raw.get()) }
    }
}

impl Instance for HostInstance {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output]) -> Result<(), BackendError> {
        let backend = self.model.backend();
        self.model.info.check_outputs(outputs)?;
        let places = outputs.iter_mut().map(|output| {
            let (data_type, shape, bytes) = output.place_mut()?;
            Some(dlpack::describe(data_type, shape, bytes.as_mut_ptr()))
        });
        let places: Vec<Option<abi::DLTensor>> = places.collect();
        let asked = outputs.iter().zip(&places).map(|(output, place)| abi::Output {
            index: output.index(),
            place: place.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            allocated: std::ptr::null_mut(),
        });
        let mut asked: Vec<abi::Output> = asked.collect();
        let given: Vec<_> = inputs.iter().map(|input| dlpack::give(input.clone())).collect();
        call(&backend.name, |message| {
            let infer = backend.entries.instance_infer;
            // SAFETY: the handle is open and the pointers are valid for the call; the inputs are the library's from
            // now on; the places are in `outputs`, which this call has alone.
            unsafe {
                infer(self.raw.get(), given.as_ptr(), given.len(), asked.as_mut_ptr(), asked.len(), message)
            }
        })?;
        // All are taken before one is refused, so that each is ended.
        let results: Vec<_> = asked.iter().map(|output| self.result(output)).collect();
        for (output, result) in outputs.iter_mut().zip(results) {
            if let Some(tensor) = result? {
                output.set(tensor);
            }
        }
        Ok(())
    }

    fn bytes_held(&self) -> u64 {
        let backend = self.model.backend();
        let mut bytes = 0;
        let told = call(&backend.name, |message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (backend.entries.instance_bytes_held)(self.raw.get(), &mut bytes, message) }
        });
        told.map_or(0, |()| bytes)
    }
}

impl HostInstance {
    /// The tensor that the library allocated for an output; `None` if it wrote in the output's place.
    fn result(&self, output: &abi::Output) -> Result<Option<Tensor>, BackendError> {
        let name = &self.model.backend().name;
        let what = |problem: &dyn std::fmt::Display| {
            broken(name, format_args!("output number {}: {problem}", output.index))
        };
        if output.allocated.is_null() {
            return if output.place.is_null() { Err(what(&"was not set")) } else { Ok(None) };
        }
        // The tensor's memory may be part of the model's, so the model stays as long as the tensor.
        let model: dlpack::Keep = self.model.clone();
        // SAFETY: by the contract the tensor is the host's after success.
        let tensor = unsafe { dlpack::take(output.allocated, Some(model)) }.map_err(|fault| what(&fault))?;
        match self.model.info.outputs.get(output.index) {
            Some(info) if info.data_type == tensor.data_type() => Ok(Some(tensor)),
            Some(info) => {
                Err(what(&format_args!("is of type {}, not {}", tensor.data_type(), info.data_type)))
            }
            None => Err(what(&"the model has no such output")),
        }
    }
}
