use outrigger_backend::conformance::{self, Fixtures, fp32, instance};
use outrigger_backend::{Backend, Health, Output, Run};
use outrigger_cuda_driver::fake::{self, TOTAL, seen};
use outrigger_onnxruntime::{Leftovers, Pool};
use outrigger_testkit::onnx::{self, write};

use super::*;

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

/// The backend on one device of the fake driver's.
fn fake_cuda(settings: &[(&str, &str)]) -> (i32, Cuda) {
    let number = fake::number();
    let gpu = Gpu { number, name: "Fine card".into(), memory: TOTAL as u64, capability: (9, 0) };
    let driver = fake::driver();
    let card = Card::new(&driver, gpu);
    let settings = Settings::read(&pairs(settings)).unwrap();
    (number, Cuda { settings, driver: Ok((driver, vec![card])) })
}

fn model(settings: &[(&str, &str)]) -> LoadOptions {
    LoadOptions { settings: pairs(settings), ..LoadOptions::of("model.onnx") }
}

fn provider(name: &str, options: &[(&str, &str)]) -> ExecutionProvider {
    ExecutionProvider { name: name.into(), options: pairs(options) }
}

#[test]
fn plans_say_what_is_set() {
    let (number, backend) = fake_cuda(&[]);
    let number = number.to_string();
    let entries = pairs(&[("session.use_device_allocator_for_initializers", "1")]);
    let cuda = |convolutions, tf32| {
        let options = [
            ("device_id", &*number),
            ("arena_extend_strategy", "kSameAsRequested"),
            ("cudnn_conv_algo_search", convolutions),
            ("use_tf32", tf32),
        ];
        provider("CUDAExecutionProvider", &options)
    };
    let tensorrt =
        |fp16| provider("TensorrtExecutionProvider", &[("device_id", &*number), ("trt_fp16_enable", fp16)]);
    let check = |settings: &[(&str, &str)], providers: Vec<ExecutionProvider>, leftovers| {
        let plan = backend.plan(0, &model(settings)).unwrap();
        assert_eq!(plan, Plan { providers, leftovers, entries: entries.clone(), ..Plan::default() });
    };
    check(&[], vec![cuda("HEURISTIC", "1")], Leftovers::Allowed);
    check(
        &[("convolutions", "exhaustive"), ("tf32", "false"), ("leftovers", "refused")],
        vec![cuda("EXHAUSTIVE", "0")],
        Leftovers::Refused,
    );
    check(&[("tensorrt", "true")], vec![tensorrt("0"), cuda("HEURISTIC", "1")], Leftovers::Allowed);
    check(&[("tensorrt", "fp16")], vec![tensorrt("1"), cuda("HEURISTIC", "1")], Leftovers::Allowed);
    let error = backend.plan(0, &model(&[("colour", "red")])).unwrap_err().to_string();
    assert!(error.starts_with("there is no setting `colour` for a model, only "), "{error}");
    assert!(backend.plan(1, &model(&[])).is_err());
    assert_eq!(seen(number.parse().unwrap()).contexts, 0, "a plan makes no context");
}

#[test]
fn one_provider_records_runs() {
    let last = |settings: &[(&str, &str)], of: &[(&str, &str)]| {
        let (_, backend) = fake_cuda(of);
        let plan = backend.plan(0, &model(settings)).unwrap();
        let options = plan.providers.iter().map(|provider| provider.options[2..].to_vec());
        (options.collect::<Vec<_>>(), plan.graphs)
    };
    let (plain, none) = last(&[], &[]);
    assert_eq!(none, None);
    let (options, graphs) = last(&[("graphs", "1,8")], &[]);
    assert_eq!(graphs.map(|graphs| graphs.most), Some(8));
    assert_eq!(options[0], [&plain[0][..], &pairs(&[("enable_cuda_graph", "1")])].concat());
    // What the shared arena has as its limit holds for one of its own, too.
    let (options, _) = last(&[("graphs", "fixed")], &[("arena_bytes", "4096")]);
    let more = pairs(&[("enable_cuda_graph", "1"), ("gpu_mem_limit", "4096")]);
    assert_eq!(options[0], [&plain[0][..], &more].concat());
    // TensorRT would replay another's recording, whoever of the two says that it is to be asked.
    for (settings, of) in [
        (&[("graphs", "fixed"), ("tensorrt", "true")][..], &[][..]),
        (&[("graphs", "1,8")], &[("tensorrt", "fp16")]),
    ] {
        let (_, backend) = fake_cuda(of);
        let error = backend.plan(0, &model(settings)).unwrap_err().to_string();
        assert!(error.starts_with("`graphs` does not go with `tensorrt`"), "{error}");
    }
    let (options, _) = last(&[("graphs", "fixed"), ("tensorrt", "false")], &[("tensorrt", "true")]);
    assert_eq!(options.len(), 1);
}

#[test]
fn engines_are_kept_in_a_folder_of_this_user_s_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engines");
    let (_, backend) = fake_cuda(&[("tensorrt", "true"), ("tensorrt_cache", path.to_str().unwrap())]);
    let plan = backend.plan(0, &model(&[])).unwrap();
    let path = path.to_str().unwrap();
    let kept = pairs(&[
        ("trt_engine_cache_enable", "1"),
        ("trt_engine_cache_path", path),
        ("trt_timing_cache_enable", "1"),
        ("trt_timing_cache_path", path),
    ]);
    assert!(plan.providers[0].options.ends_with(&kept), "{plan:?}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o777, 0o700);
        let refused = || {
            let error = backend.plan(0, &model(&[])).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("setting `tensorrt_cache`: {path} must be this user's")),
                "{error}"
            );
        };
        // Who may read engines may not write them, but nobody needs to.
        for mode in [0o777, 0o750] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            refused();
        }
        // A link leads to a folder that others may exchange.
        let real = folder.path().join("real");
        std::fs::rename(path, &real).unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&real, path).unwrap();
        refused();
        std::fs::remove_file(path).unwrap();
    }
    #[cfg(not(unix))]
    std::fs::remove_dir_all(path).unwrap();
    std::fs::write(path, "no folder").unwrap();
    let error = backend.plan(0, &model(&[])).unwrap_err().to_string();
    assert!(error.starts_with(&format!("setting `tensorrt_cache`: {path} must be ")), "{error}");
    let inside = format!("{path}/engines");
    let (_, backend) = fake_cuda(&[("tensorrt", "true"), ("tensorrt_cache", &inside)]);
    let error = backend.plan(0, &model(&[])).unwrap_err().to_string();
    assert!(error.starts_with(&format!("setting `tensorrt_cache`: {inside}: ")), "{error}");
}

#[test]
fn gpus_that_are_too_old_are_left_out() {
    let cuda = Cuda::on(Settings::read(&[]).unwrap(), Ok(fake::driver()));
    assert_eq!(cuda.cards().len(), 1);
    // ONNX Runtime and DLPack are told CUDA's number, whatever ours is.
    let home =
        Residence { allocator: "Cuda".into(), id: 1, device: DLDevice { device_type: 2, device_id: 1 } };
    assert_eq!((cuda.residence(0), cuda.residence(1)), (Some(home), None));
    assert!(cuda.circumstances().contains("Fine card (9, 1)"), "{}", cuda.circumstances());
}

#[test]
fn messages_that_do_not_say_are_held_against_the_driver() {
    let (number, cuda) = fake_cuda(&[]);
    let text = format!("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU={number} ; hostname=h");
    assert_eq!(cuda.fault(&text), None);
    assert_eq!(cuda.fault("CUDA failure 2: out of memory"), Some(Fault::OutOfMemory));
    fake::fail(number, 719);
    assert_eq!(cuda.fault(&text), Some(Fault::Lost));
    assert_eq!(cuda.fault("Attempting to broadcast an axis"), None);
    assert_eq!(cuda.fault(&text.replace("GPU=", "GPU=9")), None, "another's");
}

/// The backend, but for ONNX Runtime's provider, which is the CPU's: a device that is the host in disguise, with this driver.
struct Disguised(Cuda);

impl Provider for Disguised {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn devices(&self, _runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        Ok(vec![DeviceInfo {
            name: "cuda:0".into(),
            kind: DeviceKind::Cuda,
            memory_total: TOTAL as u64,
            lanes: LANES,
            resident: true,
        }])
    }

    fn plan(&self, device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        Ok(Plan { providers: Vec::new(), ..self.0.plan(device, options)? })
    }

    fn memory(&self, device: usize) -> Result<Memory, BackendError> {
        self.0.memory(device)
    }

    fn unfreed(&self, device: usize) -> u64 {
        self.0.unfreed(device)
    }

    fn circumstances(&self) -> String {
        self.0.circumstances()
    }

    fn fault(&self, message: &str) -> Option<Fault> {
        self.0.fault(message)
    }

    fn residence(&self, device: usize) -> Option<Residence> {
        Some(Residence { allocator: "Cpu".into(), id: 0, ..self.0.residence(device)? })
    }

    fn pinned(&self, device: usize, bytes: usize) -> Result<Buffer, BackendError> {
        self.0.pinned(device, bytes)
    }

    fn allocate(&self, device: usize, bytes: usize) -> Result<DeviceMemory, BackendError> {
        self.0.allocate(device, bytes)
    }

    fn upload(&self, device: usize, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        self.0.upload(device, from, to)
    }

    fn download(&self, device: usize, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        self.0.download(device, from, to)
    }

    fn copy(&self, device: usize, from: &DeviceMemory, to: &DeviceMemory) -> Result<(), BackendError> {
        self.0.copy(device, from, to)
    }

    fn recordings(&self) -> Option<&'static Recordings> {
        self.0.recordings()
    }

    fn can_cancel(&self) -> bool {
        self.0.can_cancel()
    }
}

fn open() -> (i32, Arc<dyn Backend>) {
    let (number, cuda) = fake_cuda(&[]);
    let settings = outrigger_onnxruntime::Settings {
        library: Some(outrigger_testkit::onnxruntime()),
        ..outrigger_onnxruntime::Settings::default()
    };
    let pool = Pool { threads: 1, affinity: None };
    (number, outrigger_onnxruntime::open(Disguised(cuda), &settings, &pool).unwrap())
}

#[test]
fn conforms() {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = onnx::fixtures(folder.path(), &onnx::TYPES);
    // Its runs cannot be cancelled.
    let fixtures = Fixtures { slow: None, stubborn: Some(fixtures.add.clone()), ..fixtures };
    let (number, backend) = open();
    conformance::all(&*backend, &fixtures);
    assert_eq!(seen(number).blocks(), (0, 0), "all memory is given back");
    drop(backend);
    assert_eq!(seen(number).contexts, 0);
}

#[test]
fn an_error_that_stays_makes_the_device_a_lost_one() {
    let folder = tempfile::tempdir().unwrap();
    let (number, backend) = open();
    let device = backend.open(0).unwrap();
    let (_model, instance) = instance(&*device, &write(folder.path(), "add", &onnx::add(3)));
    let memory = device.allocate(12).unwrap();
    assert_eq!(device.status().unwrap().health, Health::Healthy);
    fake::fail(number, 700);
    let error = device.upload(&[0; 12], &memory).unwrap_err();
    let BackendError::Lost(first) = &error else { panic!("{error:?}") };
    assert!(first.contains("illegal memory access"), "{first}");
    fake::fail(number, 719);
    let status = device.status().unwrap();
    assert_eq!(status.health, Health::Lost(first.clone()), "the first reason is the one");
    assert_eq!((status.memory_total, status.memory_free), (0, 0));
    assert!(matches!(device.pinned(8).unwrap_err(), BackendError::Lost(_)));
    // It does not take memory back either.
    let held = device.status().unwrap().memory_held;
    drop(memory);
    assert_eq!(device.status().unwrap().memory_held, held);
    // What does not need the driver does not know of it.
    let x = fp32(&[1, 3], &[1.; 3]);
    instance.infer(&[x.clone(), x], &mut [Output::allocate(0)], Run::default()).unwrap();
}
