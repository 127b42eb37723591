//! What the process ends with.

/// A check has found something, or the caller has called it wrongly (`azmlinfsrv`).
pub(crate) const FOUND: u8 = 1;
/// The configuration is wrong, or an address is taken: nothing was started.
pub(crate) const CONFIG: u8 = 2;
/// The script or a model did not come up, as in the system we succeed.
pub(crate) const START: u8 = 3;
/// A second signal, or calls that did not finish in time.
pub(crate) const BROKEN_OFF: u8 = 4;

/// Ends the process with nothing taken apart: a thread may still be in a model, whose library would be pulled from under it.
#[expect(unsafe_code, reason = "the standard library ends in order only")]
pub(crate) fn at_once(code: u8) -> ! {
    // SAFETY: takes no pointer, and does not return.
    unsafe { libc::_exit(code.into()) }
}
