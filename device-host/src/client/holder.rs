//! Whoever holds a host: starts the thread that watches over its child, and ends it.

use std::sync::Arc;
use std::thread::JoinHandle;

use outrigger_backend::{BackendError, BackendInfo};

use super::host::Host;
use super::options::Options;
use super::supervisor;

/// Holds a host. When it is dropped the child ends, and the thread that watches over it.
pub(super) struct Holder {
    pub(super) host: Arc<Host>,
    supervisor: Option<JoinHandle<()>>,
}

impl Holder {
    /// Starts a host; what its child says of the backend.
    pub(super) fn start(options: Arc<Options>) -> Result<(Self, BackendInfo), BackendError> {
        let unavailable = |reason: String| BackendError::Unavailable {
            backend: options.library.display().to_string(),
            reason,
        };
        let host = Host::new(Arc::clone(&options)).map_err(|error| unavailable(error.to_string()))?;
        let (sender, first) = std::sync::mpsc::sync_channel(1);
        let watched = Arc::clone(&host);
        let supervisor = std::thread::Builder::new()
            .name("device-host".into())
            .spawn(move || supervisor::supervise(&watched, &sender))
            .map_err(|error| unavailable(format!("no thread for its device host: {error}")))?;
        let holder = Self { host, supervisor: Some(supervisor) };
        let gone = |_| unavailable("its device host was given up".into());
        let info = first.recv().map_err(gone)??;
        Ok((holder, info))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.host.stop();
        if let Some(supervisor) = self.supervisor.take()
            && supervisor.thread().id() != std::thread::current().id()
        {
            let _ = supervisor.join();
        }
    }
}
