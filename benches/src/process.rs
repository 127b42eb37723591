//! What a process holds, looked at again and again while it runs.

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What it held at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Since the watch began.
    pub at: Duration,
    /// Memory that is resident, bytes.
    pub resident: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Sample {
    /// What a process holds now; `None` if there is none of that number.
    pub fn of(pid: u32, at: Duration) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        };
        Some(Self {
            at,
            // In KiB, whatever it says; a process that has ended has none.
            resident: number("VmRSS:")? * 1024,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
            threads: number("Threads:")? as usize,
        })
    }
}

/// A thread that looks.
#[derive(Debug)]
pub struct ProcessWatch {
    over: Sender<()>,
    looking: JoinHandle<Vec<Sample>>,
}

impl ProcessWatch {
    /// Looks at a process now and after each pause; `since` is what times are counted from.
    pub fn start(pid: u32, since: Instant, pause: Duration) -> Self {
        let (over, heard) = channel();
        let looking = std::thread::spawn(move || {
            let mut samples = Vec::new();
            loop {
                samples.extend(Sample::of(pid, since.elapsed()));
                match heard.recv_timeout(pause) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => break samples,
                }
            }
        });
        Self { over, looking }
    }

    /// What was seen.
    pub fn stop(self) -> Vec<Sample> {
        let _ = self.over.send(());
        self.looking.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_and_one_that_is_gone_is_not() {
        let watch = ProcessWatch::start(std::process::id(), Instant::now(), Duration::from_secs(3600));
        let samples = watch.stop();
        assert_eq!(samples.len(), 1);
        assert!(samples[0].resident > 0 && samples[0].descriptors > 2 && samples[0].threads > 0);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(Sample::of(child.id(), Duration::ZERO), None);
    }
}
