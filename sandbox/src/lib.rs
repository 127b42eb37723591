//! Confines worker processes: what a script may read and write, whom it may talk to, what it may ask of the kernel, how much
//! memory and how many processes it may have.
//!
//! A [`Policy`] says what is allowed. [`Policy::prepare`], called once by the replica, opens and compiles everything, tries it
//! out on the machine, and says in a [`Report`] what holds. [`Prepared::confine`] then confines each child between fork and
//! exec; all that the child starts inherits it. [`Cgroup`] bounds one worker together with what it starts, and tells how many
//! of its processes the kernel has killed for want of memory. [`scrub`] divides the environment, [`hint`] names the setting
//! behind a refusal, [`is_confined`] tells a worker from an operator at a Unix socket.
//!
//! # Threat model
//!
//! The script is not the operator's enemy by intent, but it runs libraries and models that come from anywhere: a pickle that
//! runs code, a package with a thief in it, a parser with a hole. What is held back is what such code wants first: keys of
//! the replica, of the cloud and of the user; other machines; other processes; the model files; all memory and processor.
//!
//! **A boundary**, as far as the [`Report`] says that the part is active:
//!
//! - Files outside the policy cannot be opened, made, removed or renamed, by any path or link, also not by root.
//! - No internet socket can be made while the network is off. Where ports are declared, no other port can be reached by
//!   TCP, and no port can be listened on.
//! - No signal reaches a process outside, and none can be traced; its memory, environment and descriptors in `/proc` are
//!   refused.
//! - Mounts, namespaces, modules, BPF, keys of the kernel, performance counters, io_uring are out of reach. A call that is on
//!   no list is refused with EPERM, and nothing is killed for it.
//! - Root's capabilities are dropped, but for those over files: root cannot raise a limit again or configure the network.
//! - Where control groups are writable, a worker has no more memory, processes and processor time than it was given, however
//!   many processes it makes; it cannot leave its group.
//!
//! **Not a boundary**:
//!
//! - The kernel itself: a hole in it that is reached by an allowed call is not closed. A script that is known to be hostile
//!   belongs into a virtual machine or a kernel of its own (gVisor, Kata).
//! - Paths and names: `stat`, `chdir` and `readlink` work everywhere, so that a worker learns which files exist, of what size
//!   and when changed. Of `/proc` it sees the command line and the state of other processes.
//! - Ports without addresses: the kernel's rule knows the port only. A declared port 50011 is reachable on every host.
//! - With the network on (the default under compat), Unix sockets in files can be reached too. A listener that must tell
//!   workers from operators asks [`is_confined`].
//! - Between workers of one fork-server: they are in one Landlock domain and may signal and read each other. Workers that are
//!   started one by one may not. All workers share `/dev/shm`, the caches in HOME and System V memory, as one user; a key that
//!   a library keeps among its caches (`~/.cache/huggingface/token`) is there for them too.
//! - Of the replica, a worker of the same user may change the processor affinity; nothing else.
//! - Where control groups are not writable, memory is bounded for each process by itself, and neither processes nor processor
//!   time are.
//! - A device that is handed in, such as a GPU, is as safe as its driver. Its memory is not counted.
//! - What is already open is not closed: descriptors that the worker inherits work on.
//! - Time and side channels.
//!
//! # Costs
//!
//! The kernel keeps a table of calls that the filters always let pass, so those cost nearly the same as without; calls whose
//! arguments are looked at (`socket`, `clone`, `ioctl`, `prctl`) run through the filters. Opening a file walks its parents
//! once more. `cargo run --release -p outrigger-sandbox --example cost` measures it.
//!
//! On other systems than Linux everything is reported as unavailable and nothing is confined.

mod environment;
mod policy;
mod report;
pub mod setting;

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod peer;
#[cfg(target_os = "linux")]
mod prepared;
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "system calls that the standard library lacks, and what a child does before exec"
)]
mod sys;
#[cfg(not(target_os = "linux"))]
mod unavailable;

pub use environment::{Rules, Scrubbed, scrub};
pub use policy::{Execute, Network, Policy};
pub use report::{Part, Refused, Report, State, hint};

#[cfg(target_os = "linux")]
pub use cgroup::Cgroup;
#[cfg(target_os = "linux")]
pub use peer::is_confined;
#[cfg(target_os = "linux")]
pub use prepared::Prepared;
#[cfg(not(target_os = "linux"))]
pub use unavailable::{Cgroup, Prepared, is_confined};
