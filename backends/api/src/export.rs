//! Turns an `impl Backend` into the table of [`crate::abi`].
//!
//! A backend's library says `outrigger_backend::export!(open);` once, where `open` takes the settings and returns the
//! backend. No panic passes the boundary: at every entry one becomes [`code::INTERNAL`].

mod buffers;
pub(crate) mod describe;
mod entries;
mod runs;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::abi::{MAJOR, MINOR, Message, Table, code};
use crate::{Backend, BackendError, host};

/// Opens a backend. [`export!`](crate::export!) writes the implementation.
pub trait Open {
    /// Opens it with `settings`, key and value.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] for a setting that it does not know. A backend without its driver opens all the
    /// same and reports no devices and the reason.
    fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError>;

    /// Whether its instances have an [`Instance::submit`](crate::Instance::submit) of their own, which returns while the run is still
    /// under way. Without one the host runs on threads of its own.
    const ASYNCHRONOUS: bool = false;
}

/// Exports a backend from a `cdylib`: `outrigger_backend::export!(open)` with
/// `fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError>`; with `export!(open, asynchronous)` it has
/// runs that finish later ([`export::Open::ASYNCHRONOUS`](crate::export::Open::ASYNCHRONOUS)).
///
/// Defines [`abi::SYMBOL`](crate::abi::SYMBOL); so one library exports one backend.
#[macro_export]
macro_rules! export {
    ($open:path) => {
        $crate::export!(@table $open, false);
    };
    ($open:path, asynchronous) => {
        $crate::export!(@table $open, true);
    };
    (@table $open:path, $asynchronous:literal) => {
        /// The table of this backend.
        // The symbol is unmangled on purpose: its name is the contract, and only one crate of a library defines it.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        pub extern "C" fn outrigger_backend_v1() -> *const $crate::abi::Table {
            struct Exported;
            impl $crate::export::Open for Exported {
                const ASYNCHRONOUS: bool = $asynchronous;

                fn open(
                    settings: &[(::std::string::String, ::std::string::String)],
                ) -> ::std::result::Result<::std::sync::Arc<dyn $crate::Backend>, $crate::BackendError>
                {
                    $open(settings)
                }
            }
            static TABLE: $crate::abi::Table = $crate::export::table::<Exported>();
            &TABLE
        }
    };
}

/// The table of a backend.
pub const fn table<O: Open>() -> Table {
    Table {
        major: MAJOR,
        minor: MINOR,
        size: size_of::<Table>(),
        backend_open: Some(entries::backend_open::<O>),
        backend_close: Some(entries::backend_close),
        backend_describe: Some(entries::backend_describe),
        device_open: Some(entries::device_open),
        device_close: Some(entries::device_close),
        device_status: Some(entries::device_status),
        buffer_allocate: Some(buffers::buffer_allocate),
        buffer_copy: Some(buffers::buffer_copy),
        model_estimate: Some(entries::model_estimate),
        model_load: Some(entries::model_load),
        model_unload: Some(entries::model_unload),
        model_info: Some(entries::model_info),
        instance_create: Some(entries::instance_create),
        instance_destroy: Some(entries::instance_destroy),
        instance_status: Some(entries::instance_status),
        instance_infer: Some(runs::instance_infer),
        instance_submit: if O::ASYNCHRONOUS { Some(runs::instance_submit) } else { None },
        instance_cancel: Some(runs::instance_cancel),
    }
}

/// Opens a backend of this process through its own table: for tests of what the boundary does.
///
/// # Errors
/// As [`host::load`].
pub fn through_table<O: Open>(
    name: &str,
    settings: &[(String, String)],
) -> Result<Arc<dyn Backend>, BackendError> {
    let table = table::<O>();
    // SAFETY: the table is this module's own.
    unsafe { host::attach(&table, name, settings) }
}

/// Runs the body of an entry: its panics and errors become a code and a message.
///
/// # Safety
/// `message` is null or a valid [`Message`].
unsafe fn guard(message: *mut Message, body: impl FnOnce() -> Result<(), BackendError>) -> i32 {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return code::OK,
        Ok(Err(error)) => error,
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            BackendError::Internal(format!("panicked: {}", text.unwrap_or("with no text")))
        }
    };
    let (code, text) = reason(error);
    // SAFETY: promised by the caller.
    unsafe { write(message, &text) };
    code
}

/// An error as it crosses the table.
fn reason(error: BackendError) -> (i32, String) {
    match error {
        BackendError::Unavailable { reason, .. } => (code::UNAVAILABLE, reason),
        BackendError::Load(text) => (code::LOAD, text),
        BackendError::Input(text) => (code::INPUT, text),
        BackendError::OutOfMemory(text) => (code::OUT_OF_MEMORY, text),
        BackendError::Run(text) => (code::RUN, text),
        BackendError::Cancelled => (code::CANCELLED, String::new()),
        BackendError::Lost(text) => (code::LOST, text),
        BackendError::Unsupported(text) => (code::UNSUPPORTED, text),
        BackendError::Internal(text) => (code::INTERNAL, text),
        error @ BackendError::Version { .. } => (code::INTERNAL, error.to_string()),
    }
}

/// Copies as much of `text` as there is room for, cut between characters.
///
/// # Safety
/// `message` is null or a valid [`Message`].
unsafe fn write(message: *mut Message, text: &str) {
    // SAFETY: promised by the caller.
    let Some(message) = (unsafe { message.as_mut() }) else { return };
    if message.data.is_null() {
        return;
    }
    let len = text.floor_char_boundary(message.capacity);
    // SAFETY: `data` has room for `capacity` bytes, `len` is no more, and the host's room is apart from our text.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), message.data, len) };
    message.len = len;
}
