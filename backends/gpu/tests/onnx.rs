//! ONNX models on the device that chains run on, on a driver in software (see `outrigger_testkit::webgpu`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::conformance::{fp32, infer, instance, values};
use outrigger_backend::{BackendError, DataType, Device, Health, LoadOptions, Shape, Tensor};
use outrigger_testkit::{onnx, webgpu};

fn open(settings: &[(&str, &str)]) -> Arc<dyn Device> {
    let settings: Vec<_> = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    outrigger_gpu::open(&settings).unwrap().open(0).unwrap()
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn onnx_and_steps_are_on_one_device() {
    let Some(library) = webgpu::alone("onnx_and_steps_are_on_one_device") else { return };
    let folder = tempfile::tempdir().unwrap();
    let add = write(folder.path(), "add", onnx::add(3));
    let steps = "outputs = ['y']\n[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [2]
                 [[steps]]\nstep = 'softmax'\nto = 'y'";
    let steps = write(folder.path(), "steps", steps);
    let cache = folder.path().join("cache");
    let settings = [
        ("software", "true"),
        ("onnxruntime", library.to_str().unwrap()),
        ("leftovers", "refused"),
        ("cache", cache.to_str().unwrap()),
    ];
    let device = open(&settings);
    let before = device.status().unwrap();
    assert_eq!((before.memory_held, before.health), (0, Health::Healthy));
    // The second time out of the folder of optimised models.
    for _ in 0..2 {
        let estimate = device.estimate(&LoadOptions::of(&add)).unwrap();
        let (model, running) = instance(&*device, &add);
        let x = fp32(&[1, 3], &[1., 2., 3.]);
        let outputs = infer(&*model, &*running, &[x.clone(), x]).unwrap();
        assert_eq!(values(&outputs[0]), [2., 4., 6.]);
        let held = device.status().unwrap().memory_held;
        assert_eq!(held, estimate);
        let (steps, running_steps) = instance(&*device, &steps);
        let outputs = infer(&*steps, &*running_steps, &[fp32(&[2], &[7., 7.])]).unwrap();
        assert!(values(&outputs[0]).iter().all(|value| (value - 0.5).abs() < 1e-6));
        assert!(device.status().unwrap().memory_held > held);
    }
    let after = device.status().unwrap();
    assert_eq!((after.memory_held, after.memory_total), (0, before.memory_total));
    let kept = std::fs::read_dir(cache.join("outrigger-gpu")).unwrap();
    let is_model = |path: PathBuf| path.extension().is_some_and(|end| end == "optimised");
    assert_eq!(kept.filter(|file| is_model(file.as_ref().unwrap().path())).count(), 1);
    // What WebGPU has not of it would run on the CPU.
    let partly = write(folder.path(), "partly", onnx::non_zero_of_abs());
    let error = device.load(&LoadOptions::of(&partly)).err().unwrap().to_string();
    assert!(error.contains("fallback to CPU EP has been explicitly disabled"), "{error}");
}

/// SwiftShader has none in its shaders.
#[test]
fn halves_are_refused_where_a_device_has_none() {
    let Some(library) = webgpu::alone("halves_are_refused_where_a_device_has_none") else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = [("software", "true"), ("onnxruntime", library.to_str().unwrap())];
    let settings: Vec<_> = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let backend = outrigger_gpu::open(&settings).unwrap();
    assert!(backend.info().version.contains(", ONNX Runtime 1."), "{}", backend.info().version);
    let device = backend.open(0).unwrap();
    let path = write(folder.path(), "twice", onnx::twice_in_halves());
    let [estimated, loaded] =
        [device.estimate(&LoadOptions::of(&path)).err(), device.load(&LoadOptions::of(&path)).err()];
    let said = loaded.unwrap().to_string();
    assert!(
        said.ends_with("twice: it calculates with FP16, which the shaders of this device have not"),
        "{said}"
    );
    assert_eq!(estimated.unwrap().to_string(), said);
    // What only passes them on needs no shader.
    let path = write(folder.path(), "same", onnx::identity(DataType::Fp16, &[onnx::Dim::Fixed(2)]));
    let (model, running) = instance(&*device, &path);
    let x = Tensor::new(DataType::Fp16, Shape::new([2]).unwrap(), vec![1, 2, 3, 4].into()).unwrap();
    assert_eq!(infer(&*model, &*running, std::slice::from_ref(&x)).unwrap()[0].data(), x.data());
}

/// What estimate and load of an ONNX model both fail with.
fn refusal(settings: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let add = write(folder.path(), "add.onnx", onnx::add(3));
    let device = open(&[&[("software", "true")], settings].concat());
    let options = LoadOptions { format: Some("onnx".into()), ..LoadOptions::of(&add) };
    let [estimated, loaded] = [device.estimate(&options).err(), device.load(&options).err()];
    let (Some(BackendError::Load(estimated)), Some(BackendError::Load(loaded))) = (estimated, loaded) else {
        panic!("it is not refused")
    };
    assert_eq!(estimated, loaded);
    assert!(!loaded.contains('\n'), "{loaded}");
    let begins = format!("{}: this device takes no ONNX models: ", add.display());
    loaded.strip_prefix(&begins).unwrap_or_else(|| panic!("{loaded}")).to_owned()
}

#[test]
fn why_onnx_is_not_to_be_had_is_said_of_each_model() {
    let Some(library) = webgpu::alone("why_onnx_is_not_to_be_had_is_said_of_each_model") else { return };
    assert_eq!(refusal(&[]), "the setting `onnxruntime` names no library of ONNX Runtime with WebGPU");
    let said = refusal(&[("onnxruntime", "/nowhere.so")]);
    assert!(said.starts_with("no library of ONNX Runtime 1.27 or later; tried `/nowhere.so`: "), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let taken = write(folder.path(), "taken", "");
    let said = refusal(&[("onnxruntime", library.to_str().unwrap()), ("cache", taken.to_str().unwrap())]);
    assert!(said.contains(taken.to_str().unwrap()), "{said}");
}

/// A process has one library, so this is a process of its own.
#[test]
fn a_library_without_webgpu_is_said_to_have_none() {
    if webgpu::alone("a_library_without_webgpu_is_said_to_have_none").is_none() {
        return;
    }
    let library = outrigger_testkit::onnxruntime();
    let said = refusal(&[("onnxruntime", library.to_str().unwrap())]);
    assert!(said.contains("has no WebGpuExecutionProvider, only "), "{said}");
}
