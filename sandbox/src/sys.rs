//! The kernel's calls that the standard library lacks, and what a child does between fork and exec.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use seccompiler::BpfProgram;

/// What a process does to itself to be confined, ready made: nothing in it allocates or opens a path given by a user.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    pub(crate) no_new_privileges: bool,
    /// Bytes of private writable memory.
    pub(crate) data_limit: Option<u64>,
    /// The text for `/proc/self/oom_score_adj`.
    pub(crate) oom_score: Option<String>,
    /// Capabilities that are kept, as bits.
    pub(crate) capabilities: Option<u64>,
    pub(crate) landlock: Option<OwnedFd>,
    pub(crate) filters: Vec<BpfProgram>,
}

/// A step that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Step {
    Join = 1,
    Limits,
    OomScore,
    NoNewPrivileges,
    Capabilities,
    Landlock,
    Filters,
}

impl Step {
    pub(crate) const ALL: [Self; 7] = [
        Self::Join,
        Self::Limits,
        Self::OomScore,
        Self::NoNewPrivileges,
        Self::Capabilities,
        Self::Landlock,
        Self::Filters,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == byte)
    }
}

impl Steps {
    /// Confines the calling thread for good. To be called between fork and exec, where it is the only one.
    ///
    /// Async-signal-safe: system calls alone.
    pub(crate) fn enter(&self, groups: &[File]) -> Result<(), (Step, io::Error)> {
        for mut group in groups {
            group.write_all(b"0").map_err(|error| (Step::Join, error))?;
        }
        if let Some(bytes) = self.data_limit {
            limit(libc::RLIMIT_DATA, bytes).map_err(|error| (Step::Limits, error))?;
        }
        limit(libc::RLIMIT_CORE, 0).map_err(|error| (Step::Limits, error))?;
        if let Some(score) = &self.oom_score {
            write_path(c"/proc/self/oom_score_adj", score.as_bytes())
                .map_err(|error| (Step::OomScore, error))?;
        }
        if self.no_new_privileges {
            // SAFETY: takes integers only.
            let outcome = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            check(i64::from(outcome)).map_err(|error| (Step::NoNewPrivileges, error))?;
        }
        if let Some(kept) = self.capabilities {
            drop_capabilities(kept).map_err(|error| (Step::Capabilities, error))?;
        }
        if let Some(rules) = &self.landlock {
            // SAFETY: takes integers only; the descriptor is open.
            let outcome = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
            check(outcome).map_err(|error| (Step::Landlock, error))?;
        }
        for filter in &self.filters {
            seccompiler::apply_filter(filter).map_err(|error| (Step::Filters, seccomp_error(error)))?;
        }
        Ok(())
    }

    /// Tries the steps out in a process of their own, which ends at once.
    ///
    /// # Errors
    /// The first step that this machine refuses, or the failure to make the process.
    pub(crate) fn try_out(&self) -> Result<(), (Option<Step>, io::Error)> {
        let none = |error| (None, error);
        let (mut ours, theirs) = io::pipe().map_err(none)?;
        let theirs_fd = theirs.as_raw_fd();
        // SAFETY: the child makes system calls only, until it ends; it allocates nothing.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(none(io::Error::last_os_error()));
        }
        if pid == 0 {
            let mut told = [0_u8; 5];
            if let Err((step, error)) = self.enter(&[]) {
                told[0] = step as u8;
                told[1..].copy_from_slice(&error.raw_os_error().unwrap_or(libc::EINVAL).to_le_bytes());
            }
            // SAFETY: writes from an array of that length; `_exit` runs no handlers.
            unsafe {
                libc::write(theirs_fd, told.as_ptr().cast(), told.len());
                libc::_exit(0);
            }
        }
        drop(theirs);
        let mut told = [0_u8; 5];
        let read = io::Read::read_exact(&mut ours, &mut told);
        // SAFETY: waits for our own child; no status is written. A process that reaps all children may have been faster.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        read.map_err(none)?;
        match Step::from_byte(told[0]) {
            None => Ok(()),
            step => Err((
                step,
                io::Error::from_raw_os_error(i32::from_le_bytes([told[1], told[2], told[3], told[4]])),
            )),
        }
    }
}

/// Lets the process that a command starts confine itself before it runs the program.
pub(crate) fn before_exec(command: &mut Command, steps: Arc<Steps>, groups: Vec<File>) {
    // SAFETY: `Steps::enter` is async-signal-safe, and neither it nor its errors allocate.
    unsafe { command.pre_exec(move || steps.enter(&groups).map_err(|(_, error)| error)) };
}

fn seccomp_error(error: seccompiler::Error) -> io::Error {
    match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        _ => io::Error::from_raw_os_error(libc::EINVAL),
    }
}

fn check(outcome: i64) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

/// Lowers a limit for good; one that is lower already stays.
fn limit(resource: Resource, bound: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`.
    check(i64::from(unsafe { libc::getrlimit(resource, &raw mut limit) }))?;
    limit.rlim_max = limit.rlim_max.min(bound);
    limit.rlim_cur = limit.rlim_cur.min(bound);
    // SAFETY: the kernel reads one `rlimit`.
    check(i64::from(unsafe { libc::setrlimit(resource, &raw const limit) }))
}

fn write_path(path: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: a string with its zero.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    check(i64::from(fd))?;
    // SAFETY: just opened, and nobody else's.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) }).write_all(text)
}

/// `struct __user_cap_header_struct` of `capset(2)`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`; version 3 has two, for the lower and the upper 32 bits.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Numbers of capabilities end before this one.
const CAPABILITIES: u32 = 64;

/// The capabilities that this process may use, as bits.
pub(crate) fn capabilities() -> io::Result<u64> {
    let data = get_capabilities()?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

fn get_capabilities() -> io::Result<[CapabilityData; 2]> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: a header and two structures, as version 3 says.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(data)
}

fn drop_capabilities(kept: u64) -> io::Result<()> {
    for number in (0..CAPABILITIES).filter(|number| kept >> number & 1 == 0) {
        // Refused without CAP_SETPCAP; then no_new_privs keeps the next program from gaining what is dropped below.
        // SAFETY: takes integers only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    }
    let mut data = get_capabilities()?;
    for (half, data) in data.iter_mut().enumerate() {
        let kept = (kept >> (32 * half)) as u32;
        data.permitted &= kept;
        data.effective &= kept;
        data.inheritable = 0;
    }
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    // SAFETY: a header and two structures, as version 3 says.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

/// The kernel's version of Landlock; 0 where it is not built in or not switched on.
pub(crate) fn landlock_version() -> i32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no structure.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    i32::try_from(version).unwrap_or(0).max(0)
}

/// Kills one process. That it is gone is no error.
pub(crate) fn kill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 1
    {
        // SAFETY: takes integers only.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// The process at the other end of a Unix socket, as it was when it connected, and a handle on it where the kernel gives one.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<(u32, Option<OwnedFd>)> {
    const SO_PEERPIDFD: i32 = 77;
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    option(socket.as_raw_fd(), libc::SO_PEERCRED, &mut credentials)?;
    let mut handle: RawFd = -1;
    let handle = match option(socket.as_raw_fd(), SO_PEERPIDFD, &mut handle) {
        // SAFETY: the kernel has just made it for us.
        Ok(()) if handle >= 0 => Some(unsafe { OwnedFd::from_raw_fd(handle) }),
        _ => None,
    };
    Ok((u32::try_from(credentials.pid).unwrap_or(0), handle))
}

fn option<T>(socket: RawFd, name: i32, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a plain structure of that size; the callers' are integers only.
    check(i64::from(unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, name, std::ptr::from_mut(value).cast(), &raw mut length)
    }))
}

/// Whether the process that a handle stands for has ended.
pub(crate) fn has_ended(handle: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one `pollfd`; no waiting.
    unsafe { libc::poll(&raw mut poll, 1, 0) != 0 }
}
