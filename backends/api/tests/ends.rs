//! Who ends what, when and on which thread: runs that finish later, results that are passed on, devices that must not be mixed up.
#![allow(unsafe_code, reason = "looks at what crosses the C boundary")]

#[path = "../examples/adder.rs"]
mod adder;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use outrigger_backend::abi::{self, Table};
use outrigger_backend::conformance::{fp32, instance, values};
use outrigger_backend::export::{Open, table, through_table};
use outrigger_backend::{
    Backend, BackendError, BackendInfo, DataType, Device, Instance, LoadOptions, Model, ModelInfo, Output,
    Run, Shape, Submission, Tensor, host,
};

struct Adder;

impl Open for Adder {
    const ASYNCHRONOUS: bool = true;

    fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
        adder::open(settings)
    }
}

struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn model(text: &str) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, text).unwrap();
    File { path, _folder: folder }
}

fn placed(width: i64) -> Output {
    let buffer = outrigger_backend::Buffer::zeroed(width as usize * 4).unwrap();
    Output::place(0, DataType::Fp32, Shape::new([1, width]).unwrap(), buffer).unwrap()
}

fn submit(
    instance: &Arc<dyn Instance>,
    inputs: Vec<Tensor>,
    output: Output,
) -> Receiver<Result<Vec<Output>, BackendError>> {
    let (sender, receiver) = channel();
    let done = Box::new(move |result| sender.send(result).unwrap());
    Arc::clone(instance).submit(Submission::new(inputs, vec![output], Run::default(), done));
    receiver
}

/// Identity, again and again: each result holds the one before.
#[test]
fn results_that_are_passed_on_forever_take_no_stack() {
    let file = model("identity FP32");
    let backend = through_table::<Adder>("adder", &[]).unwrap();
    let (_model, instance) = instance(&*backend.open(0).unwrap(), &file.path);
    let loops = move || {
        let mut tensor = fp32(&[1, 2], &[1., 2.]);
        for _ in 0..50_000 {
            let mut outputs = [Output::allocate(0)];
            instance.infer(&[tensor], &mut outputs, Run::default()).unwrap();
            let [output] = outputs;
            tensor = output.into_tensor().unwrap();
        }
        assert_eq!(values(&tensor), [1., 2.]);
    };
    thread::Builder::new().stack_size(256 << 10).spawn(loops).unwrap().join().unwrap();
}

type Ends = Mutex<Vec<(&'static str, Option<String>)>>;
static ENDS: Ends = Mutex::new(Vec::new());

fn ended(what: &'static str) {
    ENDS.lock().unwrap().push((what, thread::current().name().map(str::to_owned)));
}

const TABLE: Table = table::<Adder>();

unsafe extern "C" fn unload(model: *mut abi::ModelHandle) {
    ended("model");
    // SAFETY: passed on.
    unsafe { TABLE.model_unload.unwrap()(model) }
}

unsafe extern "C" fn destroy(instance: *mut abi::InstanceHandle) {
    ended("instance");
    // SAFETY: passed on.
    unsafe { TABLE.instance_destroy.unwrap()(instance) }
}

/// The library may hold a lock of its own when it ends an input or says that a run is over.
#[test]
fn no_entry_is_called_out_of_what_the_library_calls() {
    let table = Table { model_unload: Some(unload), instance_destroy: Some(destroy), ..TABLE };
    // SAFETY: the table is this crate's own, but for what looks on.
    let backend = unsafe { host::attach(&table, "adder", &[]) }.unwrap();
    let device = backend.open(0).unwrap();
    let file = model("identity FP32");
    let ends = || std::mem::take(&mut *ENDS.lock().unwrap());
    let until = |count: usize| {
        for _ in 0..3000 {
            if ENDS.lock().unwrap().len() == count {
                return ends();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("not ended: {:?}", ends());
    };
    let elsewhere = |what| (what, Some("outrigger-ends".to_owned()));

    let first = {
        let (model, instance) = loaded(&*device, &file);
        let mut outputs = [Output::allocate(0)];
        instance.infer(&[fp32(&[1, 2], &[1., 2.])], &mut outputs, Run::default()).unwrap();
        drop((model, instance));
        let [output] = outputs;
        output.into_tensor().unwrap()
    };
    assert_eq!(ends().iter().map(|(what, _)| *what).collect::<Vec<_>>(), ["instance"]);
    // The library has the last view of what belongs to the first model, and ends it on a thread of its own.
    let (model_of_it, instance) = loaded(&*device, &file);
    submit(&instance, vec![first], placed(2)).recv().unwrap().unwrap();
    assert_eq!(until(1), [elsewhere("model")]);
    drop((model_of_it, instance));
    assert_eq!(ends().len(), 2);

    let file = model("slow 50");
    let (model, instance) = loaded(&*device, &file);
    let row = || fp32(&[1, 3], &[1., 2., 3.]);
    let heard = submit(&instance, vec![row(), row()], placed(3));
    drop((model, instance, device, backend));
    assert!(ends().is_empty(), "a run is under way");
    let result = heard.recv().unwrap().unwrap().remove(0);
    assert_eq!(values(&result.into_tensor().unwrap()), [2., 4., 6.]);
    assert_eq!(until(2), [elsewhere("instance"), elsewhere("model")]);
}

fn loaded(device: &dyn Device, file: &File) -> (Arc<dyn Model>, Arc<dyn Instance>) {
    instance(device, &file.path)
}

#[test]
fn memory_of_another_device_is_refused_before_the_library_sees_it() {
    let backend = through_table::<Adder>("adder", &[]).unwrap();
    let (one, other) = (backend.open(0).unwrap(), backend.open(0).unwrap());
    let memory = one.allocate(8).unwrap();
    one.upload(&[1; 8], &memory).unwrap();
    let input = |result: Result<(), BackendError>, what: &str| {
        assert!(matches!(&result, Err(BackendError::Input(text)) if text.contains(what)), "{result:?}");
    };
    input(other.upload(&[1; 8], &memory), "not this device's");
    input(other.download(&memory, &mut [0; 8]), "not this device's");
    input(one.download(&memory, &mut [0; 9]), "9 bytes");
    let made_up = outrigger_backend::DeviceMemory::new(memory.device(), memory.address(), 8, Arc::new(()));
    input(one.download(&made_up, &mut [0; 8]), "not this device's");
    let file = model("identity FP32");
    let (_, instance) = instance(&*other, &file.path);
    let tensor = Tensor::on_device(DataType::Fp32, Shape::new([1, 2]).unwrap(), memory).unwrap();
    let result = instance.infer(std::slice::from_ref(&tensor), &mut [Output::resident(0)], Run::default());
    input(result, "input number 0 lies in memory of another device");
    let heard = submit(&instance, vec![tensor], Output::resident(0));
    assert!(matches!(heard.recv().unwrap(), Err(BackendError::Input(_))));
}

/// A backend whose only instance panics where a run begins.
struct Trips(BackendInfo, ModelInfo);

impl Open for Trips {
    const ASYNCHRONOUS: bool = true;

    fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
        let info = adder::open(settings)?.info().clone();
        Ok(Arc::new(Self(info, ModelInfo::default())))
    }
}

impl Backend for Trips {
    fn info(&self) -> &BackendInfo {
        &self.0
    }

    fn open(&self, _index: usize) -> Result<Arc<dyn Device>, BackendError> {
        Ok(Arc::new(Self(self.0.clone(), ModelInfo::default())))
    }
}

impl Device for Trips {
    fn status(&self) -> Result<outrigger_backend::DeviceStatus, BackendError> {
        Err(BackendError::Lost("tripped".into()))
    }

    fn estimate(&self, _options: &LoadOptions) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn load(&self, _options: &LoadOptions) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(Self(self.0.clone(), ModelInfo::default())))
    }
}

impl Model for Trips {
    fn info(&self) -> &ModelInfo {
        &self.1
    }

    fn instance(&self) -> Result<Arc<dyn Instance>, BackendError> {
        Ok(Arc::new(Self(self.0.clone(), ModelInfo::default())))
    }
}

impl Instance for Trips {
    fn infer(&self, _: &[Tensor], _: &mut [Output], _: Run) -> Result<(), BackendError> {
        Ok(())
    }

    fn submit(self: Arc<Self>, _submission: Submission) {
        panic!("tripped");
    }

    fn bytes_held(&self) -> u64 {
        0
    }
}

#[test]
fn a_panic_where_a_run_begins_is_told_once() {
    let backend = through_table::<Trips>("trips", &[]).unwrap();
    let device = backend.open(0).unwrap();
    assert!(matches!(device.status(), Err(BackendError::Lost(text)) if text == "tripped"));
    let instance = device.load(&LoadOptions::of("any")).unwrap().instance().unwrap();
    let (sender, heard) = channel();
    let done = Box::new(move |result: Result<Vec<Output>, _>| sender.send(result.map(|_| ())).unwrap());
    Arc::clone(&instance).submit(Submission::new(Vec::new(), Vec::new(), Run::default(), done));
    assert!(matches!(heard.recv(), Ok(Err(BackendError::Internal(_)))));
    assert!(heard.recv().is_err(), "and not again");
}

#[test]
fn a_backend_without_runs_that_finish_later_says_so_over_the_table() {
    struct Waits;
    impl Open for Waits {
        fn open(settings: &[(String, String)]) -> Result<Arc<dyn Backend>, BackendError> {
            adder::open(settings)
        }
    }
    let file = model("add x y");
    let check = |backend: Arc<dyn Backend>, expected: bool| {
        let (_, instance) = instance(&*backend.open(0).unwrap(), &file.path);
        assert_eq!(instance.is_asynchronous(), expected);
        let row = || fp32(&[1, 3], &[1., 2., 3.]);
        let outputs = submit(&instance, vec![row(), row()], Output::allocate(0)).recv().unwrap().unwrap();
        let [output] = <[Output; 1]>::try_from(outputs).unwrap();
        assert_eq!(values(&output.into_tensor().unwrap()), [2., 4., 6.]);
    };
    check(through_table::<Waits>("waits", &[]).unwrap(), false);
    check(through_table::<Adder>("adder", &[]).unwrap(), true);
}

#[test]
fn a_library_without_a_cancel_has_no_run_that_can_be_cancelled() {
    let table = Table { instance_cancel: None, ..TABLE };
    // SAFETY: the table is this crate's own, without an entry that may be null.
    let backend = unsafe { host::attach(&table, "adder", &[]) }.unwrap();
    let file = model("slow 60000");
    let (_, instance) = instance(&*backend.open(0).unwrap(), &file.path);
    assert!(!instance.can_cancel(), "whatever it says of itself");
}
