//! The parent's side: starts children, keeps them alive, and implements the traits over them.

mod again;
mod bell;
mod connection;
mod control;
mod course;
mod device;
mod ending;
mod holder;
mod host;
mod instance;
#[cfg(test)]
mod lies;
mod link;
mod loaded;
mod options;
mod pinned;
mod pool;
mod process;
mod remote;
mod results;
mod runs;
mod supervisor;
mod trouble;

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use outrigger_backend::{Backend, BackendError, BackendInfo, Device};

pub use options::{DeviceHealth, Limits, OnChange, Options, Timing};

use device::{HostedDevice, OpenDevice};
use holder::Holder;

/// Starts a child that opens a backend's library, and describes the backend. Each device that is opened is served by a child of its
/// own, which is started again whenever it dies, and ends with the last of what was made from the device.
///
/// A child that is gone is [`BackendError::Lost`] for the calls under way and those that come until there is another;
/// the models and instances that the caller holds go on with that one.
///
/// # Errors
/// [`BackendError::Unavailable`] if the child does not start, and whatever opening the library in this process would say.
pub fn open(options: Options) -> Result<Arc<dyn Backend>, BackendError> {
    let options = Arc::new(options);
    let (holder, info) = Holder::start(Arc::clone(&options))?;
    // The first device is served by the child that described the backend. Without a device there is no more to serve.
    let spare = (!info.devices.is_empty()).then_some(holder);
    let devices = info.devices.iter().map(|_| Mutex::default()).collect();
    Ok(Arc::new(Hosted { options, info, spare: Mutex::new(spare), devices }))
}

/// How long a child that was killed may take to be gone, beyond its grace.
const CLOSING: Duration = Duration::from_secs(6);

/// A backend whose devices are served by children.
struct Hosted {
    options: Arc<Options>,
    info: BackendInfo,
    /// A child that serves no device yet.
    spare: Mutex<Option<Holder>>,
    /// Those that are open; everybody who opens one again gets the same.
    devices: Vec<Mutex<Slot>>,
}

/// A device that may be open.
#[derive(Default)]
struct Slot {
    open: Weak<OpenDevice>,
    /// Is closed when the child of the one that was open last has ended, and what it held on the device is free.
    ended: Option<Receiver<()>>,
}

impl Hosted {
    /// Starts a further child, which is to find the device that the first one described.
    fn start(&self, index: usize) -> Result<Holder, BackendError> {
        let (holder, info) = Holder::start(Arc::clone(&self.options))?;
        let unavailable = |reason| BackendError::Unavailable {
            backend: self.options.library.display().to_string(),
            reason,
        };
        supervisor::same_device(&self.info, &info, index).map_err(unavailable)?;
        Ok(holder)
    }
}

impl Backend for Hosted {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn open(&self, index: usize) -> Result<Arc<dyn Device>, BackendError> {
        let (Some(slot), Some(device)) = (self.devices.get(index), self.info.devices.get(index)) else {
            return Err(BackendError::Input(format!("there is no device number {index}")));
        };
        // Held while it opens: whoever opens it at the same time waits for the one child.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match slot.open.upgrade() {
            Some(open) => open,
            None => {
                if let Some(ended) = slot.ended.take() {
                    // Nobody holds it any more: it is about to end.
                    let _ = ended.recv_timeout(self.options.timing.end_grace + CLOSING);
                }
                let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
                let holder = match spare {
                    Some(spare) => spare,
                    None => self.start(index)?,
                };
                let (alive, ended) = sync_channel(0);
                let open = Arc::new(OpenDevice::open(holder, index, device, alive)?);
                *slot = Slot { open: Arc::downgrade(&open), ended: Some(ended) };
                open
            }
        };
        Ok(Arc::new(HostedDevice(open)))
    }
}
