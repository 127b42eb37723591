//! What the process ends with.

/// A check has found something, or the caller has called it wrongly (`azmlinfsrv`).
pub(crate) const FOUND: u8 = 1;
/// The configuration is wrong, or an address is taken: nothing was started.
pub(crate) const CONFIG: u8 = 2;
/// The script or a model did not come up, as in the system we succeed.
pub(crate) const START: u8 = 3;
/// A second signal, or calls that did not finish in time.
pub(crate) const BROKEN_OFF: u8 = 4;
