//! Who is at the other end of a Unix socket: a worker, or somebody from outside?

use std::io;
use std::os::fd::BorrowedFd;

use crate::sys;

/// Whether the process at the other end of a Unix socket is a confined one, or a child of one.
///
/// A worker has the user of its replica, so a socket that asks for the user alone would take it for the operator. What tells
/// them apart is the number of system-call filters: a confined process has more than the replica, and nothing takes one
/// away. Where nothing is known about the process (it has ended, or lives in another process namespace), the answer is
/// `true`. A kernel without `SO_PEERPIDFD` (before 6.5) leaves a gap: a peer that ends at once and whose number another
/// process gets in that moment.
///
/// # Errors
/// It is not a Unix socket.
pub fn is_confined(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let (pid, handle) = sys::peer(socket)?;
    let (Some(theirs), Some(ours)) = (filters(&pid.to_string()), filters("self")) else { return Ok(true) };
    // What was read was about this process only if it is still there.
    let gone = handle.as_ref().is_some_and(sys::has_ended);
    Ok(gone || theirs > ours)
}

fn filters(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")?.trim().parse().ok())
}
