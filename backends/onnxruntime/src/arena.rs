//! An arena of a device's memory, shared by all sessions on it.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use crate::error;
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

/// Those that there are and the most bytes of each, by the name and the number of their memory.
#[derive(Debug, Default)]
pub(crate) struct Arenas(Mutex<BTreeMap<(String, i32), usize>>);

impl Arenas {
    /// Makes an arena, unless there is one for the device. A process has one for each, so that another limit is an error.
    pub(crate) fn share(&self, environment: &Environment, arena: &Arena) -> Result<(), String> {
        let key = (arena.residence.allocator.clone(), arena.residence.id);
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match made.get(&key) {
            Some(bytes) => is_that(arena, *bytes),
            None => {
                make(environment, arena).map_err(|error| error::first_line(error.message()).to_owned())?;
                made.insert(key, arena.most_bytes);
                Ok(())
            }
        }
    }
}

/// Whether an arena of this limit is the one that is meant.
fn is_that(arena: &Arena, bytes: usize) -> Result<(), String> {
    if arena.most_bytes == bytes {
        return Ok(());
    }
    let limit =
        |bytes: usize| if bytes == 0 { "no limit".into() } else { format!("a limit of {bytes} bytes") };
    Err(format!(
        "the arena of device {} has {} in this process already, not {}",
        arena.residence.id,
        limit(bytes),
        limit(arena.most_bytes)
    ))
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
