//! The process: the sockets that it inherits, its signals, its forks.

use std::env;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::channel::Sockets;

const STREAM: &str = "OUTRIGGER_WORKER_FD";
const REGIONS: &str = "OUTRIGGER_REGIONS_FD";

/// The call that runs, for a signal handler; [`NO_CALL`] between calls.
static RUNNING: AtomicU64 = AtomicU64::new(NO_CALL);
const NO_CALL: u64 = u64::MAX;

/// Set in the parent upon a fork, until it is noticed.
static FORKED: AtomicBool = AtomicBool::new(false);
/// Set in the child of a fork.
static CHILD: AtomicBool = AtomicBool::new(false);

/// Takes the sockets that the environment names; what the script starts has no business with them.
pub(super) fn sockets() -> io::Result<Sockets> {
    let sockets = Sockets {
        stream: socket(STREAM, SocketType::STREAM)?,
        regions: socket(REGIONS, SocketType::SEQPACKET)?,
    };
    for name in [STREAM, REGIONS] {
        // SAFETY: there is one thread yet, as `serve_worker` demands.
        unsafe { env::remove_var(name) };
    }
    Ok(sockets)
}

fn socket(variable: &str, kind: SocketType) -> io::Result<OwnedFd> {
    let refused = |what: &dyn std::fmt::Display| io::Error::other(format!("{variable} {what}"));
    let number = env::var(variable).map_err(|error| refused(&error))?;
    let number: RawFd = number.parse().map_err(|_| refused(&format_args!("is `{number}`, not a number")))?;
    if number <= 2 {
        return Err(refused(&format_args!("is {number}, which is no socket of a worker's")));
    }
    // SAFETY: only asks; a number that is not open is an error.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(refused(&format_args!("is {number}, which is not open")));
    }
    // SAFETY: it is open, and by the variable's meaning this process's to own.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    match socket_type(&socket) {
        Ok(actual) if actual == kind => {}
        _ => return Err(refused(&format_args!("is {number}, which is not a socket of the right kind"))),
    }
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    fcntl_setfl(&socket, fcntl_getfl(&socket)? - OFlags::NONBLOCK)?;
    Ok(socket)
}

/// Arms the process: native stacks on crashes and on SIGTERM, no reaction to Ctrl-C, lines of the script's
/// output written when they end, and forks noticed.
pub(super) fn prepare() {
    // A terminal sends Ctrl-C to the whole group; what happens to workers then is for the runtime to decide.
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    load_unwinder();
    let fatal = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];
    for signal in fatal.into_iter().chain([libc::SIGTERM]) {
        handle(signal);
    }
    // SAFETY: C's own stdout, before anything was written to it; the buffer is C's.
    unsafe { libc::setvbuf(stdout, null_mut(), libc::_IOLBF, 0) };
    // SAFETY: both handlers only store to an atomic.
    unsafe { libc::pthread_atfork(None, Some(in_parent), Some(in_child)) };
}

unsafe extern "C" {
    static stdout: *mut libc::FILE;
}

unsafe extern "C" fn in_parent() {
    FORKED.store(true, Ordering::Relaxed);
}

unsafe extern "C" fn in_child() {
    CHILD.store(true, Ordering::Relaxed);
}

/// Whether the process has forked since this was last asked.
pub(super) fn take_forked() -> bool {
    FORKED.load(Ordering::Relaxed) && FORKED.swap(false, Ordering::Relaxed)
}

/// Whether this is a child that the script has forked.
pub(super) fn is_child() -> bool {
    CHILD.load(Ordering::Relaxed)
}

/// Ends a child that the script has forked and that came back from `run`. Not in order: exit handlers are the
/// worker's.
pub(super) fn exit_child() -> ! {
    eprintln!("a process forked by the script returned from outrigger_script_run; it ends here");
    // SAFETY: ends the process.
    unsafe { libc::_exit(1) }
}

pub(super) fn enter_call(id: u64) {
    RUNNING.store(id, Ordering::Relaxed);
}

pub(super) fn leave_call() {
    RUNNING.store(NO_CALL, Ordering::Relaxed);
}

/// Installs [`on_signal`], once: after it the signal does what it does by default.
fn handle(signal: libc::c_int) {
    // SAFETY: an all-zero sigaction is a valid one, and its mask is empty.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
    // On the alternative stack that Rust has made for its main thread: a stack that is used up has no room
    // for this one.
    action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: `on_signal` calls only what may be called in a handler.
    unsafe { libc::sigaction(signal, &raw const action, null_mut()) };
}

/// Writes where the thread is, even out of an endless loop, and lets the signal end the process.
extern "C" fn on_signal(signal: libc::c_int) {
    let when: &[u8] = if RUNNING.load(Ordering::Relaxed) == NO_CALL {
        b" between calls"
    } else {
        b" in outrigger_script_run"
    };
    let digits = [b'0' + (signal / 10 % 10) as u8, b'0' + (signal % 10) as u8];
    for piece in [b"native worker: signal ", &digits[..], when, b"; the native stack:\n"] {
        // SAFETY: the bytes are there; `write` may be called in a handler.
        let _ = unsafe { libc::write(2, piece.as_ptr().cast(), piece.len()) };
    }
    write_stack();
    // Blocked until this returns, and then fatal. What the processor raised comes again by itself.
    // SAFETY: may be called in a handler.
    unsafe { libc::raise(signal) };
}

#[cfg(target_env = "gnu")]
fn write_stack() {
    let mut frames = [null_mut(); 64];
    // SAFETY: room for 64 frames. Its library was loaded by `load_unwinder`, so that it neither loads nor
    // allocates here.
    unsafe {
        let count = libc::backtrace(frames.as_mut_ptr(), 64);
        libc::backtrace_symbols_fd(frames.as_ptr(), count, 2);
    }
}

#[cfg(not(target_env = "gnu"))]
fn write_stack() {}

/// The first stack that is taken loads a library and allocates, which a signal handler may not.
fn load_unwinder() {
    #[cfg(target_env = "gnu")]
    // SAFETY: room for one frame.
    unsafe {
        let mut frame = null_mut();
        libc::backtrace(&raw mut frame, 1);
    }
}
