//! CPU time of a process and all its descendants, as the system accounts it.

use std::collections::HashMap;
use std::time::Duration;

/// User and system time of `root` and every living descendant, those that it has reaped counted in.
pub fn tree(root: u32) -> Duration {
    let mut parents = HashMap::new();
    let mut times = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name may hold spaces and parentheses; the fields begin after the last one.
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<u64> = fields.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        parents.insert(pid, fields[1] as u32);
        // utime, stime, cutime, cstime of proc(5).
        times.insert(pid, fields[11] + fields[12] + fields[13] + fields[14]);
    }
    let descends = |mut pid: u32| {
        while pid != root {
            match parents.get(&pid) {
                Some(&parent) if parent != 0 => pid = parent,
                _ => return false,
            }
        }
        true
    };
    let ticks: u64 = times.iter().filter(|(pid, _)| descends(**pid)).map(|(_, ticks)| ticks).sum();
    Duration::from_secs_f64(ticks as f64 / ticks_per_second())
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
