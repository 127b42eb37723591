//! Ensembles of models that are not there, on devices that are not.

mod blame;
mod dags;
mod mistakes;
mod residence;
mod signatures;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use outrigger_backend::{
    BackendError, DLDevice, DataType, DeviceMemory, Instance, ModelInfo, Output, Run, RunId, Shape, Tensor,
    TensorInfo,
};
use prometheus::IntCounter;

use super::read::parse;
use super::{Directory, Ensemble, Graph, GraphCounters};
use crate::models::instance::{LoadedModel, ModelInstance};
use crate::models::lease::Door;
use crate::models::residency::Residents;
use crate::models::served::ServedModel;
use crate::models::tests::{fake_on, on_devices};
use crate::models::versions::NamedModel;
use crate::models::wanted::{Keeping, Wanted};
use crate::models::{Models, graph};

/// `graph.toml`, read.
fn graph(text: &str) -> Result<Graph, String> {
    parse(Path::new("graph.toml"), text)
}

/// FP32 `[n]`.
fn row(name: &str) -> TensorInfo {
    TensorInfo::new(name, DataType::Fp32, &[(-1, "n")])
}

fn tensor(values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    Tensor::new(DataType::Fp32, Shape::new([values.len() as i64]).unwrap(), data.into()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    bytes(tensor).chunks_exact(4).map(|four| f32::from_ne_bytes(four.try_into().unwrap())).collect()
}

/// What a device's memory is, for those who must not read it.
struct Kept(Vec<u8>);

fn bytes(tensor: &Tensor) -> Vec<u8> {
    match tensor.resident() {
        Some(memory) => memory.owner().downcast_ref::<Kept>().unwrap().0.clone(),
        None => tensor.data().to_vec(),
    }
}

/// What a model does with the rows that it takes.
pub(super) type Work = fn(&[Vec<f32>]) -> Vec<Vec<f32>>;

/// A model that says where its tensors were.
struct Calc {
    work: Work,
    device: i32,
    /// Of each run, for each input: the device on which it was, or where in the host's memory.
    seen: Mutex<Vec<Vec<Seen>>>,
    /// Where in the host's memory its results were.
    gave: Mutex<Vec<usize>>,
    /// It waits until it is cancelled, and fails.
    waits: AtomicBool,
    fails: AtomicBool,
    cancelled: AtomicBool,
    /// What it gives keeps so many bytes with it.
    keeps: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Device(i32),
    Host(usize),
}

impl Instance for Calc {
    fn infer(&self, inputs: &[Tensor], outputs: &mut [Output], _: Run) -> Result<(), BackendError> {
        let seen = |input: &Tensor| match input.resident() {
            Some(memory) => Seen::Device(memory.device().device_id),
            None => Seen::Host(input.data().as_ptr() as usize),
        };
        self.seen.lock().unwrap().push(inputs.iter().map(seen).collect());
        while self.waits.load(Ordering::Relaxed) {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(BackendError::Cancelled);
            }
            std::thread::yield_now();
        }
        if self.fails.load(Ordering::Relaxed) {
            return Err(BackendError::Run("as it was told to".into()));
        }
        let rows: Vec<Vec<f32>> = inputs.iter().map(values).collect();
        let results = (self.work)(&rows);
        for output in outputs {
            let result = &results[output.index()];
            let made = tensor(result);
            if output.wants_resident() {
                let device = DLDevice { device_type: 12, device_id: self.device };
                let kept = Kept(made.data().to_vec());
                let memory = DeviceMemory::new(device, 1, kept.0.len(), Arc::new(kept));
                output.set(Tensor::on_device(DataType::Fp32, made.shape().clone(), memory).unwrap());
                continue;
            }
            if let Some((_, shape, place)) = output.place_mut() {
                assert_eq!(shape, made.shape());
                place.copy_from_slice(made.data());
                self.gave.lock().unwrap().push(place.as_ptr() as usize);
                continue;
            }
            self.gave.lock().unwrap().push(made.data().as_ptr() as usize);
            output.set(made.part_of(self.keeps.load(Ordering::Relaxed)));
        }
        Ok(())
    }

    fn cancel(&self, _: RunId) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn can_cancel(&self) -> bool {
        true
    }

    fn bytes_held(&self) -> u64 {
        0
    }
}

/// A copy of a model: its device, and whether tensors stay there.
type Copy = (usize, bool);

/// Models by name, and the ensembles that are made of them.
struct Rig {
    models: Models,
    named: BTreeMap<String, Arc<NamedModel>>,
    calcs: BTreeMap<String, Vec<Arc<Calc>>>,
    directory: Arc<Directory>,
}

impl Rig {
    /// With so many devices.
    fn new(devices: usize) -> Self {
        let models = on_devices(devices);
        Self { models, named: BTreeMap::new(), calcs: BTreeMap::new(), directory: Arc::default() }
    }

    /// One more model, with `inputs` and `outputs` by name.
    fn model(&mut self, name: &str, inputs: &[&str], outputs: &[&str], work: Work, copies: &[Copy]) {
        let rows = |names: &[&str]| names.iter().map(|name| row(name)).collect();
        self.model_of(name, ModelInfo { inputs: rows(inputs), outputs: rows(outputs) }, work, copies);
    }

    /// One more that takes and gives that.
    fn model_of(&mut self, name: &str, info: ModelInfo, work: Work, copies: &[Copy]) {
        let info = Arc::new(info);
        let calc = |(device, _): &Copy| {
            let (seen, gave, fails, waits, cancelled) = Default::default();
            let keeps = AtomicUsize::new(0);
            Arc::new(Calc { work, device: *device as i32, seen, gave, waits, fails, cancelled, keeps })
        };
        let calcs: Vec<_> = copies.iter().map(calc).collect();
        let instance = |(calc, (device, resides)): (&Arc<Calc>, &Copy)| {
            let mut instance = fake_on(name, *device);
            (instance.instance, instance.info) = (Arc::clone(calc) as _, Arc::clone(&info));
            (instance.device, instance.resides) = (*device, *resides);
            instance
        };
        let served = self.served(name, None);
        let instance = |(calc, copy)| {
            let mut instance = instance((calc, copy));
            instance.statistics = Some(Arc::clone(&served.statistics));
            Arc::new(instance)
        };
        let instances: Vec<Arc<ModelInstance>> = calcs.iter().zip(copies).map(instance).collect();
        served.put(loaded(&served, info, &instances));
        self.named.insert(name.into(), NamedModel::new(Arc::new(served)));
        self.calcs.insert(name.into(), calcs);
    }

    fn served(&self, name: &str, graph: Option<Graph>) -> ServedModel {
        let graph = graph.map(Arc::new);
        let wanted = Wanted { name: name.into(), graph, ..Wanted::default() };
        ServedModel::new(0, 1, wanted, (None, None), Instant::now()).made_of(&self.directory)
    }

    /// One more ensemble. Those that it is made of are there by the time that it is asked for anything.
    fn ensemble(&mut self, name: &str, text: &str) {
        let served = self.served(name, Some(graph(text).unwrap()));
        self.named.insert(name.into(), NamedModel::new(Arc::new(served)));
    }

    /// All are there: ensembles are put together, each after those that it is made of.
    fn ready(self) -> Self {
        self.directory.set(&self.named);
        let ensembles =
            || self.named.values().map(|named| named.stable()).filter(|one| one.ensemble.is_some());
        for _ in ensembles() {
            for served in ensembles().filter(|one| one.resident().is_none()) {
                let ensemble = served.ensemble.as_ref().unwrap();
                if let Ok(Some(gathered)) = ensemble.gather(&served) {
                    let counter = || IntCounter::new("tensors", "tensors").unwrap();
                    let _ = ensemble.counters.set(GraphCounters { on_device: counter(), on_host: counter() });
                    served.put(loaded(&served, gathered.info(), &[]));
                }
            }
        }
        self
    }

    fn stable(&self, name: &str) -> Arc<ServedModel> {
        self.named[name].stable()
    }

    fn of(&self, name: &str) -> Arc<Ensemble> {
        self.stable(name).ensemble.clone().unwrap()
    }

    /// Calls an ensemble, for the outputs with these numbers.
    async fn call(&self, name: &str, inputs: &[&[f32]], outputs: &[usize]) -> Result<Vec<Tensor>, String> {
        let lease = self.stable(name).lease().expect("all of it is loaded");
        let inputs = inputs.iter().map(|values| tensor(values)).collect();
        let answer = self.models.infer(lease.pick(), inputs, outputs.to_vec(), None, None).await;
        answer.map_err(|error| format!("{}: {}", error.code, error.message))
    }

    /// The same for its only output.
    async fn one(&self, name: &str, inputs: &[&[f32]]) -> Vec<f32> {
        let given = self.call(name, inputs, &[0]).await.unwrap();
        assert!(given[0].resident().is_none(), "callers get what is in the host's memory");
        values(&given[0])
    }

    /// Calls of a model, and how many of them count against its version.
    fn counts(&self, name: &str) -> (u64, u64) {
        let counts = self.stable(name).outcomes.all();
        (counts.calls, counts.failures)
    }

    /// Calls of a model with a result, and its runs, as statistics have them.
    fn runs(&self, name: &str) -> (u64, u64) {
        let (_, calls, runs) = self.stable(name).statistics.counts();
        (calls, runs)
    }

    /// How many tensors stayed on a device, and how many came to the host.
    fn stayed(&self, name: &str) -> (u64, u64) {
        let ensemble = self.of(name);
        let GraphCounters { on_device, on_host } = ensemble.counters.get().unwrap();
        (on_device.get(), on_host.get())
    }
}

fn loaded(served: &ServedModel, info: Arc<ModelInfo>, instances: &[Arc<ModelInstance>]) -> Arc<LoadedModel> {
    Arc::new(LoadedModel {
        name: served.name.clone(),
        version: "1".into(),
        platform: graph::PLATFORM.into(),
        info,
        first: instances.first().cloned(),
        others: instances.iter().skip(1).cloned().collect(),
        identity: crate::cache::Identity::of_this_load(),
        keeping: Keeping::Said(false),
        outcomes: Some(Arc::clone(&served.outcomes)),
        statistics: Some(Arc::clone(&served.statistics)),
        door: Door::new(Arc::new(Residents::none())),
    })
}

fn each(rows: &[Vec<f32>], work: impl Fn(f32) -> f32) -> Vec<f32> {
    rows[0].iter().map(|value| work(*value)).collect()
}

fn twice(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    vec![each(rows, |value| value * 2.0)]
}

fn next(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    vec![each(rows, |value| value + 1.0)]
}

fn add(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let [one, other] = rows else { panic!("two") };
    vec![one.iter().zip(other).map(|(one, other)| one + other).collect()]
}

/// Two results: half of each value, and its square.
fn split(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    vec![each(rows, |value| value / 2.0), each(rows, |value| value * value)]
}
