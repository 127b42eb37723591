//! The parent's side: starts children, keeps them alive, and implements the traits over them.

mod again;
mod connection;
mod course;
mod device;
mod host;
mod instance;
#[cfg(test)]
mod lies;
mod link;
mod options;
mod process;
mod supervisor;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use outrigger_backend::{Backend, BackendError, BackendInfo, Device};

pub use options::{DeviceHealth, Limits, OnChange, Options, Timing};

use device::{HostedDevice, OpenDevice};
use host::Holder;

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

/// A backend whose devices are served by children.
struct Hosted {
    options: Arc<Options>,
    info: BackendInfo,
    /// A child that serves no device yet.
    spare: Mutex<Option<Holder>>,
    /// Those that are open; everybody who opens one again gets the same.
    devices: Vec<Mutex<Weak<OpenDevice>>>,
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
        let open = match slot.upgrade() {
            Some(open) => open,
            None => {
                let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
                let holder = match spare {
                    Some(spare) => spare,
                    None => self.start(index)?,
                };
                let open = Arc::new(OpenDevice::open(holder, index, device)?);
                *slot = Arc::downgrade(&open);
                open
            }
        };
        Ok(Arc::new(HostedDevice(open)))
    }
}
