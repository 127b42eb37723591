//! Tensors that stay on a device, which is the host in disguise: its memory has another name and is reached by address alone.
#![allow(unsafe_code, reason = "is the device")]

mod support;

use std::sync::Arc;

use outrigger_backend::conformance::{self, Fixtures, fp32, instance, values};
use outrigger_backend::{
    Backend, BackendError, DLDevice, DataType, DeviceInfo, DeviceMemory, LoadOptions, Output, Run, Shape,
    Tensor,
};
use outrigger_onnxruntime::{Memory, Plan, PlanError, Provider, Residence, Runtime};
use outrigger_testkit::onnx::{self, Dim, Graph, write};
use support::{Pretended, settings};

const DEVICE: DLDevice = DLDevice { device_type: 77, device_id: 3 };

struct Block(Vec<u8>);

impl Drop for Block {
    fn drop(&mut self) {
        // Whoever reads it later sees that it is gone.
        self.0.fill(0xff);
    }
}

/// [`Pretended`], with memory of its own.
struct Disguised(Pretended);

impl Provider for Disguised {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn devices(&self, runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        let devices = self.0.devices(runtime)?;
        Ok(devices.into_iter().map(|device| DeviceInfo { resident: true, ..device }).collect())
    }

    fn plan(&self, device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        self.0.plan(device, options)
    }

    fn memory(&self, device: usize) -> Result<Memory, BackendError> {
        self.0.memory(device)
    }

    fn circumstances(&self) -> String {
        self.0.circumstances()
    }

    fn can_cancel(&self) -> bool {
        self.0.can_cancel()
    }

    fn residence(&self, _device: usize) -> Option<Residence> {
        Some(Residence { allocator: "Cpu".into(), id: 0, device: DEVICE })
    }

    fn allocate(&self, _device: usize, bytes: usize) -> Result<DeviceMemory, BackendError> {
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(bytes)
            .map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes of the device")))?;
        memory.resize(bytes, 0);
        let mut block = Block(memory);
        let address = block.0.as_mut_ptr().expose_provenance();
        Ok(DeviceMemory::new(DEVICE, address, bytes, Arc::new(block)))
    }

    fn upload(&self, _device: usize, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        let to = std::ptr::with_exposed_provenance_mut(to.address());
        // SAFETY: the caller has checked that there are as many bytes, and nobody reads them meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn download(&self, _device: usize, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        let from = std::ptr::with_exposed_provenance(from.address());
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
}

fn open() -> Arc<dyn Backend> {
    support::open(Disguised(Pretended { can_cancel: false, ..Pretended::default() }), &settings())
}

#[test]
fn conforms() {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = onnx::fixtures(folder.path(), &onnx::TYPES);
    // Its runs cannot be cancelled.
    let fixtures = Fixtures { slow: None, stubborn: Some(fixtures.add.clone()), ..fixtures };
    conformance::all(&*open(), &fixtures);
}

/// What stays on the device of a run of `model` for `[1, 2]`, which lies on the device as well, after everything else has gone.
fn stays(model: &[u8]) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let backend = open();
    let device = backend.open(0).unwrap();
    let (model, instance) = instance(&*device, &write(folder.path(), "model", model));
    let x = fp32(&[1, 2], &[1., 2.]);
    let memory = device.allocate(8).unwrap();
    device.upload(x.data(), &memory).unwrap();
    let x = Tensor::on_device(DataType::Fp32, x.shape().clone(), memory).unwrap();
    let mut outputs = [Output::resident(0)];
    instance.infer(std::slice::from_ref(&x), &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    let output = output.into_tensor().unwrap();
    drop((model, instance, x));
    let mut bytes = vec![0; output.resident().unwrap().len()];
    device.download(output.resident().unwrap(), &mut bytes).unwrap();
    values(&Tensor::new(DataType::Fp32, output.shape().clone(), bytes.into()).unwrap())
}

#[test]
fn what_a_model_passes_on_is_kept() {
    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    assert_eq!(stays(&onnx::identity(DataType::Fp32, &row)), [1., 2.]);
    let mut same = Graph::default();
    same.input("x", DataType::Fp32, &row);
    same.output("x", DataType::Fp32, &row);
    // ONNX Runtime takes no graph without an operator.
    same.node("Abs", &["x"], &["unused"]);
    assert_eq!(stays(&same.model()), [1., 2.]);
}

#[test]
fn memory_of_another_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let device = open().open(0).unwrap();
    let (_model, instance) = instance(&*device, &write(folder.path(), "add", &onnx::add(3)));
    let other = DLDevice { device_id: 4, ..DEVICE };
    let memory = DeviceMemory::new(other, 64, 12, Arc::new(()));
    assert!(matches!(device.upload(&[0; 12], &memory), Err(BackendError::Input(_))));
    assert!(matches!(device.download(&memory, &mut [0; 12]), Err(BackendError::Input(_))));
    let x = Tensor::on_device(DataType::Fp32, Shape::new([1, 3]).unwrap(), memory).unwrap();
    let error = instance.infer(&[x.clone(), x], &mut [Output::resident(0)], Run::default()).unwrap_err();
    assert!(matches!(&error, BackendError::Unsupported(text) if text.contains("77:4")), "{error:?}");
}
