//! Execution providers that the library has not: never the CPU instead.

mod support;

use outrigger_backend::{BackendError, LoadOptions};
use outrigger_onnxruntime::{ExecutionProvider, Leftovers, Plan};
use outrigger_testkit::onnx;
use support::{Pretended, settings};

fn plan(name: &str, options: &[(&str, &str)]) -> Plan {
    let options = options.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    Plan { providers: vec![ExecutionProvider { name: name.into(), options }], ..Plan::default() }
}

/// What a model that is loaded by the plan fails with.
fn load_error(plan: Plan) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("add.onnx");
    std::fs::write(&path, onnx::add(3)).unwrap();
    let backend = support::open(Pretended { plan, ..Pretended::default() }, &settings());
    match backend.open(0).unwrap().load(&LoadOptions::of(&path)).err() {
        Some(BackendError::Load(text)) => {
            text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&text).to_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_provider_that_the_library_has_not_fails_the_load() {
    for (name, why) in [
        ("CUDAExecutionProvider", "not enabled in this build"),
        ("TensorrtExecutionProvider", "not enabled in this build"),
        ("WebGpuExecutionProvider", "not supported in this build"),
        ("NoSuchExecutionProvider", "Unknown provider name"),
        ("zero \0 inside", "nul byte"),
    ] {
        for leftovers in [Leftovers::Allowed, Leftovers::Refused] {
            let text = load_error(Plan { leftovers, ..plan(name, &[("device_id", "0")]) });
            assert!(text.contains(why) && !text.contains('\n'), "{name}: {text}");
            assert!(text.starts_with(&format!("{name}: ")) || name.contains('\0'), "{name}: {text}");
        }
    }
}

#[test]
fn a_backend_can_ask_what_the_library_has() {
    let ask = |provider: &'static str| {
        let backend = support::open(Pretended { needs: provider, ..Pretended::default() }, &settings());
        (backend.info().devices.len(), backend.info().reason.clone())
    };
    assert_eq!(ask("CPUExecutionProvider"), (1, None));
    let (devices, reason) = ask("CUDAExecutionProvider");
    let reason = reason.unwrap();
    assert!(devices == 0 && reason.contains("has no CUDAExecutionProvider, only "), "{reason}");
    assert!(reason.contains("CPUExecutionProvider"), "{reason}");
}
