//! What a confined process can ask of the kernel, and do to others.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub)]

mod common;

use common::{Place, holds, script};
use outrigger_sandbox::Part;

/// Raw calls by number, so that nothing in between decides.
const CALLS: &str = r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == 'x86_64'
def call(x86, arm, *arguments):
    result = libc.syscall(ctypes.c_long(x86 if X86 else arm), *[ctypes.c_long(a) for a in arguments])
    return 0 if result >= 0 else ctypes.get_errno()
";

#[test]
fn calls_that_scripts_do_not_need_are_refused_and_not_deadly() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::SystemCalls]) {
        return;
    }
    place.passes(
        &place.policy(),
        &script(&format!(
            "{CALLS}{}",
            r"
refused_calls = {
    'ptrace': (101, 117, 0), 'unshare': (272, 97, 0x10000000), 'mount': (165, 40), 'umount2': (166, 39),
    'setns': (308, 268, -1), 'bpf': (321, 280), 'perf_event_open': (298, 241), 'keyctl': (250, 219),
    'userfaultfd': (323, 282), 'init_module': (175, 105), 'kexec_load': (246, 104), 'pidfd_getfd': (438, 438, -1),
    'process_vm_readv': (310, 270), 'open_by_handle_at': (304, 265, -1), 'name_to_handle_at': (303, 264, -1),
    'reboot': (169, 142), 'swapon': (167, 224), 'acct': (163, 89), 'syslog': (103, 116, 10), 'pivot_root': (155, 41),
    'chroot': (161, 51), 'personality': (135, 92, 0x40000), 'quotactl': (179, 60), 'settimeofday': (164, 170),
    'clone into a user namespace': (56, 220, 0x10000000 | 17), 'open_tree': (428, 428, -1), 'fsopen': (430, 430),
    'prctl(PR_SET_MM)': (157, 167, 35), 'ioctl(TIOCSTI)': (16, 29, 0, 0x5412),
}
for name, (x86, arm, *arguments) in refused_calls.items():
    assert call(x86, arm, *arguments) == errno.EPERM, name
# These look absent, so that libraries take their older way.
for name, number in {'clone3': 435, 'io_uring_setup': 425, 'io_uring_enter': 426, 'memfd_secret': 447, 'later': 470}.items():
    assert call(number, number, 0, 0) == errno.ENOSYS, name
",
        )),
    );
}

#[test]
fn another_process_is_neither_signalled_nor_changed_nor_read() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::Signals, Part::SystemCalls, Part::Files]) {
        return;
    }
    let body = format!(
        "{CALLS}{}",
        r"
import resource, signal
parent = os.getppid()
refused(lambda: os.kill(parent, 0), errno.EPERM)
refused(lambda: os.kill(parent, signal.SIGTERM), errno.EPERM)
handle = os.pidfd_open(parent)
refused(lambda: signal.pidfd_send_signal(handle, signal.SIGTERM), errno.EPERM)
try:
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (0, 0))
    raise AssertionError('limits of the parent were changed')
except PermissionError:
    pass
refused(lambda: os.setpriority(os.PRIO_PROCESS, parent, 19), errno.EPERM)
refused(lambda: os.sched_setscheduler(parent, os.SCHED_BATCH, os.sched_param(0)), errno.EPERM)
for name in ['environ', 'mem', 'maps', 'auxv']:
    refused(lambda: open(f'/proc/{parent}/{name}', 'rb').read(1), errno.EACCES, errno.EPERM)
refused(lambda: os.readlink(f'/proc/{parent}/fd/0'), errno.EACCES, errno.EPERM)
refused(lambda: open(f'/proc/{parent}/cwd/x'), errno.EACCES, errno.EPERM)
for name, value in [(f'{parent}/oom_score_adj', '0'), ('self/oom_score_adj', '0'), ('sys/kernel/core_pattern', 'x')]:
    refused(lambda: open('/proc/' + name, 'w'), errno.EACCES, errno.EPERM, errno.EROFS)
# Its own it can.
os.kill(os.getpid(), 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.nice(1)
child = os.fork()
if child == 0:
    signal.pause()
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
",
    );
    place.passes(&place.policy(), &script(&body));
}

#[test]
fn root_loses_what_goes_beyond_files_and_cannot_get_it_back() {
    let place = Place::new();
    place.passes(
        &place.policy(),
        &script(
            r"
import subprocess
kept = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 14
def capabilities(text):
    return {line.split()[0]: int(line.split()[1], 16) for line in text.splitlines() if line.startswith('Cap')}
for text in [open('/proc/self/status').read(), subprocess.run(['/bin/cat', '/proc/self/status'], capture_output=True, text=True).stdout]:
    held = capabilities(text)
    assert held['CapEff:'] & ~kept == 0 and held['CapPrm:'] & ~kept == 0, held
    assert 'NoNewPrivs:\t1' in text
",
        ),
    );
}

#[test]
fn workers_are_killed_before_their_replica() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::OutOfMemoryFirst]) {
        return;
    }
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    place.passes(
        &place.policy(),
        &script(&format!("assert int(open('/proc/self/oom_score_adj').read()) == min({own} + 300, 1000)")),
    );
}

#[test]
fn threads_pools_programs_and_descriptors_work() {
    let place = Place::new();
    place.passes(
        &place.policy(),
        &script(
            r"
import array, asyncio, concurrent.futures as futures, ctypes, mmap, multiprocessing as mp, signal, socket, subprocess, threading
done = []
threads = [threading.Thread(target=lambda: done.append(1)) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(done) == 8
with mp.get_context('fork').Pool(2) as pool:
    assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
with futures.ProcessPoolExecutor(2, mp_context=mp.get_context('fork')) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
with futures.ProcessPoolExecutor(1, mp_context=mp.get_context('spawn')) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
queue = mp.get_context('fork').Queue()
queue.put('x'); assert queue.get() == 'x'
semaphore = mp.get_context('fork').Semaphore(2)
assert semaphore.acquire() and semaphore.acquire(timeout=1)
assert subprocess.run(['/bin/sh', '-c', 'echo a | cat'], capture_output=True, check=True).stdout == b'a\n'
assert subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True, check=True).stdout == b'2\n'
async def program():
    process = await asyncio.create_subprocess_exec('/bin/echo', 'x', stdout=subprocess.PIPE)
    return (await process.communicate())[0]
assert asyncio.run(program()) == b'x\n'
# Regions of the worker protocol: a sealed memfd whose descriptor goes through a socket pair.
import fcntl
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
region = os.memfd_create('region', os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
os.truncate(region, 4096)
fcntl.fcntl(region, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
socket.send_fds(left, [b'x'], [region])
message, descriptors, _, _ = socket.recv_fds(right, 1, 1)
view = mmap.mmap(descriptors[0], 4096, prot=mmap.PROT_READ)
assert view[:4] == bytes(4)
# What a fork-server does.
libc = ctypes.CDLL(None)
assert libc.prctl(36, 1, 0, 0, 0) == 0 and libc.prctl(1, signal.SIGKILL, 0, 0, 0) == 0
child = os.fork()
if child == 0:
    os.setpgid(0, 0); os._exit(7)
handle = os.pidfd_open(child)
assert os.waitid(os.P_PIDFD, handle, os.WEXITED).si_status == 7
",
        ),
    );
}
