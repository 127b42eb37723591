//! What a backend and its models say of themselves, in the form that crosses the table.

use crate::abi::{Description, Device, Signature, TensorType, Text, kind};
use crate::dlpack::DLDataType;
use crate::{BackendInfo, DeviceKind, ModelInfo, TensorInfo};

/// A [`Description`] and all that it points to. What is boxed or in a `Vec` stays where it is when this moves.
pub(super) struct BackendText {
    description: Description,
    _info: Box<BackendInfo>,
    _formats: Vec<Text>,
    _devices: Vec<Device>,
}

impl BackendText {
    pub(super) fn new(info: BackendInfo) -> Self {
        let info = Box::new(info);
        let formats: Vec<Text> = info.formats.iter().map(|format| Text::of(format)).collect();
        let devices: Vec<Device> = info
            .devices
            .iter()
            .map(|device| Device {
                name: Text::of(&device.name),
                kind: match device.kind {
                    DeviceKind::Cpu => kind::CPU,
                    DeviceKind::Cuda => kind::CUDA,
                    DeviceKind::Gpu => kind::GPU,
                    DeviceKind::Fpga => kind::FPGA,
                },
                lanes: device.lanes,
                memory_total: device.memory_total,
                resident: u32::from(device.resident),
                reserved: 0,
            })
            .collect();
        let description = Description {
            name: Text::of(&info.name),
            version: Text::of(&info.version),
            formats: formats.as_ptr(),
            format_count: formats.len(),
            devices: devices.as_ptr(),
            device_count: devices.len(),
            reason: Text::of(info.reason.as_deref().unwrap_or_default()),
        };
        Self { description, _info: info, _formats: formats, _devices: devices }
    }

    pub(super) fn get(&self) -> *const Description {
        &self.description
    }
}

/// A [`Signature`] and all that it points to, likewise.
pub(crate) struct ModelText {
    signature: Signature,
    _info: Box<ModelInfo>,
    _tensors: [Vec<TensorType>; 2],
    _symbols: Vec<Vec<Text>>,
}

impl ModelText {
    pub(crate) fn new(info: ModelInfo) -> Self {
        let info = Box::new(info);
        let mut symbols = Vec::new();
        let inputs = tensors(&info.inputs, &mut symbols);
        let outputs = tensors(&info.outputs, &mut symbols);
        let signature = Signature {
            inputs: inputs.as_ptr(),
            input_count: inputs.len(),
            outputs: outputs.as_ptr(),
            output_count: outputs.len(),
        };
        Self { signature, _info: info, _tensors: [inputs, outputs], _symbols: symbols }
    }

    pub(crate) fn get(&self) -> *const Signature {
        &self.signature
    }
}

fn tensors(infos: &[TensorInfo], symbols: &mut Vec<Vec<Text>>) -> Vec<TensorType> {
    infos
        .iter()
        .map(|info| {
            // One for each dimension, however many names the backend gave.
            let names =
                info.shape.iter().enumerate().map(|(axis, _)| {
                    Text::of(info.symbols.get(axis).map(String::as_str).unwrap_or_default())
                });
            let names: Vec<Text> = names.collect();
            let tensor = TensorType {
                name: Text::of(&info.name),
                data_type: DLDataType::of(info.data_type),
                rank: u32::try_from(info.shape.len()).unwrap_or(u32::MAX),
                shape: info.shape.as_ptr(),
                symbols: names.as_ptr(),
            };
            symbols.push(names);
            tensor
        })
        .collect()
}
