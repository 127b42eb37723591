//! Memory of the other side's that a backend may write to for the time of one call.

use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes lent for one call.
pub(crate) struct Lent {
    data: NonNull<u8>,
    len: usize,
    _held: Arc<()>,
}

// SAFETY: plain bytes, which by the table's contract nobody else touches while they are lent.
unsafe impl Send for Lent {}
// SAFETY: as above; a shared reference allows reading only.
unsafe impl Sync for Lent {}

impl Lent {
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: `Loan::lend` was promised that the bytes are valid and unaliased until the loan ends, and a loan
        // does not end while this value lives.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lent({} bytes)", self.len)
    }
}

/// Counts what is lent in one call. Ends the process if any of it is still held when the call ends: the memory goes back
/// to its owner then, and going on would let two sides write to it.
#[derive(Default)]
pub(crate) struct Loan(Arc<()>);

impl Loan {
    /// Lends `len` bytes at `data`.
    ///
    /// # Safety
    /// The bytes are valid, and reached by nobody else, until this loan is dropped.
    pub(crate) unsafe fn lend(&self, data: NonNull<u8>, len: usize) -> Lent {
        Lent { data, len, _held: Arc::clone(&self.0) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // `get_mut` and not `strong_count`: it also waits for the writes of whoever held the memory last to be seen.
        if Arc::get_mut(&mut self.0).is_none() {
            eprintln!(
                "outrigger: a backend has kept an output's memory after the call, which cannot go on safely"
            );
            std::process::abort();
        }
    }
}
