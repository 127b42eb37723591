//! A provider that is what a test says.

use std::sync::Arc;

use outrigger_backend::{Backend, BackendError, DeviceInfo, DeviceKind, LoadOptions};
use outrigger_onnxruntime::{Memory, Plan, PlanError, Pool, Provider, Runtime, Settings};

/// One device, on which all models are loaded by the same plan.
pub(crate) struct Pretended {
    pub(crate) plan: Plan,
    /// The execution provider that the library must have.
    pub(crate) needs: &'static str,
    /// Words of a message that say that the device is lost.
    pub(crate) lost: Option<&'static str>,
}

impl Default for Pretended {
    fn default() -> Self {
        Self { plan: Plan::default(), needs: "CPUExecutionProvider", lost: None }
    }
}

impl Provider for Pretended {
    fn name(&self) -> &'static str {
        "pretended"
    }

    fn devices(&self, runtime: &Runtime) -> Result<Vec<DeviceInfo>, String> {
        runtime.has(self.needs)?;
        let name = "pretended:0".into();
        Ok(vec![DeviceInfo { name, kind: DeviceKind::Gpu, memory_total: 100, lanes: 1, resident: false }])
    }

    fn plan(&self, _device: usize, _options: &LoadOptions) -> Result<Plan, PlanError> {
        Ok(self.plan.clone())
    }

    fn memory(&self, _device: usize) -> Result<Memory, BackendError> {
        Ok(Memory { total: 100, free: 50 })
    }

    fn circumstances(&self) -> String {
        String::new()
    }

    fn is_lost(&self, message: &str) -> bool {
        self.lost.is_some_and(|words| message.contains(words))
    }
}

pub(crate) fn open(provider: Pretended, settings: &Settings) -> Arc<dyn Backend> {
    outrigger_onnxruntime::open(provider, settings, &Pool { threads: 1, affinity: None }).unwrap()
}

/// The library of the project's environment.
pub(crate) fn settings() -> Settings {
    Settings { library: Some(outrigger_testkit::onnxruntime()), ..Settings::default() }
}
