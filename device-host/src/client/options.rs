//! What a device host is started with, and its limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_backend::{BackendInfo, Health};

use crate::patience::Limit;

/// What to start, and how it is held.
#[derive(Clone)]
pub struct Options {
    /// The program that becomes the child, with the one argument `device-host`: `outrigger`.
    pub executable: PathBuf,
    /// The backend's library.
    pub library: PathBuf,
    /// The backend's settings, key and value.
    pub settings: Vec<(String, String)>,
    /// The backend's name, for messages and the log.
    pub name: String,
    /// How much of what.
    pub limits: Limits,
    /// Whether there are as many calls at once as a device of the backend says that it has lanes, where that is more than the limit
    /// says; not where somebody has said that limit.
    pub follows_lanes: bool,
    /// How long for what.
    pub timing: Timing,
    /// Hears of every change of a device's health.
    pub on_change: Option<OnChange>,
}

/// Hears of every change of a device's health, on a thread that must not be held up.
pub type OnChange = Arc<dyn Fn(&DeviceHealth) + Send + Sync>;

/// How a device's host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceHealth {
    /// The device's name: `cuda:1`.
    pub device: String,
    /// Healthy; recovering while the host is restarted; lost while it is quarantined.
    pub health: Health,
    /// How often it has been restarted.
    pub restarts: u64,
    /// The process, while there is one that serves.
    pub pid: Option<u32>,
}

/// Limits of one device's host. `outrigger` has a key for each in its `[backends.NAME]` tables, and messages name them by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls at once, `max_calls`; each has a socket, a thread of the host's, and regions of its own. See [`Options::follows_lanes`].
    pub connections: usize,
    /// How long a call waits for one of them, `call_wait`.
    pub connection_wait: Duration,
    /// Bytes of all inputs of one call, and of all its results, `max_call_bytes`.
    pub call_bytes: u64,
    /// Bytes of all inputs of one call, and of all its results, that still travel in the frame, `inline_bytes`: at most
    /// [`Limits::MOST_INLINE`].
    pub inline_bytes: usize,
    /// Bytes of shared memory that each side keeps for the next call of a connection, `kept_bytes`; larger ones are made for one call.
    pub kept_bytes: u64,
    /// Regions that the host keeps for each connection, `kept_regions`, at least 1; more are made for one call each.
    pub kept_regions: usize,
    /// Models loaded at once, `max_models`.
    pub models: usize,
    /// Instances at once, `max_instances`: at most [`Limits::MOST_INSTANCES`].
    pub instances: usize,
}

impl Limits {
    /// The most bytes that still travel in a frame, which has a limit of its own.
    pub const MOST_INLINE: usize = crate::frame::LIMIT / 4;
    /// The most instances, of which the status of a device says what each holds, in one frame.
    pub const MOST_INSTANCES: usize = crate::frame::LIMIT / 32;
    /// The most lanes of a device that count.
    const MOST_LANES: usize = 1024;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            connection_wait: Duration::from_secs(30),
            call_bytes: 2 << 30,
            inline_bytes: 4 << 10,
            kept_bytes: 64 << 20,
            kept_regions: 16,
            models: 4096,
            instances: 16384,
        }
    }
}

/// Times of one device's host. `outrigger` has a key for each, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long both sides look for the next frame before they sleep, where frames come that fast, `spin`; 0 for never.
    pub spin: Duration,
    /// From the start of the process until it has described the backend, `start_timeout`.
    pub start: Duration,
    /// For the device's status, `status_timeout`; a host that does not answer hangs, and is ended.
    pub answer: Duration,
    /// For what neither loads nor runs anything, `request_timeout`: opening the device, estimates, memory of its own.
    pub request: Duration,
    /// For one model to be loaded, also again after a restart, and for one instance to be made, `load_timeout`.
    pub reload: Duration,
    /// Between a cancel and the run's end, where the backend can end runs early, `cancel_grace`; then the host
    /// is ended.
    pub cancel_grace: Duration,
    /// A connection that was not used for so long is closed, `idle_timeout`, but for one.
    pub idle: Duration,
    /// For something that is unloaded, and for the process to end in order, `end_grace`; then it is ended.
    pub end_grace: Duration,
    /// The pause before the second restart, `restart_backoff`; the first is at once. It doubles.
    pub backoff: Duration,
    /// The longest pause, `restart_backoff_max`, and that between two tries of what did not load again.
    pub backoff_most: Duration,
    /// A host that served so long starts at once again, `restart_backoff_reset`.
    pub served_well: Duration,
    /// A device whose host died so many times, `quarantine_deaths`…
    pub deaths: usize,
    /// …within this time, `quarantine_window`, without a good call in between, is quarantined…
    pub deaths_within: Duration,
    /// …and tried again only so often, `quarantine`.
    pub quarantine: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            spin: Duration::from_micros(50),
            start: Duration::from_secs(60),
            answer: Duration::from_secs(5),
            request: Duration::from_secs(60),
            reload: Duration::from_secs(600),
            // ONNX Runtime heeds a cancel only between two operators.
            cancel_grace: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            end_grace: Duration::from_secs(10),
            backoff: Duration::from_millis(100),
            backoff_most: Duration::from_secs(30),
            served_well: Duration::from_secs(30),
            deaths: 5,
            deaths_within: Duration::from_secs(60),
            quarantine: Duration::from_secs(60),
        }
    }
}

impl Timing {
    /// [`Timing::start`] and its key.
    pub(super) fn to_start(&self) -> Limit {
        Limit { time: self.start, key: "start_timeout" }
    }

    /// [`Timing::answer`] and its key.
    pub(super) fn to_tell(&self) -> Limit {
        Limit { time: self.answer, key: "status_timeout" }
    }

    /// [`Timing::request`] and its key.
    pub(super) fn to_answer(&self) -> Limit {
        Limit { time: self.request, key: "request_timeout" }
    }

    /// [`Timing::reload`] and its key.
    pub(super) fn to_load(&self) -> Limit {
        Limit { time: self.reload, key: "load_timeout" }
    }

    /// [`Timing::end_grace`] and its key.
    pub(super) fn to_end(&self) -> Limit {
        Limit { time: self.end_grace, key: "end_grace" }
    }
}

impl Options {
    /// A backend's library in a child of `executable`, with the limits and times that are usual.
    pub fn new(
        executable: impl Into<PathBuf>,
        library: impl Into<PathBuf>,
        name: impl Into<String>,
        settings: &[(String, String)],
    ) -> Self {
        Self {
            executable: executable.into(),
            library: library.into(),
            settings: settings.to_vec(),
            name: name.into(),
            limits: Limits::default(),
            follows_lanes: true,
            timing: Timing::default(),
            on_change: None,
        }
    }

    /// Calls at once to a host of this backend.
    pub(super) fn calls(&self, info: &BackendInfo) -> usize {
        let lanes = info.devices.iter().map(|device| device.lanes as usize).max().unwrap_or(0);
        let lanes = if self.follows_lanes { lanes.min(Limits::MOST_LANES) } else { 0 };
        self.limits.connections.max(lanes).max(1)
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("executable", &self.executable)
            .field("library", &self.library)
            .field("name", &self.name)
            .field("limits", &self.limits)
            .field("follows_lanes", &self.follows_lanes)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use outrigger_backend::{DeviceInfo, DeviceKind};

    use super::*;

    #[test]
    fn there_are_as_many_calls_as_a_device_has_lanes_unless_their_number_was_said() {
        let backend = |lanes: u32| {
            let (name, kind) = ("gpu:0".into(), DeviceKind::Gpu);
            let device = DeviceInfo { name, kind, memory_total: 0, lanes, resident: false };
            let (name, version) = ("gpu".into(), "1".into());
            BackendInfo { name, version, formats: Vec::new(), devices: vec![device], reason: None }
        };
        let mut options = Options::new("/x", "/x", "x", &[]);
        let mut calls = |connections: usize, lanes: u32| {
            options.limits.connections = connections;
            options.calls(&backend(lanes))
        };
        assert_eq!([calls(64, 0), calls(64, 64), calls(64, 65), calls(0, 0)], [64, 64, 65, 1]);
        assert_eq!(calls(64, u32::MAX), 1024, "a child is not believed everything");
        options.follows_lanes = false;
        options.limits.connections = 2;
        assert_eq!(options.calls(&backend(8)), 2);
    }
}
