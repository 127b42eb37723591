//! ONNX models on the same device, through ONNX Runtime's WebGPU execution provider: Dawn, beside wgpu.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_backend::{BackendError, Device, DeviceStatus, Health};
use outrigger_onnxruntime::{self as onnxruntime, Pool, WebGpu};

use crate::adapters::AdapterInfo;
use crate::settings::Settings;

/// ONNX Runtime, started by the first model that needs it: it takes a second and memory of the device's.
pub(crate) struct Onnx {
    provider: WebGpu,
    settings: onnxruntime::Settings,
    /// Why it is not started at all, where that is known beforehand.
    refused: Option<String>,
    /// What became of the start. Dawn does not look for a device that it has not found again, so another start comes to the same in this process.
    started: Mutex<Option<Result<Arc<dyn Device>, NotStarted>>>,
}

/// Why there is no device for ONNX models.
#[derive(Clone, Debug)]
enum NotStarted {
    /// The library, or an adapter that it takes, is not there.
    Absent(String),
    /// The device did not run anything. Another process may have more luck.
    Failed(String),
}

impl NotStarted {
    fn error(&self) -> BackendError {
        match self {
            Self::Absent(why) => BackendError::Unavailable { backend: "gpu".into(), reason: no_models(why) },
            Self::Failed(why) => BackendError::Lost(no_models(why)),
        }
    }
}

fn no_models(why: &str) -> String {
    format!("this device takes no ONNX models: {}", why.replace('\n', "; "))
}

impl Onnx {
    /// `lacks_halves`: that the device's shaders have no FP16.
    pub(crate) fn new(settings: &Settings, refused: Option<String>, lacks_halves: bool) -> Self {
        Self {
            provider: WebGpu { leftovers: settings.leftovers, lacks_halves, ..WebGpu::default() },
            settings: settings.onnxruntime.clone(),
            refused,
            started: Mutex::default(),
        }
    }

    /// What there is to say of it before a model needs it: its version, or why there are no ONNX models. Opens the library, and no device.
    pub(crate) fn said(&self) -> String {
        let version = match &self.refused {
            Some(refused) => Err(refused.clone()),
            None => onnxruntime::version(&self.provider, &self.settings),
        };
        match version {
            Ok(version) => format!("ONNX Runtime {version}"),
            Err(why) => format!("no ONNX models: {}", why.replace('\n', "; ")),
        }
    }

    /// The device as ONNX Runtime drives it.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where the settings or the devices that there are do not permit it, [`BackendError::Unavailable`] where
    /// something is missing, [`BackendError::Lost`] where the device does not run anything, [`BackendError::OutOfMemory`].
    pub(crate) fn device(&self) -> Result<Arc<dyn Device>, BackendError> {
        if let Some(refused) = &self.refused {
            return Err(BackendError::Unsupported(no_models(refused)));
        }
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if started.is_none() {
            *started = Some(match self.start() {
                Ok(device) => Ok(device),
                // There may be more next time.
                Err(BackendError::OutOfMemory(why)) => {
                    return Err(BackendError::OutOfMemory(no_models(&why)));
                }
                Err(BackendError::Lost(why)) => Err(NotStarted::Failed(why)),
                Err(BackendError::Unavailable { reason, .. }) => Err(NotStarted::Absent(reason)),
                Err(error) => Err(NotStarted::Absent(error.to_string())),
            });
        }
        match &*started {
            Some(Ok(device)) => Ok(Arc::clone(device)),
            Some(Err(why)) => Err(why.error()),
            None => Err(BackendError::Internal("ONNX Runtime was started and is not there".into())),
        }
    }

    fn start(&self) -> Result<Arc<dyn Device>, BackendError> {
        let backend = onnxruntime::open(self.provider.clone(), &self.settings, &pool())?;
        match &backend.info().reason {
            Some(reason) => Err(BackendError::Unavailable { backend: "gpu".into(), reason: reason.clone() }),
            None => backend.open(0),
        }
    }

    /// What its models hold, and how the device is to it, if it was started.
    pub(crate) fn status(&self) -> Result<(u64, Health), BackendError> {
        // While it is being started nothing is known, and who asks does not wait.
        let Ok(started) = self.started.try_lock() else { return Ok((0, Health::Healthy)) };
        let device = match &*started {
            Some(Ok(device)) => Arc::clone(device),
            Some(Err(NotStarted::Failed(why))) => return Ok((0, Health::Lost(no_models(why)))),
            _ => return Ok((0, Health::Healthy)),
        };
        drop(started);
        let DeviceStatus { memory_held, health, .. } = device.status()?;
        Ok((memory_held, health))
    }
}

/// What is left for the CPU has as many threads as there are processors for this process, whatever the backend for CPUs is set to.
fn pool() -> Pool {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Pool { threads, affinity: None }
}

/// Why a device takes no ONNX models, as far as that is known without asking ONNX Runtime, which chooses among all the devices that Vulkan has
/// and does not tell: so there must be one in all.
pub(crate) fn refusal(used: &[&AdapterInfo], unused: &[AdapterInfo], settings: &Settings) -> Option<String> {
    if settings.onnxruntime.library.is_none() {
        return Some("the setting `onnxruntime` names no library of ONNX Runtime with WebGPU".into());
    }
    const HIDE: &str = "(VK_DRIVER_FILES, VK_LOADER_DRIVERS_DISABLE)";
    if let Some(unused) = unused.first() {
        return Some(format!(
            "ONNX Runtime might take `{}`, which calculates in software; hide its driver {HIDE}",
            unused.name
        ));
    }
    let names = || used.iter().map(|device| format!("`{}`", device.name)).collect::<Vec<_>>().join(", ");
    (used.len() > 1).then(|| {
        format!(
            "ONNX Runtime takes one of {} devices and does not say which: {}; hide the drivers of all others {HIDE}",
            used.len(),
            names()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::Hardware;

    #[test]
    fn what_is_refused_is_said() {
        let with = |library: &str| {
            Settings::read(&[("onnxruntime".into(), library.into()), ("software".into(), "false".into())])
        };
        let settings = with("/lib/ort.so").unwrap();
        let device = |name: &str| AdapterInfo {
            name: name.into(),
            driver: String::new(),
            hardware: Hardware::Software,
            memory: 0,
            max_binding: 0,
        };
        let (card, other) = (device("card"), device("other"));
        let refusal = |used: &[&AdapterInfo], unused: &[AdapterInfo], settings: &Settings| {
            super::refusal(used, unused, settings).unwrap_or_default()
        };
        assert_eq!(refusal(&[&card], &[], &settings), "");
        let said = refusal(&[&card, &other], &[], &settings);
        assert!(said.contains("2 devices") && said.contains("`card`, `other`"), "{said}");
        let said = refusal(&[&card], &[device("llvmpipe")], &settings);
        assert!(said.contains("`llvmpipe`") && said.contains("VK_DRIVER_FILES"), "{said}");
        assert!(refusal(&[&card], &[], &Settings::default()).contains("the setting `onnxruntime`"));
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let settings =
            Settings::read(&[("onnxruntime".into(), "/nowhere/libonnxruntime.so".into())]).unwrap();
        let onnx = Onnx::new(&settings, None, false);
        let said = onnx.said();
        assert!(said.starts_with("no ONNX models: no library of ONNX Runtime 1."), "{said}");
        let error = onnx.device().err().unwrap();
        let BackendError::Unavailable { reason: text, .. } = error else { panic!("{error:?}") };
        let begins = "this device takes no ONNX models: no library of ONNX Runtime 1.";
        assert!(text.starts_with(begins) && text.contains("`/nowhere/libonnxruntime.so`"), "{text}");
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(onnx.status().unwrap(), (0, Health::Healthy));
    }
}
