//! The traits over the table. Each handle keeps what it was made from, so that the ends come in the reverse order.

use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use super::library::Entries;
use super::runs::{HostInstance, LiveInstance};
use super::{MESSAGE_BYTES, broken, call, describe, error};
use crate::abi::{self, LoadRequest, Setting, Text};
use crate::elsewhere::Elsewhere;
use crate::export::describe::ModelText;
use crate::{
    Backend, BackendError, BackendInfo, Buffer, Device, DeviceMemory, DeviceStatus, Health, Instance,
    LoadOptions, Model, ModelInfo, dlpack,
};

/// A handle of the library's.
pub(super) struct Handle<T>(NonNull<T>);

// SAFETY: the table's entries may be called from any thread.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: calls on one handle may overlap; the entry that ends it is called from `Drop` only, when nobody else has it.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    pub(super) fn get(&self) -> *mut T {
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
    shared: Arc<Elsewhere<OpenBackend>>,
    info: BackendInfo,
}

pub(super) struct OpenBackend {
    raw: Handle<abi::BackendHandle>,
    pub(super) entries: Entries,
    pub(super) name: String,
}

impl HostBackend {
    pub(super) fn open(entries: Entries, name: &str, settings: &[Setting]) -> Result<Self, BackendError> {
        let raw = make(name, |out, message| {
            // SAFETY: all pointers are valid for the call.
            unsafe { (entries.backend_open)(settings.as_ptr(), settings.len(), out, message) }
        })?;
        let shared = Elsewhere::new(OpenBackend { raw, entries, name: name.into() });
        let mut description = std::ptr::null();
        call(name, |message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (entries.backend_describe)(shared.raw.get(), &mut description, message) }
        })?;
        // SAFETY: the description belongs to the open handle.
        let info = unsafe { describe::backend(description) }.map_err(|fault| broken(name, fault))?;
        let lacks_memory = entries.buffer_allocate.is_none() || entries.buffer_copy.is_none();
        if let Some(device) = info.devices.iter().find(|device| device.resident && lacks_memory) {
            let what =
                format_args!("`{}` has memory of its own, which no entry gives or copies", device.name);
            return Err(broken(name, what));
        }
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
        Ok(Arc::new(HostDevice(Elsewhere::new(OpenDevice { raw, backend }))))
    }
}

struct HostDevice(Arc<Elsewhere<OpenDevice>>);

pub(super) struct OpenDevice {
    raw: Handle<abi::DeviceHandle>,
    backend: Arc<Elsewhere<OpenBackend>>,
}

impl OpenDevice {
    /// By what memory that came from it is told from other devices'; it keeps the device, so no other gets this address.
    pub(super) fn home(&self) -> dlpack::Home {
        std::ptr::from_ref(self).addr()
    }

    /// Whether `memory` may be shown to the library: an address means nothing to another device, or worse than nothing.
    pub(super) fn is_home_of(&self, memory: &DeviceMemory) -> bool {
        dlpack::home(memory) == Some(self.home())
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        // SAFETY: the handle is ended only here, after all models, which keep this alive.
        unsafe { (self.backend.entries.device_close)(self.raw.get()) }
    }
}

impl HostDevice {
    fn backend(&self) -> &OpenBackend {
        &self.0.backend
    }

    /// Memory of one of the kinds in [`abi::memory`]; `None` if the library gives none.
    fn memory(&self, memory: u32, bytes: usize) -> Result<Option<dlpack::Memory>, BackendError> {
        let backend = self.backend();
        let Some(allocate) = backend.entries.buffer_allocate else { return Ok(None) };
        let mut out = std::ptr::null_mut();
        call(&backend.name, |message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { allocate(self.0.raw.get(), memory, bytes, &mut out, message) }
        })?;
        // SAFETY: the library gave the memory, which nobody else has; it ends before the device, which is kept.
        let memory = unsafe { dlpack::take_memory(out, self.0.clone(), self.0.home()) };
        memory.map(Some).map_err(|fault| broken(&backend.name, fault))
    }

    /// Copies between memory of the device's and `bytes` of the host's.
    fn copy(
        &self,
        memory: &DeviceMemory,
        bytes: usize,
        tensors: impl FnOnce(&[i64; 1]) -> (abi::DLTensor, abi::DLTensor),
    ) -> Result<(), BackendError> {
        let backend = self.backend();
        if !self.0.is_home_of(memory) {
            return Err(BackendError::Input("the memory is not this device's".into()));
        }
        if memory.len() != bytes {
            let text = format!("{bytes} bytes are to be copied from or to {}", memory.len());
            return Err(BackendError::Input(text));
        }
        if bytes == 0 {
            return Ok(());
        }
        let extent = [i64::try_from(bytes).unwrap_or(i64::MAX)]; // no memory is larger
        let (from, to) = tensors(&extent);
        let Some(copy) = backend.entries.buffer_copy else {
            return Err(BackendError::Unsupported("the device has no memory of its own".into()));
        };
        // SAFETY: the handle is open, the tensors are valid for the call.
        call(&backend.name, |message| unsafe { copy(self.0.raw.get(), &from, &to, message) })
    }
}

impl Device for HostDevice {
    fn status(&self) -> Result<DeviceStatus, BackendError> {
        let mut status = abi::DeviceStatus::default();
        let mut room = [0u8; MESSAGE_BYTES];
        let mut reason = abi::Message { data: room.as_mut_ptr(), capacity: room.len(), len: 0 };
        // SAFETY: the handle is open, the pointers are valid for the call.
        let code =
            unsafe { (self.backend().entries.device_status)(self.0.raw.get(), &mut status, &mut reason) };
        let text = &room[..reason.len.min(room.len())];
        if code != abi::code::OK {
            return Err(error(&self.backend().name, code, text));
        }
        let reason = || String::from_utf8_lossy(text).into_owned();
        Ok(DeviceStatus {
            memory_total: status.memory_total,
            memory_free: status.memory_free,
            memory_held: status.memory_held,
            health: match status.health {
                abi::health::HEALTHY => Health::Healthy,
                abi::health::DEGRADED => Health::Degraded(reason()),
                abi::health::RECOVERING => Health::Recovering(reason()),
                _ => Health::Lost(reason()),
            },
        })
    }

    fn estimate(&self, options: &LoadOptions) -> Result<u64, BackendError> {
        let Some(estimate) = self.backend().entries.model_estimate else { return Ok(0) };
        let mut bytes = 0;
        with_request(options, |request| {
            call(&self.backend().name, |message| {
                // SAFETY: the handle is open, the pointers are valid for the call.
                unsafe { estimate(self.0.raw.get(), request, &mut bytes, message) }
            })
        })?;
        Ok(bytes)
    }

    fn load(&self, options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        let OpenDevice { raw: device, backend } = &**self.0;
        let raw = with_request(options, |request| {
            make(&backend.name, |out, message| {
                // SAFETY: the handle is open, the pointers are valid for the call.
                unsafe { (backend.entries.model_load)(device.get(), request, out, message) }
            })
        })?;
        let mut model = LoadedModel { raw, device: Arc::clone(&self.0), info: ModelInfo::default() };
        let mut signature = std::ptr::null();
        call(&backend.name, |message| {
            // SAFETY: the handle is open, the pointers are valid for the call.
            unsafe { (backend.entries.model_info)(model.raw.get(), &mut signature, message) }
        })?;
        // SAFETY: the signature belongs to the loaded model.
        model.info = unsafe { describe::model(signature) }.map_err(|fault| broken(&backend.name, fault))?;
        Ok(Arc::new(HostModel(Elsewhere::new(model))))
    }

    fn pinned(&self, bytes: usize) -> Result<Buffer, BackendError> {
        match self.memory(abi::memory::PINNED, bytes)? {
            Some(dlpack::Memory::Host(mut buffer)) if buffer.len() == bytes => {
                // What was there before may be somebody else's, and an output need not fill its place.
                buffer.fill(0);
                Ok(buffer)
            }
            Some(_) => Err(broken(&self.backend().name, "it gave other memory than was asked for")),
            None => Buffer::zeroed(bytes)
                .map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes of host memory"))),
        }
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, BackendError> {
        match self.memory(abi::memory::DEVICE, bytes)? {
            Some(dlpack::Memory::Device(memory)) if memory.len() == bytes => Ok(memory),
            Some(_) => Err(broken(&self.backend().name, "it gave other memory than was asked for")),
            None => Err(BackendError::Unsupported("the device has no memory of its own".into())),
        }
    }

    fn upload(&self, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        self.copy(to, from.len(), |extent| {
            (dlpack::describe_bytes(from.as_ptr(), extent), dlpack::describe_memory(to, extent))
        })
    }

    fn download(&self, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        self.copy(from, to.len(), |extent| {
            (dlpack::describe_memory(from, extent), dlpack::describe_bytes(to.as_mut_ptr(), extent))
        })
    }
}

/// Calls with the form in which options cross the table.
fn with_request<T>(
    options: &LoadOptions,
    entry: impl FnOnce(&LoadRequest) -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    let settings = super::settings(&options.settings);
    let signature = ModelText::new(options.signature.clone());
    entry(&LoadRequest {
        path: path_text(&options.path)?,
        format: Text::of(options.format.as_deref().unwrap_or_default()),
        settings: settings.as_ptr(),
        setting_count: settings.len(),
        intra_threads: u32::try_from(options.intra_threads.unwrap_or(0)).unwrap_or(u32::MAX),
        reserved: 0,
        signature: signature.get(),
    })
}

#[cfg(unix)]
fn path_text(path: &Path) -> Result<Text, BackendError> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&0) {
        // A library that ends it with a 0 would open another file.
        return Err(BackendError::Load(format!("path `{}` has a byte of 0 in it", path.display())));
    }
    Ok(Text::of_bytes(bytes))
}

#[cfg(not(unix))]
fn path_text(path: &Path) -> Result<Text, BackendError> {
    let text = path.to_str();
    text.map(Text::of).ok_or_else(|| BackendError::Load(format!("path `{}` is not UTF-8", path.display())))
}

struct HostModel(Arc<Elsewhere<LoadedModel>>);

pub(super) struct LoadedModel {
    raw: Handle<abi::ModelHandle>,
    pub(super) device: Arc<Elsewhere<OpenDevice>>,
    pub(super) info: ModelInfo,
}

impl LoadedModel {
    pub(super) fn backend(&self) -> &OpenBackend {
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
        let mut live = LiveInstance { raw, model, can_cancel: false };
        let can_cancel = live.status()?.can_cancel != 0;
        live.can_cancel = can_cancel && live.model.backend().entries.instance_cancel.is_some();
        Ok(Arc::new(HostInstance(Elsewhere::new(live))))
    }
}
