//! Memory, processes and processor time, and what is left behind.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub)]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Place, script, text};
use outrigger_sandbox::{Part, Policy, Prepared, State};

const MIB: u64 = 1024 * 1024;

/// Groups are named after this process, and each test counts what it has left: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None`, and it says so, where the part is not held by a control group.
fn in_group(policy: &Policy, part: Part) -> Option<Prepared> {
    let prepared = policy.prepare();
    match prepared.report().state(part) {
        Some(State::Active(_)) => Some(prepared),
        state => {
            println!("skipped: no control group for {part}: {state:?}");
            None
        }
    }
}

/// Directories of groups that this process has made.
fn groups() -> Vec<PathBuf> {
    fn walk(folder: &std::path::Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(name) {
                    found.push(entry.path());
                }
                walk(&entry.path(), name, found);
            }
        }
    }
    let mut found = Vec::new();
    walk("/sys/fs/cgroup".as_ref(), &format!("outrigger-{}-", std::process::id()), &mut found);
    found
}

/// Starts a confined script whose first line of output has been read.
fn start(
    place: &Place,
    prepared: &Prepared,
    group: &outrigger_sandbox::Cgroup,
    body: &str,
) -> (Child, String) {
    let mut command = place.command(&script(body));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    prepared.confine(&mut command, Some(group)).unwrap();
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    (child, line)
}

#[test]
fn memory_without_bound_ends_that_worker_alone_and_is_accounted() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { memory: Some(96 * MIB), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Memory) else { return };
    let (greedy, modest) = (prepared.cgroup().unwrap().unwrap(), prepared.cgroup().unwrap().unwrap());
    let (mut other, line) = start(&place, &prepared, &modest, "print('up', flush=True); sys.stdin.read()");
    assert_eq!(line, "up\n");

    let output = place.run_in(&prepared, Some(&greedy), "x = []\nwhile True: x.append(bytearray(1 << 20))");
    assert_eq!(output.status.signal(), Some(libc_sigkill()), "{}", text(&output));
    assert_eq!((greedy.oom_kills(), modest.oom_kills()), (1, 0));

    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    drop((greedy, modest, prepared));
    assert!(groups().is_empty(), "{:?}", groups());
}

#[test]
fn all_that_a_worker_starts_counts_together() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { memory: Some(128 * MIB), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Memory) else { return };
    let group = prepared.cgroup().unwrap().unwrap();
    // Each by itself would fit.
    let body = r"
import time
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        x = bytearray(60 << 20)
        time.sleep(60)
        os._exit(0)
    children.append(child)
os.waitpid(-1, 0)
os.kill(0, 9)
";
    let output = {
        let mut command = place.command(&script(body));
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        prepared.confine(&mut command, Some(&group)).unwrap();
        command.output().unwrap()
    };
    assert!(!output.status.success());
    assert!(group.oom_kills() >= 1);
}

#[test]
fn without_control_groups_a_process_gets_a_memory_error() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { memory: Some(256 * MIB), cgroups: false, ..place.policy() };
    let prepared = policy.prepare();
    assert!(
        matches!(prepared.report().state(Part::Memory), Some(State::Partly { .. })),
        "{}",
        prepared.report()
    );
    assert!(prepared.report().unavailable().any(|(part, _)| part == Part::Memory));
    let output = place.run(
        &prepared,
        "x = []\ntry:\n    while True: x.append(bytearray(1 << 20))\nexcept MemoryError:\n    n = len(x); x.clear(); print('refused', 100 < n < 256)",
    );
    assert_eq!(text(&output), "refused True\n");
}

#[test]
fn a_fork_bomb_is_held_and_removed() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { processes: Some(32), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Processes) else { return };
    let group = prepared.cgroup().unwrap().unwrap();
    let body = r"
refusals = 0
def bomb():
    global refusals
    while refusals < 100:
        try:
            # Each in a session of its own, where the signal to the worker's process group does not reach it.
            if os.fork() == 0:
                os.setsid()
                refusals = 0
        except BlockingIOError as error:
            assert error.errno == errno.EAGAIN
            refusals += 1
main = os.getpid()
bomb()
if os.getpid() == main:
    print('held', flush=True)
import signal
while True: signal.pause()
";
    let (mut child, line) = start(&place, &prepared, &group, body);
    assert_eq!(line, "held\n");
    let processes = group.processes();
    assert!((2..=32).contains(&processes.len()), "{processes:?}");
    assert!(group.fork_refusals() >= 100);
    group.kill_all();
    child.wait().unwrap();
    drop((group, prepared));
    assert!(groups().is_empty(), "{:?}", groups());
}

#[test]
fn threads_count_as_processes() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { processes: Some(10), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Processes) else { return };
    let group = prepared.cgroup().unwrap().unwrap();
    let body = r"
import threading
stop = threading.Event()
try:
    for _ in range(20): threading.Thread(target=stop.wait).start()
except RuntimeError as error:
    print('refused', error)
stop.set()
";
    let output = place.run_in(&prepared, Some(&group), body);
    assert!(text(&output).starts_with("refused can't start new thread"), "{}", text(&output));
}

#[test]
fn processor_time_is_held() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { cpu_millicores: Some(250), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Cpu) else { return };
    let group = prepared.cgroup().unwrap().unwrap();
    // Of a second on the clock, a quarter on the processor, and one period more at the most.
    let body = "import time\nuntil = time.monotonic() + 1\nwhile time.monotonic() < until: pass\nprint(time.process_time() < 0.6)";
    assert_eq!(text(&place.run_in(&prepared, Some(&group), body)), "True\n");
}

#[test]
fn a_running_process_can_be_put_into_a_group() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { processes: Some(32), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Processes) else { return };
    let group = prepared.cgroup().unwrap().unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    group.add(child.id()).unwrap();
    assert_eq!(group.processes(), [child.id()]);
    // Dropping the group ends what is in it.
    drop(group);
    assert_eq!(child.wait().unwrap().signal(), Some(libc_sigkill()));
}

#[test]
fn what_a_dead_replica_has_left_is_removed_at_the_next_start() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { processes: Some(32), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Processes) else { return };
    let group = prepared.cgroup().unwrap().unwrap();
    let own = groups().into_iter().next().unwrap();
    // As if by a replica with this process's number that was started at another time.
    let stale = own.with_file_name(format!("outrigger-{}-1-0", std::process::id()));
    std::fs::create_dir(&stale).unwrap();
    let mut orphan = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    std::fs::write(stale.join("cgroup.procs"), orphan.id().to_string()).unwrap();
    let again = policy.prepare();
    assert_eq!(orphan.wait().unwrap().signal(), Some(libc_sigkill()));
    assert!(own.exists(), "the living replica's groups stay");
    drop((group, prepared, again));
    assert!(groups().is_empty(), "{:?}", groups());
}

#[test]
fn a_worker_cannot_leave_its_group_or_change_its_limits() {
    let _alone = alone();
    let place = Place::new();
    let policy = Policy { processes: Some(32), ..place.policy() };
    let Some(prepared) = in_group(&policy, Part::Processes) else { return };
    if !prepared.report().is_active(Part::Files) {
        println!("skipped: this machine cannot hold files");
        return;
    }
    let group = prepared.cgroup().unwrap().unwrap();
    let own = groups().into_iter().next().unwrap();
    let body = format!(
        "own = {own:?}\nrefused(lambda: open(own + '/pids.max', 'w'), errno.EACCES)\n\
         refused(lambda: open(os.path.dirname(own) + '/cgroup.procs', 'w'), errno.EACCES)\nprint('held')"
    );
    assert_eq!(text(&place.run_in(&prepared, Some(&group), &script(&body))), "held\n");
}

fn libc_sigkill() -> i32 {
    9
}
