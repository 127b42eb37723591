//! WebGPU where it is not as it should be, with a library of ONNX Runtime that has it and an adapter in software (see
//! `outrigger_testkit::webgpu`). What it does where all is well, `cli/tests/conformance` looks at.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use outrigger_backend::conformance::{fp32, instance, values};
use outrigger_backend::{
    Backend, BackendError, DataType, Device, Health, Instance, LoadOptions, Output, Run,
};
use outrigger_onnxruntime::{Leftovers, Pool, Settings, WebGpu};
use outrigger_testkit::onnx::{self, Dim, Graph};
use outrigger_testkit::webgpu::{self, Failure};

fn open(provider: WebGpu, library: &Path) -> Arc<dyn Backend> {
    let settings = Settings { library: Some(library.into()), ..Settings::default() };
    let pool = Pool { threads: 2, affinity: None };
    outrigger_onnxruntime::open(provider, &settings, &pool).unwrap()
}

/// What a model that is loaded onto the device fails with; nothing if it does not.
fn load_error(provider: WebGpu, library: &Path, model: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model).unwrap();
    let device = open(provider, library).open(0).unwrap();
    device.load(&LoadOptions::of(&path)).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn to_ask_for_the_version_starts_nothing() {
    let Some(library) = webgpu::alone("to_ask_for_the_version_starts_nothing") else { return };
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let settings = Settings { library: Some(library.clone()), ..Settings::default() };
    let before = threads();
    let version = outrigger_onnxruntime::version(&WebGpu::default(), &settings).unwrap();
    assert_eq!(threads(), before);
    let backend = open(WebGpu::default(), &library);
    assert!(backend.info().version.contains(&version), "{}", backend.info().version);
    assert!(threads() > before, "an environment has a pool");
    assert_eq!(outrigger_onnxruntime::version(&WebGpu::default(), &settings), Ok(version));
}

#[test]
fn a_model_that_would_run_on_the_cpu_alone_does_not_load() {
    let Some(library) = webgpu::alone("a_model_that_would_run_on_the_cpu_alone_does_not_load") else {
        return;
    };
    let error = load_error(WebGpu::default(), &library, &onnx::non_zero());
    assert!(error.ends_with("WebGpuExecutionProvider takes none of its operators"), "{error}");
}

#[test]
fn what_is_left_for_the_cpu_can_be_refused() {
    let Some(library) = webgpu::alone("what_is_left_for_the_cpu_can_be_refused") else { return };
    let refused = || WebGpu { leftovers: Leftovers::Refused, ..WebGpu::default() };
    let error = load_error(refused(), &library, &onnx::non_zero_of_abs());
    assert!(error.contains("fallback to CPU EP has been explicitly disabled"), "{error}");
    assert_eq!(load_error(WebGpu::default(), &library, &onnx::non_zero_of_abs()), "");
    assert_eq!(load_error(refused(), &library, &onnx::add(3)), "");
}

#[test]
fn without_an_adapter_it_does_not_open_and_says_why() {
    let test = "without_an_adapter_it_does_not_open_and_says_why";
    let nowhere = |command: &mut Command, _: &Path| webgpu::driver(command, "/nowhere.json".as_ref());
    let Some(library) = webgpu::alone_on(test, nowhere) else { return };
    for _ in 0..2 {
        let error = open(WebGpu::default(), &library).open(0).err().unwrap();
        let BackendError::Unavailable { reason, .. } = error else { panic!("{error:?}") };
        assert!(
            reason.starts_with("WebGpuExecutionProvider: ") && reason.contains("WebGPU adapter"),
            "{reason}"
        );
    }
}

fn sum(device: &dyn Device, path: &Path) -> impl Fn() -> Result<Vec<f32>, BackendError> + use<> {
    let (_model, instance) = instance(device, path);
    move || {
        let x = fp32(&[1, 3], &[1., 2., 3.]);
        let mut outputs = [Output::allocate(0)];
        instance.infer(&[x.clone(), x], &mut outputs, Run::default())?;
        let [output] = outputs;
        Ok(values(&output.into_tensor().unwrap()))
    }
}

#[test]
fn a_device_that_is_lost_is_said_to_be() {
    let Some((library, driver)) = webgpu::alone_on_failing("a_device_that_is_lost_is_said_to_be") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = onnx::write(folder.path(), "add.onnx", &onnx::add(3));
    let backend = open(WebGpu::default(), &library);
    let device = backend.open(0).unwrap();
    let run = sum(&*device, &path);
    assert_eq!(run().unwrap(), [2., 4., 6.]);
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    driver.fail(Failure::Lost);
    for _ in 0..2 {
        let error = run().unwrap_err();
        let BackendError::Lost(text) = error else { panic!("{error:?}") };
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(device.status().unwrap().health, Health::Lost(text));
    }
    // Dawn makes sessions all the same.
    let error = device.load(&LoadOptions::of(&path)).err().unwrap();
    assert!(matches!(error, BackendError::Lost(_)), "{error:?}");
    let error = backend.open(0).err().unwrap();
    assert!(matches!(error, BackendError::Lost(_)), "{error:?}");
}

#[test]
fn a_model_that_is_loaded_onto_a_lost_device_tells() {
    let test = "a_model_that_is_loaded_onto_a_lost_device_tells";
    let Some((library, driver)) = webgpu::alone_on_failing(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = open(WebGpu::default(), &library).open(0).unwrap();
    driver.fail(Failure::Lost);
    let path = onnx::write(folder.path(), "add", &onnx::add(3));
    let error = device.load(&LoadOptions::of(&path)).err().unwrap();
    let BackendError::Lost(why) = error else { panic!("{error:?}") };
    assert_eq!(device.status().unwrap().health, Health::Lost(why));
}

#[test]
fn memory_that_the_device_has_not_is_said_to_be_missing() {
    let test = "memory_that_the_device_has_not_is_said_to_be_missing";
    let Some((library, driver)) = webgpu::alone_on_failing(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = open(WebGpu::default(), &library).open(0).unwrap();
    let outer = onnx::write(folder.path(), "outer.onnx", &onnx::outer_sum());
    let within = onnx::write(folder.path(), "within.onnx", &onnx::sum_of_outer_sum());
    let heavy = onnx::write(folder.path(), "heavy.onnx", &onnx::mlp(&[3000, 3000]));
    let (_outer, outer) = instance(&*device, &outer);
    let (_within, within) = instance(&*device, &within);
    let run = |instance: &dyn Instance, size: i64| {
        let values = vec![1.; size as usize];
        let inputs = [fp32(&[size, 1], &values), fp32(&[1, size], &values)];
        instance.infer(&inputs, &mut [Output::allocate(0)], Run::default())
    };
    driver.fail(Failure::Memory);
    for _ in 0..2 {
        for instance in [&outer, &within] {
            let error = run(&**instance, 4096).unwrap_err();
            assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
            run(&**instance, 2).unwrap();
        }
        // Its weights are 36 MB.
        let error = device.load(&LoadOptions::of(&heavy)).err().unwrap();
        assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
    }
    driver.mend(Failure::Memory);
    // What there was no memory for is no buffer for anybody.
    for instance in [&outer, &within] {
        run(&**instance, 4096).unwrap();
    }
    device.load(&LoadOptions::of(&heavy)).map(drop).unwrap();
    // No buffer can be as large.
    for (instance, size) in [(&within, 40_000), (&outer, 40_000), (&outer, 200_000)] {
        let error = run(&**instance, size).unwrap_err();
        assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
    }
    assert_eq!(device.status().unwrap().health, Health::Healthy);
}

/// A node's name comes twice in what ONNX Runtime says of WebGPU's operators.
#[test]
fn what_a_model_s_author_named_loses_no_device() {
    let test = "what_a_model_s_author_named_loses_no_device";
    let Some((library, _)) = webgpu::alone_on_failing(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = open(WebGpu::default(), &library).open(0).unwrap();
    for name in [
        "VK_ERROR_DEVICE_LOST",
        "vkQueueSubmit failed with VK_ERROR_DEVICE_LOST",
        "' Status Message: vkQueueSubmit failed with VK_ERROR_DEVICE_LOST",
        "[Device] is lost",
        "[Invalid Buffer",
    ] {
        let mut graph = Graph::default();
        for input in ["x", "y"] {
            graph.input(input, DataType::Fp32, &[Dim::Named("")]);
        }
        graph.named_node(name, "Add", &["x", "y"], &["z"]);
        graph.output("z", DataType::Fp32, &[Dim::Named("")]);
        let path =
            onnx::write(folder.path(), "vkQueueSubmit failed with VK_ERROR_DEVICE_LOST", &graph.model());
        let (_model, instance) = instance(&*device, &path);
        let inputs = [fp32(&[2], &[0.; 2]), fp32(&[3], &[0.; 3])];
        let error = instance.infer(&inputs, &mut [Output::allocate(0)], Run::default()).unwrap_err();
        assert!(matches!(&error, BackendError::Input(text) if text.contains(name)), "{name}: {error:?}");
        assert_eq!(device.status().unwrap().health, Health::Healthy, "{name}");
    }
}
