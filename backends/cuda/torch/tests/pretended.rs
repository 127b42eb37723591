//! Real libtorch with CUDA, on a driver and a runtime of CUDA's that have no GPU behind them (`outrigger_testkit::cuda`): their device's memory is
//! the host's, and kernels do nothing, so that what is held here is all that is not computing. Shows that one core serves GPUs too, that libtorch
//! takes the limit of memory, copies inputs there and results back in a stream of the thread's, and says what we read out of its messages.
//!
//! Needs the folder of the package `torch` 2.11.0, with CUDA and NVIDIA's packages beside it (`OUTRIGGER_TEST_TORCH_CUDA`); one process, and so one
//! test.
#![allow(unsafe_code, reason = "looks at what the pretended libraries count")]
#![cfg(target_os = "linux")]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::Library;
use outrigger_backend::conformance::{infer, values};
use outrigger_backend::{
    BackendError, DataType, Device, DeviceKind, Health, Instance, LoadOptions, Model, ModelInfo, Output, Run,
    Shape, Tensor, TensorInfo,
};
use outrigger_testkit::cuda;
use outrigger_testkit::torchscript::{self, Module};

/// The package with another runtime of CUDA's: links to its files.
fn pretended_torch(folder: &Path, torch: &Path) -> PathBuf {
    let lib = folder.join("torch/lib");
    std::fs::create_dir_all(&lib).unwrap();
    let files: Vec<_> =
        std::fs::read_dir(torch.join("lib")).unwrap().map(|file| file.unwrap().path()).collect();
    for file in &files {
        symlink(file, lib.join(file.file_name().unwrap())).unwrap();
    }
    symlink(torch.join("version.py"), folder.join("torch/version.py")).unwrap();
    symlink(torch.join("../nvidia"), folder.join("nvidia")).unwrap();
    cuda::libraries(&lib, &files, |library| library.starts_with("libcudart"));
    folder.join("torch")
}

/// A number that a pretended library counts, or is told.
fn number(library: &Library, name: &str) -> *mut i32 {
    // SAFETY: the library's own `int`.
    unsafe { *library.get::<*mut i32>(name).unwrap() }
}

fn row(name: &str, width: i64) -> TensorInfo {
    let symbols = vec!["batch".into(), String::new()];
    TensorInfo { name: name.into(), data_type: DataType::Fp32, shape: vec![-1, width], symbols }
}

type Loaded = (Arc<dyn Model>, Arc<dyn Instance>);

fn load(folder: &Path, device: &dyn Device, module: &Module, width: i64) -> Result<Loaded, BackendError> {
    let path = folder.join("model.pt");
    std::fs::write(&path, module.archive()).unwrap();
    let signature = ModelInfo { inputs: vec![row("x", width)], outputs: vec![row("y", width)] };
    let model = device.load(&LoadOptions { signature, ..LoadOptions::of(&path) })?;
    let instance = model.instance()?;
    Ok((model, instance))
}

#[test]
fn libtorch_does_as_it_is_told() {
    let Some(torch) = std::env::var_os("OUTRIGGER_TEST_TORCH_CUDA").map(PathBuf::from) else {
        println!("skipped: no libtorch with CUDA");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (driver, torch) = (cuda::driver(folder.path(), &[]), pretended_torch(folder.path(), &torch));
    let most = Path::new("25165824");
    let settings = [("cuda_driver", &*driver), ("libtorch", &*torch), ("memory_bytes", most)];
    let backend = support::open(&settings).unwrap();
    let info = backend.info();
    assert_eq!(info.reason, None);
    assert_eq!((info.devices.len(), info.devices[0].name.as_str()), (1, "cuda_torch:0"));
    assert_eq!((info.devices[0].kind, info.devices[0].lanes), (DeviceKind::Cuda, 2));
    let device = &*backend.open(0).unwrap();
    // SAFETY: libraries that are open already, of this test's.
    let library = |path: PathBuf| unsafe { Library::new(path) }.unwrap();
    let (driver, runtime) = (library(driver), library(torch.join("lib/libcudart.so.13")));
    let [blocks, streams, failures] =
        ["pretended_runtime_blocks", "pretended_runtime_streams", "pretended_runtime_failure"]
            .map(|name| number(&runtime, name));
    // SAFETY: nothing else runs.
    let (blocks, streams) = (|| unsafe { *blocks }, || unsafe { *streams });

    // There and back, from pinned memory, and from an odd address.
    let (model, instance) = load(folder.path(), device, &torchscript::identity(), 2).unwrap();
    let mut pinned = device.pinned(16).unwrap();
    let bytes: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|value| value.to_ne_bytes()).collect();
    pinned.copy_from_slice(&bytes);
    let shape = || Shape::new([2, 2]).unwrap();
    let x = Tensor::new(DataType::Fp32, shape(), pinned.freeze()).unwrap();
    assert_eq!(values(&infer(&*model, &*instance, std::slice::from_ref(&x)).unwrap()[0]), [1., 2., 3., 4.]);
    let mut odd = vec![0];
    odd.extend(&bytes);
    let odd = bytes::Bytes::from(odd).slice(1..);
    let odd = Tensor::new(DataType::Fp32, shape(), odd).unwrap();
    let mut outputs = [Output::allocate(0)];
    instance.infer(&[odd], &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    assert_eq!(values(&output.into_tensor().unwrap()), [1., 2., 3., 4.]);
    assert!(matches!(
        instance.infer(std::slice::from_ref(&x), &mut [Output::resident(0)], Run::default()),
        Err(BackendError::Unsupported(_))
    ));

    // A stream of its own for each thread.
    let before = streams();
    assert_eq!(before, 1, "this thread's");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..4 {
                    infer(&*model, &*instance, std::slice::from_ref(&x)).unwrap();
                }
            });
        }
    });
    assert_eq!(streams(), before + 2);

    // Weights are on the GPU and in the count, and go back to the driver with their model.
    let weights = || Module::forward("x: Tensor", "Tensor", &["return torch.add(x, self.w)"]);
    let held = || device.status().unwrap().memory_held;
    let before = held();
    let large = weights().weight("w", &[1, 4 << 20], vec![1.; 4 << 20]);
    let loaded = load(folder.path(), device, &large, 4 << 20).unwrap();
    assert!(blocks() > 0 && held() >= before + (16 << 20));
    drop(loaded);
    assert_eq!((blocks(), held()), (0, before));

    // More than PyTorch may take.
    let larger = weights().weight("w", &[1, 8 << 20], vec![1.; 8 << 20]);
    let error = load(folder.path(), device, &larger, 8 << 20).err().unwrap();
    assert!(
        matches!(&error, BackendError::OutOfMemory(text) if text.contains("CUDA out of memory")),
        "{error:?}"
    );
    assert_eq!(values(&infer(&*model, &*instance, std::slice::from_ref(&x)).unwrap()[0]), [1., 2., 3., 4.]);

    // Tasks of libtorch's would be in other streams than the run's.
    let forks = Module::forward("x: Tensor", "Tensor", &["_0 = fork(branch, x)", "return x"]);
    let error = load(folder.path(), device, &forks, 2).err().unwrap();
    assert!(matches!(&error, BackendError::Load(text) if text.contains("calls `fork`")), "{error:?}");

    // An error that does not concern the device, and such as stay.
    let of_driver = number(&driver, "pretended_driver_failure");
    // SAFETY: nothing else runs.
    let fail = |driver, runtime| unsafe { (*of_driver, *failures) = (driver, runtime) };
    let run = || infer(&*model, &*instance, std::slice::from_ref(&x));
    fail(0, 1);
    let error = run().unwrap_err();
    assert!(matches!(&error, BackendError::Run(text) if text == "CUDA error: pretended"), "{error:?}");
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    fail(0, 0);
    assert_eq!(values(&run().unwrap()[0]), [1., 2., 3., 4.]);
    // One whose words the driver does not confirm: a model may have raised them.
    fail(0, 700);
    let error = run().unwrap_err();
    assert!(matches!(error, BackendError::Run(_)), "{error:?}");
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    // One that the driver tells.
    fail(719, 1);
    let error = run().unwrap_err();
    assert!(matches!(&error, BackendError::Lost(text) if text.contains("CUDA failure 719")), "{error:?}");
    assert!(matches!(device.status().unwrap().health, Health::Lost(_)));
    fail(0, 0);
}
