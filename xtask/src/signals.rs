//! SIGINT and SIGTERM: heard here, and handed on to what runs in a process group of its own.

use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};

static HEARD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn hear(_: libc::c_int) {
    HEARD.fetch_add(1, Ordering::Relaxed);
}

/// From here on the two signals are counted and no longer end this process.
pub(crate) fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only adds to an atomic, which is permitted at any point of the program.
        unsafe { libc::signal(signal, hear as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// How many have come since.
pub(crate) fn heard() -> usize {
    HEARD.load(Ordering::Relaxed)
}

/// Asks a child that has not been waited for to end in order.
pub(crate) fn terminate(child: &Child) {
    send(child, 1, libc::SIGTERM);
}

/// Ends a child that has not been waited for and leads a process group, and everything in that group.
pub(crate) fn kill_group(child: &Child) {
    send(child, -1, libc::SIGKILL);
}

fn send(child: &Child, sign: libc::pid_t, signal: libc::c_int) {
    let Ok(id) = libc::pid_t::try_from(child.id()) else { return };
    // SAFETY: no memory is involved. As nobody has waited for the child, its id cannot be another process's yet.
    unsafe { libc::kill(sign * id, signal) };
}
