//! For tests that are proofs too: `cargo xtask prove` runs them longer. What they measure is printed and never gated on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_testkit::ReplicaProcess;

/// Whether this is a long proof.
pub(crate) fn proving() -> bool {
    std::env::var_os("OUTRIGGER_PROVE").is_some()
}

/// How often to do something: `often` in a long proof, `few` times in a test.
pub(crate) fn scale(few: usize, often: usize) -> usize {
    if proving() { often } else { few }
}

/// Prints what was seen.
pub(crate) fn say(text: impl AsRef<str>) {
    println!("figure: {}", text.as_ref());
}

/// Prints how durations are spread.
pub(crate) fn spread(what: &str, mut durations: Vec<Duration>) {
    durations.sort_unstable();
    let Some(last) = durations.len().checked_sub(1) else { return say(format!("{what}: none")) };
    let at = |share: f64| durations[(last as f64 * share).round() as usize].as_secs_f64() * 1e3;
    say(format!(
        "{what}: n {}, min {:.1} ms, p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        durations.len(),
        at(0.0),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    ));
}

/// Sends a signal at once, without a shell in between.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process number");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}

/// What a replica, its fork-server and its workers hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Descriptors of the replica's, and of the fork-server's.
    pub(crate) files: (usize, usize),
    /// Descriptors of shared memory in all of them.
    pub(crate) memfds: usize,
    /// Threads of the replica's.
    pub(crate) threads: usize,
    /// Processes below the replica, zombies counted in.
    pub(crate) processes: usize,
    pub(crate) zombies: usize,
    /// Control groups of this replica's workers.
    pub(crate) groups: usize,
}

impl Held {
    pub(crate) fn by(replica: &ReplicaProcess) -> Self {
        let first = replica.pid();
        let below = descendants(first);
        let fork_server = fork_server(replica);
        let all = std::iter::once(first).chain(below.iter().copied());
        Self {
            files: (files(first).len(), fork_server.map_or(0, |pid| files(pid).len())),
            memfds: all
                .flat_map(files)
                .filter(|target| target.to_string_lossy().starts_with("/memfd:"))
                .count(),
            threads: std::fs::read_dir(format!("/proc/{first}/task")).map_or(0, Iterator::count),
            processes: below.len(),
            zombies: below.iter().filter(|pid| state(**pid) == Some('Z')).count(),
            groups: groups(first).iter().filter_map(|path| path.file_name()).collect::<BTreeSet<_>>().len(),
        }
    }
}

impl Held {
    /// Whether nothing of it is more than it was; threads of the runtime's come and go.
    pub(crate) fn is_at_most(&self, before: &Self) -> bool {
        self.files.0 <= before.files.0
            && self.files.1 <= before.files.1
            && self.memfds <= before.memfds
            && self.threads <= before.threads
            && self.processes <= before.processes
            && self.zombies <= before.zombies
            && self.groups <= before.groups
    }
}

/// The processes below another, at any depth.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
            found.extend(&children);
            open.extend(children);
        }
    }
    found
}

/// The fork-server below a replica.
pub(crate) fn fork_server(replica: &ReplicaProcess) -> Option<u32> {
    descendants(replica.pid()).into_iter().find(|pid| {
        // A worker has the same command line, since it is forked; the fork-server has the replica as its parent.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("forkserver") && parent(*pid) == Some(replica.pid())
    })
}

/// `R`, `S`, `Z` and so on; `None` for a process that is gone.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn files(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

/// Control groups of the workers of a replica.
pub(crate) fn groups(replica: u32) -> BTreeSet<PathBuf> {
    fn search(folder: &Path, prefix: &str, depth: usize, found: &mut BTreeSet<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.insert(entry.path());
            } else if depth > 0 {
                search(&entry.path(), prefix, depth - 1, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    search(Path::new("/sys/fs/cgroup"), &format!("outrigger-{replica}-"), 6, &mut found);
    found
}

/// A figure in KiB of `/proc/PID/status`.
pub(crate) fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
