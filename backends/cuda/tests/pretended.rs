//! ONNX Runtime's real provider for CUDA, with a driver and a runtime of CUDA's that have no GPU behind them: their device's memory is the
//! host's, and kernels do nothing, so that what is held here is all that is not computing. Shows that ONNX Runtime takes the options, shares the
//! arena, leaves tensors on the device, and says what we read out of its messages.
//!
//! Needs the library of the package `onnxruntime-gpu` (`OUTRIGGER_TEST_ORT_GPU`), `cc` and `nm`; one process, and so one test.
#![allow(unsafe_code, reason = "looks at what the pretended libraries count")]
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::Library;
use outrigger_backend::conformance::{fp32, instance, values};
use outrigger_backend::{BackendError, DataType, Device, Health, LoadOptions, Output, Run, Shape, Tensor};
use outrigger_testkit::onnx::{self, Dim};

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes libraries in `folder` with all the functions that the provider names, by the libraries that it names them of.
fn pretend(folder: &Path, onnxruntime: &Path) {
    let provider = onnxruntime.with_file_name("libonnxruntime_providers_cuda.so");
    let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in said(Command::new("nm").args(["-D", "--undefined-only"]).arg(provider)).lines() {
        let name = line.trim().trim_start_matches("U ");
        if let Some((name, library)) = name.split_once('@').filter(|(_, library)| library.starts_with("lib"))
        {
            wanted.entry(library.trim_start_matches('@').into()).or_default().push(name.into());
        }
    }
    // Of this one it has no functions that are named with a version, if any.
    wanted.entry("libcurand.so.10".into()).or_default();
    let runtime = std::fs::read_to_string(source("pretended_runtime.c")).unwrap();
    for (library, names) in &wanted {
        let own = if library.starts_with("libcudart") { runtime.as_str() } else { "" };
        let is_own = |name: &String| own.contains(&format!(" {name}(")) || own.contains(&format!("*{name}("));
        let rest = names
            .iter()
            .filter(|name| !is_own(name))
            .map(|name| format!("long {name}(void) {{ return 0; }}\n"));
        let (text, map) = (folder.join("library.c"), folder.join("library.map"));
        std::fs::write(&text, own.to_owned() + &rest.collect::<String>()).unwrap();
        std::fs::write(&map, format!("{library} {{ global: *; }};\n")).unwrap();
        build(&folder.join(library), library, &text, &[format!("-Wl,--version-script={}", map.display())]);
    }
    build(&folder.join("libcuda.so.1"), "libcuda.so.1", &source("pretended_driver.c"), &[]);
}

fn build(library: &Path, name: &str, text: &Path, more: &[String]) {
    let mut cc = Command::new("cc");
    cc.args(["-w", "-shared", "-fPIC"]).arg(format!("-Wl,-soname,{name}")).args(more).arg("-o");
    said(cc.arg(library).arg(text));
}

/// A number that a pretended library counts, or is told.
fn number(library: &Library, name: &str) -> *mut i32 {
    // SAFETY: the library's own `int`.
    unsafe { *library.get::<*mut i32>(name).unwrap() }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn on_device(device: &dyn Device, tensor: &Tensor) -> Tensor {
    let memory = device.allocate(tensor.data().len()).unwrap();
    device.upload(tensor.data(), &memory).unwrap();
    Tensor::on_device(tensor.data_type(), tensor.shape().clone(), memory).unwrap()
}

fn on_host(device: &dyn Device, tensor: &Tensor) -> Tensor {
    let memory = tensor.resident().expect("it stays on the device");
    let mut bytes = vec![0; memory.len()];
    device.download(memory, &mut bytes).unwrap();
    Tensor::new(tensor.data_type(), tensor.shape().clone(), bytes.into()).unwrap()
}

#[test]
fn onnx_runtime_s_provider_does_as_it_is_told() {
    let Some(onnxruntime) = std::env::var_os("OUTRIGGER_TEST_ORT_GPU").map(PathBuf::from) else {
        println!("skipped: no library of ONNX Runtime with CUDA");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    pretend(folder.path(), &onnxruntime);
    let settings = [
        ("onnxruntime", onnxruntime.display().to_string()),
        ("libraries", folder.path().display().to_string()),
        ("cuda_driver", folder.path().join("libcuda.so.1").display().to_string()),
        ("arena_bytes", (1 << 20).to_string()),
        ("cache", folder.path().join("cache").display().to_string()),
    ];
    let backend = outrigger_cuda::open(&settings.map(|(key, value)| (key.to_owned(), value))).unwrap();
    let info = backend.info();
    assert_eq!(info.reason, None);
    assert_eq!((info.devices.len(), info.devices[0].name.as_str()), (1, "cuda:0"));
    let device = &*backend.open(0).unwrap();
    // SAFETY: libraries that are open already, of this test's.
    let library = |name: &str| unsafe { Library::new(folder.path().join(name)) }.unwrap();
    let (driver, runtime) = (library("libcuda.so.1"), library("libcudart.so.13"));
    let blocks = number(&runtime, "pretended_runtime_blocks");
    // SAFETY: nothing else runs.
    let blocks = || unsafe { *blocks };

    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    let identity = write(folder.path(), "identity", &onnx::identity(DataType::Fp32, &row));
    let strings = write(folder.path(), "strings", &onnx::identity(DataType::Bytes, &row));
    let weights = write(folder.path(), "weights", &onnx::mlp(&[256, 256, 256]));

    // In the host's memory and out of it, and on the device.
    let (model, instance) = instance(device, &identity);
    let x = fp32(&[1, 2], &[1., 2.]);
    let run = |input: &Tensor, output: Output| {
        let mut outputs = [output];
        let ran = instance.infer(std::slice::from_ref(input), &mut outputs, Run::default());
        let [output] = outputs;
        ran.map(|()| output.into_tensor().unwrap())
    };
    assert_eq!(values(&run(&x, Output::allocate(0)).unwrap()), [1., 2.]);
    assert_eq!(values(&run(&on_device(device, &x), Output::allocate(0)).unwrap()), [1., 2.]);
    let stays = run(&x, Output::resident(0)).unwrap();
    assert_eq!(values(&on_host(device, &stays)), [1., 2.]);
    let stays = run(&stays, Output::resident(0)).unwrap();
    assert_eq!(values(&on_host(device, &stays)), [1., 2.]);

    // The arena is one for all, with its limit.
    let large = Shape::new([1 << 19, 2]).unwrap();
    let large = Tensor::new(DataType::Fp32, large, vec![0; 1 << 22].into()).unwrap();
    let error = run(&large, Output::resident(0)).unwrap_err();
    assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
    assert_eq!(values(&run(&x, Output::resident(0)).map(|y| on_host(device, &y)).unwrap()), [1., 2.]);

    // Weights go back.
    let before = blocks();
    let loaded = device.load(&LoadOptions::of(&weights)).unwrap();
    assert!(blocks() >= before + 2, "{} blocks after {before}", blocks());
    drop(loaded);
    assert_eq!(blocks(), before);

    // What was optimised is kept, and loads onto the device as the model does.
    let kept = || {
        let files = std::fs::read_dir(folder.path().join("cache/outrigger-cuda")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".optimised")).collect::<Vec<_>>()
    };
    let optimised = kept();
    assert_eq!(optimised.len(), 2, "one for each model: {optimised:?}");
    let loaded = device.load(&LoadOptions::of(&weights)).unwrap();
    assert!(blocks() >= before + 2 && kept() == optimised, "{:?}", kept());
    drop(loaded);

    // No fallback to the CPU for all of a model.
    let error = device.load(&LoadOptions::of(&strings)).err().unwrap().to_string();
    assert!(error.ends_with("CUDAExecutionProvider takes none of its operators"), "{error}");
    let tensorrt =
        LoadOptions { settings: vec![("tensorrt".into(), "true".into())], ..LoadOptions::of(&identity) };
    let error = device.load(&tensorrt).err().unwrap().to_string();
    assert!(error.contains("TensorrtExecutionProvider: ") && error.contains("libnvinfer.so.10"), "{error}");

    // An error that does not concern the device, and one that stays.
    let (of_driver, of_runtime) =
        (number(&driver, "pretended_driver_failure"), number(&runtime, "pretended_runtime_failure"));
    // SAFETY: nothing else runs.
    let fail = |driver, runtime| unsafe { (*of_driver, *of_runtime) = (driver, runtime) };
    fail(0, 1);
    let error = run(&x, Output::allocate(0)).unwrap_err();
    assert!(matches!(&error, BackendError::Run(text) if text.contains("CUDA failure 1: ")), "{error:?}");
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    fail(0, 0);
    assert_eq!(values(&run(&x, Output::allocate(0)).unwrap()), [1., 2.]);
    // One that only the driver tells.
    fail(719, 1);
    let error = run(&x, Output::allocate(0)).unwrap_err();
    assert!(matches!(&error, BackendError::Lost(text) if text.contains("CUDA failure 1: ")), "{error:?}");
    fail(0, 700);
    let error = run(&x, Output::allocate(0)).unwrap_err();
    assert!(matches!(error, BackendError::Lost(_)), "{error:?}");
    assert!(matches!(device.status().unwrap().health, Health::Lost(_)));
    fail(0, 0);
    drop((model, stays));
}
