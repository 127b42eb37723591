//! Execution providers that the library has not: never the CPU instead.

mod support;

use std::process::Command;

use std::sync::{Arc, Mutex};

use outrigger_backend::{BackendError, DLDevice, DeviceInfo, LoadOptions};
use outrigger_onnxruntime::{
    Arena, ExecutionProvider, Leftovers, Memory, Plan, PlanError, Provider, Residence, Runtime, Settings,
};
use outrigger_testkit::onnx;
use support::{Pretended, settings};

/// A backend without devices that asks something first.
struct Asks(Box<dyn Fn(&'static Runtime) + Send + Sync>);

impl Provider for Asks {
    fn name(&self) -> &'static str {
        "asks"
    }

    fn devices(&self, runtime: &'static Runtime) -> Result<Vec<DeviceInfo>, String> {
        (self.0)(runtime);
        Err("it only asks".into())
    }

    fn plan(&self, _device: usize, _options: &LoadOptions) -> Result<Plan, PlanError> {
        Err("it has no devices".into())
    }

    fn memory(&self, _device: usize) -> Result<Memory, BackendError> {
        Ok(Memory::default())
    }

    fn circumstances(&self) -> String {
        String::new()
    }
}

const ALONE: &str = "OUTRIGGER_TEST_ALONE";

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
fn a_backend_can_ask_whether_a_plan_s_providers_open_and_share_an_arena() {
    let arena = |provider: &'static str, allocator: &str, most_bytes| Arena {
        provider,
        residence: Residence {
            allocator: allocator.into(),
            id: 0,
            device: DLDevice { device_type: 2, device_id: 0 },
        },
        most_bytes,
    };
    let said = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&said);
    let asks = Asks(Box::new(move |runtime| {
        let nothing = runtime.can_append(&Plan::default());
        let missing = runtime.can_append(&plan("CUDAExecutionProvider", &[]));
        // One that there is stays, with its limit.
        let shared =
            [4096, 4096, 0].map(|most| runtime.share_arena(&arena("CPUExecutionProvider", "Cpu", most)));
        let strange = runtime.share_arena(&arena("CUDAExecutionProvider", "Cuda", 0));
        told.lock().unwrap().extend([nothing, missing].into_iter().chain(shared).chain([strange]));
    }));
    support::open(asks, &settings());
    let said = said.lock().unwrap();
    let [Ok(()), Err(missing), Ok(()), Ok(()), Err(other), Err(strange)] = &said[..] else {
        panic!("{said:?}")
    };
    assert!(missing.starts_with("CUDAExecutionProvider: ") && missing.contains("not enabled"), "{missing}");
    assert_eq!(
        other,
        "the arena of device 0 has a limit of 4096 bytes in this process already, not no limit"
    );
    assert!(strange.contains("CUDAExecutionProvider"), "{strange}");
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

/// What is said of a library of that version, as far as its version is asked.
fn reason_for(version: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let [text, library] = ["old.c", "libonnxruntime.so"].map(|name| folder.path().join(name));
    let base = format!(
        "static const void* api(unsigned v) {{ return 0; }}\n\
         static const char* version(void) {{ return \"{version}\"; }}\n\
         static const struct {{ const void* (*api)(unsigned); const char* (*version)(void); }} base = {{ api, version }};\n\
         const void* OrtGetApiBase(void) {{ return &base; }}\n"
    );
    std::fs::write(&text, base).unwrap();
    let mut cc = Command::new("cc");
    let output =
        cc.args(["-shared", "-fPIC", "-o"]).args([&library, &text]).output().expect("a C compiler, `cc`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let settings = Settings { library: Some(library), ..Settings::default() };
    let backend = support::open(Pretended::default(), &settings);
    assert!(backend.info().devices.is_empty());
    backend.info().reason.clone().unwrap()
}

#[test]
fn a_library_that_is_too_old_is_said_to_be() {
    // Another test of this process may have opened the right one, which stays: so this is a process of its own.
    if std::env::var_os(ALONE).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["a_library_that_is_too_old_is_said_to_be", "--exact"]).env(ALONE, "1");
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    for version in ["1.26.0", "1.9.1"] {
        let reason = reason_for(version);
        let oldest = "no library of ONNX Runtime 1.27 or later; tried ";
        assert!(reason.starts_with(oldest) && reason.ends_with(&format!("is version {version}")), "{reason}");
    }
}
