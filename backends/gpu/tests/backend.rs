//! The backend as its host sees it: through the table, with models of format `steps`.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use outrigger_backend::conformance::{Fixtures, cases};
use outrigger_backend::export::{Open, through_table};
use outrigger_backend::{
    Backend, BackendError, Buffer, DataType, DeviceKind, Instance, LoadOptions, Output, Run, Shape, Tensor,
};

use outrigger_testkit::vulkan::classes;

use support::{floats, fp32, gpu, tensor};

struct Exported;

impl Open for Exported {
    fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
        outrigger_gpu::open(settings)
    }
}

fn open(settings: &[(&str, &str)]) -> Result<Arc<dyn Backend>, BackendError> {
    let settings: Vec<_> = settings.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    through_table::<Exported>("gpu", &settings)
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn it_keeps_what_every_backend_keeps_as_far_as_steps_go() {
    if gpu().is_none() {
        return;
    }
    let backend = open(&[("software", "true")]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("scratch")).unwrap();
    use DataType::{Bf16, Fp16, Fp32, Int8, Int32, Int64, Uint8};
    let identity = [Uint8, Int8, Int32, Int64, Fp16, Bf16, Fp32].map(|data_type| {
        let text = format!(
            "outputs = ['y']\n[[inputs]]\nname = 'x'\ndatatype = '{data_type}'\nshape = ['batch', 2]
             [[steps]]\nstep = 'convert'\ndatatype = '{data_type}'\nto = 'y'"
        );
        (data_type, write(folder.path(), data_type.name(), &text))
    });
    let fixtures = Fixtures {
        add: write(folder.path(), "classes", &classes("FP16")),
        identity: identity.into(),
        scratch: folder.path().join("scratch"),
        ..Fixtures::default()
    };
    // The others add, or need weights.
    let names = [
        "describes_itself",
        "tells_its_status",
        "carries_every_type",
        "refuses_broken_files",
        "refuses_unknown_settings",
    ];
    for name in names {
        let case = cases().iter().find(|case| case.name == name).unwrap();
        case.run(&*backend, &fixtures).unwrap();
    }
}

#[test]
fn a_chain_is_a_model() {
    if gpu().is_none() {
        return;
    }
    let backend = open(&[("software", "true")]).unwrap();
    assert_eq!(backend.info().formats, ["steps", "onnx", "onnx+steps"]);
    assert!(backend.info().devices.iter().all(|device| device.kind == DeviceKind::Gpu));
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "classes.toml", &classes("FP16"));
    let device = backend.open(0).unwrap();
    // Something, if little: a run of one row.
    assert!((1..1000).contains(&device.estimate(&LoadOptions::of(&path)).unwrap()));
    let model = device.load(&LoadOptions::of(&path)).unwrap();
    let outputs = &model.info().outputs;
    assert_eq!((outputs[0].name.as_str(), outputs[0].data_type), ("scores", DataType::Fp32));
    assert_eq!((outputs[1].name.as_str(), outputs[1].data_type), ("classes", DataType::Int64));
    assert_eq!(
        (&outputs[1].shape[..], &outputs[1].symbols[..]),
        (&[-1, 2][..], &["batch".into(), String::new()][..])
    );
    let instance = model.instance().unwrap();
    // 0, 1, 2 and 3 in FP16; the second row the other way round.
    let row = [0u16, 0x3c00, 0x4000, 0x4200];
    for batch in [2, 1, 0] {
        let halves = [row, [row[3], row[2], row[1], row[0]]].concat();
        let data: Vec<u8> = halves[..4 * batch].iter().flat_map(|half| half.to_ne_bytes()).collect();
        let input = tensor(DataType::Fp16, &[batch as i64, 4], data);
        let place = Buffer::zeroed(batch * 16).unwrap();
        let shape = Shape::new([batch as i64, 2]).unwrap();
        let place = Output::place(1, DataType::Int64, shape, place).unwrap();
        let mut wanted = vec![place, Output::allocate(0)];
        instance.infer(&[input], &mut wanted, Run::default()).unwrap();
        let got: Vec<Tensor> = wanted.into_iter().map(|output| output.into_tensor().unwrap()).collect();
        let classes: Vec<i64> =
            got[0].data().as_chunks().0.iter().map(|bytes| i64::from_ne_bytes(*bytes)).collect();
        assert_eq!(classes, [3, 2, 0, 1][..2 * batch]);
        for (score, expected) in floats(&got[1]).iter().zip([0.643_914_3, 0.236_882_8].repeat(2)) {
            assert!((score - expected).abs() < 1e-6, "{score}, expected {expected}");
        }
    }
    let error = instance.infer(&[fp32(&[1, 4], &[0.; 4])], &mut [Output::allocate(0)], Run::default());
    assert!(matches!(error, Err(BackendError::Input(_))), "{error:?}");
    assert!(device.status().unwrap().memory_held > 0);
    drop((instance, model));
    assert_eq!(device.status().unwrap().memory_held, 0);
}

#[test]
fn what_a_model_keeps_is_a_setting() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "classes.toml", &classes("FP16"));
    let held = |idle_bytes: &str| {
        let backend = open(&[("software", "true"), ("idle_bytes", idle_bytes)]).unwrap();
        let device = backend.open(0).unwrap();
        let instance = device.load(&LoadOptions::of(&path)).unwrap().instance().unwrap();
        for batch in [3, 2, 1] {
            let input = tensor(DataType::Fp16, &[batch, 4], vec![0; 8 * batch as usize]);
            instance.infer(&[input], &mut [Output::allocate(0)], Run::default()).unwrap();
        }
        instance.bytes_held()
    };
    assert!(held("0") < held("1000000"));
}

#[test]
fn what_a_model_takes_is_foreseen_and_bounded() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fixed = write(folder.path(), "fixed", &classes("FP16").replace("\"batch\"", "1000"));
    let free = write(folder.path(), "free", &classes("FP16"));
    let open = |memory: u64| {
        let memory = memory.to_string();
        open(&[("software", "true"), ("memory", &memory)]).unwrap().open(0).unwrap()
    };
    let device = open(1 << 30);
    let estimate = device.estimate(&LoadOptions::of(&fixed)).unwrap();
    let halves = |rows: usize| tensor(DataType::Fp16, &[rows as i64, 4], vec![0; 8 * rows]);
    let infer = |instance: &dyn Instance, rows: usize| {
        instance.infer(&[halves(rows)], &mut [Output::allocate(0)], Run::default())
    };
    // The tensors, what is between, and what comes back.
    assert!(estimate > 1000 * (4 * (2 + 4) + 2 * (4 + 8) * 2), "{estimate}");
    let model = device.load(&LoadOptions::of(&fixed)).unwrap();
    let instance = model.instance().unwrap();
    assert_eq!(instance.bytes_held(), estimate, "from the beginning");
    infer(&*instance, 1000).unwrap();
    let status = device.status().unwrap();
    assert_eq!((instance.bytes_held(), status.memory_held), (estimate, estimate));
    // Those of one model share it, so that they hold no more together.
    let other = model.instance().unwrap();
    assert_eq!((instance.bytes_held(), other.bytes_held()), (estimate / 2, estimate / 2));
    drop(other);
    assert_eq!(instance.bytes_held(), estimate);
    drop((instance, model));
    assert_eq!(device.status().unwrap().memory_held, 0);
    // What does not fit does not load, and is not run.
    let device = open(estimate - 1);
    let said = device.load(&LoadOptions::of(&fixed)).err().unwrap();
    let expected = format!(
        "a run takes {estimate} bytes of the device, where 0 are held; backends.gpu.memory is {}",
        estimate - 1
    );
    assert!(matches!(&said, BackendError::OutOfMemory(text) if *text == expected), "{said:?}");
    let [one, other] = [(); 2].map(|()| device.load(&LoadOptions::of(&free)).unwrap().instance().unwrap());
    let said = infer(&*one, 1000).unwrap_err();
    assert!(matches!(&said, BackendError::OutOfMemory(text) if *text == expected), "{said:?}");
    // What one keeps makes way for another's run.
    for (instance, idle) in [(&one, &other), (&other, &one), (&one, &other)] {
        infer(&**instance, 900).unwrap();
        assert!(instance.bytes_held() > estimate / 2 && idle.bytes_held() == 0);
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_a_line() {
    if gpu().is_none() {
        return;
    }
    let device = open(&[("software", "true")]).unwrap().open(0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refuses = |text: &str, expected: &str| {
        let path = write(folder.path(), "wrong", text);
        let error = device.load(&LoadOptions::of(&path)).err().unwrap();
        assert!(matches!(error, BackendError::Load(_)), "{error:?}");
        assert!(error.to_string().contains(expected) && !error.to_string().contains('\n'), "{error}");
    };
    refuses(
        &classes("FP16").replace("k = 2", "k = 5"),
        "step 2 (`top_k`): `k` is 5, axis -1 of tensor `logits` has 4",
    );
    refuses(&classes("FP16").replace("softmax", "softmux"), "unknown variant `softmux`");
    refuses(&classes("FP16").replace("\"scores\", ", "\"x\", "), "no tensor `x` is there after the steps");
    refuses(&classes("FP16").replace("shape", "form"), "line 6: unknown field `form`");
    refuses(&" ".repeat(300_000), "larger than 262144 bytes");
}

#[test]
fn software_is_used_only_where_it_is_wanted() {
    let Some(gpu) = gpu() else { return };
    let backend = open(&[]).unwrap();
    let reason = backend.info().reason.clone();
    if gpu.info().hardware == outrigger_gpu::Hardware::Software {
        assert!(backend.info().devices.is_empty());
        let reason = reason.unwrap();
        assert!(
            reason.contains("calculates in software; the setting `software=true` permits it"),
            "{reason}"
        );
    } else {
        assert_eq!((backend.info().devices.is_empty(), reason), (false, None));
    }
    let error = open(&[("soft", "true")]).err().unwrap().to_string();
    assert!(error.contains("unknown setting `soft`; there are `software`, "), "{error}");
}

/// Drivers are looked for by variables, which a process has for itself: so this runs itself again.
#[test]
fn without_a_driver_there_are_no_devices_and_a_reason() {
    const CHILD: &str = "OUTRIGGER_TEST_WITHOUT_DRIVERS";
    if std::env::var_os(CHILD).is_some() {
        let backend = open(&[("software", "true")]).unwrap();
        assert!(backend.info().devices.is_empty());
        println!("reason: {}", backend.info().reason.clone().unwrap());
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_a_driver_there_are_no_devices_and_a_reason", "--nocapture"])
        .envs([(CHILD, "1"), ("VK_ICD_FILENAMES", "/nonexistent"), ("VK_DRIVER_FILES", "/nonexistent")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("reason: vulkan ") && said.contains("libvulkan.so.1"), "{said}");
}
