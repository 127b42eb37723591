//! Streams of NVIDIA's GPUs, and PyTorch's allocator for these: what `streams.cpp` adds to the C interface.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};

use crate::error::TorchError;
use crate::sys::owned_text;

type Result<T> = std::result::Result<T, TorchError>;

/// A stream: its number, and its device's.
pub(crate) type Stream = [i64; 2];

unsafe extern "C" {
    fn outrigger_stream_of(device: c_int, stream: *mut i64) -> *mut c_char;
    fn outrigger_stream_enter(stream: *const i64, before: *mut i64) -> *mut c_char;
    fn outrigger_stream_leave(before: *const i64) -> *mut c_char;
    fn outrigger_stream_wait(stream: *const i64) -> *mut c_char;
    safe fn outrigger_cuda_is_loaded() -> c_int;
    fn outrigger_allocator_set(settings: *const c_char) -> *mut c_char;
    safe fn outrigger_allocator_trim() -> *mut c_char;
}

fn checked(failure: *mut c_char) -> Result<()> {
    // SAFETY: null, or a text that is the caller's.
    unsafe { owned_text(failure) }.map_or(Ok(()), |text| Err(TorchError::new(&text)))
}

/// Whether libtorch's part for CUDA is there.
pub(crate) fn is_loaded() -> bool {
    outrigger_cuda_is_loaded() != 0
}

/// Says how PyTorch's allocator is to be, before a device is first used.
pub(crate) fn set_allocator(settings: &CStr) -> Result<()> {
    // SAFETY: a C string, which is copied.
    checked(unsafe { outrigger_allocator_set(settings.as_ptr()) })
}

/// Gives memory that PyTorch keeps for later back to the driver.
pub(crate) fn trim_allocator() -> Result<()> {
    checked(outrigger_allocator_trim())
}

/// A stream of a device's, for whoever keeps it. It is of libtorch's pool, which ends none, and has 32 of them: further ones are shared.
pub(crate) fn stream(device: c_int) -> Result<Stream> {
    let mut stream = [0; 2];
    // SAFETY: the place is one for two numbers.
    checked(unsafe { outrigger_stream_of(device, stream.as_mut_ptr()) })?;
    Ok(stream)
}

/// While it lives, what this thread does is in one stream of a device. Waits for all of that before it ends, so that no copy is under way
/// from or to memory that its caller has lent.
pub(crate) struct Lane {
    stream: Stream,
    before: [i64; 3],
}

impl Lane {
    /// Enters a stream that somebody has, or else this thread's own.
    pub(crate) fn enter(device: c_int, own: Option<Stream>) -> Result<Self> {
        thread_local! {
            /// This thread's, by device. They are of a pool of libtorch's, which never ends one.
            static STREAMS: RefCell<BTreeMap<c_int, Stream>> = const { RefCell::new(BTreeMap::new()) };
        }
        let known = own.or_else(|| STREAMS.with_borrow(|streams| streams.get(&device).copied()));
        let stream = match known {
            Some(stream) => stream,
            None => {
                let stream = stream(device)?;
                STREAMS.with_borrow_mut(|streams| streams.insert(device, stream));
                stream
            }
        };
        let mut before = [0; 3];
        // SAFETY: a stream that libtorch gave, and a place for three numbers.
        checked(unsafe { outrigger_stream_enter(stream.as_ptr(), before.as_mut_ptr()) })?;
        Ok(Self { stream, before })
    }

    /// Waits for what was put into the stream until now, and says how it went.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: a stream that libtorch gave.
        checked(unsafe { outrigger_stream_wait(self.stream.as_ptr()) })
    }
}

impl Lane {
    /// Waits as [`Lane::wait`], and ends.
    pub(crate) fn leave(self) -> Result<()> {
        self.wait()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Whoever leaves it without a failure of his own has waited already. One that fails means that nothing runs on the device any more.
        let _ = self.wait();
        // SAFETY: what was there before.
        let _ = checked(unsafe { outrigger_stream_leave(self.before.as_ptr()) });
    }
}
