//! How much memory the machine has, or this process's control group, if that is less: what backends for the CPU tell of it.

use std::path::{Path, PathBuf};

/// The machine's memory, or what this process's control group leaves of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineMemory {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that a new model could have.
    pub free: u64,
}

/// A limit of a control group, and what is in use of it, in bytes.
type Limit = (u64, u64);

/// The limits of the groups that this process is in, from its own up to the root.
///
/// Source: cgroups(7); the files `memory.max` and `memory.current` of version 2, `memory.limit_in_bytes` and `memory.usage_in_bytes` of
/// version 1.
fn limits<'a>(groups: &'a str, root: &'a Path) -> impl Iterator<Item = Limit> + 'a {
    let folders = groups.lines().filter_map(move |line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let names = match controllers {
            "" => ("memory.max", "memory.current"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => return None,
        };
        let root = if controllers.is_empty() { root.to_owned() } else { root.join("memory") };
        Some((root, path.trim_start_matches('/').to_owned(), names))
    });
    folders.flat_map(|(root, path, (most, used))| {
        let number = |folder: &Path, name: &str| -> Option<u64> {
            std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        let folders: Vec<PathBuf> = Path::new(&path).ancestors().map(|part| root.join(part)).collect();
        // Inside a container the path may be that outside of it, and the limit is at the root.
        folders
            .into_iter()
            .filter_map(move |folder| Some((number(&folder, most)?, number(&folder, used).unwrap_or(0))))
    })
}

impl MachineMemory {
    /// Asks the operating system; zeros where it does not say in Linux's way.
    pub fn read() -> Self {
        let machine = parse(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        limits(&groups, Path::new("/sys/fs/cgroup")).fold(machine, Self::within)
    }

    fn within(self, (most, used): Limit) -> Self {
        // What caches of the group hold counts as used, though it would be given up: rather too little than too much.
        Self { total: self.total.min(most), free: self.free.min(most.saturating_sub(used)) }
    }
}

/// Source: proc_meminfo(5). `MemAvailable` counts what caches would give up, which is what a model can have.
fn parse(text: &str) -> MachineMemory {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let bytes = |name| field(name).unwrap_or(0).saturating_mul(1024);
    MachineMemory { total: bytes("MemTotal"), free: bytes("MemAvailable") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_s_limit_counts_where_it_is_less() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("pod/app/memory.max", "max\n");
        write("pod/memory.max", "1000\n");
        write("pod/memory.current", "400\n");
        write("memory/docker/memory.limit_in_bytes", "900\n");
        write("memory/docker/memory.usage_in_bytes", "100\n");
        let machine = MachineMemory { total: 5000, free: 3000 };
        let read = |groups: &str| limits(groups, folder.path()).fold(machine, MachineMemory::within);
        assert_eq!(read("0::/pod/app\n"), MachineMemory { total: 1000, free: 600 });
        assert_eq!(
            read("5:cpu,memory:/docker\n1:name=systemd:/x\n"),
            MachineMemory { total: 900, free: 800 }
        );
        assert_eq!(read("0::/elsewhere\n"), machine);
        assert_eq!(read("nonsense"), machine);
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24576000 kB\nMemFree:          100 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(parse(text), MachineMemory { total: 24_576_000 * 1024, free: 20_480_000 * 1024 });
        assert_eq!(parse("MemTotal: x kB\nMemAvailable"), MachineMemory::default());
        #[cfg(target_os = "linux")]
        assert!(MachineMemory::read().total >= MachineMemory::read().free && MachineMemory::read().free > 0);
    }
}
