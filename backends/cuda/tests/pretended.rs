//! ONNX Runtime's real provider for CUDA, with a driver and a runtime of CUDA's that have no GPU behind them: their device's memory is the
//! host's, and kernels do nothing, so that what is held here is all that is not computing. Shows that ONNX Runtime takes the options, shares the
//! arena, leaves tensors on the device, and says what we read out of its messages.
//!
//! Needs the library of the package `onnxruntime-gpu` (`OUTRIGGER_TEST_ORT_GPU`); one process, and so one test.
#![allow(unsafe_code, reason = "looks at what the pretended libraries count")]
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};

use libloading::Library;
use outrigger_backend::conformance::{fp32, instance, values};
use outrigger_backend::{BackendError, DataType, Device, Health, LoadOptions, Output, Run, Shape, Tensor};
use outrigger_testkit::cuda;
use outrigger_testkit::onnx::{self, Dim, Graph, write};

/// A number that a pretended library counts, or is told.
fn number(library: &Library, name: &str) -> *mut i32 {
    // SAFETY: the library's own `int`.
    unsafe { *library.get::<*mut i32>(name).unwrap() }
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
    cuda::libraries(folder.path(), &[onnxruntime.with_file_name("libonnxruntime_providers_cuda.so")], |_| {
        true
    });
    cuda::driver(folder.path(), &[]);
    let settings = [
        ("onnxruntime", onnxruntime.display().to_string()),
        ("libraries", folder.path().display().to_string()),
        ("cuda_driver", folder.path().join("libcuda.so.1").display().to_string()),
        ("arena_bytes", (1 << 20).to_string()),
        ("shrink", "0".into()),
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

    let batch = [Dim::Named("batch"), Dim::Fixed(2)];
    let identity = write(folder.path(), "identity", &onnx::identity(DataType::Fp32, &batch));
    let strings = write(folder.path(), "strings", &onnx::identity(DataType::Bytes, &batch));
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

    // And gives back what is not used, at the end of a run that comes after a pause, here after any.
    let used = blocks();
    let eighth = Shape::new([1 << 14, 2]).unwrap();
    let eighth = Tensor::new(DataType::Fp32, eighth, vec![0; 1 << 17].into()).unwrap();
    let held = [(); 3].map(|()| run(&eighth, Output::resident(0)).unwrap());
    assert!(blocks() > used, "{} blocks after {used}", blocks());
    drop(held);
    assert_eq!(values(&run(&x, Output::allocate(0)).unwrap()), [1., 2.]);
    assert!(blocks() <= used, "{} blocks after {used}", blocks());

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

    // Runs of shapes that are named are recorded, and played from then on: a played one does nothing here, so what the first has left shows.
    let launches = number(&runtime, "pretended_runtime_launches");
    // SAFETY: nothing else runs.
    let launches = || unsafe { *launches };
    let graphs = |settings: &[(&str, &str)], path: &Path| {
        let settings = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        device.load(&LoadOptions { settings, ..LoadOptions::of(path) })
    };
    let recording = graphs(&[("graphs", "1,2"), ("graph_shapes", "1")], &identity).unwrap();
    let recorded = recording.instance().unwrap();
    let row = |rows: i64, value: f32| fp32(&[rows, 2], &vec![value; 2 * rows as usize]);
    let play = |rows, value| {
        let mut outputs = [Output::allocate(0)];
        recorded.infer(&[row(rows, value)], &mut outputs, Run::default()).unwrap();
        let [output] = outputs;
        values(&output.into_tensor().unwrap())
    };
    assert_eq!((play(1, 5.), play(1, 6.), play(1, 7.)), (vec![5.; 2], vec![5.; 2], vec![5.; 2]));
    let played = launches();
    assert!(played >= 2, "{played}");
    // Beyond the number of shapes, and of a size that was not named.
    assert_eq!((play(2, 8.), play(2, 9.), play(3, 9.)), (vec![8.; 4], vec![9.; 4], vec![9.; 6]));
    assert_eq!(launches(), played);
    drop((recorded, recording));
    // CUDA has no determinant.
    let mut mixed = Graph::default();
    mixed.input("x", DataType::Fp32, &[Dim::Fixed(1), Dim::Fixed(2), Dim::Fixed(2)]);
    mixed.node("Abs", &["x"], &["a"]);
    mixed.node("Det", &["a"], &["y"]);
    mixed.output("y", DataType::Fp32, &[Dim::Fixed(1)]);
    let mixed = write(folder.path(), "mixed", &mixed.model());
    let error = graphs(&[("graphs", "fixed")], &mixed).err().unwrap().to_string();
    assert!(error.contains("cannot use the graph capture feature"), "{error}");
    assert!(graphs(&[], &mixed).is_ok());

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
