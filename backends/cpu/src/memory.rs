//! How much memory the machine has.

/// Bytes in all, and bytes that a new model could have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

/// Asks the operating system; zeros where it does not say in Linux's way.
pub(crate) fn read() -> Memory {
    parse(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

/// Source: proc_meminfo(5). `MemAvailable` counts what caches would give up, which is what a model can have.
fn parse(text: &str) -> Memory {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let bytes = |name| field(name).unwrap_or(0).saturating_mul(1024);
    Memory { total: bytes("MemTotal"), free: bytes("MemAvailable") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24576000 kB\nMemFree:          100 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(parse(text), Memory { total: 24_576_000 * 1024, free: 20_480_000 * 1024 });
        assert_eq!(parse("MemTotal: x kB\nMemAvailable"), Memory::default());
        #[cfg(target_os = "linux")]
        assert!(read().total >= read().free && read().free > 0);
    }
}
