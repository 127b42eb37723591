//! The names of the settings that a refusal, or the start-up log, points at. The configuration has these keys.

/// Parts of the sandbox to switch off, by the names of [`Part`](crate::Part).
pub const OFF: &str = "script.sandbox_off";
/// `off`, a list of loopback ports, or `on`.
pub const NETWORK: &str = "script.network";
/// Whether scripts may make Unix sockets while the network is off.
pub const UNIX_SOCKETS: &str = "script.unix_sockets";
/// Further paths that may be read.
pub const READ: &str = "script.read";
/// Further paths that may be written.
pub const WRITE: &str = "script.write";
/// Whether programs other than the interpreter may be started.
pub const EXECUTE: &str = "script.execute";
/// Bytes of memory for each worker and what it starts.
pub const MEMORY: &str = "script.memory";
/// Processes and threads for each worker and what it starts.
pub const PROCESSES: &str = "script.pids";
/// Processor cores for each worker and what it starts.
pub const CPU: &str = "script.cpu";
/// Environment variables that a worker keeps although their name or value looks like a credential.
pub const KEEP_ENVIRONMENT: &str = "script.keep_environment";
/// Whether limits may be held by control groups.
pub const CGROUPS: &str = "script.cgroups";
