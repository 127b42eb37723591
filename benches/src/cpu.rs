//! CPU time of a process and all its descendants, as the system accounts it.

use std::collections::HashMap;
use std::time::Duration;

/// User and system time of `root` and every living descendant, those that it has reaped counted in.
pub fn tree(root: u32) -> Duration {
    let ticks: u64 = family(root).iter().map(|process| process.ticks).sum();
    Duration::from_secs_f64(ticks as f64 / ticks_per_second())
}

/// A process and its living descendants, by number.
pub fn descendants(root: u32) -> Vec<u32> {
    family(root).into_iter().map(|process| process.pid).collect()
}

struct Process {
    pid: u32,
    parent: u32,
    /// utime, stime, cutime and cstime of proc(5).
    ticks: u64,
}

fn family(root: u32) -> Vec<Process> {
    let mut processes = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        processes.extend(parse(pid, &stat).map(|process| (pid, process)));
    }
    let descends = |mut pid: u32| {
        while pid != root {
            match processes.get(&pid) {
                Some(process) if process.parent != 0 => pid = process.parent,
                _ => return false,
            }
        }
        true
    };
    let family: Vec<u32> = processes.keys().copied().filter(|pid| descends(*pid)).collect();
    family.iter().filter_map(|pid| processes.remove(pid)).collect()
}

fn parse(pid: u32, stat: &str) -> Option<Process> {
    // The name may hold spaces and parentheses; the fields begin after the last one.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<u64> = fields.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
    Some(Process { pid, parent: *fields.get(1)? as u32, ticks: fields.get(11..15)?.iter().sum() })
}

fn ticks_per_second() -> f64 {
    // Fixed by the kernel's interface on every architecture that Linux supports today.
    100.0
}

/// The processor's name, for the line under a table of figures.
pub fn name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    name.trim_start_matches([' ', '\t', ':']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_after_a_name_with_parentheses() {
        let process = parse(7, "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 0 0 40 30 2 1 20 0 1 0 99").unwrap();
        assert_eq!((process.pid, process.parent, process.ticks), (7, 3, 73));
        assert!(parse(7, "7 (short) S 3").is_none());
    }

    #[test]
    fn a_child_belongs_to_the_family_until_it_is_gone() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(descendants(own).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(own).contains(&child.id()));
        assert!(tree(child.id()).is_zero());
    }
}
