//! GPUs through WebGPU: Vulkan, Metal or DX12.
//!
//! The libraries of ONNX Runtime that have it contain Dawn, which looks for an adapter when the first session is made and takes the one it
//! holds to be the best; all sessions of the process share that. Dawn and Vulkan's loader write to stderr what they do not like.

use outrigger_backend::{BackendError, DataType, DeviceInfo, DeviceKind, LoadOptions};

use crate::provider::{ExecutionProvider, Fault, Leftovers, Memory, Plan, PlanError, Provider};
use crate::runtime::Runtime;
use crate::turns::Turns;

const NAME: &str = "WebGpuExecutionProvider";

/// Lets a buffer go once what uses it is under way. ONNX Runtime would keep it for whatever needs one of that size, also one that could not be
/// made, so that every later call that needs such a buffer failed, whoever's it is.
const FRESH: [(&str, &str); 2] =
    [("storageBufferCacheMode", "lazyRelease"), ("uniformBufferCacheMode", "lazyRelease")];

/// What ONNX Runtime puts in front of what Dawn says: who heard it.
const HEARD: [&str; 3] = [
    "Exception during initialization: ",
    "Failed to download data from buffer: ",
    "WebGPU validation failed. ",
];
/// How Dawn begins what it says of a device that is gone.
const LOST: [&str; 2] = ["[Device] is lost", "Device was destroyed"];
/// What it says of memory: of a buffer that could not be made, once that is used, and of one that is larger than any can be; and what ONNX Runtime
/// says of a tensor that no buffer can have, which it notices by what its sizes are counted in.
const NO_MEMORY: [&str; 3] = ["[Invalid Buffer", "Buffer size (", "narrowing_error"];
/// The same of Vulkan's, after which call it was.
const VULKAN: [(&str, Fault); 3] = [
    ("VK_ERROR_DEVICE_LOST", Fault::Lost),
    ("VK_ERROR_OUT_OF_DEVICE_MEMORY", Fault::OutOfMemory),
    ("VK_ERROR_OUT_OF_HOST_MEMORY", Fault::OutOfMemory),
];

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
        let own = FRESH.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let options = own.into_iter().chain(self.options.iter().cloned()).collect();
        let provider = ExecutionProvider { name: NAME.into(), options };
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
        // Whether there is an adapter is seen when it is opened.
        runtime.has(NAME)?;
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
        let said = said_by_dawn(message);
        let begins = |words: &[&str]| words.iter().any(|word| said.starts_with(word));
        if begins(&LOST) {
            Some(Fault::Lost)
        } else if begins(&NO_MEMORY) {
            Some(Fault::OutOfMemory)
        } else {
            said_by_vulkan(said)
        }
    }

    fn ask(&self, _device: usize, runtime: &'static Runtime) -> Option<Result<(), String>> {
        Some(runtime.probe(&self.every_plan(), self.turns()))
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

/// A message without what ONNX Runtime puts in front: the place in its source and the condition of an assertion, and who heard it. A name that a
/// model's author chose is never where it then begins.
fn said_by_dawn(message: &str) -> &str {
    let is_place = |word: &str| {
        word.split_once(".cc:").is_some_and(|(_, line)| line.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let said = match message.split_once(' ').filter(|(place, _)| is_place(place)) {
        None => message,
        // The function comes with all of its types, and then the condition; or it is one word.
        Some((_, rest)) => {
            let asserted = rest.split_once(" was false. ").or_else(|| rest.split_once(' '));
            asserted.map_or(rest, |(_, why)| why)
        }
    };
    HEARD.iter().fold(said, |said, heard| said.strip_prefix(heard).unwrap_or(said))
}

/// `vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY`, and what may come after it.
fn said_by_vulkan(said: &str) -> Option<Fault> {
    let (call, code) = said.split_once(" failed with ")?;
    let is_call = call.starts_with("vk") && call.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let end = code.find(|letter: char| !(letter.is_ascii_uppercase() || letter == '_')).unwrap_or(code.len());
    let known = VULKAN.iter().find(|(name, _)| is_call && *name == &code[..end])?;
    Some(known.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_by_their_words() {
        let fault = |message: &str| WebGpu::default().fault(message);
        let downloading = |why: &str| {
            format!(
                "/onnxruntime_src/onnxruntime/core/providers/webgpu/buffer_manager.cc:553 onnxruntime::webgpu::BufferManager::Download(WGPUBuffer, \
                 void*, size_t) const::<lambda(wgpu::MapAsyncStatus, wgpu::StringView)> status == wgpu::MapAsyncStatus::Success was false. \
                 Failed to download data from buffer: {why}"
            )
        };
        assert_eq!(fault(&downloading("[Device] is lost.")), Some(Fault::Lost));
        assert_eq!(fault("vkQueueSubmit failed with VK_ERROR_DEVICE_LOST"), Some(Fault::Lost));
        assert_eq!(
            fault("vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY"),
            Some(Fault::OutOfMemory)
        );
        let invalid =
            "WebGPU validation failed. [Invalid Buffer (unlabeled)] is invalid due to a previous error.";
        assert_eq!(fault(invalid), Some(Fault::OutOfMemory));
        assert_eq!(fault(&downloading("[Invalid Buffer (unlabeled)] is invalid.")), Some(Fault::OutOfMemory));
        let large = "WebGPU validation failed. Buffer size (6400000000) exceeds the max buffer size limit (1073741824).";
        assert_eq!(fault(large), Some(Fault::OutOfMemory));
        assert_eq!(fault("vkCreateBuffer failed with VK_ERROR_OUT_OF_HOST_MEMORY"), Some(Fault::OutOfMemory));
        let half = "shader_helper.cc:401 GenerateSourceCode Program Cast requires f16 but the device does not support it.";
        assert_eq!(fault(half), None);
    }

    #[test]
    fn words_that_are_not_where_the_device_speaks_are_no_faults() {
        for message in [
            "VK_ERROR_DEVICE_LOST: right operand cannot broadcast",
            "no such input: vkQueueSubmit failed with VK_ERROR_DEVICE_LOST",
            "x vkQueueSubmit failed with VK_ERROR_DEVICE_LOST",
            "vkQueueSubmit failed with VK_ERROR_DEVICE_LOST_TO_ME",
            "vkQueueSubmit failed with VK_ERROR_UNKNOWN",
            "a model was false. [Device] is lost",
            "Node (Program) requires f16 but the device does not support it",
            "input [Invalid Buffer]",
        ] {
            assert_eq!(WebGpu::default().fault(message), None, "{message}");
        }
    }
}
