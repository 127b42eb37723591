//! What every backend keeps, tested once: each backend's tests call [`all`] with models in a format that it takes.
//!
//! Everything here panics with what was expected and what came; it is for tests only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Backend, BackendError, Buffer, DataType, Device, Health, Instance, LoadOptions, Model, Output, Run,
    Shape, Tensor,
};

/// Models that the suite runs, as files, and a folder to write in.
pub struct Fixtures {
    /// `x`, `y`: FP32 `[batch, 3]` → `z`: FP32 `[batch, 3]`, where `batch` is a free extent of that name.
    pub add: PathBuf,
    /// For each element type that the backend takes: `x`: `[batch, 2]` → `y`: `[batch, 2]`, the same elements.
    pub identity: Vec<(DataType, PathBuf)>,
    /// `x`: FP32 `[n]` → `y`: INT64 `[1, _]`: where `x` is not 0. The last extent has no name that an
    /// input has.
    pub nonzero: PathBuf,
    /// An empty folder.
    pub scratch: PathBuf,
}

/// Runs the whole suite.
///
/// # Panics
/// If the backend breaks a promise.
pub fn all(backend: &dyn Backend, fixtures: &Fixtures) {
    describes_itself(backend);
    let device = backend.open(0).expect("device 0 opens");
    describes_its_models(&*device, fixtures);
    adds(&*device, fixtures);
    carries_every_type(&*device, fixtures);
    takes_empty_tensors(&*device, fixtures);
    writes_in_the_place(&*device, fixtures);
    allocates_what_it_cannot_foresee(&*device, fixtures);
    reads_inputs_of_any_alignment(&*device, fixtures);
    refuses_wrong_inputs(&*device, fixtures);
    refuses_wrong_outputs(&*device, fixtures);
    runs_on_many_threads(&*device, fixtures);
    refuses_broken_files(&*device, fixtures);
    loads_and_unloads(&*device, fixtures);
    results_outlive_what_made_them(backend, fixtures);
}

/// An FP32 tensor.
pub fn fp32(extents: &[i64], values: &[f32]) -> Tensor {
    tensor(DataType::Fp32, extents, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
}

/// A tensor in aligned memory.
pub fn tensor(data_type: DataType, extents: &[i64], bytes: &[u8]) -> Tensor {
    let mut buffer = Buffer::zeroed(bytes.len()).expect("memory for a small tensor");
    buffer.copy_from_slice(bytes);
    let shape = Shape::new(extents).expect("a shape");
    Tensor::new(data_type, shape, buffer.freeze()).expect("as many bytes as the shape takes")
}

/// The elements of an FP32 tensor.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.data_type(), DataType::Fp32);
    let (chunks, _) = tensor.data().as_chunks();
    chunks.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

/// Loads a model and makes an instance of it.
pub fn instance(device: &dyn Device, path: &Path) -> (Arc<dyn Model>, Arc<dyn Instance>) {
    let model = load(device, path).unwrap_or_else(|error| panic!("{} loads: {error}", path.display()));
    let instance = model.instance().expect("an instance");
    (model, instance)
}

/// Runs for all outputs, placed where their shapes are known.
///
/// # Errors
/// What the instance returns.
pub fn infer(
    model: &dyn Model,
    instance: &dyn Instance,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>, BackendError> {
    let all: Vec<usize> = (0..model.info().outputs.len()).collect();
    run(instance, inputs, model.info().place_outputs(inputs, &all)?)
}

fn run(
    instance: &dyn Instance,
    inputs: &[Tensor],
    mut outputs: Vec<Output>,
) -> Result<Vec<Tensor>, BackendError> {
    instance.infer(inputs, &mut outputs, Run::default())?;
    Ok(outputs.into_iter().map(|output| output.into_tensor().expect("every output is set")).collect())
}

fn load(device: &dyn Device, path: &Path) -> Result<Arc<dyn Model>, BackendError> {
    device.load(&LoadOptions::of(path))
}

fn describes_itself(backend: &dyn Backend) {
    let info = backend.info();
    assert!(!info.name.is_empty() && !info.version.is_empty() && !info.formats.is_empty(), "{info:?}");
    assert!(!info.devices.is_empty(), "no device to test on: {:?}", info.reason);
    assert_eq!(info.reason, None, "a reason is given only where there are no devices");
    for (index, device) in info.devices.iter().enumerate() {
        assert!(device.name.ends_with(&format!(":{index}")), "{device:?}");
        let status = backend.open(index).expect("it opens").status().expect("it tells its status");
        assert!(status.memory_free <= status.memory_total, "{status:?}");
        assert_eq!(status.health, Health::Healthy);
    }
    for index in [info.devices.len(), usize::MAX] {
        let error = backend.open(index).err();
        assert!(matches!(error, Some(BackendError::Input(_))), "device {index}: {error:?}");
    }
}

fn describes_its_models(device: &dyn Device, fixtures: &Fixtures) {
    let model = load(device, &fixtures.add).expect("add loads");
    let info = model.info();
    let names: Vec<_> = info.inputs.iter().chain(&info.outputs).map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["x", "y", "z"]);
    for tensor in info.inputs.iter().chain(&info.outputs) {
        assert_eq!((tensor.data_type, &tensor.shape), (DataType::Fp32, &vec![-1, 3]), "{tensor:?}");
        assert_eq!(tensor.symbols, ["batch", ""], "{tensor:?}");
    }
    let nonzero = load(device, &fixtures.nonzero).expect("nonzero loads");
    assert_eq!(nonzero.info().outputs[0].shape, [1, -1]);
    assert_eq!(nonzero.info().outputs[0].data_type, DataType::Int64);
}

fn adds(device: &dyn Device, fixtures: &Fixtures) {
    let (model, instance) = instance(device, &fixtures.add);
    for batch in [1i64, 2, 7, 100] {
        let x: Vec<f32> = (0..batch * 3).map(|number| number as f32).collect();
        let y: Vec<f32> = x.iter().map(|value| value * 0.5).collect();
        let inputs = [fp32(&[batch, 3], &x), fp32(&[batch, 3], &y)];
        let outputs = infer(&*model, &*instance, &inputs).expect("add runs");
        assert_eq!(outputs[0].shape().extents(), [batch, 3]);
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        assert_eq!(values(&outputs[0]), expected);
        assert_eq!((values(&inputs[0]), values(&inputs[1])), (x, y), "inputs are only read");
    }
}

fn carries_every_type(device: &dyn Device, fixtures: &Fixtures) {
    assert!(!fixtures.identity.is_empty());
    for (data_type, path) in &fixtures.identity {
        let (model, instance) = instance(device, path);
        assert_eq!(model.info().inputs[0].data_type, *data_type);
        let size = data_type.size().expect("a type with a size");
        // 0 and 1 only, which are valid bytes of every type.
        let bytes: Vec<u8> = (0..3 * 2 * size).map(|number| u8::from(number % 3 == 0)).collect();
        let input = tensor(*data_type, &[3, 2], &bytes);
        for placed in [true, false] {
            let inputs = std::slice::from_ref(&input);
            let outputs = if placed {
                infer(&*model, &*instance, inputs)
            } else {
                run(&*instance, inputs, vec![Output::allocate(0)])
            };
            let outputs = outputs.unwrap_or_else(|error| panic!("identity of {data_type}: {error}"));
            assert_eq!(outputs[0], input, "identity of {data_type}, placed: {placed}");
        }
    }
}

fn takes_empty_tensors(device: &dyn Device, fixtures: &Fixtures) {
    let (model, instance) = instance(device, &fixtures.add);
    let inputs = [fp32(&[0, 3], &[]), fp32(&[0, 3], &[])];
    let placed = infer(&*model, &*instance, &inputs).expect("add of nothing, placed");
    let allocated = run(&*instance, &inputs, vec![Output::allocate(0)]).expect("add of nothing, allocated");
    for output in [&placed[0], &allocated[0]] {
        assert_eq!((output.shape().extents(), output.data().len()), ([0, 3].as_slice(), 0));
    }
}

fn writes_in_the_place(device: &dyn Device, fixtures: &Fixtures) {
    let (_model, instance) = instance(device, &fixtures.add);
    let inputs = [fp32(&[2, 3], &[1., 2., 3., 4., 5., 6.]), fp32(&[2, 3], &[10.; 6])];
    let buffer = Buffer::zeroed(24).expect("24 bytes");
    let address = buffer.as_ptr();
    let shape = Shape::new([2, 3]).expect("a shape");
    let place = Output::place(0, DataType::Fp32, shape, buffer).expect("24 bytes for 6 elements");
    let placed = run(&*instance, &inputs, vec![place]).expect("add runs");
    assert_eq!(placed[0].data().as_ptr(), address, "a placed output is written in its place");
    let allocated = run(&*instance, &inputs, vec![Output::allocate(0)]).expect("add runs");
    assert_eq!(placed, allocated);
    assert_eq!(values(&placed[0]), [11., 12., 13., 14., 15., 16.]);
}

fn allocates_what_it_cannot_foresee(device: &dyn Device, fixtures: &Fixtures) {
    let (model, instance) = instance(device, &fixtures.nonzero);
    for x in [&[0., 5., 0., 7., 9.][..], &[0.], &[]] {
        let input = fp32(&[x.len() as i64], x);
        let outputs = infer(&*model, &*instance, &[input]).expect("nonzero runs");
        let expected: Vec<u8> = (0i64..)
            .zip(x)
            .filter(|(_, value)| **value != 0.)
            .flat_map(|(index, _)| index.to_ne_bytes())
            .collect();
        assert_eq!(outputs[0].shape().extents(), [1, expected.len() as i64 / 8]);
        assert_eq!(outputs[0].data(), &expected);
    }
}

fn reads_inputs_of_any_alignment(device: &dyn Device, fixtures: &Fixtures) {
    let (model, instance) = instance(device, &fixtures.add);
    let x = fp32(&[1, 3], &[1., 2., 3.]);
    let mut shifted = vec![0; 64];
    let start = shifted.as_ptr().align_offset(64) % 4 + 1;
    shifted[start..start + 12].copy_from_slice(x.data());
    let data = Bytes::from(shifted).slice(start..start + 12);
    let unaligned = Tensor::new(DataType::Fp32, x.shape().clone(), data).expect("12 bytes");
    let outputs = infer(&*model, &*instance, &[unaligned, x]).expect("add runs");
    assert_eq!(values(&outputs[0]), [2., 4., 6.]);
}

fn refuses_wrong_inputs(device: &dyn Device, fixtures: &Fixtures) {
    let (model, instance) = instance(device, &fixtures.add);
    let good = fp32(&[2, 3], &[0.; 6]);
    let wrong: [(&str, Vec<Tensor>); 7] = [
        ("too few", vec![good.clone()]),
        ("none", vec![]),
        ("too many", vec![good.clone(), good.clone(), good.clone()]),
        ("another type", vec![good.clone(), tensor(DataType::Int32, &[2, 3], &[0; 24])]),
        ("another rank", vec![good.clone(), fp32(&[6], &[0.; 6])]),
        ("another extent", vec![good.clone(), fp32(&[3, 2], &[0.; 6])]),
        ("unequal batches", vec![good.clone(), fp32(&[1, 3], &[0.; 3])]),
    ];
    for (what, inputs) in wrong {
        let error = run(&*instance, &inputs, vec![Output::allocate(0)]).err();
        assert!(matches!(error, Some(BackendError::Input(_))), "{what}: {error:?}");
    }
    infer(&*model, &*instance, &[good.clone(), good]).expect("an instance goes on after an error");
}

fn refuses_wrong_outputs(device: &dyn Device, fixtures: &Fixtures) {
    let (_model, instance) = instance(device, &fixtures.add);
    let inputs = [fp32(&[1, 3], &[0.; 3]), fp32(&[1, 3], &[0.; 3])];
    for index in [1, usize::MAX] {
        let error = run(&*instance, &inputs, vec![Output::allocate(index)]).err();
        assert!(matches!(error, Some(BackendError::Input(_))), "output {index}: {error:?}");
    }
    run(&*instance, &inputs, vec![]).expect("no output asked for is nothing to do");
}

fn runs_on_many_threads(device: &dyn Device, fixtures: &Fixtures) {
    let (model, instance) = instance(device, &fixtures.add);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (model, instance) = (&*model, &*instance);
            scope.spawn(move || {
                for call in 0..200 {
                    let batch = 1 + (call % 5) as i64;
                    let x = fp32(&[batch, 3], &vec![thread as f32; batch as usize * 3]);
                    let y = fp32(&[batch, 3], &vec![call as f32; batch as usize * 3]);
                    let outputs = infer(model, instance, &[x, y]).expect("add runs");
                    let expected = vec![(thread + call) as f32; batch as usize * 3];
                    assert_eq!(values(&outputs[0]), expected, "thread {thread}, call {call}");
                }
            });
        }
    });
}

fn refuses_broken_files(device: &dyn Device, fixtures: &Fixtures) {
    let whole = std::fs::read(&fixtures.add).expect("the fixture is there");
    let cases: [(&str, &[u8]); 3] = [
        ("empty", &[]),
        ("truncated", &whole[..whole.len() / 2]),
        ("garbage", b"\xff\x00 this is no model of any kind \xff\xff\xff\xff"),
    ];
    let mut paths =
        vec![("missing", fixtures.scratch.join("missing")), ("a folder", fixtures.scratch.clone())];
    for (what, bytes) in cases {
        let path = fixtures.scratch.join(what);
        std::fs::write(&path, bytes).expect("the scratch folder can be written");
        paths.push((what, path));
    }
    for (what, path) in paths {
        let error = load(device, &path).err();
        assert!(matches!(error, Some(BackendError::Load(_))), "{what}: {error:?}");
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(&*path.to_string_lossy()), "{what}: the message names the file: {text}");
        assert!(!text.contains('\n'), "{what}: the message is one line: {text}");
    }
}

fn loads_and_unloads(device: &dyn Device, fixtures: &Fixtures) {
    let once = || {
        let (model, instance) = instance(device, &fixtures.add);
        let input = fp32(&[1, 3], &[1., 2., 3.]);
        let outputs = infer(&*model, &*instance, &[input.clone(), input]).expect("add runs");
        assert_eq!(values(&outputs[0]), [2., 4., 6.]);
        instance.bytes_held()
    };
    // The first ones fill caches that stay.
    for _ in 0..10 {
        once();
    }
    let before = resident_bytes();
    for _ in 0..100 {
        once();
    }
    let grown = resident_bytes().saturating_sub(before);
    // The fixture takes a few hundred bytes; one kept per load would show as megabytes with what surrounds it.
    assert!(grown < 8 << 20, "100 loads and unloads left {grown} bytes");
}

/// Memory of this process, where the operating system tells it in Linux's way; else 0.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn results_outlive_what_made_them(backend: &dyn Backend, fixtures: &Fixtures) {
    let output = {
        let device = backend.open(0).expect("device 0 opens");
        let (model, instance) = instance(&*device, &fixtures.add);
        // The instance alone keeps what it was made from.
        drop((model, device));
        let input = fp32(&[1, 3], &[1., 2., 3.]);
        run(&*instance, &[input.clone(), input], vec![Output::allocate(0)]).expect("add runs").remove(0)
    };
    let other =
        std::thread::spawn(move || values(&output)).join().expect("a tensor can go to another thread");
    assert_eq!(other, [2., 4., 6.]);
}
