//! The backend on real models, in process and as a plug-in.

mod support;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_backend::conformance::{self, fp32, infer, instance, values};
use outrigger_backend::{
    Backend, BackendError, Buffer, DataType, Instance, LoadOptions, Model, Output, Run, Shape, Tensor, host,
};
use outrigger_testkit::onnx::{self, Dim, Graph};
use support::Mlp;
use tempfile::TempDir;

/// Held by tests that look at the memory of the process, and by one that takes much.
static MEMORY: Mutex<()> = Mutex::new(());

fn memory() -> MutexGuard<'static, ()> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn settings() -> Vec<(String, String)> {
    let path = outrigger_testkit::onnxruntime().display().to_string();
    vec![("onnxruntime".into(), path), ("intra_threads".into(), "2".into())]
}

fn backend() -> Arc<dyn Backend> {
    outrigger_cpu::open(&settings()).unwrap()
}

/// The plug-in, which `cargo test` builds beside the tests.
fn plugin() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let file = format!("{}outrigger_cpu{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let plugin = test.parent().unwrap().parent().unwrap().join(file);
    assert!(plugin.is_file(), "{} is missing: run `cargo build -p outrigger-cpu`", plugin.display());
    plugin
}

struct Loaded {
    model: Arc<dyn Model>,
    instance: Arc<dyn Instance>,
    _folder: TempDir,
}

impl Loaded {
    fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "model.onnx", bytes);
        let (model, instance) = instance(&*backend().open(0).unwrap(), &path);
        Self { model, instance, _folder: folder }
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        infer(&*self.model, &*self.instance, inputs)
    }

    fn allocated(&self, inputs: &[Tensor]) -> Result<Tensor, BackendError> {
        let mut outputs = [Output::allocate(0)];
        self.instance.infer(inputs, &mut outputs, Run::default())?;
        let [output] = outputs;
        Ok(output.into_tensor().unwrap())
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn load_error(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "model.onnx", bytes);
    let error = backend().open(0).unwrap().load(&LoadOptions::of(path)).err().unwrap();
    assert!(matches!(error, BackendError::Load(_)), "{error:?}");
    error.to_string()
}

/// `got` is within `1e-5 + 1e-5 * |expected|`: single precision over sums of some hundred terms.
fn all_close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-5 + 1e-5 * expected.abs(), "{got} is not {expected}");
    }
}

fn conforms(backend: &dyn Backend) {
    let _memory = memory();
    let folder = tempfile::tempdir().unwrap();
    let fixtures = onnx::fixtures(folder.path(), &onnx::TYPES);
    conformance::all(backend, &fixtures);
}

#[test]
fn conforms_in_process() {
    conforms(&*backend());
}

#[test]
fn conforms_as_a_plugin() {
    let backend = host::load(&plugin(), &settings()).unwrap();
    let info = backend.info();
    let formats = ["onnx", "onnx+steps"].map(str::to_owned);
    assert_eq!((info.name.as_str(), info.formats.as_slice()), ("cpu", formats.as_slice()));
    assert!(info.version.contains("ONNX Runtime 1."), "{}", info.version);
    assert!(info.devices[0].memory_total > 0 && backend.open(0).unwrap().status().unwrap().memory_free > 0);
    conforms(&*backend);
}

#[test]
fn numbers_agree_with_plain_arithmetic() {
    let mlp = Mlp::new(&[64, 128, 128, 10]);
    let loaded = Loaded::new(&mlp.encode());
    for batch in [1, 3, 32] {
        let x: Vec<f32> = (0..batch * 64).map(|number| (number % 17) as f32 / 8. - 1.).collect();
        let outputs = loaded.infer(&[fp32(&[batch as i64, 64], &x)]).unwrap();
        let expected: Vec<f32> = x.chunks(64).flat_map(|row| mlp.run(row)).collect();
        all_close(&values(&outputs[0]), &expected);
        assert!(expected.iter().any(|value| value.abs() > 1e-3), "the test says something");
    }
    assert!(loaded.instance.bytes_held() > 4 * (64 * 128 + 128 * 128 + 128 * 10));
}

#[test]
fn eight_threads_run_one_session() {
    let mlp = Mlp::new(&[64, 128, 128, 10]);
    let loaded = Loaded::new(&mlp.encode());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (mlp, loaded) = (&mlp, &loaded);
            scope.spawn(move || {
                let x: Vec<f32> = (0..64).map(|number| ((number + thread) % 13) as f32 / 6. - 1.).collect();
                let expected = mlp.run(&x);
                for _ in 0..200 {
                    let outputs = loaded.infer(&[fp32(&[1, 64], &x)]).unwrap();
                    all_close(&values(&outputs[0]), &expected);
                }
            });
        }
    });
}

#[test]
fn threads_of_its_own_give_the_same_numbers() {
    let mlp = Mlp::new(&[64, 32, 10]);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "mlp.onnx", &mlp.encode());
    for threads in [1, 2] {
        let options = LoadOptions { intra_threads: Some(threads), ..LoadOptions::of(&path) };
        let model = backend().open(0).unwrap().load(&options).unwrap();
        let x = [0.25; 64];
        let outputs = infer(&*model, &*model.instance().unwrap(), &[fp32(&[1, 64], &x)]).unwrap();
        all_close(&values(&outputs[0]), &mlp.run(&x));
    }
}

#[test]
fn a_model_that_passes_its_input_on_copies_it() {
    // No node at all: ONNX Runtime gives back the input's own memory.
    let shape = [Dim::Named("batch"), Dim::Fixed(2)];
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &shape);
    graph.output("x", DataType::Fp32, &shape);
    let loaded = Loaded::new(&graph.model());
    let input = fp32(&[1, 2], &[1., 2.]);
    let placed = loaded.infer(std::slice::from_ref(&input)).unwrap();
    assert_eq!(values(&placed[0]), [1., 2.]);
    let output = loaded.allocated(std::slice::from_ref(&input)).unwrap();
    assert_ne!(output.data().as_ptr(), input.data().as_ptr());
    drop(input);
    assert_eq!(values(&output), [1., 2.]);
}

#[test]
fn constants_come_out_placed_and_allocated() {
    let free = [Dim::Named("n")];
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &free);
    graph.initializer("c", &[2], &[5., 6.]);
    graph.node("Relu", &["x"], &["y"]);
    graph.output("c", DataType::Fp32, &[Dim::Fixed(2)]);
    graph.output("y", DataType::Fp32, &free);
    let loaded = Loaded::new(&graph.model());
    let input = fp32(&[3], &[-1., 0., 1.]);
    let outputs = loaded.infer(std::slice::from_ref(&input)).unwrap();
    assert_eq!((values(&outputs[0]), values(&outputs[1])), (vec![5., 6.], vec![0., 0., 1.]));
    assert_eq!(values(&input), [-1., 0., 1.], "an input is never written to");
    let constant = loaded.allocated(&[input]).unwrap();
    drop(loaded);
    assert_eq!(values(&constant), [5., 6.], "what is part of the session keeps the session");
}

#[test]
fn shapes_that_a_model_promises_wrongly_are_allocated() {
    // Says that y is as long as x; it is the transpose of [n, m].
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n"), Dim::Named("m")]);
    graph.node("Transpose", &["x"], &["y"]);
    graph.output("y", DataType::Fp32, &[Dim::Named("n"), Dim::Named("m")]);
    let loaded = Loaded::new(&graph.model());
    for _ in 0..3 {
        let outputs = loaded.infer(&[fp32(&[2, 3], &[1., 2., 3., 4., 5., 6.])]).unwrap();
        assert_eq!(outputs[0].shape().extents(), [3, 2]);
        assert_eq!(values(&outputs[0]), [1., 4., 2., 5., 3., 6.]);
    }
    // Where the shape happens to be the promised one the result is in its place again.
    let outputs = loaded.infer(&[fp32(&[2, 2], &[1., 2., 3., 4.])]).unwrap();
    assert_eq!(values(&outputs[0]), [1., 3., 2., 4.]);
}

#[test]
fn extents_that_do_not_go_together_are_the_callers_mistake() {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("")]);
    graph.input("y", DataType::Fp32, &[Dim::Named("")]);
    graph.node("Add", &["x", "y"], &["z"]);
    graph.output("z", DataType::Fp32, &[Dim::Named("")]);
    let error = Loaded::new(&graph.model()).infer(&[fp32(&[2], &[0.; 2]), fp32(&[3], &[0.; 3])]).unwrap_err();
    assert!(matches!(&error, BackendError::Input(text) if !text.contains('\n')), "{error:?}");
    assert!(error.to_string().contains("broadcast"), "{error}");
}

#[test]
fn strings_go_in_and_come_out() {
    let shape = [Dim::Named("n")];
    let mut graph = Graph::default();
    graph.input("text", DataType::Bytes, &shape);
    graph.input("x", DataType::Fp32, &shape);
    graph.node("Identity", &["text"], &["same"]);
    graph.node("Relu", &["x"], &["y"]);
    graph.output("same", DataType::Bytes, &shape);
    graph.output("y", DataType::Fp32, &shape);
    graph.output("text", DataType::Bytes, &shape);
    let loaded = Loaded::new(&graph.model());
    let info = loaded.model.info();
    assert_eq!((info.inputs[0].data_type, info.outputs[0].data_type), (DataType::Bytes, DataType::Bytes));
    let texts: [&[&[u8]]; 3] =
        [&[b"a", b"", "l\u{e4}ng\u{e9}r".as_bytes(), b"zero \0 inside", &[7; 5000]], &[b""], &[]];
    for text in texts {
        let shape = Shape::new([text.len() as i64]).unwrap();
        let text = Tensor::strings(shape, text).unwrap();
        let x = fp32(&[text.shape().elements() as i64], &vec![-1.; text.shape().elements()]);
        let outputs = loaded.infer(&[text.clone(), x.clone()]).unwrap();
        assert_eq!((&outputs[0], &outputs[2]), (&text, &text));
        assert_eq!(values(&outputs[1]), vec![0.; text.shape().elements()]);
        assert_eq!(loaded.allocated(&[text.clone(), x]).unwrap(), text);
    }
    let text = conformance::tensor(DataType::Uint8, &[1], &[65]);
    let error = loaded.infer(&[text, fp32(&[1], &[1.])]).unwrap_err();
    assert_eq!(error.to_string(), "input `text` has type UINT8, the model takes BYTES");
}

/// `y = x` after `steps` products with a matrix that changes nothing: a run that takes long, in steps that take short.
fn long(steps: usize) -> Vec<u8> {
    const WIDTH: usize = 256;
    let shape = [Dim::Named("n"), Dim::Fixed(WIDTH as i64)];
    let one: Vec<f32> = (0..WIDTH * WIDTH).map(|at| f32::from(u8::from(at % (WIDTH + 1) == 0))).collect();
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &shape);
    graph.initializer("one", &[WIDTH as i64, WIDTH as i64], &one);
    let name = |step: usize| if step == 0 { "x".into() } else { format!("h{step}") };
    for step in 0..steps {
        graph.node("MatMul", &[&name(step), "one"], &[&name(step + 1)]);
    }
    graph.node("Relu", &[&name(steps)], &["y"]);
    graph.output("y", DataType::Fp32, &shape);
    graph.model()
}

#[test]
fn runs_are_cancelled_by_their_number() {
    let loaded = Loaded::new(&long(400));
    let instance = &*loaded.instance;
    let run = |id: u64, rows: usize| {
        let x = fp32(&[rows as i64, 256], &vec![2.; rows * 256]);
        let mut outputs = [Output::allocate(0)];
        instance.infer(&[x], &mut outputs, Run { id: NonZeroU64::new(id) })?;
        let [output] = outputs;
        Ok::<_, BackendError>(values(&output.into_tensor().unwrap()))
    };
    let cancel = |id: u64| instance.cancel(NonZeroU64::new(id).unwrap());
    // Before it has begun there is nothing to cancel.
    cancel(1);
    assert_eq!(run(1, 1).unwrap(), [2.; 256]);
    std::thread::scope(|scope| {
        let cancelled = scope.spawn(|| run(2, 4000));
        let others = [scope.spawn(|| run(3, 4)), scope.spawn(|| run(0, 4))];
        // Long enough for any machine to get at the run before it ends by itself.
        while !cancelled.is_finished() {
            cancel(2);
            std::thread::yield_now();
        }
        let error = cancelled.join().unwrap().unwrap_err();
        assert!(matches!(error, BackendError::Cancelled), "{error:?}");
        for other in others {
            assert_eq!(other.join().unwrap().unwrap(), [2.; 1024]);
        }
    });
    // Whatever the cancelled run has left behind is taken up by others.
    for id in [2, 4] {
        assert_eq!(run(id, 1).unwrap(), [2.; 256]);
    }
}

#[test]
fn what_a_model_takes_is_told_before_and_counted_after() {
    let device = backend().open(0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "mlp.onnx", &onnx::mlp(&[256, 1024, 1024, 256]));
    let estimate = device.estimate(&LoadOptions::of(&path)).unwrap();
    let weights = 4 * (256 * 1024 + 1024 * 1024 + 1024 * 256);
    assert!((weights..weights * 5 / 4).contains(&estimate), "{estimate} bytes for {weights}");
    let (model, first) = instance(&*device, &path);
    assert_eq!(device.status().unwrap().memory_held, estimate);
    assert_eq!(first.bytes_held(), estimate);
    let second = model.instance().unwrap();
    assert_eq!(
        (first.bytes_held(), second.bytes_held()),
        (estimate / 2, estimate / 2),
        "one session for both"
    );
    drop((model, first, second));
    assert_eq!(device.status().unwrap().memory_held, 0);
    let error = device.estimate(&LoadOptions::of("/nowhere/model.onnx")).unwrap_err();
    assert!(matches!(&error, BackendError::Load(text) if text.contains("/nowhere/model.onnx")), "{error:?}");
}

#[test]
fn a_models_own_settings_are_strict() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "add.onnx", &onnx::add(3));
    let load = |key: &str, value: &str| {
        let settings = vec![(key.to_owned(), value.to_owned())];
        let options = LoadOptions { settings, ..LoadOptions::of(&path) };
        backend().open(0).unwrap().load(&options).err().map(|error| error.to_string())
    };
    let unknown = load("afinity", "0").unwrap();
    assert!(unknown.ends_with("there is no setting `afinity` for a model, only `affinity`"), "{unknown}");
    let refused = load("affinity", "1023").unwrap();
    assert!(
        refused.contains("setting `affinity` names CPU 1023, which this process may not use"),
        "{refused}"
    );
}

#[test]
fn models_that_do_not_load_say_why() {
    let shape = [Dim::Named("n")];
    let mut unknown = Graph::default();
    unknown.input("x", DataType::Fp32, &shape);
    unknown.node("NoSuchOperator", &["x"], &["y"]);
    unknown.output("y", DataType::Fp32, &shape);
    let text = load_error(&unknown.model());
    assert!(text.contains("NoSuchOperator") && !text.contains('\n'), "{text}");
    let text = load_error(&support::sequence());
    assert!(text.contains("`y` is a Sequence<") && text.contains("only tensors"), "{text}");
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    let _memory = memory();
    // 2^20 x 1 plus 1 x 2^22 broadcasts to 2^42 elements, 16 TiB.
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Named("n"), Dim::Fixed(1)]);
    graph.input("y", DataType::Fp32, &[Dim::Fixed(1), Dim::Named("m")]);
    graph.node("Add", &["x", "y"], &["z"]);
    graph.output("z", DataType::Fp32, &[Dim::Named("n"), Dim::Named("m")]);
    let loaded = Loaded::new(&graph.model());
    let (x, y) = (fp32(&[1 << 20, 1], &vec![0.; 1 << 20]), fp32(&[1, 1 << 22], &vec![0.; 1 << 22]));
    let placed = loaded.infer(&[x.clone(), y.clone()]).unwrap_err();
    assert!(matches!(placed, BackendError::OutOfMemory(_)), "{placed:?}");
    let allocated = loaded.allocated(&[x, y]).unwrap_err();
    assert!(matches!(allocated, BackendError::OutOfMemory(_)), "{allocated:?}");
}

#[test]
fn a_place_of_the_wrong_size_is_not_written_past() {
    let loaded = Loaded::new(&onnx::add(3));
    let buffer = Buffer::zeroed(12).unwrap();
    let mut outputs = [Output::place(0, DataType::Fp32, Shape::new([1, 3]).unwrap(), buffer).unwrap()];
    let x = fp32(&[2, 3], &[1.; 6]);
    loaded.instance.infer(&[x.clone(), x], &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    let output = output.into_tensor().unwrap();
    assert_eq!((output.shape().extents(), values(&output)), ([2, 3].as_slice(), vec![2.; 6]));
}
