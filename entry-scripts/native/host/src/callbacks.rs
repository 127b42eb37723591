//! What a running script may call. The contexts are `Running` for a call and `Logger` outside of one.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use outrigger_script_abi as abi;

use crate::response::{broken, bytes};
use crate::{CallError, Caller, Head, Level};

/// Buffers that may be lent to one call. The header names the same number.
const MAX_LENT: usize = 16;

/// Writes a line of the log that belongs to no call.
pub(crate) type Logger = Box<dyn Fn(Level, &str) + Send + Sync>;

/// A call that is under way.
pub(crate) struct Running<'a, C: Caller> {
    caller: &'a C,
    stream: AtomicU8,
    /// What was wrong with the head of a stream.
    fault: Mutex<Option<CallError>>,
    lent: Mutex<Vec<C::Buffer>>,
}

const NO_STREAM: u8 = 0;
const STREAMING: u8 = 1;
const STREAM_REFUSED: u8 = 2;

impl<'a, C: Caller> Running<'a, C> {
    pub(crate) fn new(caller: &'a C) -> Self {
        Self { caller, stream: AtomicU8::new(NO_STREAM), fault: Mutex::default(), lent: Mutex::default() }
    }

    /// Fills in the members of `request` that call back.
    pub(crate) fn offer(&self, request: &mut abi::Request) {
        request.context = std::ptr::from_ref(self).cast_mut().cast();
        request.cancelled = Some(cancelled::<C>);
        request.log = Some(log::<C>);
        request.allocate = Some(allocate::<C>);
        request.begin = Some(begin::<C>);
        request.write = Some(write::<C>);
    }

    /// Whether a stream was asked for.
    pub(crate) fn streamed(&self) -> bool {
        self.stream.load(Ordering::Relaxed) != NO_STREAM
    }

    fn fail(&self, fault: CallError) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// What is left when the call has returned: what was wrong with the head of a stream, and what was lent.
    pub(crate) fn end(self) -> (Option<CallError>, Vec<C::Buffer>) {
        (
            self.fault.into_inner().unwrap_or_else(PoisonError::into_inner),
            self.lent.into_inner().unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// Runs `body` for the context of a call; a panic of ours becomes `otherwise`.
///
/// # Safety
/// `context` is that of a call that is under way, of callers of type `C`.
unsafe fn within<C: Caller, R>(
    context: *mut c_void,
    otherwise: R,
    body: impl FnOnce(&Running<'_, C>) -> R,
) -> R {
    // SAFETY: the caller's promise.
    let Some(running) = (unsafe { context.cast::<Running<'_, C>>().as_ref() }) else { return otherwise };
    catch_unwind(AssertUnwindSafe(|| body(running))).unwrap_or(otherwise)
}

unsafe extern "C" fn cancelled<C: Caller>(context: *mut c_void) -> i32 {
    // SAFETY: the script calls it while the call is under way.
    unsafe { within::<C, _>(context, abi::CANCELLED_NO, |running| running.caller.cancelled() as i32) }
}

unsafe extern "C" fn log<C: Caller>(context: *mut c_void, level: i32, text: abi::Bytes) {
    // SAFETY: as above, and the text is there.
    unsafe {
        within::<C, _>(context, (), |running| {
            lines(text, |line| running.caller.log(Level::at(level), line));
        });
    }
}

/// `log` outside of a call.
pub(crate) unsafe extern "C" fn log_outside(context: *mut c_void, level: i32, text: abi::Bytes) {
    // SAFETY: the host's context is a `Logger` that lives until after the script's shutdown.
    let Some(logger) = (unsafe { context.cast::<Logger>().as_ref() }) else { return };
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the text is there.
        unsafe { lines(text, |line| logger(Level::at(level), line)) };
    }));
}

/// # Safety
/// The text is there.
unsafe fn lines(text: abi::Bytes, mut each: impl FnMut(&str)) {
    // SAFETY: the caller's promise.
    let Ok(text) = (unsafe { bytes(text, "the text") }) else { return };
    String::from_utf8_lossy(text).lines().for_each(&mut each);
}

unsafe extern "C" fn allocate<C: Caller>(context: *mut c_void, len: usize) -> *mut u8 {
    let body = |running: &Running<'_, C>| {
        let mut lent = running.lent.lock().unwrap_or_else(PoisonError::into_inner);
        if len == 0 || lent.len() == MAX_LENT {
            return std::ptr::null_mut();
        }
        let Some(mut buffer) = running.caller.allocate(len) else { return std::ptr::null_mut() };
        let start = buffer.as_mut().as_mut_ptr();
        lent.push(buffer);
        start
    };
    // SAFETY: the script calls it while the call is under way.
    unsafe { within::<C, _>(context, std::ptr::null_mut(), body) }
}

unsafe extern "C" fn begin<C: Caller>(context: *mut c_void, response: *const abi::Response) -> i32 {
    let body = |running: &Running<'_, C>| {
        if running.streamed() {
            return 1;
        }
        running.stream.store(STREAM_REFUSED, Ordering::Relaxed);
        // SAFETY: the script's response is null or there, and what it points to too.
        let head = match unsafe { response.as_ref() } {
            // SAFETY: as above.
            Some(response) => unsafe { Head::read(response) },
            None => Err(broken("a stream begins with no response".into())),
        };
        match head.map(|head| running.caller.begin(head)) {
            Ok(Ok(())) => {
                running.stream.store(STREAMING, Ordering::Relaxed);
                0
            }
            Ok(Err(_)) => 1,
            Err(fault) => {
                running.fail(fault);
                1
            }
        }
    };
    // SAFETY: the script calls it while the call is under way.
    unsafe { within::<C, _>(context, 1, body) }
}

unsafe extern "C" fn write<C: Caller>(context: *mut c_void, piece: abi::Bytes) -> i32 {
    let body = |running: &Running<'_, C>| {
        if running.stream.load(Ordering::Relaxed) != STREAMING {
            return 1;
        }
        // SAFETY: the script's bytes are there.
        match unsafe { bytes(piece, "a piece") } {
            Ok([]) => 0,
            Ok(piece) => i32::from(running.caller.write(piece).is_err()),
            Err(fault) => {
                running.fail(fault);
                1
            }
        }
    };
    // SAFETY: the script calls it while the call is under way.
    unsafe { within::<C, _>(context, 1, body) }
}
