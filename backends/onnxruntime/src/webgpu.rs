//! GPUs through WebGPU: Vulkan, Metal or DX12.
//!
//! The libraries of ONNX Runtime that have it contain Dawn, which looks for an adapter when the first session is made and takes the one it
//! holds to be the best; all sessions of the process share that. Dawn and Vulkan's loader write to stderr what they do not like.

use outrigger_backend::{BackendError, DataType, DeviceInfo, DeviceKind, LoadOptions};

use crate::provider::{ExecutionProvider, Fault, Leftovers, Memory, Plan, PlanError, Provider};
use crate::runtime::Runtime;
use crate::turns::Turns;

const NAME: &str = "WebGpuExecutionProvider";

/// What Dawn says of a device that is gone: after the fact, and of the call of Vulkan's that told.
const LOST: &[&str] = &["[Device] is lost", "VK_ERROR_DEVICE_LOST", "Device was destroyed"];
/// What it says of memory: of a buffer that could not be made, once that is used, which ONNX Runtime keeps and uses again for whatever needs that
/// size; and what ONNX Runtime says of a tensor that no buffer can have, which it notices by what its sizes are counted in.
const NO_MEMORY: &[&str] = &["[Invalid Buffer", "VK_ERROR_OUT_OF_DEVICE_MEMORY", "narrowing_error"];

/// The GPU that Dawn takes.
#[derive(Clone, Debug, Default)]
pub struct WebGpu {
    /// Options of the execution provider, key and value. ONNX Runtime ignores what it does not know, so they are to be checked before.
    pub options: Vec<(String, String)>,
    /// Whether operators that it has not may run on the CPU.
    pub leftovers: Leftovers,
    /// Whether it is known that its shaders have no FP16 (WGSL, `shader-f16`).
    pub lacks_halves: bool,
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

    fn execution_provider(&self) -> Option<&'static str> {
        Some(NAME)
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

    /// Bytes come in where they are made floats, and nowhere else. Not every device has FP16.
    fn has_operator(&self, operator: &str, data_type: DataType) -> bool {
        match data_type {
            DataType::Fp32 => true,
            DataType::Uint8 | DataType::Int8 => operator == "DequantizeLinear",
            DataType::Int32 => matches!(operator, "Transpose" | "Gather"),
            _ => false,
        }
    }

    /// WebGPU does not tell.
    fn memory(&self, _device: usize) -> Result<Memory, BackendError> {
        Ok(Memory::default())
    }

    fn fault(&self, message: &str) -> Option<Fault> {
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        if says(LOST) {
            return Some(Fault::Lost);
        }
        says(NO_MEMORY).then_some(Fault::OutOfMemory)
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

    fn lacks_halves(&self, _device: usize) -> bool {
        self.lacks_halves
    }

    /// What is done to a graph for WebGPU is the same for all adapters.
    fn circumstances(&self) -> String {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_by_their_words() {
        let fault = |message: &str| WebGpu::default().fault(message);
        let lost = "buffer_manager.cc:553 Failed to download data from buffer: [Device] is lost.";
        assert_eq!(fault(lost), Some(Fault::Lost));
        assert_eq!(fault("vkQueueSubmit failed with VK_ERROR_DEVICE_LOST"), Some(Fault::Lost));
        assert_eq!(
            fault("vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY"),
            Some(Fault::OutOfMemory)
        );
        let invalid =
            "WebGPU validation failed. [Invalid Buffer (unlabeled)] is invalid due to a previous error.";
        assert_eq!(fault(invalid), Some(Fault::OutOfMemory));
        assert_eq!(fault("Program Cast requires f16 but the device does not support it."), None);
    }
}
