//! Tensors that stay on a device, which is the host in disguise: its memory has another name and is reached by address alone.
#![allow(unsafe_code, reason = "is the device")]

mod support;

use std::sync::{Arc, Mutex, PoisonError};

use outrigger_backend::conformance::{self, Fixtures, fp32, instance, values};
use outrigger_backend::{
    Backend, BackendError, DLDevice, DataType, Device, DeviceInfo, DeviceMemory, Instance, LoadOptions,
    Model, Output, Run, Shape, Tensor,
};
use outrigger_onnxruntime::{
    EndsBeside, GraphShapes, Graphs, Memory, Plan, PlanError, Provider, Recordings, Residence, Runtime,
};
use outrigger_testkit::onnx::{self, Dim, Graph, write};
use support::{Pretended, settings};

const DEVICE: DLDevice = DLDevice { device_type: 77, device_id: 3 };

struct Block(Vec<u8>);

impl Drop for Block {
    fn drop(&mut self) {
        // Whoever reads it later sees that it is gone.
        self.0.fill(0xff);
    }
}

static RECORDINGS: Recordings = Recordings::new();

/// [`Pretended`], with memory of its own, of which it gives so many bytes at once. Nothing is done with that beside a recording.
struct Disguised(Pretended, usize);

impl Provider for Disguised {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn devices(&self, runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        let devices = self.0.devices(runtime)?;
        Ok(devices.into_iter().map(|device| DeviceInfo { resident: true, ..device }).collect())
    }

    fn plan(&self, device: usize, options: &LoadOptions) -> Result<Plan, PlanError> {
        self.0.plan(device, options)
    }

    fn memory(&self, device: usize) -> Result<Memory, BackendError> {
        self.0.memory(device)
    }

    fn circumstances(&self) -> String {
        self.0.circumstances()
    }

    fn can_cancel(&self) -> bool {
        self.0.can_cancel()
    }

    fn residence(&self, _device: usize) -> Option<Residence> {
        Some(Residence { allocator: "Cpu".into(), id: 0, device: DEVICE })
    }

    fn recordings(&self) -> Option<&'static Recordings> {
        Some(&RECORDINGS)
    }

    fn allocate(&self, _device: usize, bytes: usize) -> Result<DeviceMemory, BackendError> {
        let _beside = RECORDINGS.beside();
        if bytes > self.1 {
            return Err(BackendError::OutOfMemory(format!("{bytes} bytes of the device")));
        }
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(bytes)
            .map_err(|_| BackendError::OutOfMemory(format!("{bytes} bytes of the device")))?;
        memory.resize(bytes, 0);
        let mut block = Block(memory);
        let address = block.0.as_mut_ptr().expose_provenance();
        Ok(DeviceMemory::new(DEVICE, address, bytes, Arc::new(EndsBeside::new(&RECORDINGS, block))))
    }

    fn upload(&self, _device: usize, from: &[u8], to: &DeviceMemory) -> Result<(), BackendError> {
        let _beside = RECORDINGS.beside();
        let to = std::ptr::with_exposed_provenance_mut(to.address());
        // SAFETY: the caller has checked that there are as many bytes, and nobody reads them meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn download(&self, _device: usize, from: &DeviceMemory, to: &mut [u8]) -> Result<(), BackendError> {
        let _beside = RECORDINGS.beside();
        let from = std::ptr::with_exposed_provenance(from.address());
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, _device: usize, from: &DeviceMemory, to: &DeviceMemory) -> Result<(), BackendError> {
        let _beside = RECORDINGS.beside();
        assert_eq!(from.len(), to.len());
        let [from_bytes, to_bytes] =
            [from, to].map(|memory| std::ptr::with_exposed_provenance_mut::<u8>(memory.address()));
        // SAFETY: as above.
        unsafe { std::ptr::copy(from_bytes, to_bytes, from.len()) };
        Ok(())
    }
}

fn open() -> Arc<dyn Backend> {
    open_with(None)
}

/// With runs of these shapes recorded, as far as that is not ONNX Runtime's: its provider for the CPU runs them anew each time.
fn open_with(graphs: Option<Graphs>) -> Arc<dyn Backend> {
    open_of(graphs, usize::MAX)
}

fn open_of(graphs: Option<Graphs>, bytes: usize) -> Arc<dyn Backend> {
    let plan = Plan { graphs, ..Plan::default() };
    support::open(
        Disguised(Pretended { plan, can_cancel: false, ..Pretended::default() }, bytes),
        &settings(),
    )
}

/// Held by tests that look at what the process holds: not beside each other.
static MEASURES: Mutex<()> = Mutex::new(());

#[test]
fn conforms() {
    let _alone = MEASURES.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let fixtures = onnx::fixtures(folder.path(), &onnx::TYPES);
    // Its runs cannot be cancelled.
    let fixtures = Fixtures { slow: None, stubborn: Some(fixtures.add.clone()), ..fixtures };
    conformance::all(&*open(), &fixtures);
}

/// What stays on the device of a run of `model` for `[1, 2]`, which lies on the device as well, after everything else has gone.
fn stays(model: &[u8]) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let backend = open();
    let device = backend.open(0).unwrap();
    let (model, instance) = instance(&*device, &write(folder.path(), "model", model));
    let x = fp32(&[1, 2], &[1., 2.]);
    let memory = device.allocate(8).unwrap();
    device.upload(x.data(), &memory).unwrap();
    let x = Tensor::on_device(DataType::Fp32, x.shape().clone(), memory).unwrap();
    let mut outputs = [Output::resident(0)];
    instance.infer(std::slice::from_ref(&x), &mut outputs, Run::default()).unwrap();
    let [output] = outputs;
    let output = output.into_tensor().unwrap();
    drop((model, instance, x));
    let mut bytes = vec![0; output.resident().unwrap().len()];
    device.download(output.resident().unwrap(), &mut bytes).unwrap();
    values(&Tensor::new(DataType::Fp32, output.shape().clone(), bytes.into()).unwrap())
}

#[test]
fn what_a_model_passes_on_is_kept() {
    let row = [Dim::Named("batch"), Dim::Fixed(2)];
    assert_eq!(stays(&onnx::identity(DataType::Fp32, &row)), [1., 2.]);
    let mut same = Graph::default();
    same.input("x", DataType::Fp32, &row);
    same.output("x", DataType::Fp32, &row);
    // ONNX Runtime takes no graph without an operator.
    same.node("Abs", &["x"], &["unused"]);
    assert_eq!(stays(&same.model()), [1., 2.]);
}

#[test]
fn memory_of_another_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let device = open().open(0).unwrap();
    let (_model, instance) = instance(&*device, &write(folder.path(), "add", &onnx::add(3)));
    let other = DLDevice { device_id: 4, ..DEVICE };
    let memory = DeviceMemory::new(other, 64, 12, Arc::new(()));
    assert!(matches!(device.upload(&[0; 12], &memory), Err(BackendError::Input(_))));
    assert!(matches!(device.download(&memory, &mut [0; 12]), Err(BackendError::Input(_))));
    let x = Tensor::on_device(DataType::Fp32, Shape::new([1, 3]).unwrap(), memory).unwrap();
    let error = instance.infer(&[x.clone(), x], &mut [Output::resident(0)], Run::default()).unwrap_err();
    assert!(matches!(&error, BackendError::Unsupported(text) if text.contains("77:4")), "{error:?}");
}

fn batches(sizes: &[i64], most: usize) -> Option<Graphs> {
    Some(Graphs { shapes: GraphShapes::Batches(sizes.into()), most })
}

#[test]
fn conforms_where_runs_are_recorded() {
    let _alone = MEASURES.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let fixtures = onnx::fixtures(folder.path(), &onnx::TYPES);
    let fixtures = Fixtures { slow: None, stubborn: Some(fixtures.add.clone()), ..fixtures };
    conformance::all(&*open_with(batches(&[1, 2, 3, 4], 3)), &fixtures);
}

/// A model that is loaded, and the device that it is on.
struct On {
    device: Arc<dyn Device>,
    _model: Arc<dyn Model>,
    instance: Arc<dyn Instance>,
}

impl On {
    fn load(graphs: Option<Graphs>, model: &[u8]) -> Self {
        Self::load_on(&open_with(graphs), model)
    }

    fn load_on(backend: &Arc<dyn Backend>, model: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = backend.open(0).unwrap();
        let (model, instance) = instance(&*device, &write(folder.path(), "model", model));
        Self { device, _model: model, instance }
    }

    /// Bytes that models and buffers hold.
    fn held(&self) -> u64 {
        self.device.status().unwrap().memory_held
    }

    fn run(&self, inputs: &[Tensor], output: Output) -> Tensor {
        let mut outputs = [output];
        self.instance.infer(inputs, &mut outputs, Run::default()).unwrap();
        let [output] = outputs;
        output.into_tensor().unwrap()
    }

    /// `x + y` of so many rows.
    fn sum(&self, rows: i64, x: f32, y: f32, output: Output) -> Tensor {
        let input = |value| fp32(&[rows, 3], &vec![value; rows as usize * 3]);
        self.run(&[input(x), input(y)], output)
    }

    fn bring(&self, tensor: &Tensor) -> Vec<f32> {
        let Some(memory) = tensor.resident() else { return values(tensor) };
        let mut bytes = vec![0; memory.len()];
        self.device.download(memory, &mut bytes).unwrap();
        values(&Tensor::new(tensor.data_type(), tensor.shape().clone(), bytes.into()).unwrap())
    }
}

#[test]
fn recorded_shapes_have_buffers_once_and_so_many_of_them() {
    let on = On::load(batches(&[1, 2, 4], 2), &onnx::add(3));
    let before = on.held();
    let row = 3 * 3 * 4;
    for (rows, more) in [(1, row), (1, row), (3, row), (4, 5 * row), (2, 5 * row), (1, 5 * row), (4, 5 * row)]
    {
        let sum = on.sum(rows, 1., rows as f32, Output::allocate(0));
        assert_eq!(values(&sum), vec![1. + rows as f32; 3 * rows as usize]);
        drop(sum);
        assert_eq!(on.held() - before, more, "{rows} rows");
    }
}

#[test]
fn results_are_not_what_the_next_run_writes_over() {
    // The second is not recorded, and lies in the session's memory.
    let on = On::load(batches(&[1], 1), &onnx::add(3));
    for rows in [1, 2] {
        let results: Vec<_> = (0..4).map(|at| on.sum(rows, at as f32, 1., Output::resident(0))).collect();
        for (at, result) in results.iter().enumerate() {
            assert_eq!(on.bring(result), vec![at as f32 + 1.; 3 * rows as usize]);
        }
        // Results as inputs, on the device.
        let twice = on.run(&[results[3].clone(), results[3].clone()], Output::allocate(0));
        assert_eq!(on.bring(&twice), vec![8.; 3 * rows as usize]);
    }
}

#[test]
fn recorded_runs_on_many_threads_do_not_mix() {
    let on = On::load(batches(&[1, 2], 2), &onnx::add(3));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let on = &on;
            scope.spawn(move || {
                for run in 0..50 {
                    let (rows, x) = (1 + run % 3, (thread * 100 + run) as f32);
                    let sum = on.sum(rows, x, 1., Output::allocate(0));
                    assert_eq!(values(&sum), vec![x + 1.; 3 * rows as usize]);
                }
            });
        }
    });
}

#[test]
fn what_cannot_be_recorded_runs_without() {
    let check = |model: &[u8], inputs: &[Tensor], expected: &[f32]| {
        let on = On::load(batches(&[1, 2, 3], 2), model);
        let before = on.held();
        for _ in 0..2 {
            let mut outputs = [Output::allocate(0)];
            on.instance.infer(inputs, &mut outputs, Run::default()).unwrap();
            let [output] = outputs;
            let output = output.into_tensor().unwrap();
            if output.data_type() == DataType::Fp32 {
                assert_eq!(values(&output), expected);
            }
        }
        assert_eq!(on.held(), before, "no buffers are kept");
    };
    // How many there are is known after the run.
    check(&onnx::non_zero(), &[fp32(&[3], &[0., 1., 2.])], &[]);
    // Two extents of one name, and a result of another shape.
    let mut wrong = Graph::default();
    wrong.input("x", DataType::Fp32, &[Dim::Named("n")]);
    wrong.input("y", DataType::Fp32, &[Dim::Named("m")]);
    wrong.node("Add", &["x", "y"], &["z"]);
    wrong.output("z", DataType::Fp32, &[Dim::Named("n")]);
    check(&wrong.model(), &[fp32(&[1], &[1.]), fp32(&[2], &[2., 3.])], &[3., 4.]);
}

#[test]
fn without_memory_for_buffers_runs_are_not_recorded() {
    let on = On::load_on(&open_of(batches(&[1, 2], 2), 12), &onnx::add(3));
    let before = on.held();
    for _ in 0..2 {
        assert_eq!(values(&on.sum(2, 1., 2., Output::allocate(0))), [3.; 6]);
        assert_eq!(on.held(), before, "those that were had are given back");
    }
    // There is enough for these.
    assert_eq!(values(&on.sum(1, 1., 2., Output::allocate(0))), [3.; 3]);
    assert_eq!(on.held() - before, 36);
}

#[test]
fn a_run_that_fails_while_it_is_recorded_is_made_without() {
    let mut model = Graph::default();
    model.input("x", DataType::Fp32, &[Dim::Named("n")]);
    model.input("y", DataType::Fp32, &[Dim::Named("m")]);
    model.node("Add", &["x", "y"], &["z"]);
    model.output("z", DataType::Fp32, &[Dim::Named("n")]);
    let on = On::load(batches(&[2, 3], 4), &model.model());
    let before = on.held();
    for _ in 0..2 {
        let inputs = [fp32(&[2], &[1.; 2]), fp32(&[3], &[1.; 3])];
        let error = on.instance.infer(&inputs, &mut [Output::allocate(0)], Run::default()).unwrap_err();
        assert!(matches!(error, BackendError::Input(_)), "{error:?}");
        assert_eq!(on.held(), before, "no buffers are kept");
    }
    // Others are recorded all the same.
    let inputs = [fp32(&[2], &[1.; 2]), fp32(&[2], &[2.; 2])];
    assert_eq!(values(&on.run(&inputs, Output::allocate(0))), [3.; 2]);
    assert_eq!(on.held() - before, 24);
}

#[test]
fn fixed_shapes_are_asked_of_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let fixed = Some(Graphs { shapes: GraphShapes::Fixed, most: 1 });
    let device = open_with(fixed.clone()).open(0).unwrap();
    let path = write(folder.path(), "add", &onnx::add(3));
    let error = device.load(&LoadOptions::of(&path)).err().unwrap().to_string();
    assert!(error.contains("`graphs` is for fixed shapes, and an extent of input `x` is free"), "{error}");
    let on = On::load(fixed, &onnx::identity(DataType::Fp32, &[Dim::Fixed(1), Dim::Fixed(2)]));
    let before = on.held();
    assert_eq!(on.bring(&on.run(&[fp32(&[1, 2], &[1., 2.])], Output::allocate(0))), [1., 2.]);
    assert_eq!(on.held() - before, 16);
}
