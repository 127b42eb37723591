//! ONNX models on the same device, through ONNX Runtime's WebGPU execution provider: Dawn, beside wgpu.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use outrigger_backend::{BackendError, Device, DeviceStatus, Health, LoadOptions};
use outrigger_onnxruntime::{self as onnxruntime, Pool, WebGpu};

use crate::adapters::AdapterInfo;
use crate::model::load_error;
use crate::settings::Settings;

/// ONNX Runtime, started by the first model that needs it: it takes a second and memory of the device's.
pub(crate) struct Onnx {
    provider: WebGpu,
    settings: onnxruntime::Settings,
    /// Why it is not started at all, where that is known beforehand.
    refused: Option<String>,
    opened: OnceLock<Result<Arc<dyn Device>, String>>,
}

impl Onnx {
    /// `lacks_halves`: that the device's shaders have no FP16.
    pub(crate) fn new(settings: &Settings, refused: Option<String>, lacks_halves: bool) -> Self {
        Self {
            provider: WebGpu { leftovers: settings.leftovers, lacks_halves, ..WebGpu::default() },
            settings: settings.onnxruntime.clone(),
            refused,
            opened: OnceLock::new(),
        }
    }

    /// What there is to say of it before a model needs it: its version, or why there are no ONNX models. Opens the library, and no device.
    pub(crate) fn said(&self) -> String {
        let version = match &self.refused {
            Some(refused) => Err(refused.clone()),
            None => onnxruntime::version(&self.provider, &self.settings, &pool()),
        };
        match version {
            Ok(version) => format!("ONNX Runtime {version}"),
            Err(why) => format!("no ONNX models: {}", why.replace('\n', "; ")),
        }
    }

    /// The device as ONNX Runtime drives it, for a model; or why it does not.
    pub(crate) fn device(&self, options: &LoadOptions) -> Result<&Arc<dyn Device>, BackendError> {
        let opened = self.opened.get_or_init(|| self.open());
        let without = |why: &String| {
            load_error(options, format_args!("this device takes no ONNX models: {}", why.replace('\n', "; ")))
        };
        opened.as_ref().map_err(without)
    }

    fn open(&self) -> Result<Arc<dyn Device>, String> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let backend = onnxruntime::open(self.provider.clone(), &self.settings, &pool());
        let backend = backend.map_err(|error| error.to_string())?;
        match &backend.info().reason {
            Some(reason) => Err(reason.clone()),
            None => backend.open(0).map_err(|error| error.to_string()),
        }
    }

    /// What its models hold, and how the device is to it, if it was started.
    pub(crate) fn status(&self) -> Result<(u64, Health), BackendError> {
        let Some(Ok(device)) = self.opened.get() else { return Ok((0, Health::Healthy)) };
        let DeviceStatus { memory_held, health, .. } = device.status()?;
        Ok((memory_held, health))
    }
}

/// What is left for the CPU runs there as it would on the backend for CPUs.
fn pool() -> Pool {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Pool { threads, affinity: None }
}

/// Why a device takes no ONNX models, as far as that is known without asking ONNX Runtime, which chooses among all the devices that Vulkan has
/// and does not tell.
pub(crate) fn refusal(index: usize, unused: &[AdapterInfo], settings: &Settings) -> Option<String> {
    if settings.onnxruntime.library.is_none() {
        return Some("the setting `onnxruntime` names no library of ONNX Runtime with WebGPU".into());
    }
    if index > 0 {
        return Some("ONNX Runtime takes the first one itself".into());
    }
    let unused = unused.first()?;
    Some(format!(
        "ONNX Runtime might take `{}`, which calculates in software; hide its driver (VK_DRIVER_FILES, VK_LOADER_DRIVERS_DISABLE), or permit it with the setting `software=true`",
        unused.name
    ))
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
        let software = AdapterInfo {
            name: "llvmpipe".into(),
            driver: String::new(),
            hardware: Hardware::Software,
            memory: 0,
            max_binding: 0,
        };
        let refusal = |index, unused: &[AdapterInfo], settings: &Settings| {
            super::refusal(index, unused, settings).unwrap_or_default()
        };
        assert_eq!(refusal(0, &[], &settings), "");
        assert!(refusal(1, &[], &settings).contains("the first one"));
        let said = refusal(0, &[software], &settings);
        assert!(said.contains("`llvmpipe`") && said.contains("software=true"), "{said}");
        assert!(refusal(0, &[], &Settings::default()).contains("the setting `onnxruntime`"));
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let settings =
            Settings::read(&[("onnxruntime".into(), "/nowhere/libonnxruntime.so".into())]).unwrap();
        let onnx = Onnx::new(&settings, None, false);
        let said = onnx.said();
        assert!(said.starts_with("no ONNX models: no library of ONNX Runtime 1."), "{said}");
        let error = onnx.device(&LoadOptions::of("/m.onnx")).err().unwrap();
        let BackendError::Load(text) = error else { panic!("{error:?}") };
        let begins = "/m.onnx: this device takes no ONNX models: no library of ONNX Runtime 1.";
        assert!(text.starts_with(begins) && text.contains("`/nowhere/libonnxruntime.so`"), "{text}");
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(onnx.status().unwrap(), (0, Health::Healthy));
    }
}
