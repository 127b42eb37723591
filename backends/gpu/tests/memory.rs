//! What a program holds goes back with it. A process of its own, for others hold memory of the same device meanwhile.

mod support;

use std::sync::Arc;

use outrigger_backend::conformance::{fp32, infer};
use outrigger_backend::{BackendError, DataType, LoadOptions, TensorInfo};
use outrigger_gpu::Program;
use outrigger_processing::{Chain, Step};
use outrigger_testkit::{onnx, webgpu};

use support::{Numbers, gpu};

#[test]
fn memory_is_bounded_and_goes_back() {
    let Some(gpu) = gpu() else { return };
    let infos =
        [TensorInfo { name: "x".into(), data_type: DataType::Fp32, shape: vec![-1], symbols: Vec::new() }];
    let half = Step::Convert { datatype: DataType::Fp16 };
    let single = Step::Convert { datatype: DataType::Fp32 };
    // Six steps, and never more than two tensors at once.
    let chain: Chain = [&half, &single, &half, &single, &half, &single].into_iter().cloned().collect();
    for _ in 0..20 {
        let program = Program::new(Arc::clone(&gpu), chain.clone(), &infos, &["x"]).unwrap();
        assert_eq!(gpu.held(), 0);
        let mut numbers = Numbers(1);
        for elements in 1..20 {
            program.run(&[numbers.measured(DataType::Fp32, &[elements * 1000], 9.)]).unwrap();
        }
        // Frames of the last eight shapes: a tensor of each type and what is read back, not seven and that.
        let frames: u64 = (12..20).map(|elements| elements * 1000 * (4 + 2 + 4)).sum();
        let held = program.held();
        assert!((frames..frames + 1024).contains(&held), "{held} held, {frames} expected");
        assert!(gpu.held() >= program.held());
        // Of two that are too many together the last stays, and by itself it stays however large it is.
        for (idle_bytes, kept) in [(430_000, 2), (400_000, 1), (0, 1)] {
            let program = Program::new(Arc::clone(&gpu), chain.clone(), &infos, &["x"]).unwrap();
            let program = program.keeping(idle_bytes);
            for elements in [20_000, 21_000] {
                program.run(&[numbers.measured(DataType::Fp32, &[elements], 9.)]).unwrap();
            }
            let expected = if kept == 2 { 410_000 } else { 210_000 };
            assert!((expected..expected + 1024).contains(&program.held()), "{} held", program.held());
        }
        drop(program);
        assert_eq!(gpu.held(), 0);
    }
}

/// ONNX models hold memory of the same budget.
#[test]
fn steps_and_onnx_models_make_way_for_each_other() {
    let Some(library) = webgpu::alone("steps_and_onnx_models_make_way_for_each_other") else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        LoadOptions::of(path)
    };
    let add = write("add.onnx", &onnx::add(3));
    let softmax = "outputs = ['x']\n[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [2]\n[[steps]]\nstep = 'softmax'";
    let softmax = write("softmax.toml", softmax.as_bytes());
    let open = |memory: u64| {
        let [library, memory] = [library.display().to_string(), memory.to_string()];
        let settings = [("software", "true".into()), ("onnxruntime", library), ("memory", memory)];
        outrigger_gpu::open(&settings.map(|(key, value)| (key.into(), value))).unwrap().open(0).unwrap()
    };
    let device = open(1 << 30);
    let [of_add, of_softmax] = [&add, &softmax].map(|model| device.estimate(model).unwrap());
    assert!(of_add > 0 && of_softmax > 0);
    // One of them at a time.
    let device = open(of_add + of_softmax - 1);
    let steps = device.load(&softmax).unwrap();
    let running = steps.instance().unwrap();
    let run = || infer(&*steps, &*running, &[fp32(&[2], &[7., 7.])]);
    assert_eq!(device.status().unwrap().memory_held, of_softmax);
    let model = device.load(&add).unwrap();
    let instance = model.instance().unwrap();
    assert_eq!((running.bytes_held(), instance.bytes_held()), (0, of_add));
    assert!(matches!(run(), Err(BackendError::OutOfMemory(_))));
    drop((instance, model));
    // Nobody has asked for the device's status meanwhile.
    assert!(run().is_ok());
    assert!(device.load(&add).is_ok());
    assert_eq!(running.bytes_held(), 0);
}
