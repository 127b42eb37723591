//! GPUs through WebGPU: Vulkan, Metal or DX12.
//!
//! The libraries of ONNX Runtime that have it contain Dawn, which looks for an adapter when the first session is made and takes the one it
//! holds to be the best; all sessions of the process share that. Dawn and Vulkan's loader write to stderr what they do not like.

use outrigger_backend::{BackendError, DeviceInfo, DeviceKind, LoadOptions};

use crate::provider::{ExecutionProvider, Fault, Leftovers, Memory, Plan, PlanError, Provider};
use crate::runtime::Runtime;
use crate::turns::Turns;

const NAME: &str = "WebGpuExecutionProvider";

/// The GPU that Dawn takes.
#[derive(Clone, Debug, Default)]
pub struct WebGpu {
    /// Options of the execution provider, key and value. ONNX Runtime ignores what it does not know, so they are to be checked before.
    pub options: Vec<(String, String)>,
    /// Whether operators that it has not may run on the CPU.
    pub leftovers: Leftovers,
}

/// There is no setting of a model's own.
#[derive(Debug, thiserror::Error)]
#[error("there is no setting `{key}` for a model on a GPU")]
struct UnknownSetting {
    key: String,
}

impl WebGpu {
    fn every_plan(&self) -> Plan {
        let provider = ExecutionProvider { name: NAME.into(), options: self.options.clone() };
        Plan { providers: vec![provider], leftovers: self.leftovers, ..Plan::default() }
    }
}

impl Provider for WebGpu {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn devices(&self, runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        runtime.has(NAME)?;
        runtime.probe(&self.every_plan(), self.turns())?;
        Ok(vec![DeviceInfo {
            name: "gpu:0".into(),
            kind: DeviceKind::Gpu,
            memory_total: 0,
            lanes: 1,
            resident: false,
        }])
    }

    fn plan(&self, _device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        match options.settings.first() {
            Some((key, _)) => Err(UnknownSetting { key: key.clone() }.into()),
            None => Ok(self.every_plan()),
        }
    }

    /// WebGPU does not tell.
    fn memory(&self, _device: usize) -> Result<Memory, BackendError> {
        Ok(Memory::default())
    }

    /// A tensor that no buffer can have, which it notices by what its sizes are counted in.
    fn fault(&self, message: &str) -> Option<Fault> {
        message.contains("narrowing_error").then_some(Fault::OutOfMemory)
    }

    /// Dawn's device is one for all sessions, and what they record for it would get mixed up.
    fn turns(&self) -> Option<&'static Turns> {
        static TURNS: Turns = Turns::new();
        Some(&TURNS)
    }

    /// All operators are in Dawn's queue before the first has run.
    fn can_cancel(&self) -> bool {
        false
    }

    /// What is done to a graph for WebGPU is the same for all adapters.
    fn circumstances(&self) -> String {
        String::new()
    }
}
