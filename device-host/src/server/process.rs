//! The process: its control socket, and what becomes of it when memory runs out or its parent ends.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Takes the socket off standard input, where nothing is left for a library to read.
pub(super) fn control() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    if socket_type(&stdin)? != SocketType::STREAM {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Not one of the three that everybody writes to.
    let control = fcntl_dupfd_cloexec(&stdin, 3)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(control)
}

/// How much sooner than its parent a child is chosen when memory runs out.
const OOM_SCORE: i32 = 300;

/// Ends with its parent, also where that is killed; and before it when memory runs out. Where either is refused the closed control
/// socket, and the kernel's own choice, are what is left. `false` if the parent has ended already, which no signal tells any more.
pub(super) fn prepare(control: &OwnedFd) -> bool {
    let parent = getppid();
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if getppid() != parent || is_hung_up(control) {
        return false;
    }
    let path = "/proc/self/oom_score_adj";
    let own = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(own) = own {
        let _ = std::fs::write(path, own.saturating_add(OOM_SCORE).min(1000).to_string());
    }
    true
}

/// Whether nobody is at the other end of a socket.
fn is_hung_up(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&at_once)).is_ok()
        && polled.iter().any(|polled| polled.revents().contains(PollFlags::HUP))
}
