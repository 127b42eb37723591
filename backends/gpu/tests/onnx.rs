//! ONNX models on the device that chains run on, on a driver in software (see `outrigger_testkit::webgpu`).

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use outrigger_backend::conformance::{fp32, infer, instance, values};
use outrigger_backend::{Backend, BackendError, DataType, Device, Health, LoadOptions, Shape, Tensor};
use outrigger_testkit::onnx::{self, write};
use outrigger_testkit::webgpu::{self, Failure};

fn backend(settings: &[(&str, &str)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings: Vec<_> = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    outrigger_gpu::open(&settings)
}

fn open(settings: &[(&str, &str)]) -> Arc<dyn Device> {
    backend(settings).unwrap().open(0).unwrap()
}

fn with(library: &Path) -> [(&'static str, &str); 2] {
    [("software", "true"), ("onnxruntime", library.to_str().unwrap())]
}

#[test]
fn onnx_and_steps_are_on_one_device() {
    let Some(library) = webgpu::alone("onnx_and_steps_are_on_one_device") else { return };
    let folder = tempfile::tempdir().unwrap();
    let add = write(folder.path(), "add", &onnx::add(3));
    let steps = "outputs = ['y']\n[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [2]
                 [[steps]]\nstep = 'softmax'\nto = 'y'";
    let steps = write(folder.path(), "steps", steps.as_bytes());
    let device = open(&[&with(&library)[..], &[("leftovers", "refused")]].concat());
    let before = device.status().unwrap();
    assert_eq!((before.memory_held, before.health), (0, Health::Healthy));
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
    // What WebGPU has not of it would run on the CPU.
    let partly = write(folder.path(), "partly", &onnx::non_zero_of_abs());
    let error = device.load(&LoadOptions::of(&partly)).err().unwrap().to_string();
    assert!(error.contains("fallback to CPU EP has been explicitly disabled"), "{error}");
}

/// SwiftShader has none in its shaders.
#[test]
fn halves_are_refused_where_a_device_has_none() {
    let Some(library) = webgpu::alone("halves_are_refused_where_a_device_has_none") else { return };
    let folder = tempfile::tempdir().unwrap();
    let backend = backend(&with(&library)).unwrap();
    assert!(backend.info().version.contains(", ONNX Runtime 1."), "{}", backend.info().version);
    let device = backend.open(0).unwrap();
    let path = write(folder.path(), "twice", &onnx::twice_in_halves());
    let [estimated, loaded] =
        [device.estimate(&LoadOptions::of(&path)).err(), device.load(&LoadOptions::of(&path)).err()];
    let said = loaded.unwrap().to_string();
    assert!(
        said.ends_with("twice: it calculates with FP16, which the shaders of this device have not"),
        "{said}"
    );
    assert_eq!(estimated.unwrap().to_string(), said);
    // What only passes them on needs no shader.
    let path = write(folder.path(), "same", &onnx::identity(DataType::Fp16, &[onnx::Dim::Fixed(2)]));
    let (model, running) = instance(&*device, &path);
    let x = Tensor::new(DataType::Fp16, Shape::new([2]).unwrap(), vec![1, 2, 3, 4].into()).unwrap();
    assert_eq!(infer(&*model, &*running, std::slice::from_ref(&x)).unwrap()[0].data(), x.data());
}

#[test]
fn what_was_optimised_for_the_device_is_loaded_the_second_time() {
    let test = "what_was_optimised_for_the_device_is_loaded_the_second_time";
    let Some(library) = webgpu::alone(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let device = open(&[&with(&library)[..], &[("cache", cache.to_str().unwrap())]].concat());
    let path = write(folder.path(), "convolution", &onnx::convolution());
    let kept = || {
        let (model, running) = instance(&*device, &path);
        let outputs = infer(&*model, &*running, &[fp32(&[1, 2, 4, 4], &[1.; 32])]).unwrap();
        assert_eq!(values(&outputs[0]), [18.; 12]);
        let files = std::fs::read_dir(cache.join("outrigger-gpu")).unwrap().map(|file| file.unwrap().path());
        let kept: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|end| end == "optimised")).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        File::open(&kept[0]).unwrap()
    };
    let mut first = kept();
    let mut bytes = Vec::new();
    first.read_to_end(&mut bytes).unwrap();
    // An operator that only WebGPU has.
    assert!(bytes.windows(20).any(|bytes| bytes == b"com.ms.internal.nhwc"));
    // One that did not load would be made anew, with another number as long as this one is open.
    assert_eq!(kept().metadata().unwrap().ino(), first.metadata().unwrap().ino());
}

/// What estimate and load of an ONNX model both fail with.
fn refusal(settings: &[(&str, &str)]) -> BackendError {
    let folder = tempfile::tempdir().unwrap();
    let add = write(folder.path(), "add.onnx", &onnx::add(3));
    let device = open(&[&[("software", "true")], settings].concat());
    let options = LoadOptions { format: Some("onnx".into()), ..LoadOptions::of(&add) };
    let [estimated, loaded] = [device.estimate(&options).err(), device.load(&options).err()];
    let (estimated, loaded) = (estimated.unwrap(), loaded.unwrap());
    assert_eq!(format!("{estimated:?}"), format!("{loaded:?}"));
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    loaded
}

const BEGINS: &str = "this device takes no ONNX models: ";

/// Of something that is not there.
fn absent(settings: &[(&str, &str)]) -> String {
    let BackendError::Unavailable { reason, .. } = refusal(settings) else { panic!("something is missing") };
    assert!(!reason.contains('\n'), "{reason}");
    reason.strip_prefix(BEGINS).unwrap_or_else(|| panic!("{reason}")).to_owned()
}

/// It is no fault of the model's, so none of them is said to be no model.
#[test]
fn why_onnx_is_not_to_be_had_is_said_of_each_model() {
    if webgpu::alone("why_onnx_is_not_to_be_had_is_said_of_each_model").is_none() {
        return;
    }
    let BackendError::Unsupported(said) = refusal(&[]) else { panic!("nobody set it up") };
    let expected = "the setting `onnxruntime` names no library of ONNX Runtime with WebGPU";
    assert_eq!(said.strip_prefix(BEGINS), Some(expected));
    let said = absent(&[("onnxruntime", "/nowhere.so")]);
    assert!(said.starts_with("no library of ONNX Runtime 1.27 or later; tried `/nowhere.so`: "), "{said}");
}

#[test]
fn a_folder_for_optimised_models_that_cannot_be_used_keeps_the_backend_from_opening() {
    let folder = tempfile::tempdir().unwrap();
    let taken = write(folder.path(), "taken", b"");
    let error = backend(&[("cache", taken.to_str().unwrap())]).err().unwrap();
    let BackendError::Unavailable { reason, .. } = error else { panic!("{error:?}") };
    assert!(reason.contains("setting `cache`") && reason.contains(taken.to_str().unwrap()), "{reason}");
}

/// Another process may have more luck with it, and `Lost` is what has it begun.
#[test]
fn a_device_that_runs_nothing_when_onnx_runtime_starts_is_lost() {
    let test = "a_device_that_runs_nothing_when_onnx_runtime_starts_is_lost";
    let Some((library, driver)) = webgpu::alone_on_failing(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let add = write(folder.path(), "add", &onnx::add(3));
    let device = open(&with(&library));
    driver.fail(Failure::Lost);
    let error = device.estimate(&LoadOptions::of(&add)).err().unwrap();
    let BackendError::Lost(why) = error else { panic!("{error:?}") };
    assert!(why.starts_with(BEGINS) && !why.contains('\n'), "{why}");
    driver.mend(Failure::Lost);
    assert_eq!(device.status().unwrap().health, Health::Lost(why));
    let error = device.load(&LoadOptions::of(&add)).err().unwrap();
    assert!(matches!(error, BackendError::Lost(_)), "{error:?}");
}

#[test]
fn a_device_that_onnx_runtime_has_lost_is_lost_to_all() {
    let test = "a_device_that_onnx_runtime_has_lost_is_lost_to_all";
    let Some((library, driver)) = webgpu::alone_on_failing(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let add = write(folder.path(), "add", &onnx::add(3));
    let device = open(&with(&library));
    let (model, running) = instance(&*device, &add);
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    driver.fail(Failure::Lost);
    let x = fp32(&[1, 3], &[1., 2., 3.]);
    let error = infer(&*model, &*running, &[x.clone(), x]).err().unwrap();
    let BackendError::Lost(why) = error else { panic!("{error:?}") };
    assert_eq!(device.status().unwrap().health, Health::Lost(why));
}

/// A process has one library, so this is a process of its own.
#[test]
fn a_library_without_webgpu_is_said_to_have_none() {
    if webgpu::alone("a_library_without_webgpu_is_said_to_have_none").is_none() {
        return;
    }
    let library = outrigger_testkit::onnxruntime();
    let said = absent(&[("onnxruntime", library.to_str().unwrap())]);
    assert!(said.contains("has no WebGpuExecutionProvider, only "), "{said}");
}
