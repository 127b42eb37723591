//! An arena of a device's memory, shared by all sessions on it.

use std::collections::BTreeSet;
use std::ffi::{CString, c_char};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use crate::provider::Residence;
use crate::raw::check;

/// An arena, out of which all sessions on a device take what their runs need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Whose memory it is; ONNX Runtime can do this for `CUDAExecutionProvider`.
    pub provider: &'static str,
    /// Where it is.
    pub residence: Residence,
    /// The most bytes that it has; 0 is no limit.
    pub most_bytes: usize,
}

/// Those that there are, by the name and the number of their memory.
#[derive(Debug, Default)]
pub(crate) struct Arenas(Mutex<BTreeSet<(String, i32)>>);

impl Arenas {
    /// Makes an arena, unless there is one for the device.
    pub(crate) fn share(&self, environment: &Environment, arena: &Arena) -> ort::Result<()> {
        let key = (arena.residence.allocator.clone(), arena.residence.id);
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains(&key) {
            make(environment, arena)?;
            made.insert(key);
        }
        Ok(())
    }
}

struct Config(*mut ort::sys::OrtArenaCfg);

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: owned, and released only here; null is nothing.
        unsafe { (ort::api().ReleaseArenaCfg)(self.0) }
    }
}

fn make(environment: &Environment, arena: &Arena) -> ort::Result<()> {
    let Residence { allocator, id, .. } = &arena.residence;
    let place =
        MemoryInfo::new(AllocationDevice::new(allocator), *id, AllocatorType::Arena, MemoryType::Default)?;
    let text = |text: &str| CString::new(text).map_err(|error| ort::Error::new(error.to_string()));
    let provider = text(arena.provider)?;
    let number = text(&id.to_string())?;
    // 1 is `kSameAsRequested`: what a shape has needed once, and not the next power of two.
    let (keys, values) = ([c"max_mem", c"arena_extend_strategy"], [arena.most_bytes, 1]);
    let keys: [*const c_char; 2] = keys.map(|key| key.as_ptr());
    let (option_keys, option_values) = ([c"device_id".as_ptr()], [number.as_ptr()]);
    let mut config = Config(null_mut());
    // SAFETY: as many keys and values as is said, live until the end of the calls, and so are all others; the arena that is made is the
    // environment's, which lives as long as the process.
    unsafe {
        check((ort::api().CreateArenaCfgV2)(keys.as_ptr(), values.as_ptr(), keys.len(), &mut config.0))?;
        check((ort::api().CreateAndRegisterAllocatorV2)(
            environment.ptr().cast_mut(),
            provider.as_ptr(),
            place.ptr(),
            config.0,
            option_keys.as_ptr(),
            option_values.as_ptr(),
            option_keys.len(),
        ))
    }
}
