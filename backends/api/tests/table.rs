//! The table both ways: a backend in process, through its table, and as a library passes the same suite.

#[path = "../examples/adder.rs"]
mod adder;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::conformance::{self, Fixtures, fp32, infer, instance};
use outrigger_backend::export::{Open, through_table};
use outrigger_backend::{
    Backend, BackendError, DataType, LoadOptions, ModelInfo, Output, Run, Shape, TensorInfo, host,
};

struct Adder;

impl Open for Adder {
    const ASYNCHRONOUS: bool = true;

    fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
        adder::open(settings)
    }
}

fn fixtures(folder: &Path) -> Fixtures {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let scratch = folder.join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    Fixtures {
        add: write("add", "add x y"),
        identity: adder::TYPES
            .into_iter()
            .map(|data_type| (data_type, write(data_type.name(), &format!("identity {data_type}"))))
            .collect(),
        nonzero: write("nonzero", "nonzero indices"),
        strings: Some(write("strings", "identity BYTES")),
        outer: Some(write("outer", "outer sum")),
        slow: Some(write("slow", "slow 60000")),
        stubborn: Some(write("stubborn", "stubborn 20")),
        weights: Some((write("weights", "weights 8388608"), 8 << 20)),
        scratch,
    }
}

fn check(backend: Arc<dyn Backend>) {
    let folder = tempfile::tempdir().unwrap();
    conformance::all(&*backend, &fixtures(folder.path()));
}

/// The example in C, compiled.
fn tiny(folder: &Path) -> PathBuf {
    let library = folder.join("libtiny.so");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cc = std::process::Command::new("cc");
    cc.args(["-std=c99", "-O1", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden"]);
    cc.args(["-pedantic", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(here.join("include"))
        .arg("-o")
        .arg(&library);
    let output = cc.arg(here.join("examples/tiny/tiny.c")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

/// The example's library, which `cargo test` builds beside the tests.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let file = format!("{}adder{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = test.parent().unwrap().parent().unwrap().join("examples").join(file);
    assert!(
        library.is_file(),
        "{} is missing: run `cargo build -p outrigger-backend --examples`",
        library.display()
    );
    library
}

fn setting(key: &str, value: &str) -> Vec<(String, String)> {
    vec![(key.into(), value.into())]
}

fn task(backend: &dyn Backend, text: &str) -> Result<Vec<outrigger_backend::Tensor>, BackendError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, text).unwrap();
    let (model, instance) = instance(&*backend.open(0).unwrap(), &path);
    let input = fp32(&[1, 3], &[1., 2., 3.]);
    infer(&*model, &*instance, &[input.clone(), input])
}

#[test]
fn in_process() {
    check(adder::open(&[]).unwrap());
}

#[test]
fn through_its_own_table() {
    check(through_table::<Adder>("adder", &[]).unwrap());
}

#[test]
fn as_a_library() {
    check(host::load(&library(), &[]).unwrap());
}

#[test]
fn in_c() {
    let folder = tempfile::tempdir().unwrap();
    let library = tiny(folder.path());
    check(host::load(&library, &[]).unwrap());
    let absent = host::load(&library, &setting("absent", "no tiny machine")).unwrap();
    assert_eq!((absent.info().devices.len(), absent.info().reason.as_deref()), (0, Some("no tiny machine")));
    for wrong in [setting("colour", "red"), setting("memory", "much")] {
        let error = host::load(&library, &wrong).err().unwrap().to_string();
        assert!(error.contains(&wrong[0].0), "{error}");
    }
    // What does not fit into its memory is said when it is loaded.
    let backend = host::load(&library, &setting("memory", "1000")).unwrap();
    let model = folder.path().join("model");
    std::fs::write(&model, "weights 1001").unwrap();
    let error = backend.open(0).unwrap().load(&outrigger_backend::LoadOptions::of(&model)).err().unwrap();
    assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
}

#[test]
fn settings_reach_the_backend_and_reasons_come_back() {
    let backend =
        host::load(&library(), &setting("absent", "no adding machine, tried `/dev/adder`")).unwrap();
    assert!(backend.info().devices.is_empty());
    assert_eq!(backend.info().reason.as_deref(), Some("no adding machine, tried `/dev/adder`"));
    let error = |settings: &[_]| host::load(&library(), settings).err().unwrap().to_string();
    let name = library().display().to_string();
    assert_eq!(error(&setting("fail", "it rains")), format!("backend `{name}` is not available: it rains"));
    assert_eq!(
        error(&setting("colour", "red")),
        format!("backend `{name}` is not available: unknown setting `colour`")
    );
    assert_eq!(error(&setting("panic", "oh")), "internal error of the backend: panicked: oh");
}

#[test]
fn panics_and_errors_become_errors_of_the_same_kind() {
    let backend = host::load(&library(), &[]).unwrap();
    let panicked = task(&*backend, "panic now").unwrap_err();
    assert!(
        matches!(&panicked, BackendError::Internal(text) if text == "panicked: the clerk tripped"),
        "{panicked:?}"
    );
    let BackendError::OutOfMemory(text) = task(&*backend, "fail now").unwrap_err() else { panic!() };
    assert!(
        text.starts_with("the desk is full") && text.len() == 2048,
        "long reasons are cut: {}",
        text.len()
    );
    assert_eq!(task(&*backend, "add now").unwrap().len(), 1, "the library goes on");
}

#[test]
fn inputs_cross_both_ways_without_a_copy() {
    let backend = host::load(&library(), &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let fixtures = fixtures(folder.path());
    let (_, path) = fixtures.identity.iter().find(|(data_type, _)| *data_type == DataType::Fp32).unwrap();
    let (model, instance) = instance(&*backend.open(0).unwrap(), path);
    let input = fp32(&[2, 2], &[1., 2., 3., 4.]);
    let mut outputs = [Output::allocate(0)];
    instance.infer(std::slice::from_ref(&input), &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    let output = output.into_tensor().unwrap();
    assert_eq!(output.data().as_ptr(), input.data().as_ptr());
    // What came back keeps alive what it points to: the input here, and the model that it may be part of.
    drop((input, instance, model, backend));
    assert_eq!(conformance::values(&output), [1., 2., 3., 4.]);
}

#[test]
fn what_is_said_of_inputs_and_outputs_reaches_the_backend() {
    let tensor = |name: &str, shape: &[i64], symbols: &[&str]| TensorInfo {
        name: name.into(),
        data_type: DataType::Bf16,
        shape: shape.into(),
        symbols: symbols.iter().map(|symbol| (*symbol).into()).collect(),
    };
    let inputs = vec![tensor("image", &[-1, 3, -1], &["batch", "", ""]), tensor("scale", &[], &[])];
    let outputs = vec![tensor("logits", &[-1, 1000], &["batch", ""])];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, "said beside").unwrap();
    let device = host::load(&library(), &[]).unwrap().open(0).unwrap();
    for signature in [ModelInfo { inputs, outputs }, ModelInfo::default()] {
        let options = LoadOptions { signature: signature.clone(), ..LoadOptions::of(&path) };
        assert_eq!(*device.load(&options).unwrap().info(), signature);
        assert!(device.estimate(&options).is_ok());
    }
}

#[test]
fn a_result_of_another_shape_than_its_place_comes_allocated() {
    let backend = host::load(&library(), &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_, instance) = instance(&*backend.open(0).unwrap(), &fixtures(folder.path()).nonzero);
    let buffer = outrigger_backend::Buffer::zeroed(40).unwrap();
    let mut outputs = [Output::place(0, DataType::Int64, Shape::new([1, 5]).unwrap(), buffer).unwrap()];
    instance.infer(&[fp32(&[3], &[1., 0., 1.])], &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    assert_eq!(output.into_tensor().unwrap().shape().extents(), [1, 2]);
}

#[test]
fn libraries_that_are_none_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &Path, expected: &str| {
        let error = host::load(path, &[]).err().unwrap();
        assert!(matches!(error, BackendError::Unavailable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains(expected), "{text}");
    };
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    check(&folder.path().join("missing.so"), "No such file");
    check(&text, "file too short");
    check(Path::new("/lib/x86_64-linux-gnu/libc.so.6"), "exports no `outrigger_backend_v1`");
    let directories = [folder.path().join("a"), folder.path().join("b")];
    let error = host::find("cpu", &directories).unwrap_err().to_string();
    assert!(directories.iter().all(|tried| error.contains(&tried.display().to_string())), "{error}");
    assert!(host::find("cpu", &[]).is_err());
}

/// Going on would let two sides write to one piece of memory, so the process ends; here a child, which is this test.
#[test]
fn a_backend_that_keeps_an_outputs_memory_is_stopped() {
    if std::env::var_os("OUTRIGGER_TEST_CHILD").is_some() {
        let _ = task(&*through_table::<Adder>("adder", &[]).unwrap(), "keep it");
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_backend_that_keeps_an_outputs_memory_is_stopped", "--exact", "--nocapture"])
        .env("OUTRIGGER_TEST_CHILD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr);
    assert!(
        !child.status.success() && text.contains("has kept an output's memory"),
        "{}: {text}",
        child.status
    );
}
