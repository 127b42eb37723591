//! The conformance suite on WebGPU, with a library of ONNX Runtime that has it (`OUTRIGGER_TEST_WEBGPU`) and an adapter. Vulkan in
//! software does: `VK_ICD_FILENAMES` says where SwiftShader's is.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use outrigger_backend::conformance::{self, Fixtures};
use outrigger_backend::{Backend, DataType, LoadOptions};
use outrigger_onnxruntime::{Leftovers, Pool, Settings, WebGpu};
use outrigger_testkit::onnx::{self, Dim, Graph};

fn open(provider: WebGpu) -> Option<Arc<dyn Backend>> {
    let Some(library) = std::env::var_os("OUTRIGGER_TEST_WEBGPU") else {
        println!("skipped: no library of ONNX Runtime with WebGPU");
        return None;
    };
    let settings = Settings { library: Some(library.into()), ..Settings::default() };
    let pool = Pool { threads: 2, affinity: None };
    Some(outrigger_onnxruntime::open(provider, &settings, &pool).unwrap())
}

/// A model of two operators, of which WebGPU has one: where `x` is not 0.
fn partly_on_the_cpu() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n")]);
    graph.node("Abs", &["x"], &["a"]);
    graph.node("NonZero", &["a"], &["y"]);
    graph.output("y", DataType::Int64, &[Dim::Fixed(1), Dim::Named("found")]);
    graph.model()
}

/// The models of the suite, where each has an operator that WebGPU has.
fn fixtures(folder: &Path) -> Fixtures {
    use DataType::*;
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    let identity =
        |data_type: DataType| (data_type, write(data_type.name(), &onnx::identity(data_type, &row)));
    let scratch = folder.join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    Fixtures {
        add: write("add", &onnx::add(3)),
        identity: [Fp32, Fp16, Int32, Uint32].map(identity).into(),
        nonzero: write("nonzero", &partly_on_the_cpu()),
        strings: None,
        outer: Some(write("outer", &onnx::outer_sum())),
        slow: None,
        // Its runs cannot be cancelled.
        stubborn: Some(write("stubborn", &onnx::add(3))),
        weights: Some((write("weights", &onnx::mlp(&[1024, 1024, 1024])), 8 << 20)),
        scratch,
    }
}

#[test]
fn conforms() {
    let Some(backend) = open(WebGpu::default()) else { return };
    let folder = tempfile::tempdir().unwrap();
    conformance::all(&*backend, &fixtures(folder.path()));
}

/// What a model that is loaded onto the device fails with.
fn load_error(provider: WebGpu, model: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model).unwrap();
    let error = open(provider)?.open(0).unwrap().load(&LoadOptions::of(&path)).err();
    Some(error.map(|error| error.to_string()).unwrap_or_default())
}

#[test]
fn a_model_that_would_run_on_the_cpu_alone_does_not_load() {
    let Some(error) = load_error(WebGpu::default(), &onnx::non_zero()) else { return };
    assert!(error.ends_with("WebGpuExecutionProvider takes none of its operators"), "{error}");
}

#[test]
fn what_is_left_for_the_cpu_can_be_refused() {
    let refused = || WebGpu { leftovers: Leftovers::Refused, ..WebGpu::default() };
    let Some(error) = load_error(refused(), &partly_on_the_cpu()) else { return };
    assert!(error.contains("fallback to CPU EP has been explicitly disabled"), "{error}");
    assert_eq!(load_error(WebGpu::default(), &partly_on_the_cpu()).as_deref(), Some(""));
    assert_eq!(load_error(refused(), &onnx::add(3)).as_deref(), Some(""));
}

#[test]
fn without_an_adapter_there_is_no_device_and_a_reason() {
    const ALONE: &str = "OUTRIGGER_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let info = open(WebGpu::default()).unwrap().info().clone();
        let reason = info.reason.unwrap();
        assert!(info.devices.is_empty() && reason.contains("WebGPU adapter"), "{reason}");
        assert!(reason.starts_with("WebGpuExecutionProvider: "), "{reason}");
        return;
    }
    if open(WebGpu::default()).is_none() {
        return;
    }
    // The adapter is looked for once in a process, where the environment says.
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["without_an_adapter_there_is_no_device_and_a_reason", "--exact"]).env(ALONE, "1");
    let output = again.env("VK_ICD_FILENAMES", "/nowhere.json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
