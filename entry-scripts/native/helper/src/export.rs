//! What the macro's functions do. Panics and errors become a code and a message.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use outrigger_script_abi as abi;

use crate::request::{Host, Request};
use crate::response::Owned;
use crate::{Error, Script};

/// # Safety
/// Called as the ABI says.
pub unsafe fn init<S: Script>(
    host: *const abi::Host,
    script: *mut abi::Script,
    message: *mut abi::Message,
) -> i32 {
    let body = || {
        // SAFETY: valid during this call, by the ABI.
        let (host, script) = unsafe { (&*host, &mut *script) };
        // SAFETY: as above.
        let state = S::init(&unsafe { Host::new(host) })?;
        script.state = Box::into_raw(Box::new(state)).cast();
        // `Script` demands `Sync`.
        script.flags = abi::SCRIPT_THREAD_SAFE;
        script.methods = S::METHODS.iter().fold(0, |bits, method| bits | 1 << *method as u32);
        Ok(())
    };
    // SAFETY: the host's room.
    unsafe { guard(message, body) }
}

/// # Safety
/// Called as the ABI says.
pub unsafe fn run<S: Script>(
    state: *mut c_void,
    request: *const abi::Request,
    response: *mut abi::Response,
    message: *mut abi::Message,
) -> i32 {
    let body = || {
        // SAFETY: made by `init` and not ended; the others are valid during this call, by the ABI.
        let (script, request) = unsafe { (&*state.cast::<S>(), &*request) };
        // SAFETY: as above.
        let (mut raw, owned) = script.run(&unsafe { Request::new(request) })?.into_raw();
        raw.owner = Box::into_raw(owned).cast();
        raw.free = Some(free);
        // SAFETY: the host's place for it, of this version or a newer one, whose prefix this is.
        unsafe {
            raw.size = (*response).size;
            response.write(raw);
        }
        Ok(())
    };
    // SAFETY: the host's room.
    unsafe { guard(message, body) }
}

/// # Safety
/// Called as the ABI says.
pub unsafe fn shutdown<S: Script>(state: *mut c_void) {
    // There is nobody to tell of a panic; it has been printed.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: made by `init`, and ended once.
        unsafe { Box::from_raw(state.cast::<S>()) }.shutdown();
    }));
}

unsafe extern "C" fn free(owner: *mut c_void) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: made by `run`, and freed once.
        drop(unsafe { Box::from_raw(owner.cast::<Owned>()) });
    }));
}

/// # Safety
/// `message` is the host's room.
unsafe fn guard(message: *mut abi::Message, body: impl FnOnce() -> Result<(), Error>) -> i32 {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return abi::CODE_OK,
        Ok(Err(error)) => error,
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            Error::failed(format!("panicked: {}", text.unwrap_or("with no text")))
        }
    };
    // SAFETY: promised by the caller.
    let message = unsafe { &mut *message };
    let len = error.message.floor_char_boundary(message.capacity);
    // SAFETY: `data` has room for `capacity` bytes, `len` is no more, and the room is apart from our text.
    unsafe { std::ptr::copy_nonoverlapping(error.message.as_ptr(), message.data, len) };
    message.len = len;
    if error.input { abi::CODE_INPUT } else { abi::CODE_FAILED }
}
