//! WebGPU where it is not as it should be, with a library of ONNX Runtime that has it and an adapter in software (see
//! `outrigger_testkit::webgpu`). What it does where all is well, `cli/tests/conformance` looks at.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use outrigger_backend::conformance::{fp32, instance, values};
use outrigger_backend::{Backend, BackendError, Health, LoadOptions, Output, Run};
use outrigger_onnxruntime::{Leftovers, Pool, Settings, WebGpu};
use outrigger_testkit::{onnx, webgpu};

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
fn without_an_adapter_there_is_no_device_and_a_reason() {
    let test = "without_an_adapter_there_is_no_device_and_a_reason";
    let nowhere = |command: &mut Command, _: &Path| webgpu::driver(command, "/nowhere.json".as_ref());
    let Some(library) = webgpu::alone_on(test, nowhere) else { return };
    let info = open(WebGpu::default(), &library).info().clone();
    let reason = info.reason.unwrap();
    assert!(info.devices.is_empty() && reason.contains("WebGPU adapter"), "{reason}");
    assert!(reason.starts_with("WebGpuExecutionProvider: "), "{reason}");
}

/// The folder in which a test says what fails.
const FOLDER: &str = "FAILING_DRIVER_FOLDER";

/// Runs a test on a driver that fails when it is told to; the library, and the folder in which it is told.
fn alone_on_failing_driver(test: &str) -> Option<(PathBuf, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let library = webgpu::alone_on(test, |command, driver| {
        let [library, file] = ["libfailing.so", "failing.json"].map(|name| folder.path().join(name));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failing_driver.c");
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl");
        let output = cc.output().expect("a C compiler, `cc`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let described: serde_json::Value = serde_json::from_slice(&std::fs::read(driver).unwrap()).unwrap();
        let mut failing = described.clone();
        failing["ICD"]["library_path"] = library.to_str().unwrap().into();
        std::fs::write(&file, failing.to_string()).unwrap();
        let other = driver.parent().unwrap().join(described["ICD"]["library_path"].as_str().unwrap());
        command.env("FAILING_DRIVER_OF", other).env(FOLDER, folder.path());
        webgpu::driver(command, &file);
    })?;
    Some((library, std::env::var_os(FOLDER).unwrap().into()))
}

#[test]
fn a_device_that_is_lost_is_said_to_be() {
    let Some((library, folder)) = alone_on_failing_driver("a_device_that_is_lost_is_said_to_be") else {
        return;
    };
    let path = folder.join("add.onnx");
    std::fs::write(&path, onnx::add(3)).unwrap();
    let device = open(WebGpu::default(), &library).open(0).unwrap();
    let (_model, instance) = instance(&*device, &path);
    let run = || {
        let x = fp32(&[1, 3], &[1., 2., 3.]);
        let mut outputs = [Output::allocate(0)];
        instance.infer(&[x.clone(), x], &mut outputs, Run::default())?;
        let [output] = outputs;
        Ok::<_, BackendError>(values(&output.into_tensor().unwrap()))
    };
    assert_eq!(run().unwrap(), [2., 4., 6.]);
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    std::fs::write(folder.join("lost"), "").unwrap();
    for _ in 0..2 {
        let error = run().unwrap_err();
        let BackendError::Lost(text) = error else { panic!("{error:?}") };
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(device.status().unwrap().health, Health::Lost(text));
    }
}

#[test]
fn memory_that_the_device_has_not_is_said_to_be_missing() {
    let test = "memory_that_the_device_has_not_is_said_to_be_missing";
    let Some((library, folder)) = alone_on_failing_driver(test) else { return };
    let path = folder.join("outer.onnx");
    std::fs::write(&path, onnx::outer_sum()).unwrap();
    let device = open(WebGpu::default(), &library).open(0).unwrap();
    let (_model, instance) = instance(&*device, &path);
    let run = |size: i64| {
        let values = vec![1.; size as usize];
        let inputs = [fp32(&[size, 1], &values), fp32(&[1, size], &values)];
        instance.infer(&inputs, &mut [Output::allocate(0)], Run::default())
    };
    run(2).unwrap();
    std::fs::write(folder.join("memory"), "").unwrap();
    for _ in 0..2 {
        let error = run(4096).unwrap_err();
        assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
        run(2).unwrap();
    }
    assert_eq!(device.status().unwrap().health, Health::Healthy);
}
