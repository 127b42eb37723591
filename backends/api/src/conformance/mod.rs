//! What every backend keeps, tested once: each backend's tests call [`all`], or each of the [`cases`] under a name of its own, with
//! models in a format that the backend takes.
//!
//! Everything here panics with what was expected and what came; it is for tests only.

mod describe;
mod device;
mod life;
mod numbers;
mod refusals;
mod runs;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::{
    Backend, BackendError, Buffer, DataType, Device, Instance, LoadOptions, Model, ModelInfo, Output, Run,
    Shape, Submission, Tensor,
};

/// Models that the suite runs, as files, and a folder to write in. Of what is `None` a backend has none yet.
#[derive(Clone, Debug, Default)]
pub struct Fixtures {
    /// `x`, `y`: FP32 `[batch, 3]` → `z`: FP32 `[batch, 3]`, where `batch` is a free extent of that name.
    pub add: PathBuf,
    /// For each element type that the backend takes: `x`: `[batch, 2]` → `y`: `[batch, 2]`, the same elements.
    pub identity: Vec<(DataType, PathBuf)>,
    /// `x`: FP32 `[n]` → `y`: INT64 `[1, _]`: where `x` is not 0. The last extent has no name that an
    /// input has.
    pub nonzero: PathBuf,
    /// `x`: BYTES `[batch, 2]` → `y`: BYTES `[batch, 2]`, the same strings.
    pub strings: Option<PathBuf>,
    /// `x`: FP32 `[n, 1]`, `y`: FP32 `[1, m]` → `z`: FP32 `[n, m]`, their sums.
    pub outer: Option<PathBuf>,
    /// Any model that takes many seconds for zeros with free extents of 1, and can be cancelled.
    pub slow: Option<PathBuf>,
    /// Any model that takes a moment for zeros with free extents of 1, and cannot be cancelled.
    pub stubborn: Option<PathBuf>,
    /// Any model whose weights take this many bytes on the device, 4 MiB and more.
    pub weights: Option<(PathBuf, u64)>,
    /// An empty folder.
    pub scratch: PathBuf,
}

/// Why a case says nothing about a backend: what it needs is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped(pub String);

type Check = fn(&dyn Backend, &Fixtures) -> Result<(), Skipped>;

/// One promise.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What a backend does that keeps it.
    pub name: &'static str,
    /// Whether it looks at the memory of the process or the device, so that no other case may run beside it.
    pub alone: bool,
    check: Check,
}

impl Case {
    const fn new(name: &'static str, check: Check) -> Self {
        Self { name, alone: false, check }
    }

    const fn alone(name: &'static str, check: Check) -> Self {
        Self { name, alone: true, check }
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`Skipped`] if what it needs is not there.
    ///
    /// # Panics
    /// If the backend breaks the promise.
    pub fn run(&self, backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
        (self.check)(backend, fixtures)
    }
}

/// The whole suite.
pub fn cases() -> &'static [Case] {
    const CASES: &[Case] = &[
        Case::new("describes_itself", describe::itself),
        Case::new("describes_its_models", describe::its_models),
        Case::new("tells_its_status", describe::its_status),
        Case::new("adds", numbers::adds),
        Case::new("carries_every_type", numbers::carries_every_type),
        Case::new("carries_strings", numbers::carries_strings),
        Case::new("takes_empty_tensors", numbers::takes_empty_tensors),
        Case::new("writes_in_the_place", numbers::writes_in_the_place),
        Case::new("allocates_what_it_cannot_foresee", numbers::allocates_what_it_cannot_foresee),
        Case::new("reads_inputs_of_any_alignment", numbers::reads_inputs_of_any_alignment),
        Case::new("refuses_wrong_inputs", refusals::wrong_inputs),
        Case::new("refuses_wrong_outputs", refusals::wrong_outputs),
        Case::new("refuses_broken_files", refusals::broken_files),
        Case::new("refuses_unknown_settings", refusals::unknown_settings),
        Case::new("is_out_of_memory_and_goes_on", refusals::out_of_memory),
        Case::new("runs_on_many_threads", runs::on_many_threads),
        Case::new("finishes_what_is_submitted", runs::finishes_what_is_submitted),
        Case::new("finishes_runs_whose_instance_is_gone", runs::finishes_when_the_instance_is_gone),
        Case::new("returns_while_a_run_is_under_way", runs::returns_while_under_way),
        Case::new("says_what_it_can_cancel", runs::says_what_it_can_cancel),
        Case::new("cancels_a_run", runs::cancels),
        Case::new("cancels_no_other_run", runs::cancels_no_other),
        Case::new("forgets_what_it_cannot_cancel", runs::forgets_what_it_cannot_cancel),
        Case::new("gives_pinned_memory", device::gives_pinned_memory),
        Case::new("keeps_tensors_on_the_device", device::keeps_tensors),
        Case::alone("returns_the_devices_memory", device::returns_memory),
        Case::alone("counts_what_it_holds", life::counts_what_it_holds),
        Case::new("estimates_what_it_will_hold", life::estimates),
        Case::alone("loads_and_unloads_a_hundred_times", life::loads_and_unloads),
        Case::new("loads_on_many_threads", life::loads_on_many_threads),
        Case::new("lets_results_outlive_what_made_them", life::results_outlive_what_made_them),
    ];
    CASES
}

/// Runs the whole suite; tells on stdout which cases said nothing.
///
/// # Panics
/// If the backend breaks a promise.
pub fn all(backend: &dyn Backend, fixtures: &Fixtures) {
    for case in cases() {
        if let Err(Skipped(reason)) = case.run(backend, fixtures) {
            println!("without {}: {reason}", case.name);
        }
    }
}

/// An FP32 tensor.
pub fn fp32(extents: &[i64], values: &[f32]) -> Tensor {
    tensor(DataType::Fp32, extents, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
}

/// A tensor in aligned memory.
pub fn tensor(data_type: DataType, extents: &[i64], bytes: &[u8]) -> Tensor {
    let mut buffer = Buffer::zeroed(bytes.len()).expect("memory for a small tensor");
    buffer.copy_from_slice(bytes);
    Tensor::new(data_type, shape(extents), buffer.freeze()).expect("as many bytes as the shape takes")
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

/// What becomes of a run.
type Heard = Receiver<Result<Vec<Output>, BackendError>>;

/// Longest time that anything here waits for. No backend is as slow.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(backend: &dyn Backend) -> Arc<dyn Device> {
    backend.open(0).expect("device 0 opens")
}

fn load(device: &dyn Device, path: &Path) -> Result<Arc<dyn Model>, BackendError> {
    device.load(&LoadOptions::of(path))
}

fn run(
    instance: &dyn Instance,
    inputs: &[Tensor],
    mut outputs: Vec<Output>,
) -> Result<Vec<Tensor>, BackendError> {
    instance.infer(inputs, &mut outputs, Run::default())?;
    Ok(tensors(outputs))
}

fn submit(instance: &Arc<dyn Instance>, inputs: Vec<Tensor>, outputs: Vec<Output>, run: Run) -> Heard {
    let (sender, heard) = channel();
    // Whoever does not wait any more does not mind.
    let done = Box::new(move |result| drop(sender.send(result)));
    Arc::clone(instance).submit(Submission::new(inputs, outputs, run, done));
    heard
}

fn tensors(outputs: Vec<Output>) -> Vec<Tensor> {
    outputs.into_iter().map(|output| output.into_tensor().expect("every output is set")).collect()
}

/// The result of a run, which is told once.
fn heard(heard: Heard) -> Result<Vec<Tensor>, BackendError> {
    let result = heard.recv_timeout(PATIENCE).expect("the end of a run is told");
    assert!(heard.recv_timeout(PATIENCE).is_err(), "the end of a run is told once");
    result.map(tensors)
}

fn shape(extents: &[i64]) -> Shape {
    Shape::new(extents).expect("a shape")
}

/// `[rows, 3]` of one number.
fn rows(rows: i64, value: f32) -> Tensor {
    fp32(&[rows, 3], &vec![value; rows as usize * 3])
}

/// Inputs for any model: zeros, with 1 for free extents.
fn zeros(info: &ModelInfo) -> Vec<Tensor> {
    let zeros = info.inputs.iter().map(|input| {
        let extents: Vec<i64> = input.shape.iter().map(|extent| (*extent).max(1)).collect();
        let shape = shape(&extents);
        if input.data_type == DataType::Bytes {
            return Tensor::strings(shape.clone(), &vec![""; shape.elements()]).expect("as many strings");
        }
        tensor(input.data_type, &extents, &vec![0; shape.bytes(input.data_type).expect("a size")])
    });
    zeros.collect()
}

/// Waits until something holds, which other threads see to.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What `held` says once it says the same for a while: what an earlier case left may go only now.
fn settled(mut held: impl FnMut() -> u64) -> u64 {
    let (mut last, mut same) = (held(), 0);
    until("the memory held stays as it is", || {
        let now = held();
        same = if std::mem::replace(&mut last, now) == now { same + 1 } else { 0 };
        same == 10
    });
    last
}

fn skip(reason: impl Into<String>) -> Result<(), Skipped> {
    Err(Skipped(reason.into()))
}

/// What a case needs, if it is there.
fn need<'a, T>(fixture: &'a Option<T>, what: &str) -> Result<&'a T, Skipped> {
    fixture.as_ref().ok_or_else(|| Skipped(format!("no model {what}")))
}
