//! Opening the library and reading its table.

use std::path::Path;

use libloading::Library;

use super::broken;
use crate::abi::{self, EntryPoint, MAJOR, MINOR, SYMBOL, Table};
use crate::{BackendError, chain};

/// Opens the library at `path`, never to close it, and asks it for its table.
pub(super) fn open(path: &Path) -> Result<*const Table, BackendError> {
    let unavailable = |reason| BackendError::Unavailable { backend: path.display().to_string(), reason };
    // Absolute, so that the loader opens this file and does not search for one of its name.
    let file = path.canonicalize().map_err(|error| unavailable(format!("no library there: {error}")))?;
    // SAFETY: opening a library runs its initialisers; that it may be run is what its place on the search path says.
    let library = unsafe { Library::new(&file) }
        .map_err(|error| unavailable(format!("tried `{}`: {}", file.display(), chain(&error))))?;
    // Not closed even if it turns out to be no backend: it may have started threads.
    let library = Box::leak(Box::new(library));
    // SAFETY: the symbol's name carries the version that fixes its type.
    let entry = unsafe { library.get::<EntryPoint>(SYMBOL) }
        .map_err(|error| unavailable(format!("it exports no `{SYMBOL}`: {}", chain(&error))))?;
    // SAFETY: takes nothing, and may be called at any time.
    Ok(unsafe { entry() })
}

/// The entries; those that may be null are options.
#[derive(Clone, Copy)]
pub(super) struct Entries {
    pub(super) backend_open: abi::BackendOpen,
    pub(super) backend_close: abi::BackendClose,
    pub(super) backend_describe: abi::BackendDescribe,
    pub(super) device_open: abi::DeviceOpen,
    pub(super) device_close: abi::DeviceClose,
    pub(super) device_status: abi::DeviceStatusEntry,
    pub(super) buffer_allocate: Option<abi::BufferAllocate>,
    pub(super) buffer_copy: Option<abi::BufferCopy>,
    pub(super) model_estimate: Option<abi::ModelEstimate>,
    pub(super) model_load: abi::ModelLoad,
    pub(super) model_unload: abi::ModelUnload,
    pub(super) model_info: abi::ModelInfo,
    pub(super) instance_create: abi::InstanceCreate,
    pub(super) instance_destroy: abi::InstanceDestroy,
    pub(super) instance_status: abi::InstanceStatusEntry,
    pub(super) instance_infer: abi::InstanceInfer,
    pub(super) instance_submit: Option<abi::InstanceSubmit>,
    pub(super) instance_cancel: Option<abi::InstanceCancel>,
}

/// Checks the version and takes the entries out of the table.
///
/// # Safety
/// As [`super::attach`].
pub(super) unsafe fn entries(table: *const Table, name: &str) -> Result<Entries, BackendError> {
    if table.is_null() || !table.is_aligned() {
        return Err(broken(name, "it has no table"));
    }
    // SAFETY: these three come first in every version of the table.
    let (major, minor, size) = unsafe { ((*table).major, (*table).minor, (*table).size) };
    if major != MAJOR {
        return Err(BackendError::Version {
            backend: name.into(),
            expected: format!("{MAJOR}.{MINOR}"),
            actual: format!("{major}.{minor}"),
        });
    }
    // What both sides know; where the library's table ends, ours stays null.
    let shared = size.min(size_of::<Table>());
    // A size that ends within an entry would make half of it a function.
    if shared < std::mem::offset_of!(Table, backend_open) || !size.is_multiple_of(align_of::<Table>()) {
        return Err(broken(name, format_args!("its table has a size of {size} bytes")));
    }
    let mut copy = Table::EMPTY;
    // SAFETY: `shared` is no more than either table has; every byte pattern of zeros or functions is a valid entry.
    unsafe { std::ptr::copy_nonoverlapping(table.cast::<u8>(), (&raw mut copy).cast(), shared) };
    let missing = |entry| broken(name, format_args!("its table has no `{entry}`"));
    Ok(Entries {
        backend_open: copy.backend_open.ok_or_else(|| missing("backend_open"))?,
        backend_close: copy.backend_close.ok_or_else(|| missing("backend_close"))?,
        backend_describe: copy.backend_describe.ok_or_else(|| missing("backend_describe"))?,
        device_open: copy.device_open.ok_or_else(|| missing("device_open"))?,
        device_close: copy.device_close.ok_or_else(|| missing("device_close"))?,
        device_status: copy.device_status.ok_or_else(|| missing("device_status"))?,
        buffer_allocate: copy.buffer_allocate,
        buffer_copy: copy.buffer_copy,
        model_estimate: copy.model_estimate,
        model_load: copy.model_load.ok_or_else(|| missing("model_load"))?,
        model_unload: copy.model_unload.ok_or_else(|| missing("model_unload"))?,
        model_info: copy.model_info.ok_or_else(|| missing("model_info"))?,
        instance_create: copy.instance_create.ok_or_else(|| missing("instance_create"))?,
        instance_destroy: copy.instance_destroy.ok_or_else(|| missing("instance_destroy"))?,
        instance_status: copy.instance_status.ok_or_else(|| missing("instance_status"))?,
        instance_infer: copy.instance_infer.ok_or_else(|| missing("instance_infer"))?,
        instance_submit: copy.instance_submit,
        instance_cancel: copy.instance_cancel,
    })
}
