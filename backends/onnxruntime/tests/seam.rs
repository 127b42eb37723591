//! What a provider says of its device, seen from outside.

mod support;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use outrigger_backend::conformance::{fp32, instance};
use outrigger_backend::{BackendError, DataType, DeviceStatus, Health, LoadOptions, Output, Run};
use outrigger_onnxruntime::{Fault, Plan, Shrink};
use outrigger_testkit::onnx::{Dim, Graph};
use support::{Pretended, settings};

/// `z = x + y`, of any widths, whether they go together or not.
fn sum(folder: &tempfile::TempDir) -> PathBuf {
    let mut graph = Graph::default();
    for input in ["x", "y"] {
        graph.input(input, DataType::Fp32, &[Dim::Named("")]);
    }
    graph.node("Add", &["x", "y"], &["z"]);
    graph.output("z", DataType::Fp32, &[Dim::Named("")]);
    let path = folder.path().join("sum.onnx");
    std::fs::write(&path, graph.model()).unwrap();
    path
}

/// Runs the sum for widths that do not go together, on a device for which that means a fault.
fn fail(fault: Option<Fault>) -> (BackendError, DeviceStatus) {
    let folder = tempfile::tempdir().unwrap();
    let fault = fault.map(|fault| ("broadcast", fault));
    let device = support::open(Pretended { fault, ..Pretended::default() }, &settings()).open(0).unwrap();
    let (_model, instance) = instance(&*device, &sum(&folder));
    let inputs = [fp32(&[2], &[0.; 2]), fp32(&[3], &[0.; 3])];
    let error = instance.infer(&inputs, &mut [Output::allocate(0)], Run::default()).unwrap_err();
    (error, device.status().unwrap())
}

#[test]
fn faults_are_what_the_provider_says() {
    let (error, status) = fail(None);
    assert!(matches!(error, BackendError::Input(_)), "{error:?}");
    assert_eq!((status.memory_total, status.memory_free, status.health), (100, 50, Health::Healthy));
    let (error, status) = fail(Some(Fault::OutOfMemory));
    assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
    assert_eq!(status.health, Health::Healthy);
    let (error, status) = fail(Some(Fault::Lost));
    let BackendError::Lost(text) = error else { panic!("{error:?}") };
    assert!(text.contains("broadcast") && !text.contains('\n'), "{text}");
    assert_eq!(status.health, Health::Lost(text));
}

#[test]
fn a_load_fails_for_the_device_or_for_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let load = |fault: Option<Fault>| {
        let entries = vec![("session.disable_cpu_ep_fallback".into(), "1".into())];
        let plan = Plan { entries, ..Plan::default() };
        let fault = fault.map(|fault| ("fallback to CPU EP", fault));
        let backend = support::open(Pretended { plan, fault, ..Pretended::default() }, &settings());
        let device = backend.open(0).unwrap();
        let error = device.load(&LoadOptions::of(sum(&folder))).err().unwrap();
        (error, device.status().unwrap().health)
    };
    let (error, health) = load(None);
    assert!(matches!(error, BackendError::Load(_)) && health == Health::Healthy, "{error:?}");
    let (error, health) = load(Some(Fault::OutOfMemory));
    assert!(matches!(error, BackendError::OutOfMemory(_)) && health == Health::Healthy, "{error:?}");
    let (error, health) = load(Some(Fault::Lost));
    assert!(matches!(&error, BackendError::Lost(text) if health == Health::Lost(text.clone())), "{error:?}");
}

/// A model's author names nodes and files, and says nothing of the device by that.
#[test]
fn names_are_no_faults() {
    let folder = tempfile::tempdir().unwrap();
    let fault = Some(("CUDA failure 700", Fault::Lost));
    let device = support::open(Pretended { fault, ..Pretended::default() }, &settings()).open(0).unwrap();
    let mut graph = Graph::default();
    for input in ["x", "y"] {
        graph.input(input, DataType::Fp32, &[Dim::Named("")]);
    }
    graph.named_node("CUDA failure 700: ", "Add", &["x", "y"], &["z"]);
    graph.output("z", DataType::Fp32, &[Dim::Named("")]);
    let path = folder.path().join("CUDA failure 700: .onnx");
    std::fs::write(&path, graph.model()).unwrap();
    let (_model, instance) = instance(&*device, &path);
    let inputs = [fp32(&[2], &[0.; 2]), fp32(&[3], &[0.; 3])];
    let error = instance.infer(&inputs, &mut [Output::allocate(0)], Run::default()).unwrap_err();
    assert!(matches!(&error, BackendError::Input(text) if text.contains("CUDA failure 700")), "{error:?}");
    std::fs::write(&path, "no model").unwrap();
    let error = device.load(&LoadOptions::of(&path)).err().unwrap();
    assert!(matches!(&error, BackendError::Load(text) if text.contains("CUDA failure 700")), "{error:?}");
    assert_eq!(device.status().unwrap().health, Health::Healthy);
}

#[test]
fn runs_that_cannot_be_cancelled_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let device =
        support::open(Pretended { can_cancel: false, ..Pretended::default() }, &settings()).open(0).unwrap();
    let (_model, instance) = instance(&*device, &sum(&folder));
    assert!(!instance.can_cancel());
    let id = NonZeroU64::new(1);
    instance.cancel(id.unwrap());
    let x = fp32(&[1], &[1.]);
    instance.infer(&[x.clone(), x], &mut [Output::allocate(0)], Run { id }).unwrap();
}

#[test]
fn entries_of_a_plan_are_the_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let path = sum(&folder);
    let load = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let plan = Plan { entries, ..Plan::default() };
        let backend = support::open(Pretended { plan, ..Pretended::default() }, &settings());
        backend.open(0).unwrap().load(&LoadOptions::of(&path)).err().map(|error| error.to_string())
    };
    assert_eq!(load(&[("session.set_denormal_as_zero", "1")]), None);
    let error = load(&[("session.disable_cpu_ep_fallback", "1")]).unwrap();
    assert!(error.contains("fallback to CPU EP has been explicitly disabled"), "{error}");
    // What other form there is has not been looked through.
    assert_eq!(load(&[("session.load_model_format", "ORT")]), None);
}

/// An arena that there is not is an error of the run that asks for it, which so shows.
#[test]
fn an_arena_is_shrunk_after_a_pause() {
    let folder = tempfile::tempdir().unwrap();
    let path = sum(&folder);
    let run = |arena: &str, after: Duration| {
        let shrink = Some(Shrink { arena: arena.into(), after });
        let device =
            support::open(Pretended { shrink, ..Pretended::default() }, &settings()).open(0).unwrap();
        let (_model, instance) = instance(&*device, &path);
        let x = fp32(&[1], &[1.]);
        let run = || instance.infer(&[x.clone(), x.clone()], &mut [Output::allocate(0)], Run::default());
        [run(), run(), run()].map(|ran| ran.map_err(|error| error.to_string()))
    };
    assert_eq!(run("cpu:0", Duration::ZERO), [const { Ok(()) }; 3]);
    assert_eq!(run("gpu:0", Duration::from_secs(3600)), [const { Ok(()) }; 3], "no pause is as long");
    let [first, second, third] = run("gpu:0", Duration::ZERO);
    assert_eq!(first, Ok(()), "nothing was before it");
    for error in [second, third] {
        let error = error.unwrap_err();
        assert!(error.contains("gpu:0"), "{error}");
    }
}
