//! Work that would keep a thread from other requests for long.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Work on this many bytes of JSON or tensors takes about a millisecond.
const MUCH: usize = 256 * 1024;

/// Does work on `bytes` bytes; where they are many, so that other requests on this thread go on meanwhile.
pub(crate) fn apart<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let threads = bytes > MUCH
        && Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if threads { tokio::task::block_in_place(work) } else { work() }
}
