//! What work takes, for examples that measure.

use std::time::{Duration, Instant};

/// Wall clock and processor time that some work takes.
pub(crate) fn timed(work: impl FnOnce()) -> (Duration, Duration) {
    let (started, cpu) = (Instant::now(), processor());
    work();
    (started.elapsed(), processor() - cpu)
}

/// Processor time of this process.
fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
