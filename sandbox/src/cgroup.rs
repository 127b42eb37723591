//! A control group for each worker: bounds on memory, processes and processor time that the kernel holds for all that the
//! worker starts, and an account of why it died.
//!
//! Groups lie below the replica's own, named `outrigger-PID-START-NUMBER` after the replica, so that one that starts finds what
//! a dead one has left. Both hierarchies of Linux are used: version 2 where it has the controllers, version 1 otherwise.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Part, Policy, setting, sys};

/// One period of the processor's budget, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// How long the end of a replica waits for the groups of its workers to become empty.
const SWEEP: Duration = Duration::from_secs(2);
/// Between two looks at a group that is not empty yet; there is no event for it that both versions have.
const PAUSE: Duration = Duration::from_millis(2);
/// A name in front of all of them.
const PREFIX: &str = "outrigger";
/// The group that the replica itself moves to under version 2, where a group with processes cannot have limited ones below.
const OWN: &str = "outrigger-replica";
/// Numbers of groups. Several sandboxes may be in one process, and their groups in one directory.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A limit that a controller of the kernel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Memory,
    Pids,
    Cpu,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }

    pub(crate) fn part(self) -> Part {
        match self {
            Self::Memory => Part::Memory,
            Self::Pids => Part::Processes,
            Self::Cpu => Part::Cpu,
        }
    }

    fn limit(self, policy: &Policy) -> Option<u64> {
        match self {
            Self::Memory => policy.memory,
            Self::Pids => policy.processes,
            Self::Cpu => policy.cpu_millicores,
        }
        .filter(|_| policy.wants(self.part()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where the groups of workers are made.
#[derive(Debug)]
pub(crate) struct Groups {
    version: Version,
    /// The replica's own group, by controller. Under version 2 they are one directory.
    parents: BTreeMap<Controller, PathBuf>,
    limits: BTreeMap<Controller, u64>,
    /// `PID-START` of this process.
    owner: String,
    /// Directories that still held dying processes when their worker was done with.
    leftover: Mutex<Vec<PathBuf>>,
}

impl Groups {
    /// Finds a place for the limits that the policy sets, and tries it out. Second: which limits have none, and why.
    pub(crate) fn open(policy: &Policy) -> (Option<Self>, Vec<(Controller, String)>) {
        let limits: BTreeMap<_, _> = Controller::ALL
            .into_iter()
            .filter_map(|controller| Some((controller, controller.limit(policy)?)))
            .collect();
        if limits.is_empty() {
            return (None, Vec::new());
        }
        if !policy.cgroups {
            let why = format!("control groups are switched off ({})", setting::CGROUPS);
            return (None, limits.into_keys().map(|controller| (controller, why.clone())).collect());
        }
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::find(limits, &Hierarchies::parse(&own, &mounts))
    }

    fn find(
        limits: BTreeMap<Controller, u64>,
        found: &Hierarchies,
    ) -> (Option<Self>, Vec<(Controller, String)>) {
        let mut lacking = Vec::new();
        let mut parents = BTreeMap::new();
        let mut version = Version::One;
        let unified = found.unified.as_deref().filter(|path| {
            let has = read_words(&path.join("cgroup.controllers"));
            limits.keys().any(|controller| has.iter().any(|name| name == controller.name()))
        });
        if let Some(unified) = unified {
            version = Version::Two;
            match delegate(unified, limits.keys().copied()) {
                Ok(parent) => {
                    let usable = read_words(&parent.join("cgroup.subtree_control"));
                    for controller in limits.keys() {
                        if usable.iter().any(|name| name == controller.name()) {
                            parents.insert(*controller, parent.clone());
                        } else {
                            lacking
                                .push((*controller, "the control group has no such controller".to_owned()));
                        }
                    }
                }
                Err(why) => lacking.extend(limits.keys().map(|controller| (*controller, why.clone()))),
            }
        } else {
            for controller in limits.keys() {
                match found.single.get(controller.name()) {
                    Some(path) => {
                        parents.insert(*controller, path.clone());
                    }
                    None => {
                        lacking.push((*controller, "no control group hierarchy is mounted for it".to_owned()))
                    }
                }
            }
        }
        let mut groups = Self {
            version,
            parents,
            limits,
            owner: format!("{}-{}", std::process::id(), start_time(std::process::id()).unwrap_or(0)),
            leftover: Mutex::default(),
        };
        // What cannot be done is found out now, one controller at a time, and not when the first worker starts.
        for controller in groups.parents.keys().copied().collect::<Vec<_>>() {
            let trial = groups.parents[&controller].join(groups.name());
            let outcome = std::fs::create_dir(&trial)
                .and_then(|()| set(groups.version, &trial, controller, groups.limits[&controller]));
            let _ = std::fs::remove_dir(&trial);
            if let Err(error) = outcome {
                lacking.push((controller, format!("{}: {error}", groups.parents[&controller].display())));
                groups.parents.remove(&controller);
            }
        }
        if groups.parents.is_empty() {
            return (None, lacking);
        }
        groups.remove_stale();
        (Some(groups), lacking)
    }

    pub(crate) fn holds(&self, controller: Controller) -> bool {
        self.parents.contains_key(&controller)
    }

    pub(crate) fn version(&self) -> u8 {
        match self.version {
            Version::One => 1,
            Version::Two => 2,
        }
    }

    /// A name that no other group of this process has.
    fn name(&self) -> String {
        format!("{PREFIX}-{}-{}", self.owner, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a group with all its limits.
    pub(crate) fn create(self: &Arc<Self>) -> io::Result<Cgroup> {
        self.sweep();
        let name = self.name();
        let mut group = Cgroup { groups: Arc::clone(self), directories: BTreeMap::new(), procs: Vec::new() };
        for (controller, parent) in &self.parents {
            let directory = parent.join(&name);
            match std::fs::create_dir(&directory) {
                Ok(()) => {}
                // Under version 2 the controllers share a directory.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && group.has(&directory) => {}
                Err(error) => return Err(error),
            }
            let new = !group.has(&directory);
            group.directories.insert(*controller, directory.clone());
            set(self.version, &directory, *controller, self.limits[controller])?;
            if new {
                let procs = File::options().write(true).open(directory.join("cgroup.procs"))?;
                // Says to replicas that see other process numbers that this group has somebody. It goes with the process.
                let _ = procs.try_lock();
                group.procs.push(procs);
            }
        }
        Ok(group)
    }

    /// Removes what replicas that are no more have left, with the processes in it.
    fn remove_stale(&self) {
        let parents: std::collections::BTreeSet<_> = self.parents.values().collect();
        for parent in parents {
            for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_str().is_some_and(is_stale) && !is_held(&entry.path()) {
                    self.discard(entry.path());
                }
            }
        }
    }

    /// Removes a group once it is empty: now, or at a later call.
    fn discard(&self, directory: PathBuf) {
        kill_all(&directory);
        if !removed(&directory) {
            self.leftover.lock().unwrap_or_else(PoisonError::into_inner).push(directory);
        }
    }

    /// Removes what has become empty since.
    fn sweep(&self) -> bool {
        let mut leftover = self.leftover.lock().unwrap_or_else(PoisonError::into_inner);
        leftover.retain(|directory| {
            kill_all(directory);
            !removed(directory)
        });
        leftover.is_empty()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let until = Instant::now() + SWEEP;
        while !self.sweep() && Instant::now() < until {
            std::thread::sleep(PAUSE);
        }
    }
}

/// The control group of one worker. When it is dropped, what is in it is killed and it is removed; dying processes delay that
/// until the next group is made or the sandbox ends.
#[derive(Debug)]
pub struct Cgroup {
    groups: Arc<Groups>,
    directories: BTreeMap<Controller, PathBuf>,
    /// Where a process writes `0` to join.
    procs: Vec<File>,
}

impl Cgroup {
    fn has(&self, directory: &Path) -> bool {
        self.directories.values().any(|other| other == directory)
    }

    /// Puts a running process, such as one that a fork-server has made, into the group. What it has started already stays where
    /// it is.
    ///
    /// # Errors
    /// The operating system's, among them that there is no such process.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        self.procs.iter().try_for_each(|mut procs| procs.write_all(pid.to_string().as_bytes()))
    }

    pub(crate) fn joiners(&self) -> io::Result<Vec<File>> {
        self.procs.iter().map(File::try_clone).collect()
    }

    /// How many processes of the group the kernel has killed because memory ran out. Zero where memory is not bounded.
    pub fn oom_kills(&self) -> u64 {
        let Some(directory) = self.directories.get(&Controller::Memory) else { return 0 };
        let file = match self.groups.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        keyed(&directory.join(file), "oom_kill")
    }

    /// How often a process or thread was not made because of the limit. Zero where their number is not bounded.
    pub fn fork_refusals(&self) -> u64 {
        self.directories
            .get(&Controller::Pids)
            .map_or(0, |directory| keyed(&directory.join("pids.events"), "max"))
    }

    /// The processes in the group.
    pub fn processes(&self) -> Vec<u32> {
        self.directories.values().next().map(|directory| pids(directory)).unwrap_or_default()
    }

    /// Kills every process in the group, also those that have left their process group. It does not wait for their end.
    pub fn kill_all(&self) {
        if let Some(directory) = self.directories.get(&Controller::Pids) {
            // No more of them while they are being killed.
            let _ = put(directory.join("pids.max"), "0");
        }
        if let Some(directory) = self.directories.values().next() {
            kill_all(directory);
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill_all();
        self.procs.clear();
        let directories: std::collections::BTreeSet<_> =
            std::mem::take(&mut self.directories).into_values().collect();
        for directory in directories {
            self.groups.discard(directory);
        }
    }
}

fn set(version: Version, directory: &Path, controller: Controller, limit: u64) -> io::Result<()> {
    let to = |file: &str, value: String| {
        put(directory.join(file), value)
            .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
    };
    let quota = || (limit.saturating_mul(CPU_PERIOD) / 1000).max(1000);
    match (version, controller) {
        (Version::One, Controller::Memory) => {
            to("memory.limit_in_bytes", limit.to_string())?;
            // Memory and swap together; absent where the kernel keeps no account of swap.
            match to("memory.memsw.limit_in_bytes", limit.to_string()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        }
        (Version::Two, Controller::Memory) => {
            to("memory.max", limit.to_string())?;
            match to("memory.swap.max", "0".into()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        }
        (_, Controller::Pids) => to("pids.max", limit.to_string()),
        (Version::One, Controller::Cpu) => {
            to("cpu.cfs_period_us", CPU_PERIOD.to_string())?;
            to("cpu.cfs_quota_us", quota().to_string())
        }
        (Version::Two, Controller::Cpu) => to("cpu.max", format!("{} {CPU_PERIOD}", quota())),
    }
}

/// Makes the controllers of version 2 usable below the replica's own group: a group that holds processes cannot have limited
/// groups below it, so the replica moves into one of its own first.
fn delegate(own: &Path, controllers: impl Iterator<Item = Controller>) -> Result<PathBuf, String> {
    let at = |error: io::Error| format!("{}: {error}", own.display());
    // A replica that has moved already: its parent is the place.
    let (parent, moved) = match own.file_name() {
        Some(name) if name == OWN => {
            (own.parent().map(Path::to_owned).unwrap_or_else(|| own.to_owned()), true)
        }
        _ => (own.to_owned(), false),
    };
    let enable =
        controllers.map(|controller| format!("+{}", controller.name())).collect::<Vec<_>>().join(" ");
    let control = parent.join("cgroup.subtree_control");
    let mut outcome = put(&control, &enable);
    if outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) && !moved {
        let replica = parent.join(OWN);
        match std::fs::create_dir(&replica) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(error)),
            _ => {}
        }
        put(replica.join("cgroup.procs"), "0").map_err(at)?;
        outcome = put(&control, &enable);
        if outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
            // Back, so that nothing has changed.
            let _ = put(parent.join("cgroup.procs"), "0");
            let _ = std::fs::remove_dir(&replica);
            return Err(format!(
                "{}: other processes than the replica are in its control group",
                own.display()
            ));
        }
    }
    outcome.map_err(at)?;
    Ok(parent)
}

/// Directories of this process's control groups.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hierarchies {
    /// Version 2.
    unified: Option<PathBuf>,
    /// Version 1, by controller.
    single: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// From the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`, see `cgroups(7)` and `proc(5)`.
    fn parse(own: &str, mounts: &str) -> Self {
        let mut found = Self::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if controllers.is_empty() {
                found.unified = find_mount(mounts, "cgroup2", None, path);
            } else {
                for controller in controllers.split(',') {
                    if let Some(directory) = find_mount(mounts, "cgroup", Some(controller), path) {
                        found.single.insert(controller.to_owned(), directory);
                    }
                }
            }
        }
        found
    }
}

/// Where a group's directory is mounted.
fn find_mount(mounts: &str, kind: &str, controller: Option<&str>, path: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        if right.next()? != kind {
            return None;
        }
        let options = right.nth(1)?;
        if controller.is_some_and(|controller| !options.split(',').any(|option| option == controller)) {
            return None;
        }
        // Inside a container the mount may show only what is below `root`; paths that begin above it are not visible.
        let below = match root {
            "/" => path,
            root => match path.strip_prefix(root) {
                Some(below) if below.is_empty() || below.starts_with('/') => below,
                _ if path == "/" => "",
                _ => return None,
            },
        };
        let directory = Path::new(point).join(below.trim_start_matches('/'));
        directory.is_dir().then_some(directory)
    })
}

/// Whether a directory's name is that of a replica that is no more.
fn is_stale(name: &str) -> bool {
    let mut fields = name.split('-');
    if fields.next() != Some(PREFIX) {
        return false;
    }
    let (Some(pid), Some(start)) =
        (fields.next().and_then(|pid| pid.parse().ok()), fields.next().and_then(|s| s.parse().ok()))
    else {
        return false;
    };
    start_time(pid) != Some(start)
}

/// Whether a living replica has locked a group. One in another namespace of processes has numbers that mean nothing here.
fn is_held(directory: &Path) -> bool {
    File::open(directory.join("cgroup.procs"))
        .is_ok_and(|procs| matches!(procs.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// When a process was started, in clock ticks after boot: field 22 of `/proc/PID/stat`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn read_words(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Writes to a file of the kernel's: one that is not there is not made.
fn put(path: impl AsRef<Path>, value: impl AsRef<[u8]>) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(value.as_ref())
}

/// The number after a word at the beginning of a line.
fn keyed(path: &Path, key: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

fn pids(directory: &Path) -> Vec<u32> {
    let mut text = String::new();
    if let Ok(mut file) = File::open(directory.join("cgroup.procs")) {
        // A group that is going away reads as an error.
        let _ = file.read_to_string(&mut text);
    }
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn kill_all(directory: &Path) {
    // Version 2 kills all at once.
    if put(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for pid in pids(directory) {
        sys::kill(pid);
    }
}

fn removed(directory: &Path) -> bool {
    match std::fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mounts of a folder that stands for `/sys/fs/cgroup`.
    fn mounts(at: &Path, root: &str) -> String {
        let at = at.display();
        format!(
            "30 1 0:20 / /proc rw - proc proc rw\n\
             31 1 0:21 {root} {at}/memory rw,relatime shared:1 - cgroup cgroup rw,memory\n\
             32 1 0:22 {root} {at}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 1 0:23 {root} {at}/unified rw - cgroup2 cgroup2 rw\n"
        )
    }

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for path in ["memory/docker/abc", "cpu,cpuacct/docker/abc", "unified/docker/abc"] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        folder
    }

    const OWN: &str = "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n5:pids:/docker/abc\n0::/docker/abc\n";

    #[test]
    fn the_replicas_own_groups_are_found() {
        let folder = tree();
        let found = Hierarchies::parse(OWN, &mounts(folder.path(), "/"));
        let at = |path: &str| folder.path().join(path);
        assert_eq!(found.unified, Some(at("unified/docker/abc")));
        let expected = [
            ("memory", "memory/docker/abc"),
            ("cpu", "cpu,cpuacct/docker/abc"),
            ("cpuacct", "cpu,cpuacct/docker/abc"),
        ];
        assert_eq!(
            found.single,
            expected.into_iter().map(|(name, path)| (name.to_owned(), at(path))).collect()
        );
    }

    #[test]
    fn in_a_container_that_sees_only_its_own_they_are_found_too() {
        let folder = tree();
        let found = Hierarchies::parse(OWN, &mounts(folder.path(), "/docker/abc"));
        assert_eq!(found.single.get("memory"), Some(&folder.path().join("memory/")));
        assert_eq!(found.unified, Some(folder.path().join("unified/")));
        // Under a namespace the path is given as seen from within, and the mount's root may still be the outer one.
        let namespaced = Hierarchies::parse("0::/\n", &mounts(folder.path(), "/docker/abc"));
        assert_eq!(namespaced.unified, Some(folder.path().join("unified/")));
        assert_eq!(
            Hierarchies::parse("0::/docker/abcdef\n", &mounts(folder.path(), "/docker/abc")).unified,
            None
        );
    }

    #[test]
    fn limits_are_written_as_each_version_has_them() {
        let cases = [
            (
                Version::One,
                Controller::Memory,
                1 << 20,
                vec![("memory.limit_in_bytes", "1048576"), ("memory.memsw.limit_in_bytes", "1048576")],
            ),
            (
                Version::Two,
                Controller::Memory,
                1 << 20,
                vec![("memory.max", "1048576"), ("memory.swap.max", "0")],
            ),
            (Version::One, Controller::Pids, 32, vec![("pids.max", "32")]),
            (Version::Two, Controller::Pids, 32, vec![("pids.max", "32")]),
            (
                Version::One,
                Controller::Cpu,
                1500,
                vec![("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000")],
            ),
            (Version::Two, Controller::Cpu, 250, vec![("cpu.max", "25000 100000")]),
        ];
        for (version, controller, limit, files) in cases {
            let folder = tempfile::tempdir().unwrap();
            for (file, _) in &files {
                std::fs::write(folder.path().join(file), "").unwrap();
            }
            set(version, folder.path(), controller, limit).unwrap();
            for (file, expected) in files {
                assert_eq!(std::fs::read_to_string(folder.path().join(file)).unwrap(), expected, "{file}");
            }
        }
    }

    #[test]
    fn where_swap_has_no_account_memory_is_limited_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("memory.max"), "").unwrap();
        set(Version::Two, folder.path(), Controller::Memory, 5).unwrap();
        let missing = set(Version::Two, folder.path(), Controller::Pids, 5).unwrap_err();
        assert!(missing.to_string().starts_with("pids.max: "), "{missing}");
    }

    #[test]
    fn the_controllers_of_version_two_are_switched_on_for_what_is_below() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cgroup.subtree_control"), "").unwrap();
        let all = || Controller::ALL.into_iter();
        assert_eq!(delegate(folder.path(), all()), Ok(folder.path().to_owned()));
        let written = std::fs::read_to_string(folder.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+memory +pids +cpu");
        // A replica that moved at an earlier start of its sandbox finds the same place again.
        assert_eq!(delegate(&folder.path().join(super::OWN), all()), Ok(folder.path().to_owned()));
        assert!(delegate(&folder.path().join("nowhere"), all()).unwrap_err().contains("nowhere"));
    }

    #[test]
    fn a_group_is_stale_when_its_replica_is_no_more() {
        let own = std::process::id();
        let start = start_time(own).unwrap();
        assert!(!is_stale(&format!("outrigger-{own}-{start}-0")));
        assert!(is_stale(&format!("outrigger-{own}-{}-0", start + 1)));
        for name in ["outrigger-replica", "outrigger-x-1-0", "outrigger", "user.slice", "outriggers-1-1-0"] {
            assert!(!is_stale(name), "{name}");
        }
    }

    #[test]
    fn a_group_is_held_for_as_long_as_its_file_is_locked() {
        let group = tempfile::tempdir().unwrap();
        assert!(!is_held(group.path()));
        let procs = File::create(group.path().join("cgroup.procs")).unwrap();
        assert!(!is_held(group.path()));
        procs.try_lock().unwrap();
        assert!(is_held(group.path()));
        drop(procs);
        assert!(!is_held(group.path()));
    }

    #[test]
    fn a_count_is_found_by_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.events");
        std::fs::write(&path, "max 7\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!((keyed(&path, "oom_kill"), keyed(&path, "max"), keyed(&path, "none")), (2, 7, 0));
        assert_eq!(keyed(Path::new("/nonexistent"), "max"), 0);
    }
}
