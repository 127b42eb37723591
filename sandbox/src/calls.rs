//! System-call filters: three small programs that the kernel runs before each call.
//!
//! A call's fate is the strictest that any of them says, so each has one subject: calls that are to look as if this kernel
//! did not have them (ENOSYS, so that libraries take their older way), what the network setting refuses (EACCES), and the
//! list of what scripts need (everything else is EPERM). Calls that are allowed whatever their arguments cost next to
//! nothing: the kernel works out beforehand which ones the filters always let pass.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

use crate::{Network, Part, Policy};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Which filters a policy needs, in the order in which they are to be installed.
pub(crate) struct Wanted {
    pub(crate) system_calls: bool,
    /// `None`: sockets are not filtered at all.
    pub(crate) sockets: Option<Sockets>,
}

/// What kinds of sockets may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// None by network; Unix sockets if so.
    Off { unix: bool },
    /// TCP by IPv4, whose ports Landlock holds; Unix sockets if so.
    Tcp { unix: bool },
    /// The internet protocols, Unix sockets, and questions about network interfaces.
    On,
}

impl Wanted {
    /// `landlock_ports`: Landlock holds the ports of TCP connections.
    pub(crate) fn by(policy: &Policy, landlock_ports: bool) -> Self {
        let unix = policy.unix_sockets || !policy.wants(Part::UnixSockets);
        let sockets = match &policy.network {
            _ if !policy.wants(Part::Network) => policy.wants(Part::SystemCalls).then_some(Sockets::On),
            Network::On => policy.wants(Part::SystemCalls).then_some(Sockets::On),
            // Without rules for ports, allowing one would allow all of them.
            Network::Ports(ports) if landlock_ports && !ports.is_empty() => Some(Sockets::Tcp { unix }),
            Network::Off | Network::Ports(_) => Some(Sockets::Off { unix }),
        };
        Self { system_calls: policy.wants(Part::SystemCalls), sockets }
    }

    /// # Errors
    /// The compiler's, as text: an architecture it does not know.
    pub(crate) fn compile(&self) -> Result<Vec<BpfProgram>, String> {
        let mut programs = Vec::new();
        if self.system_calls || self.sockets.is_some() {
            programs.push(compile(absent(), SeccompAction::Allow, errno(libc::ENOSYS))?);
        }
        if let Some(sockets) = self.sockets {
            programs.push(compile(refused_sockets(sockets)?, SeccompAction::Allow, errno(libc::EACCES))?);
        }
        if self.system_calls {
            programs.push(compile(allowed()?, errno(libc::EPERM), SeccompAction::Allow)?);
        }
        Ok(programs)
    }
}

#[expect(clippy::cast_sign_loss, reason = "error numbers are positive")]
fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number as u32)
}

fn compile(rules: Rules, otherwise: SeccompAction, on_match: SeccompAction) -> Result<BpfProgram, String> {
    let arch = std::env::consts::ARCH.try_into().map_err(|error| format!("{error}"))?;
    let filter = SeccompFilter::new(rules, otherwise, on_match, arch).map_err(|error| error.to_string())?;
    filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())
}

/// One rule: all conditions hold. Each is the number of an argument, a comparison and a value of 32 bits.
fn when(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, String> {
    let conditions = conditions
        .iter()
        .map(|(argument, op, value)| SeccompCondition::new(*argument, Dword, op.clone(), *value))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    SeccompRule::new(conditions).map_err(|error| error.to_string())
}

fn value(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}

/// The greatest number of a system call that this file has an opinion on, the same on both architectures.
const LAST_KNOWN: i64 = libc::SYS_mseal;
/// Calls that later kernels may add, which must look absent and not forbidden.
const LATER: i64 = 64;

/// Calls that look absent. `clone3` hides its flags behind a pointer, where no filter sees them; io_uring does what other
/// calls do without making them.
fn absent() -> Rules {
    let mut rules: Rules = [
        libc::SYS_clone3,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_memfd_secret,
    ]
    .into_iter()
    .chain(LAST_KNOWN + 1..=LAST_KNOWN + LATER)
    .map(|call| (call, Vec::new()))
    .collect();
    // The x32 table of x86-64: the same calls by other numbers, for programs that nobody has any more.
    if cfg!(target_arch = "x86_64") {
        const X32: i64 = 0x4000_0000;
        for call in [
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_sendto,
            libc::SYS_listen,
            libc::SYS_clone,
            518,
            538,
        ] {
            rules.insert(X32 | call, Vec::new());
        }
        for call in [
            libc::SYS_clone3,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ] {
            rules.insert(X32 | call, Vec::new());
        }
    }
    rules
}

const TYPE: u64 = 0xf;

/// Sockets that the network setting refuses.
fn refused_sockets(sockets: Sockets) -> Result<Rules, String> {
    let (unix, inet) = (value(libc::AF_UNIX), value(libc::AF_INET));
    let mut rules = Rules::new();
    match sockets {
        Sockets::Off { unix: false } => {
            rules.insert(libc::SYS_socket, Vec::new());
        }
        Sockets::Off { unix: true } => {
            rules.insert(libc::SYS_socket, vec![when(&[(0, Ne, unix)])?]);
        }
        Sockets::Tcp { unix: unix_too } => {
            let mut refused = vec![match unix_too {
                true => when(&[(0, Ne, inet), (0, Ne, unix)])?,
                false => when(&[(0, Ne, inet)])?,
            }];
            // Everything but streams; there is no "not equal under a mask".
            for kind in (0..=TYPE).filter(|kind| *kind != value(libc::SOCK_STREAM)) {
                refused.push(when(&[(0, Eq, inet), (1, MaskedEq(TYPE), kind)])?);
            }
            // Multipath TCP and SCTP are streams whose ports Landlock does not look at.
            refused.push(when(&[(0, Eq, inet), (2, Ne, 0), (2, Ne, value(libc::IPPROTO_TCP))])?);
            rules.insert(libc::SYS_socket, refused);
            // A connection that opens with its first bytes passes by Landlock's rule for `connect`.
            let open = value(libc::MSG_FASTOPEN);
            rules.insert(libc::SYS_sendto, vec![when(&[(3, MaskedEq(open), open)])?]);
            rules.insert(libc::SYS_sendmsg, vec![when(&[(2, MaskedEq(open), open)])?]);
            rules.insert(libc::SYS_sendmmsg, vec![when(&[(3, MaskedEq(open), open)])?]);
            // Listening without `bind` takes any free port, which Landlock does not see.
            if !unix_too {
                rules.insert(libc::SYS_listen, Vec::new());
            }
        }
        Sockets::On => {
            let (inet6, netlink) = (value(libc::AF_INET6), value(libc::AF_NETLINK));
            rules.insert(
                libc::SYS_socket,
                vec![
                    when(&[(0, Ne, inet), (0, Ne, inet6), (0, Ne, unix), (0, Ne, netlink)])?,
                    when(&[(0, Eq, netlink), (2, Ne, value(libc::NETLINK_ROUTE))])?,
                    when(&[(0, Eq, inet), (1, MaskedEq(TYPE), value(libc::SOCK_RAW))])?,
                    when(&[(0, Eq, inet6), (1, MaskedEq(TYPE), value(libc::SOCK_RAW))])?,
                ],
            );
        }
    }
    let mut pairs = vec![when(&[(0, Ne, unix)])?];
    if matches!(sockets, Sockets::Off { unix: false } | Sockets::Tcp { unix: false }) {
        // A datagram socket of a pair can send to any other address; streams and packets cannot leave their pair.
        pairs.push(when(&[(1, MaskedEq(TYPE), value(libc::SOCK_DGRAM))])?);
    }
    rules.insert(libc::SYS_socketpair, pairs);
    Ok(rules)
}

/// What Python, its numerical libraries and accelerators' libraries need.
fn allowed() -> Result<Rules, String> {
    let mut rules: Rules = ALWAYS.iter().chain(LEGACY).map(|call| (*call, Vec::new())).collect();
    // Refused with their own error numbers by the filters before.
    rules.extend(absent());
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, Vec::new());
    }
    let own = |argument: u8| when(&[(argument, Eq, 0)]);
    // Limits and priorities: of the caller, never of another process of the same user, such as the replica.
    for (call, argument) in [
        (libc::SYS_prlimit64, 0),
        (libc::SYS_sched_setscheduler, 0),
        (libc::SYS_sched_setparam, 0),
        (libc::SYS_sched_setattr, 0),
        (libc::SYS_setpriority, 1),
        (libc::SYS_ioprio_set, 1),
    ] {
        rules.insert(call, vec![own(argument)?]);
    }
    let spaces = value(
        libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET,
    );
    rules.insert(libc::SYS_clone, vec![when(&[(0, MaskedEq(spaces), 0)])?]);
    // Typing into the terminal from which the replica was started.
    rules.insert(libc::SYS_ioctl, vec![when(&[(1, Ne, TIOCSTI), (1, Ne, TIOCLINUX)])?]);
    // A further filter can only make things stricter; one with a listener would need none of this.
    rules.insert(libc::SYS_seccomp, vec![when(&[(1, MaskedEq(0x8), 0)])?]);
    rules.insert(libc::SYS_personality, vec![when(&[(0, Eq, 0)])?, when(&[(0, Eq, 0xffff_ffff)])?]);
    let mut options = Vec::with_capacity(PRCTL.len());
    for option in PRCTL {
        options.push(when(&[(0, Eq, value(*option))])?);
    }
    rules.insert(libc::SYS_prctl, options);
    Ok(rules)
}

// `ioctl` takes them by another type in each C library.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Options of `prctl` that a process may use on itself.
const PRCTL: &[i32] = &[
    libc::PR_SET_PDEATHSIG,
    libc::PR_GET_PDEATHSIG,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_DUMPABLE,
    libc::PR_GET_KEEPCAPS,
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_GET_SECCOMP,
    libc::PR_CAPBSET_READ,
    libc::PR_GET_TSC,
    libc::PR_GET_SECUREBITS,
    libc::PR_SET_TIMERSLACK,
    libc::PR_GET_TIMERSLACK,
    libc::PR_SET_CHILD_SUBREAPER,
    libc::PR_GET_CHILD_SUBREAPER,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_GET_TID_ADDRESS,
    libc::PR_SET_THP_DISABLE,
    libc::PR_GET_THP_DISABLE,
    libc::PR_CAP_AMBIENT,
    50, // PR_SVE_SET_VL
    51, // PR_SVE_GET_VL
    libc::PR_GET_SPECULATION_CTRL,
    libc::PR_SET_SPECULATION_CTRL,
    54, // PR_PAC_RESET_KEYS
    55, // PR_SET_TAGGED_ADDR_CTRL
    56, // PR_GET_TAGGED_ADDR_CTRL
    63, // PR_SME_SET_VL
    64, // PR_SME_GET_VL
    65, // PR_SET_MDWE
    66, // PR_GET_MDWE
    libc::PR_SET_VMA,
];

/// Calls of both architectures that are allowed whatever their arguments.
const ALWAYS: &[i64] = &[
    // Files; which ones is Landlock's business.
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    // Named pipes; for devices it takes a capability and a right that are not given.
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_removexattr,
    RENAMEAT,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_setxattr,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    SYNC_FILE_RANGE,
    libc::SYS_syncfs,
    libc::SYS_tee,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_write,
    libc::SYS_writev,
    // Kernel-side queues of reads and writes; they open nothing.
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Sockets that exist; which ones can be made is the second filter's business.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_brk,
    CACHESTAT,
    libc::SYS_get_mempolicy,
    libc::SYS_madvise,
    MAP_SHADOW_STACK,
    libc::SYS_mbind,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_move_pages,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_mseal,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_remap_file_pages,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    // Processes and threads.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    FUTEX_WAKE,
    FUTEX_WAIT,
    FUTEX_REQUEUE,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_ioprio_get,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_pidfd_open,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    // By thread: a pool pins its threads. See the crate's documentation for what it leaves open.
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Signals; to whom is Landlock's business.
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getitimer,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_times,
    // Between processes of one user.
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
    // About the machine.
    libc::SYS_getrandom,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

// Numbers that the C bindings do not have for every architecture. Those from 424 on are the same everywhere.
const CACHESTAT: i64 = 451;
const FCHMODAT2: i64 = 452;
const MAP_SHADOW_STACK: i64 = 453;
const FUTEX_WAKE: i64 = 454;
const FUTEX_WAIT: i64 = 455;
const FUTEX_REQUEUE: i64 = 456;
#[cfg(target_arch = "x86_64")]
const RENAMEAT: i64 = libc::SYS_renameat;
#[cfg(target_arch = "x86_64")]
const SYNC_FILE_RANGE: i64 = libc::SYS_sync_file_range;
#[cfg(target_arch = "aarch64")]
const RENAMEAT: i64 = 38;
#[cfg(target_arch = "aarch64")]
const SYNC_FILE_RANGE: i64 = 84;

/// Older forms that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_setrlimit,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(target_arch = "aarch64")]
const LEGACY: &[i64] = &[
    163, // getrlimit
    164, // setrlimit
];

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(network: Network, unix_sockets: bool, off: &[Part], ports: bool) -> Option<Sockets> {
        let policy =
            Policy { network, unix_sockets, off: off.iter().copied().collect(), ..Policy::default() };
        Wanted::by(&policy, ports).sockets
    }

    #[test]
    fn ports_are_refused_where_nothing_would_hold_them() {
        let ports = || Network::Ports(vec![50011]);
        assert_eq!(sockets(ports(), false, &[], true), Some(Sockets::Tcp { unix: false }));
        assert_eq!(sockets(ports(), false, &[], false), Some(Sockets::Off { unix: false }));
        assert_eq!(sockets(Network::Ports(vec![]), false, &[], true), Some(Sockets::Off { unix: false }));
        assert_eq!(sockets(Network::Off, true, &[], true), Some(Sockets::Off { unix: true }));
        assert_eq!(
            sockets(Network::Off, false, &[Part::UnixSockets], true),
            Some(Sockets::Off { unix: true })
        );
        assert_eq!(sockets(Network::On, false, &[], true), Some(Sockets::On));
        assert_eq!(sockets(Network::On, false, &[Part::SystemCalls], true), None);
    }

    #[test]
    fn every_combination_compiles_to_what_the_kernel_takes() {
        let all = [
            Sockets::Off { unix: false },
            Sockets::Off { unix: true },
            Sockets::Tcp { unix: false },
            Sockets::Tcp { unix: true },
            Sockets::On,
        ];
        for sockets in all {
            let programs = Wanted { system_calls: true, sockets: Some(sockets) }.compile().unwrap();
            assert_eq!(programs.len(), 3);
            for program in programs {
                assert!(program.len() <= 4096, "{sockets:?}: {} instructions", program.len());
            }
        }
    }

    #[test]
    fn what_escapes_a_sandbox_is_on_no_list() {
        let rules = allowed().unwrap();
        let refused = [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_kcmp,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_fsopen,
            libc::SYS_fsmount,
            libc::SYS_fsconfig,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_userfaultfd,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_kexec_load,
            libc::SYS_pidfd_getfd,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_acct,
            libc::SYS_syslog,
            libc::SYS_quotactl,
            libc::SYS_setuid,
            libc::SYS_setgid,
            libc::SYS_setgroups,
            libc::SYS_fanotify_init,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_sethostname,
            libc::SYS_vhangup,
        ];
        for call in refused {
            assert!(!rules.contains_key(&call), "system call {call}");
        }
    }
}
