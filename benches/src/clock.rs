//! The clock that programs in different processes can compare.

/// Nanoseconds of `CLOCK_MONOTONIC`, as Python's `time.clock_gettime_ns(time.CLOCK_MONOTONIC)` tells them.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writes during the call. It cannot fail: every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
