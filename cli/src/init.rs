//! Process 1. The kernel gives it what no other process has to do: it adopts every orphan and must reap it, and signals without a
//! handler do not reach it. So the process splits: a small parent does this and nothing else, and the child serves.

use std::io::{self, Write as _};
use std::process::ExitCode;

use outrigger_runtime::config::{Config, Init};

/// Splits the process where the configuration wants it. In the parent it comes back when the child has ended, with what to end with; in
/// the child, and where nothing was split, it comes back at once with `None`.
///
/// # Errors
/// The system has no process left.
pub(crate) fn split(config: &Config) -> io::Result<Option<ExitCode>> {
    let wanted = match config.process.init {
        Init::Auto => std::process::id() == 1,
        Init::Always => true,
        Init::Never => false,
    };
    if !wanted {
        return Ok(None);
    }
    // What is buffered would come out twice.
    let _ = io::stdout().flush();
    Ok(sys::split()?.map(ExitCode::from))
}

#[expect(unsafe_code, reason = "fork, and waiting for signals and children of any kind")]
mod sys {
    use std::io;

    /// Forks; gives the exit code in the parent, once the child has ended, and `None` in the child.
    pub(super) fn split() -> io::Result<Option<u8>> {
        let mut old = SignalSet::empty();
        let all = SignalSet::full();
        // Blocked in the parent for good: they are taken one by one, and wait until it has got so far. Blocked signals are kept for
        // process 1 too, which otherwise never sees one that it has no handler for.
        // SAFETY: both sets are valid for the call.
        check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const all.0, &raw mut old.0) })?;
        // Where this is not process 1, orphans come here all the same.
        // SAFETY: plain integers.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let parent = std::process::id();
        // SAFETY: the process has one thread so far (the caller splits before it starts any), so the child's memory is whole.
        let child = check(unsafe { libc::fork() })?;
        if child == 0 {
            // SAFETY: plain integers, and a set that is valid for the call.
            unsafe {
                // Without its parent it would be an orphan of whoever started both. As process 1 the kernel sees to that.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                if libc::getppid().unsigned_abs() != parent {
                    libc::_exit(1);
                }
                libc::sigprocmask(libc::SIG_SETMASK, &raw const old.0, std::ptr::null_mut());
            }
            return Ok(None);
        }
        let code = watch(child, &all);
        Ok(Some(code))
    }

    /// Forwards signals and reaps until `child` has ended; gives its exit code, 128 and the number for a signal.
    fn watch(child: libc::pid_t, signals: &SignalSet) -> u8 {
        loop {
            // SAFETY: `siginfo_t` is integers, for which zeros are valid; it is written by the call.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: both are valid for the call.
            let signal = unsafe { libc::sigwaitinfo(&raw const signals.0, &raw mut info) };
            match signal {
                libc::SIGCHLD => {
                    if let Some(code) = reap(child) {
                        return code;
                    }
                }
                // Interrupted by being stopped and continued.
                ..=0 => {}
                // The terminal sends it to the whole group, so the child has it already.
                _ if info.si_code == libc::SI_KERNEL => {}
                signal => {
                    // SAFETY: plain integers; the child is not reaped yet, so the number is still its own.
                    unsafe { libc::kill(child, signal) };
                }
            }
        }
    }

    /// Reaps all that have ended; gives the exit code once `child` is among them.
    fn reap(child: libc::pid_t) -> Option<u8> {
        let mut ended = None;
        loop {
            let mut status = 0;
            // SAFETY: `status` is valid for the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return ended;
            }
            if pid == child {
                let code = if libc::WIFSIGNALED(status) {
                    128 + libc::WTERMSIG(status)
                } else {
                    libc::WEXITSTATUS(status)
                };
                ended = Some(u8::try_from(code).unwrap_or(u8::MAX));
            }
        }
    }

    struct SignalSet(libc::sigset_t);

    impl SignalSet {
        fn empty() -> Self {
            // SAFETY: a set is integers, for which zeros are valid; the call then writes it.
            let mut set = Self(unsafe { std::mem::zeroed() });
            // SAFETY: `set` is valid for the call.
            unsafe { libc::sigemptyset(&raw mut set.0) };
            set
        }

        fn full() -> Self {
            let mut set = Self::empty();
            // SAFETY: `set` is valid for the call.
            unsafe { libc::sigfillset(&raw mut set.0) };
            set
        }
    }

    fn check(result: libc::c_int) -> io::Result<libc::c_int> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }
}
