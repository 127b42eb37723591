//! A provider that is what a test says.

use std::sync::Arc;

use outrigger_backend::{Backend, BackendError, DeviceInfo, DeviceKind, LoadOptions};
use outrigger_onnxruntime::{Fault, Memory, Plan, PlanError, Pool, Provider, Runtime, Settings, Shrink};

/// One device, on which all models are loaded by the same plan.
pub(crate) struct Pretended {
    pub(crate) plan: Plan,
    /// The execution provider that the library must have.
    pub(crate) needs: &'static str,
    /// Words of a message, and what they say of the device.
    pub(crate) fault: Option<(&'static str, Fault)>,
    pub(crate) can_cancel: bool,
    pub(crate) shrink: Option<Shrink>,
}

impl Default for Pretended {
    fn default() -> Self {
        Self {
            plan: Plan::default(),
            needs: "CPUExecutionProvider",
            fault: None,
            can_cancel: true,
            shrink: None,
        }
    }
}

impl Provider for Pretended {
    fn name(&self) -> &'static str {
        "pretended"
    }

    fn devices(&self, runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        runtime.has(self.needs)?;
        let name = "pretended:0".into();
        Ok(vec![DeviceInfo { name, kind: DeviceKind::Gpu, memory_total: 100, lanes: 1, resident: false }])
    }

    fn plan(&self, _device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        match options.settings.first() {
            Some((key, _)) => Err(format!("there is no setting `{key}`").into()),
            None => Ok(self.plan.clone()),
        }
    }

    fn memory(&self, _device: usize) -> Result<Memory, BackendError> {
        Ok(Memory { total: 100, free: 50 })
    }

    fn circumstances(&self) -> String {
        String::new()
    }

    fn fault(&self, message: &str) -> Option<Fault> {
        self.fault.filter(|(words, _)| message.contains(words)).map(|(_, fault)| fault)
    }

    fn can_cancel(&self) -> bool {
        self.can_cancel
    }

    fn shrink(&self, _device: usize) -> Option<Shrink> {
        self.shrink.clone()
    }
}

pub(crate) fn open(provider: impl Provider, settings: &Settings) -> Arc<dyn Backend> {
    outrigger_onnxruntime::open(provider, settings, &Pool { threads: 1, affinity: None }).unwrap()
}

/// The library of the project's environment.
pub(crate) fn settings() -> Settings {
    Settings { library: Some(outrigger_testkit::onnxruntime()), ..Settings::default() }
}
